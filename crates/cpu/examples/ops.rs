//! Prints where the time of a pass goes, op by op kind:
//! `cargo run --release -p m40-cpu --example ops -- MODEL.gguf [ROWS] [DEPTH]`.
//!
//! Runs a prompt of DEPTH tokens, then passes of ROWS tokens after it, and keeps the fastest.

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use std::collections::BTreeMap;
use std::error::Error;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use m40_cpu::{Executor, ExecutorOptions, Row};
use m40_gguf::Gguf;
use m40_program::cost::PassShape;
use m40_program::{BuildOptions, build};

const PASSES: usize = 30;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: ops MODEL.gguf [ROWS] [DEPTH]")?;
    let mut number = |default| arguments.next().map_or(Ok(default), |n| n.parse::<usize>());
    let (n, depth) = (number(1)?, number(0)?);

    let gguf = Arc::new(Gguf::parse(std::fs::read(path)?)?);
    let program = Arc::new(build(&gguf, BuildOptions::default())?);
    let mut executor = Executor::new(Arc::clone(&program), gguf, ExecutorOptions::default())?;
    let mut cache = executor.cache(depth + n);
    let vocab = program.description.vocab as u32;
    let rows = |first: usize, n: usize| -> Vec<Row> {
        let row = |position: usize| Row {
            token: position as u32 * 7919 % vocab,
            position,
            cache: 0,
            segment: 0,
            logits: position + 1 == first + n,
        };
        (first..first + n).map(row).collect()
    };
    for first in (0..depth).step_by(256) {
        executor.forward(&rows(first, 256.min(depth - first)), &mut [&mut cache]);
    }

    let mut best: Option<(Duration, BTreeMap<&str, Duration>)> = None;
    for _ in 0..PASSES {
        cache.truncate(depth);
        let mut times = BTreeMap::new();
        let start = Instant::now();
        let mut last = start;
        executor.forward_observed(&rows(depth, n), &mut [&mut cache], &mut |output| {
            let now = Instant::now();
            *times.entry(program.ops[output.op].name()).or_default() += now - last;
            last = now;
            ControlFlow::Continue(())
        });
        let total = start.elapsed();
        if best.as_ref().is_none_or(|(fastest, _)| total < *fastest) {
            best = Some((total, times));
        }
    }
    let (total, times) = best.ok_or("no pass ran")?;
    println!(
        "{n} rows after {depth}: {:.3} ms, {:.1} rows/s",
        ms(total),
        n as f64 / total.as_secs_f64()
    );
    for (name, time) in times {
        println!("  {name:14} {:8.3} ms {:5.1} %", ms(time), 100.0 * ms(time) / ms(total));
    }
    let context = (depth + n) as u64;
    let shape = PassShape { rows: n as u64, logit_rows: 1, context };
    let cost = program.pass_cost(shape);
    println!(
        "  {:.1} MB moved, {:.2} GB/s; {:.2} GFLOP, {:.0} GFLOP/s",
        cost.bytes() as f64 / 1e6,
        cost.bytes() as f64 / 1e9 / total.as_secs_f64(),
        cost.flops as f64 / 1e9,
        cost.flops as f64 / 1e9 / total.as_secs_f64(),
    );
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
