//! Loading into host memory: everything but the card itself, which `tests/gpu` adds.

use std::ops::ControlFlow;

use m40_cuda::CudaError;
use m40_gguf::{Gguf, TensorType, dequantize};
use m40_program::{BufferId, Description, Head, Matrix, MatrixId, Program, Vector};
use m40_repack::{Layout, Role, repack};
use m40_testkit::gguf::{GgufBuilder, Noise};

use super::plan::Plan;
use super::upload::{self, Staging, Target};
use super::{Progress, Weights, WeightsError};

impl Target for &mut [u8] {
    fn split_at(self, bytes: usize) -> (Self, Self) {
        self.split_at_mut(bytes)
    }
}

/// A staging buffer in host memory, which fails when it has sent so many times.
struct Fake {
    memory: Vec<u8>,
    sends_left: usize,
}

impl<'a> Staging<&'a mut [u8]> for Fake {
    fn len(&self) -> usize {
        self.memory.len()
    }

    fn room(&mut self) -> Result<&mut [u8], CudaError> {
        // What was there before must not be taken for planes.
        self.memory.fill(0x5a);
        Ok(&mut self.memory)
    }

    fn send(
        &mut self,
        parts: impl Iterator<Item = (usize, &'a mut [u8])>,
    ) -> Result<(), CudaError> {
        self.sends_left = self.sends_left.checked_sub(1).ok_or(CudaError::Capturing)?;
        for (first, to) in parts {
            to.copy_from_slice(&self.memory[first..first + to.len()]);
        }
        Ok(())
    }
}

fn workers(threads: usize, bytes: usize, sends: usize) -> Vec<[Fake; 2]> {
    let fake = || Fake { memory: vec![0; bytes], sends_left: sends };
    (0..threads).map(|_| [fake(), fake()]).collect()
}

/// A tensor of random bytes, and a matrix of all its rows.
struct Model {
    file: GgufBuilder,
    program: Program,
}

impl Model {
    fn new() -> Self {
        let description = Description {
            architecture: String::new(),
            name: String::new(),
            layers: 0,
            embedding: 0,
            vocab: 0,
            context: 0,
            pooling: None,
        };
        let program = Program {
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
        Self { file: GgufBuilder::new(), program }
    }

    fn tensor(mut self, name: &str, ty: TensorType, rows: usize, cols: usize) -> Self {
        let mut noise = Noise::named(name, 1);
        let bytes = rows * ty.row_bytes(cols).unwrap();
        let data = (0..bytes).map(|_| noise.bits() as u8).collect();
        self.file = self.file.tensor(name, &[cols, rows], ty, data);
        self
    }

    fn matrix(self, name: &str, ty: TensorType, rows: usize, cols: usize) -> Self {
        self.tensor(name, ty, rows, cols).rows_of(name, ty, 0, rows, cols)
    }

    fn rows_of(mut self, name: &str, ty: TensorType, first: usize, rows: usize, c: usize) -> Self {
        let matrix = Matrix { tensor: name.to_owned(), ty, first_row: first, rows, cols: c };
        self.program.matrices.push(matrix);
        self
    }

    fn vector(mut self, name: &str, values: &[f32], first: usize, len: usize) -> Self {
        self.file = self.file.tensor_of(name, &[values.len()], TensorType::F32, values);
        self.program.vectors.push(Vector { tensor: name.to_owned(), first, len });
        self
    }
}

fn ids<const N: usize>(ids: [u32; N]) -> Vec<MatrixId> {
    ids.map(MatrixId).to_vec()
}

/// Planes of all matrices, and the vectors' bytes.
type Loaded = (Vec<Vec<u8>>, Vec<u8>);

fn load(
    model: &Model,
    fused: &[Vec<MatrixId>],
    workers: Vec<[Fake; 2]>,
    progress: &mut (dyn FnMut(Progress) -> ControlFlow<()> + Send),
) -> Result<Loaded, WeightsError> {
    let gguf = Gguf::parse(model.file.build()).unwrap();
    let plan = Plan::new(&model.program, &gguf, fused)?;
    // Neither what planes hold nor what staging buffers are filled with.
    let mut matrices: Vec<_> =
        plan.layouts.iter().map(|layout| vec![0xee; layout.bytes()]).collect();
    let mut vectors = vec![0xee; plan.vectors.len() * 4];
    let targets = matrices.iter_mut().map(Vec::as_mut_slice).collect();
    let vector_target = (!vectors.is_empty()).then_some(vectors.as_mut_slice());
    upload::run(&plan, targets, vector_target, workers, progress)?;
    Ok((matrices, vectors))
}

fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn error(model: &Model, fused: &[Vec<MatrixId>]) -> String {
    load(model, fused, workers(1, 1 << 16, 1000), &mut go_on).unwrap_err().to_string()
}

/// The planes of rows of blocks, gaps between planes as `gaps`.
fn planes(layout: &Layout, blocks: &[u8], gap: u8) -> Vec<u8> {
    let mut packed = vec![0; layout.bytes()];
    repack(layout, blocks, &mut packed).unwrap();
    let mut out = vec![gap; layout.bytes()];
    for plane in Role::ALL.map(|role| layout.plane(role)) {
        let range = plane.offset..plane.offset + plane.quad_bytes * layout.quads();
        if !range.is_empty() {
            out[range.clone()].copy_from_slice(&packed[range]);
        }
    }
    out
}

#[test]
fn planes_are_those_of_the_whole_matrix_however_it_is_cut() {
    let types = [
        (TensorType::Q4_0, 96),
        (TensorType::Q8_0, 32),
        (TensorType::Q4K, 512),
        (TensorType::Q6K, 256),
        (TensorType::Q3K, 256),
        (TensorType::F16, 40),
        (TensorType::F32, 33),
    ];
    for (ty, cols) in types {
        let model = Model::new().matrix("a", ty, 50, cols).matrix("b", ty, 21, cols);
        let gguf = Gguf::parse(model.file.build()).unwrap();
        for (threads, bytes) in [(1, 4 << 10), (3, 5 << 10), (4, 64 << 10)] {
            let fused = [ids([0]), ids([1])];
            let (found, vectors) =
                load(&model, &fused, workers(threads, bytes, 1000), &mut go_on).unwrap();
            assert!(vectors.is_empty());
            for (name, rows, found) in [("a", 50, &found[0]), ("b", 21, &found[1])] {
                let layout = Layout::of(ty, rows, cols).unwrap();
                let data = gguf.tensor(name).unwrap().data;
                let expected = planes(&layout, data, 0xee);
                assert!(*found == expected, "{name}: {ty}, {threads} threads of {bytes} bytes");
            }
        }
    }
}

#[test]
fn fused_matrices_lie_one_below_the_other_in_one_set_of_planes() {
    let ty = TensorType::Q5K;
    let model = Model::new()
        .tensor("qkv", ty, 30, 256)
        .tensor("gate", ty, 9, 256)
        .rows_of("qkv", ty, 4, 16, 256)
        .rows_of("gate", ty, 0, 9, 256)
        .rows_of("qkv", ty, 22, 8, 256);
    let fused = [ids([2, 0, 1]), ids([0])];
    let (found, _) = load(&model, &fused, workers(2, 4 << 10, 1000), &mut go_on).unwrap();
    let gguf = Gguf::parse(model.file.build()).unwrap();
    let (qkv, gate) = (gguf.tensor("qkv").unwrap().data, gguf.tensor("gate").unwrap().data);
    let row = ty.row_bytes(256).unwrap();
    let blocks = [&qkv[22 * row..], &qkv[4 * row..20 * row], gate].concat();
    let expected = planes(&Layout::of(ty, 33, 256).unwrap(), &blocks, 0xee);
    assert!(found[0] == expected);
    let expected = planes(&Layout::of(ty, 16, 256).unwrap(), &qkv[4 * row..20 * row], 0xee);
    assert!(found[1] == expected, "a matrix may lie in two places");
}

#[test]
fn vectors_are_floats_each_at_a_line_of_its_own() {
    let model = Model::new()
        .vector("gain", &[1.0, 2.0, 3.0], 0, 3)
        .vector("bias", &(0..2000).map(|i| i as f32).collect::<Vec<_>>(), 100, 1800)
        .vector("last", &[9.0], 0, 1);
    let mut model = model.tensor("half", TensorType::F16, 1, 5);
    model.program.vectors.push(Vector { tensor: "half".to_owned(), first: 1, len: 4 });
    let (_, bytes) = load(&model, &[], workers(2, 4 << 10, 1000), &mut go_on).unwrap();
    let (words, _) = bytes.as_chunks::<4>();
    let found: Vec<f32> = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
    let gguf = Gguf::parse(model.file.build()).unwrap();
    let plan = Plan::new(&model.program, &gguf, &[]).unwrap();
    assert_eq!(plan.vector_offsets, [0, 128, 128 + 7296, 128 + 7296 + 128]);
    let at = |index: usize, len: usize| &found[plan.vector_offsets[index] / 4..][..len];
    assert_eq!(at(0, 4), [1.0, 2.0, 3.0, 0.0]);
    assert!(at(1, 1800).iter().zip(100..).all(|(&x, i)| x == i as f32));
    assert_eq!(at(2, 1), [9.0]);
    let mut half = [0.0; 5];
    dequantize(TensorType::F16, gguf.tensor("half").unwrap().data, &mut half).unwrap();
    let bits = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(at(3, 4)), bits(&half[1..]));
    let layout = Weights::bytes(&model.program, &[]).unwrap();
    assert_eq!(layout, (bytes.len() as u64).next_multiple_of(m40_cuda::ALIGNMENT));
}

#[test]
fn progress_ends_at_all_bytes_and_can_stop_the_loading() {
    let model = Model::new()
        .matrix("a", TensorType::Q8_0, 400, 256)
        .matrix("b", TensorType::F16, 100, 256)
        .vector("gain", &[1.0; 64], 0, 64);
    let fused = [ids([0]), ids([1])];
    let mut reports = Vec::new();
    let mut note = |progress: Progress| {
        reports.push(progress);
        ControlFlow::Continue(())
    };
    load(&model, &fused, workers(3, 4 << 10, 1000), &mut note).unwrap();
    let total = 400 * 272 + 100 * 512 + 256;
    assert!(reports.is_sorted_by(|a, b| a.done < b.done));
    assert_eq!(reports.last(), Some(&Progress { done: total, total }));
    assert!(reports.len() > 30, "{}", reports.len());

    let mut calls = 0;
    let mut stop = |_: Progress| {
        calls += 1;
        if calls < 5 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let result = load(&model, &fused, workers(3, 4 << 10, 1000), &mut stop).map(|_| ());
    assert!(matches!(result, Err(WeightsError::Cancelled)), "{result:?}");
    assert_eq!(calls, 5, "who stopped it hears no more");
}

#[test]
fn an_error_of_the_card_ends_all_threads_and_is_told() {
    let model = Model::new().matrix("a", TensorType::Q8_0, 4000, 256);
    // One send a slab, so that no thread can send more than 16 of over 300.
    let workers = workers(3, 4 << 10, 8);
    let mut calls = 0;
    let mut count = |_: Progress| {
        calls += 1;
        ControlFlow::Continue(())
    };
    let result = load(&model, &[ids([0])], workers, &mut count).map(|_| ());
    assert!(matches!(result, Err(WeightsError::Cuda(CudaError::Capturing))), "{result:?}");
    assert!(calls <= 3 * 16, "{calls} slabs were sent");
}

#[test]
fn a_file_that_is_not_the_programs_is_refused_by_tensor() {
    let ty = TensorType::Q8_0;
    let model = Model::new().rows_of("a", ty, 0, 8, 64);
    assert_eq!(
        error(&model, &[ids([0])]),
        "the file has no tensor a: it is not the one that the program was made of"
    );
    let model = Model::new().tensor("a", ty, 8, 64).rows_of("a", ty, 4, 8, 64);
    assert_eq!(
        error(&model, &[ids([0])]),
        "tensor a holds 8 rows of 64 Q8_0 weights, the program expects 12 rows of 64 Q8_0 weights: \
         it was made of another file"
    );
    let model = Model::new().tensor("a", ty, 8, 64).rows_of("a", TensorType::Q4_0, 0, 8, 64);
    assert!(error(&model, &[ids([0])]).contains("8 rows of 64 Q4_0 weights"));
    let model = Model::new().tensor("a", ty, 8, 64).rows_of("a", ty, 0, 8, 32);
    assert!(error(&model, &[ids([0])]).contains("8 rows of 32 Q8_0 weights"));
    let model = Model::new().vector("bias", &[1.0, 2.0], 1, 2);
    assert!(error(&model, &[]).contains("tensor bias holds 1 rows of 2 F32 weights"));
    let mut model = Model::new().tensor("odd", TensorType::I32, 1, 2);
    model.program.vectors.push(Vector { tensor: "odd".to_owned(), first: 0, len: 2 });
    assert_eq!(error(&model, &[]), "tensor odd: tensor type I32 cannot be dequantised");
}

#[test]
fn what_cannot_be_fused_is_refused_by_position() {
    let ty = TensorType::Q8_0;
    let model = Model::new()
        .matrix("a", ty, 8, 64)
        .matrix("wide", ty, 8, 96)
        .matrix("odd", ty, 6, 64)
        .matrix("other", TensorType::Q4_0, 8, 64)
        .rows_of("a", ty, 0, 0, 64)
        .matrix("whole", TensorType::I32, 8, 64);
    let fused = |list: Vec<MatrixId>| error(&model, &[ids([0]), list]);
    assert_eq!(
        fused(ids([0, 1])),
        "matrix 1 of fused matrix 1 (wide) cannot be there: 8 rows of 96 Q8_0 weights below 8 rows \
         of 64 Q8_0 weights"
    );
    assert!(fused(ids([0, 3])).contains("8 rows of 64 Q4_0 weights below"));
    assert!(fused(ids([2, 0])).contains("(odd) cannot be there: below its 6 rows others"));
    assert!(load(&model, &[ids([0, 2])], workers(1, 4096, 99), &mut go_on).is_ok());
    assert!(fused(ids([])).contains("there is none to be fused"));
    assert!(fused(ids([0, 77])).contains("the program has 6 matrices, no 77th"));
    assert!(fused(ids([0, 4])).contains("it has no rows"));
    assert!(fused(ids([5])).starts_with("tensor whole: tensor type I32 has no GPU layout"));
}

#[test]
fn rows_wider_than_a_staging_buffer_are_refused() {
    let model = Model::new().matrix("wide", TensorType::F32, 4, 1024);
    let result = load(&model, &[ids([0])], workers(1, 8 << 10, 1000), &mut go_on).map(|_| ());
    let Err(WeightsError::TooWide { tensor, needed, room }) = result else { panic!("{result:?}") };
    assert_eq!((tensor.as_str(), room), ("wide", 8 << 10));
    assert!(needed >= 16 << 10);
}

#[test]
fn what_will_be_taken_of_an_arena_is_known_before() {
    let model = Model::new()
        .matrix("a", TensorType::Q4K, 10, 256)
        .matrix("b", TensorType::F16, 3, 7)
        .vector("gain", &[1.0], 0, 1);
    let bytes = |rows, ty, cols| {
        let layout = Layout::of(ty, rows, cols).unwrap();
        (layout.bytes() as u64).next_multiple_of(m40_cuda::ALIGNMENT)
    };
    let expected = bytes(10, TensorType::Q4K, 256) + bytes(3, TensorType::F16, 7) + 256;
    assert_eq!(Weights::bytes(&model.program, &[ids([0]), ids([1])]).unwrap(), expected);
}
