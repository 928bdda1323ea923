//! Repacking speed of one thread, per type: `cargo run --release -p m40-repack --example speed`.
#![expect(clippy::print_stdout, reason = "a table is what it is for")]

use std::time::{Duration, Instant};

use m40_gguf::TensorType;
use m40_repack::{Layout, is_supported, repack};
use m40_testkit::gguf::Noise;

const ROWS: usize = 1024;
const COLS: usize = 4096;

fn main() {
    println!("{:8} {:>14} {:>14}", "type", "GB/s of blocks", "weights/ns");
    for ty in TensorType::ALL.iter().copied().filter(|&ty| is_supported(ty)) {
        let layout = Layout::of(ty, ROWS, COLS).expect("rows are whole blocks");
        let bytes = ROWS * ty.row_bytes(COLS).expect("rows are whole blocks");
        let mut noise = Noise::new(1);
        let blocks: Vec<u8> = (0..bytes).map(|_| noise.bits() as u8).collect();
        let mut planes = vec![0; layout.bytes()];
        let mut best = Duration::MAX;
        for _ in 0..5 {
            let start = Instant::now();
            repack(&layout, &blocks, &mut planes).expect("the lengths agree");
            best = best.min(start.elapsed());
        }
        let nanoseconds = best.as_secs_f64() * 1e9;
        let weights = (ROWS * COLS) as f64 / nanoseconds;
        println!("{:8} {:14.2} {weights:14.2}", ty.name(), bytes as f64 / nanoseconds);
    }
}
