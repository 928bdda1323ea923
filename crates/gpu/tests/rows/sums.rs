//! Partial products, added up by what follows them.

use m40_program::KvType;
use m40_testkit::gguf::Noise;

use crate::cache::Cache;
use crate::emulator::{Launch, floats, run};
use crate::heads::Treatment;
use crate::{close, from_halves, gains, gathered, row_words, spread};

/// What `GemmArgs::flags` of kernels/gemm.cuh says.
const BIAS: usize = 1;
const RESIDUAL: usize = 2;
const SILU: usize = 4;
const GELU: usize = 8;
const IN_PLACE: usize = 32;

/// What `HeadOps` of kernels/rows.cu says.
const NORM: usize = 1;
const ROTATE: usize = 2;
const INTERLEAVED: usize = 4;
const NORM_KEYS: usize = 8;
const HEAD_BIAS: usize = 16;

/// Parts of rows as GEMM kernels leave them, NaN behind each row, and their sums.
struct Parts {
    floats: Vec<f32>,
    sums: Vec<f64>,
}

impl Parts {
    fn new(noise: &mut Noise, splits: usize, rows: usize, cols: usize) -> Self {
        let parts = noise.normals(splits * rows * cols, 1.0);
        let mut sums = vec![0.0; rows * cols];
        for part in parts.chunks(rows * cols) {
            sums.iter_mut().zip(part).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        Self { floats: spread(&parts, cols, cols.next_multiple_of(4)), sums }
    }
}

#[test]
fn sums_are_normed_after_a_bias_and_a_residual() {
    let mut noise = Noise::new(51);
    let mut launches = vec![];
    let mut expected = vec![];
    for (splits, rows, cols, flags) in [
        (2, 3, 64, 0),
        (9, 2, 577, BIAS),
        (3, 1, 1030, RESIDUAL),
        (5, 4, 30, RESIDUAL | IN_PLACE),
        (1, 2, 8, BIAS | RESIDUAL),
        (18, 1, 2400, BIAS),
        (48, 2, 576, RESIDUAL | IN_PLACE),
    ] {
        let parts = Parts::new(&mut noise, splits, rows, cols);
        let (bias, other) = (noise.normals(cols, 1.0), noise.normals(rows * cols, 1.0));
        let (gain, eps, stride) = (gains(&mut noise, cols), 1e-5, cols + 2);
        let in_place = flags & IN_PLACE != 0;
        let y = if in_place { other.clone() } else { vec![f32::NAN; rows * cols] };
        let threads = [64, 256, 512][rows % 3];
        let launch = Launch::new("rows_sum_norm", rows, threads, 0)
            .read_floats(&parts.floats)
            .number(splits)
            .number(cols)
            .number(rows)
            .write_floats(&spread(&y, cols, stride))
            .number(stride)
            .read_floats(&bias);
        let launch = if in_place {
            launch.unused()
        } else {
            launch.read_floats(&spread(&other, cols, stride))
        };
        launches.push(
            launch
                .number(flags)
                .read_floats(&gain)
                .float(eps)
                .write_floats(&vec![f32::NAN; rows * stride])
                .number(stride),
        );
        let mut y = parts.sums;
        for (i, y) in y.iter_mut().enumerate() {
            *y += if flags & BIAS != 0 { f64::from(bias[i % cols]) } else { 0.0 };
            *y += if flags & RESIDUAL != 0 { f64::from(other[i]) } else { 0.0 };
        }
        let mut normed = vec![];
        for y in y.chunks(cols) {
            let squares: f64 = y.iter().map(|v| v * v).sum();
            let scale = 1.0 / (squares / cols as f64 + f64::from(eps)).sqrt();
            normed.extend(y.iter().zip(&gain).map(|(y, gain)| y * scale * f64::from(*gain)));
        }
        expected.push((format!("{splits} parts of {rows}x{cols}, {flags}"), cols, y, normed));
    }
    let Some(outputs) = run("sum-norm", &launches) else { return };
    for (output, (what, cols, y, normed)) in outputs.iter().zip(expected) {
        let rows = |i: usize| gathered(&floats(&output[i]), cols, cols + 2);
        close(&what, &rows(0), &y, 2e-6);
        close(&what, &rows(1), &normed, 2e-6);
    }
}

#[test]
fn sums_are_gated() {
    let mut noise = Noise::new(52);
    let mut launches = vec![];
    let mut expected = vec![];
    for (splits, rows, cols, flags) in [(2, 3, 64, SILU), (9, 2, 101, GELU), (19, 1, 1030, SILU)] {
        let [gate, up] = [(); 2].map(|()| Parts::new(&mut noise, splits, rows, cols));
        let stride = cols + 3;
        launches.push(
            Launch::new("rows_sum_gate", 2, 64, 0)
                .read_floats(&[gate.floats, up.floats].concat())
                .number(splits)
                .number(cols)
                .number(rows)
                .write_floats(&vec![f32::NAN; rows * stride])
                .number(stride)
                .number(flags),
        );
        let gated = gate.sums.iter().zip(&up.sums).map(|(&x, up)| {
            let cubic = 2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            let inner = if flags == GELU { cubic } else { x };
            x / (1.0 + (-inner).exp()) * up
        });
        expected.push((
            format!("{splits} parts of {rows}x{cols}"),
            cols,
            gated.collect::<Vec<_>>(),
        ));
    }
    let Some(outputs) = run("sum-gate", &launches) else { return };
    for (output, (what, cols, expected)) in outputs.iter().zip(expected) {
        close(&what, &gathered(&floats(&output[0]), cols, cols + 3), &expected, 3e-6);
    }
}

#[test]
fn sums_of_heads_are_treated_and_stored_but_for_rows_without_pages() {
    let mut noise = Noise::new(53);
    let mut launches = vec![];
    let mut expected = vec![];
    for (splits, (heads, kv_heads), (key_dim, value_dim), pairs, ops) in [
        (2, (3, 1), (64, 64), 32, ROTATE),
        (9, (4, 2), (80, 24), 40, ROTATE | NORM | NORM_KEYS | INTERLEAVED),
        (3, (2, 2), (96, 128), 20, ROTATE | HEAD_BIAS),
        (4, (6, 3), (8, 8), 4, NORM_KEYS),
        (18, (1, 1), (128, 64), 64, NORM),
    ] {
        let cache = Cache::new(
            &mut noise,
            KvType::F16,
            (kv_heads, key_dim, value_dim),
            &[(0, 40), (64, 100)],
        );
        let rows = [(1, 99), (0, 33), (0, 7)];
        let width = (heads + kv_heads) * key_dim + kv_heads * value_dim;
        let parts = Parts::new(&mut noise, splits, rows.len(), width);
        let bias = noise.normals(width, 1.0);
        let shared = ops & (ROTATE | INTERLEAVED);
        let queries = Treatment::new(&mut noise, key_dim, shared | (ops & NORM), pairs);
        let norm = if ops & NORM_KEYS != 0 { NORM } else { 0 };
        let keys = Treatment::new(&mut noise, key_dim, shared | norm, pairs);
        let angles = queries.angles(&mut noise, rows.len());
        let mut descriptors = rows.map(|(sequence, position)| cache.row(sequence, position));
        // The last row has ended.
        descriptors[2].pages = u32::MAX;
        let (q_width, units) = (heads * key_dim, rows.len() * (heads + 2 * kv_heads));
        launches.push(
            Launch::new("rows_sum_heads", units.div_ceil(4), 128, 16 * key_dim.max(value_dim))
                .read_words(&cache.arena)
                .read_words(&row_words(&descriptors))
                .number(rows.len())
                .read_floats(&parts.floats)
                .number(splits)
                .number(width)
                .read_floats(&bias)
                .write_floats(&vec![f32::NAN; rows.len() * (q_width + 5)])
                .number(q_width + 5)
                .number(heads)
                .number(kv_heads)
                .number(key_dim)
                .number(value_dim)
                .number(ops)
                .read_floats(&queries.gain)
                .read_floats(&keys.gain)
                .float(queries.eps)
                .read_floats(&angles)
                .number(pairs)
                .write(&cache.bytes)
                .number(cache.page_places),
        );
        let biased = parts.sums.iter().enumerate().map(|(i, sum)| {
            (sum + if ops & HEAD_BIAS != 0 { f64::from(bias[i % width]) } else { 0.0 }) as f32
        });
        let biased: Vec<f32> = biased.collect();
        let mut q = vec![];
        let mut stored = vec![];
        let all = biased.chunks(width).zip(angles.chunks(2 * pairs)).zip(rows).take(2);
        for ((row, angles), (sequence, position)) in all {
            let (of_q, rest) = row.split_at(q_width);
            let (of_k, of_v) = rest.split_at(kv_heads * key_dim);
            q.extend(of_q.chunks(key_dim).flat_map(|head| queries.apply(head, angles)));
            for (head, x) in of_k.chunks(key_dim).enumerate() {
                let key = |(d, x)| (cache.key(sequence, position, head, d), x);
                stored.extend(keys.apply(x, angles).into_iter().enumerate().map(key));
            }
            for (head, x) in of_v.chunks(value_dim).enumerate() {
                let value = |(d, x): (usize, &f32)| {
                    (cache.value(sequence, position, head, d), f64::from(*x))
                };
                stored.extend(x.iter().enumerate().map(value));
            }
        }
        expected.push((format!("{heads} heads of {key_dim}, {ops}"), q_width, q, stored));
    }
    let Some(outputs) = run("sum-heads", &launches) else { return };
    for (output, (what, q_width, q, stored)) in outputs.iter().zip(expected) {
        let found = gathered(&floats(&output[0]), q_width, q_width + 5);
        close(&what, &found[..q.len()], &q, 3e-6);
        assert!(found[q.len()..].iter().all(|x| x.is_nan()), "{what}: a row without pages");
        let halves: Vec<u16> =
            output[1].as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect();
        let found = from_halves(&halves);
        let (places, values): (Vec<usize>, Vec<f64>) = stored.into_iter().unzip();
        let at_places: Vec<_> = places.iter().map(|place| found[*place]).collect();
        close(&what, &at_places, &values, 1e-3);
        let numbers = found.iter().filter(|x| !x.is_nan()).count();
        assert_eq!(numbers, places.len(), "{what}: stored elsewhere");
    }
}
