//! Embedding and gathering.

use m40_gguf::{TensorType, dequantize};
use m40_repack::{Layout, Role, repack};
use m40_testkit::gguf::{Noise, quantize};

use crate::emulator::{Launch, floats, run};
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
