//! Speed of the matrix kernels, against what the machine can read.
//!
//! `cargo run --release -p m40-cpu --example matmul [-- TYPE]...`
//!
//! For each weight type and shape: decode (one activation row) over a working set larger than the
//! caches, in GB/s of weights and as share of a plain read of the same bytes, then prefill (128
//! rows) in GOPS (a multiplication and an addition are two). Best of several interleaved runs.
#![expect(clippy::print_stdout, reason = "a table for people is what this is for")]

use m40_cpu::matmul::{Activations, Compute, Forms, Matrix, Projection};
use m40_cpu::{Isa, ThreadPool, available_threads};
use m40_gguf::TensorType;
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Bytes of weights that decode goes through: more than the last cache of most machines.
const WORKING_SET: usize = 96 << 20;
const PREFILL_ROWS: usize = 128;
const ROUNDS: usize = 7;

/// `[rows, cols]`: SmolLM2-135M's attention, feed-forward and head; an 8B model's attention.
const SHAPES: [(usize, usize); 5] =
    [(576, 576), (1536, 576), (576, 1536), (49152, 576), (4096, 4096)];

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let isa = Isa::detect();
    println!("{isa}; decode: GB/s (share of a plain read), prefill at {PREFILL_ROWS}: GOPS");
    println!(
        "{:8} {:>14} {:>18} {:>18} {:>10} {:>10}",
        "type", "shape", "decode 1 thread", "decode all", "prefill 1", "prefill all"
    );
    let computes = [1, available_threads()].map(|threads| {
        Compute::new(ThreadPool::new(threads), isa).expect("this instruction set was detected")
    });
    println!(
        "a region that waits for every thread: {:.2} us",
        round_trip(computes[1].pool()).as_secs_f64() * 1e6
    );
    for &ty in TensorType::ALL.iter().filter(|ty| Matrix::supported(**ty)) {
        if wanted.is_empty() || wanted.iter().any(|name| name == ty.name()) {
            for (rows, cols) in SHAPES {
                bench(&computes, ty, rows, cols);
            }
        }
    }
}

fn bench(computes: &[Compute; 2], ty: TensorType, rows: usize, cols: usize) {
    let Some(bytes) = ty.row_bytes(cols).map(|bytes| bytes * rows) else { return };
    if !cols.is_multiple_of(ty.block_len()) {
        return;
    }
    let copies = WORKING_SET.div_ceil(bytes);
    // Any blocks do; small bytes keep the floats among them finite.
    let data: Vec<u8> = (0..copies * bytes).map(|i| (i * 37 % 61) as u8).collect();
    let matrices: Vec<Matrix<'_>> =
        data.chunks_exact(bytes).map(|data| Matrix { ty, rows, cols, data }).collect();
    let mut read = [Duration::MAX; 2];
    let mut decode = [Duration::MAX; 2];
    let mut prefill = [Duration::MAX; 2];
    for _ in 0..ROUNDS {
        for (i, compute) in computes.iter().enumerate() {
            read[i] = read[i].min(plain_read(compute.pool(), &data));
            decode[i] = decode[i].min(products(compute, &matrices, 1));
            prefill[i] = prefill[i].min(products(compute, &matrices[..1], PREFILL_ROWS));
        }
    }
    let rate = |time: Duration| data.len() as f64 / time.as_secs_f64() / 1e9;
    let [one, all] = [0, 1].map(|i| {
        format!("{:.1} ({:.0}%)", rate(decode[i]), 100.0 * rate(decode[i]) / rate(read[i]))
    });
    let operations = (2 * rows * cols * PREFILL_ROWS) as f64;
    let [gops_one, gops_all] = prefill.map(|time| operations / time.as_secs_f64() / 1e9);
    println!(
        "{:8} {:>14} {one:>18} {all:>18} {gops_one:>10.0} {gops_all:>10.0}",
        ty.name(),
        format!("{rows}x{cols}")
    );
}

/// Time of one pass over the matrices with `n` activation rows, activations prepared once.
fn products(compute: &Compute, matrices: &[Matrix<'_>], n: usize) -> Duration {
    let Matrix { ty, rows, cols, .. } = matrices[0];
    let x: Vec<f32> = (0..n * cols).map(|i| (i * 29 % 101) as f32 - 50.0).collect();
    let mut acts = Activations::new();
    acts.prepare(compute, &x, n, cols, Forms::of([ty]));
    let mut out = vec![0.0; n * rows];
    let mut pass = || {
        let start = Instant::now();
        for &weight in matrices {
            compute.project(&acts, &mut [Projection { weight, out: &mut out }]);
        }
        start.elapsed()
    };
    // A first short one touches the result and wakes the threads.
    let first = pass();
    if matrices.len() > 1 { first } else { (0..5).map(|_| pass()).min().unwrap_or(first) }
}

/// Time for the pool's threads to read every byte once.
fn plain_read(pool: &ThreadPool, data: &[u8]) -> Duration {
    const PIECE: usize = 256 << 10;
    let pieces: Vec<&[u8]> = data.chunks(PIECE).collect();
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    pool.run(&|_| {
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut sums = [0_u64; 16];
            for line in piece.as_chunks::<128>().0 {
                for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
                    *sum = sum.wrapping_add(u64::from_le_bytes(*word));
                }
            }
            black_box(sums);
        }
    });
    start.elapsed()
}

/// Time of a parallel region that does nothing but wait for every thread, the threads being awake.
fn round_trip(pool: &ThreadPool) -> Duration {
    const REGIONS: u32 = 1000;
    let region = || {
        let start = Instant::now();
        for _ in 0..REGIONS {
            let came = AtomicUsize::new(0);
            pool.run(&|_| {
                came.fetch_add(1, Ordering::Relaxed);
                while came.load(Ordering::Relaxed) < pool.threads() {
                    std::hint::spin_loop();
                }
            });
        }
        start.elapsed() / REGIONS
    };
    (0..20).map(|_| region()).min().unwrap_or_default()
}
