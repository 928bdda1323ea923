//! Weights arrive as they were packed, and about as fast as the bus is.

use std::num::NonZero;
use std::ops::ControlFlow;
use std::thread;
use std::time::Instant;

use m40_cuda::{Arena, CudaError, Device, StagingRing};
use m40_gguf::{Gguf, TensorType};
use m40_gpu::weights::{Loader, Progress, Weights, WeightsError};
use m40_program::{BufferId, Description, Head, Matrix, MatrixId, Program, Vector};
use m40_repack::{Role, repack};
use m40_testkit::gguf::{GgufBuilder, Noise};

use super::{gpu, say};

/// A model that is weights and nothing else.
struct Model {
    file: Vec<u8>,
    program: Program,
    fused: Vec<Vec<MatrixId>>,
}

/// Layers of the attention and feed-forward matrices of an 8B model, of one type: some `bytes`
/// bytes of them.
fn model(ty: TensorType, bytes: usize) -> Model {
    const WIDTH: usize = 4096;
    const SHAPES: [(&str, usize, usize); 6] = [
        ("q", WIDTH, WIDTH),
        ("k", 1024, WIDTH),
        ("v", 1024, WIDTH),
        ("gate", 14_336, WIDTH),
        ("up", 14_336, WIDTH),
        ("down", WIDTH, 14_336),
    ];
    let row_bytes = |cols| ty.row_bytes(cols).expect("whole blocks");
    let layer: usize = SHAPES.iter().map(|(_, rows, cols)| rows * row_bytes(*cols)).sum();
    let description = Description {
        architecture: String::new(),
        name: String::new(),
        layers: 0,
        embedding: WIDTH,
        vocab: 0,
        context: 0,
        pooling: None,
    };
    let mut program = Program {
        description,
        buffers: Vec::new(),
        matrices: Vec::new(),
        vectors: Vec::new(),
        ropes: Vec::new(),
        kv: Vec::new(),
        ops: Vec::new(),
        hidden: BufferId(0),
        head: Head::None,
    };
    let (mut file, mut fused) = (GgufBuilder::new(), Vec::new());
    let mut noise = Noise::new(1);
    for number in 0..bytes.div_ceil(layer) {
        let first = program.matrices.len() as u32;
        for (name, rows, cols) in SHAPES {
            let name = format!("{number}.{name}");
            let mut data = Vec::with_capacity(rows * row_bytes(cols) + 8);
            while data.len() < rows * row_bytes(cols) {
                data.extend(noise.bits().to_le_bytes());
            }
            data.truncate(rows * row_bytes(cols));
            file = file.tensor(&name, &[cols, rows], ty, data);
            program.matrices.push(Matrix { tensor: name, ty, first_row: 0, rows, cols });
        }
        let name = format!("{number}.norm");
        let gain: Vec<f32> = (0..WIDTH).map(|i| (number * WIDTH + i) as f32).collect();
        file = file.tensor_of(&name, &[WIDTH], TensorType::F32, &gain);
        program.vectors.push(Vector { tensor: name, first: 0, len: WIDTH });
        let ids = |ids: [u32; 3]| ids.map(|id| MatrixId(first + id)).to_vec();
        fused.extend([ids([0, 1, 2]), vec![MatrixId(first + 3)], vec![MatrixId(first + 4)]]);
        fused.push(vec![MatrixId(first + 5)]);
    }
    Model { file: file.build(), program, fused }
}

fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn threads() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// GB/s of a copy of so many bytes out of pinned memory, nothing done to them.
fn raw_rate(device: &Device, arena: &Arena, bytes: usize) -> f64 {
    let mut ring = StagingRing::new(device, 16 << 20).expect("pinned memory");
    let mut to = arena.allocate::<u8>(bytes).expect("the arena has room");
    let begun = Instant::now();
    ring.upload(to.all_mut(), |_, _: &mut [u8]| Ok::<_, CudaError>(())).expect("copies");
    ring.stream().wait().expect("copies end");
    bytes as f64 / begun.elapsed().as_secs_f64() / 1e9
}

/// Loads twice, for the first time touches pinned memory and the arena, and says how fast the
/// second time was.
fn load(model: &Model, arena: &Arena, loader: &mut Loader) -> (Weights, f64) {
    let gguf = Gguf::parse(model.file.as_slice()).expect("a whole file");
    let mut last = None;
    let mut rate = 0.0;
    for _ in 0..2 {
        drop(last.take());
        let begun = Instant::now();
        let loaded = Weights::load(&model.program, &gguf, &model.fused, arena, loader, &mut go_on)
            .expect("loads");
        rate = model.program.weight_bytes() as f64 / begun.elapsed().as_secs_f64() / 1e9;
        last = Some(loaded);
    }
    (last.expect("loaded twice"), rate)
}

/// Compares planes of the matrix of this number with those that the file makes.
fn assert_planes(model: &Model, weights: &Weights, number: usize, ring: &mut StagingRing) {
    let gguf = Gguf::parse(model.file.as_slice()).expect("a whole file");
    let matrix = &weights.matrices()[number];
    let layout = matrix.layout();
    assert_eq!(matrix.place().bytes(), matrix.memory().offset());
    let parts = model.fused[number].iter().map(|&id| &model.program.matrix(id).tensor);
    let blocks =
        parts.map(|name| gguf.tensor(name).expect("is there").data).collect::<Vec<_>>().concat();
    let mut expected = vec![0; layout.bytes()];
    repack(layout, &blocks, &mut expected).expect("whole rows");
    let mut found = vec![0; layout.bytes()];
    ring.read(matrix.memory().all(), &mut found).expect("copies");
    for role in Role::ALL {
        let plane = layout.plane(role);
        let range = plane.offset..plane.offset + plane.quad_bytes * layout.quads();
        let range = if plane.quad_bytes == 0 { 0..0 } else { range };
        assert!(found[range.clone()] == expected[range], "matrix {number}, {role:?}");
    }
}

#[test]
fn weights_arrive_as_packed_and_about_as_fast_as_a_copy() {
    let Some(gpu) = gpu() else { return };
    let device = &gpu.device;
    // What a card of the M40's size holds beside other things; less where memory is scarce.
    let bytes = (device.info().memory.free / 4).min(4 << 30) as usize;
    let arena = Arena::new(device, bytes as u64 * 5 / 4 + (256 << 20)).unwrap();
    let mut ring = StagingRing::new(device, 16 << 20).unwrap();
    let threads = threads();
    let mut loader = Loader::new(device, threads).unwrap();
    let types = [
        (TensorType::Q4_0, bytes),
        (TensorType::Q4K, bytes / 4),
        (TensorType::Q6K, bytes / 4),
        (TensorType::Q8_0, bytes / 4),
        (TensorType::F16, bytes / 4),
    ];
    for (ty, bytes) in types {
        let model = model(ty, bytes);
        assert!(Weights::bytes(&model.program, &model.fused).unwrap() <= arena.usage().free);
        let raw = raw_rate(device, &arena, model.program.weight_bytes() as usize);
        let (weights, rate) = load(&model, &arena, &mut loader);
        say(&format!(
            "{ty}: {:.2} GB of weights at {rate:.1} GB/s by {threads} threads, a copy at {raw:.1}: \
             {:.2} of it",
            model.program.weight_bytes() as f64 / 1e9,
            rate / raw,
        ));
        let last = model.fused.len() - 1;
        for number in [0, 1, 3, last / 2, last] {
            assert_planes(&model, &weights, number, &mut ring);
        }
        assert_eq!(weights.matrices().len(), model.fused.len());
        drop(weights);
        assert_eq!(arena.usage().free, arena.usage().capacity, "all of it goes back");
    }
}

#[test]
fn loading_that_is_cancelled_leaves_nothing_behind() {
    let Some(gpu) = gpu() else { return };
    let device = &gpu.device;
    let model = model(TensorType::Q8_0, 1);
    let gguf = Gguf::parse(model.file.as_slice()).unwrap();
    let arena = Arena::new(device, 1 << 30).unwrap();
    let mut loader = Loader::with_buffers(device, 2, 1 << 20).unwrap();
    let mut stop = |progress: Progress| match progress.done > progress.total / 2 {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    let (program, fused) = (&model.program, &model.fused);
    let result = Weights::load(program, &gguf, fused, &arena, &mut loader, &mut stop).map(|_| ());
    assert!(matches!(result, Err(WeightsError::Cancelled)), "{result:?}");
    assert_eq!(arena.usage().free, arena.usage().capacity);
    // The same buffers and memory serve the next one.
    let weights = Weights::load(program, &gguf, fused, &arena, &mut loader, &mut go_on).unwrap();
    let mut ring = StagingRing::new(device, 1 << 20).unwrap();
    (0..fused.len()).for_each(|number| assert_planes(&model, &weights, number, &mut ring));
    let small = Arena::new(device, 1 << 20).unwrap();
    let result = Weights::load(program, &gguf, fused, &small, &mut loader, &mut go_on).map(|_| ());
    let Err(WeightsError::Cuda(CudaError::ArenaExhausted { .. })) = result else {
        panic!("{result:?}")
    };
}
