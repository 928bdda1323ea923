//! Embedding, gathering and the greedy choice.

use m40_gguf::{TensorType, dequantize};
use m40_repack::{Layout, Role, repack};
use m40_testkit::gguf::{Noise, quantize};

use crate::emulator::{Launch, floats, run, words};
use crate::{Row, close, gathered, row_words, spread};

const TYPES: [(TensorType, &str); 16] = [
    (TensorType::F32, "f32"),
    (TensorType::F16, "f16"),
    (TensorType::BF16, "bf16"),
    (TensorType::Q4_0, "q4_0"),
    (TensorType::Q4_1, "q4_1"),
    (TensorType::Q5_0, "q5_0"),
    (TensorType::Q5_1, "q5_1"),
    (TensorType::Q8_0, "q8_0"),
    (TensorType::Q2K, "q2_k"),
    (TensorType::Q3K, "q3_k"),
    (TensorType::Q4K, "q4_k"),
    (TensorType::Q5K, "q5_k"),
    (TensorType::Q6K, "q6_k"),
    (TensorType::IQ4NL, "iq4_nl"),
    (TensorType::IQ4XS, "iq4_xs"),
    (TensorType::MXFP4, "mxfp4"),
];

#[test]
fn embedding_gives_the_table_rows_of_every_type() {
    let mut launches = vec![];
    let mut expected = vec![];
    for (ty, name) in TYPES {
        for (vocab, blocks, rows) in [(1, 1, 1), (7, 3, 5), (33, 9, 40)] {
            let cols = match ty.block_len() {
                1 => 20 * blocks + 3,
                block => block * blocks,
            };
            let mut noise = Noise::new((vocab * cols) as u64);
            let layout = Layout::of(ty, vocab, cols).expect("the type has a layout");
            let data = quantize(ty, &noise.normals(vocab * cols, 0.05));
            let mut planes = vec![0; layout.bytes()];
            repack(&layout, &data, &mut planes).expect("the lengths agree");
            let mut table = vec![0.0; vocab * cols];
            dequantize(ty, &data, &mut table).expect("the lengths agree");
            let tokens: Vec<usize> = (0..rows).map(|_| noise.below(vocab)).collect();
            let pass: Vec<Row> =
                tokens.iter().map(|&t| Row { token: t as u32, ..Row::default() }).collect();
            let (scale, stride) = (noise.normal(), cols + 5);
            let launch = Launch::new(format!("rows_embed_{name}"), rows, 64, 0).read(&planes);
            let roles = [Role::High, Role::Scales, Role::ScaleTops, Role::Supers];
            launches.push(
                roles
                    .iter()
                    .fold(launch, |l, role| l.number(layout.plane(*role).offset))
                    .number(vocab)
                    .number(cols)
                    .read_words(&row_words(&pass))
                    .float(scale)
                    .write_floats(&vec![f32::NAN; rows * stride])
                    .number(stride),
            );
            let rows: Vec<f64> = tokens
                .iter()
                .flat_map(|t| &table[t * cols..][..cols])
                .map(|w| f64::from(*w) * f64::from(scale))
                .collect();
            expected.push((format!("{name}, {vocab}x{cols}"), cols, stride, rows));
        }
    }
    let Some(outputs) = run("embed", &launches) else { return };
    for (output, (what, cols, stride, expected)) in outputs.iter().zip(expected) {
        // Weights are below 1: what is allowed is their rounding to 24 bits, twice.
        close(&what, &gathered(&floats(&output[0]), cols, stride), &expected, 3e-8);
    }
}

#[test]
fn gathering_copies_the_rows_asked_for() {
    let mut noise = Noise::new(5);
    let mut launches = vec![];
    let mut expected = vec![];
    for (rows, picked, cols) in [(1, 1, 1), (9, 4, 33), (3, 20, 576), (70, 1, 257)] {
        let x = noise.normals(rows * cols, 1.0);
        let index: Vec<u32> = (0..picked).map(|_| noise.below(rows) as u32).collect();
        launches.push(
            Launch::new("rows_gather", picked, 64, 0)
                .read_floats(&spread(&x, cols, cols + 1))
                .number(cols + 1)
                .read_words(&index)
                .number(cols)
                .write_floats(&vec![f32::NAN; picked * (cols + 3)])
                .number(cols + 3),
        );
        let rows = index.iter().flat_map(|i| x[*i as usize * cols..][..cols].to_vec());
        expected.push((cols, rows.collect::<Vec<f32>>()));
    }
    let Some(outputs) = run("gather", &launches) else { return };
    for (output, (cols, expected)) in outputs.iter().zip(expected) {
        assert_eq!(gathered(&floats(&output[0]), cols, cols + 3), expected);
    }
}

/// What greedy sampling means: the first of the largest, if it is above -infinity.
fn greedy(logits: &[f32]) -> [u32; 2] {
    let mut best = (f32::NEG_INFINITY, [0, 0]);
    for (token, &logit) in logits.iter().enumerate() {
        if logit > best.0 {
            best = (logit, [token as u32, 1.0f32.to_bits()]);
        }
    }
    best.1
}

#[test]
fn the_greedy_token_is_the_first_of_the_largest_and_no_nan() {
    const NOTHING: f32 = f32::NEG_INFINITY;
    let mut noise = Noise::new(6);
    let mut passes: Vec<(usize, Vec<f32>)> = vec![
        (1, vec![-3.0, f32::NAN, NOTHING, f32::INFINITY]),
        (3, vec![f32::NAN, f32::NAN, NOTHING, NOTHING, -1e38, f32::NAN, -0.0, 0.0, -0.0]),
        (4, vec![f32::INFINITY, 3e38, f32::INFINITY, f32::NAN]),
    ];
    for (rows, vocab) in [(1, 2000), (12, 517), (2, 31)] {
        let mut logits = noise.normals(rows * vocab, 4.0);
        // Rounded, so that the largest is there many times: in other lanes and warps too.
        logits.iter_mut().for_each(|v| *v = v.round());
        for _ in 0..rows * vocab / 20 {
            logits[noise.below(rows * vocab)] = f32::NAN;
        }
        passes.push((vocab, logits));
    }
    // A tie across warps, whose first is in the last warp's lane.
    let mut late = vec![0.0; 600];
    late[447] = 1.0;
    late[448] = 1.0;
    late[599] = 1.0;
    passes.push((600, late));
    let mut launches = vec![];
    for (vocab, logits) in &passes {
        for threads in [32, 448] {
            let rows = logits.len() / vocab;
            launches.push(
                Launch::new("rows_argmax", rows, threads, 0)
                    .read_floats(&spread(logits, *vocab, vocab + 1))
                    .number(vocab + 1)
                    .number(*vocab)
                    .write(&vec![0xff; rows * 8]),
            );
        }
    }
    let Some(outputs) = run("argmax", &launches) else { return };
    for ((vocab, logits), outputs) in passes.iter().zip(outputs.chunks(2)) {
        let expected: Vec<u32> = logits.chunks(*vocab).flat_map(greedy).collect();
        for output in outputs {
            assert_eq!(words(&output[0]), expected, "of {vocab} logits");
        }
    }
}
