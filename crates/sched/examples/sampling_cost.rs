//! Prints what choosing one token costs, for the settings people use, on a vocabulary of 262144.
//!
//! `cargo run --release -p m40-sched --example sampling_cost`

#![expect(clippy::print_stdout, reason = "a program that prints a table")]

use std::hint::black_box;
use std::time::Instant;

use m40_sched::sampler::philox;
use m40_sched::{Sampler, SamplingParams, top_logprobs};

const VOCAB: usize = 262_144;
const ROUNDS: u32 = 100;

fn main() {
    // A peaked row, as a model makes: most of the mass in a few hundred tokens.
    let logits: Vec<f32> = (0..VOCAB as u64)
        .map(|id| {
            let u = philox::uniform(1, id).max(1e-9);
            (-u.ln() * 2.2 - 6.0) as f32
        })
        .collect();
    let off = SamplingParams { temperature: 1.0, ..SamplingParams::greedy() };
    let settings = [
        ("greedy", SamplingParams::greedy()),
        ("default (top-k 40)", SamplingParams::default()),
        ("no filter", off.clone()),
        ("top-k 5000", SamplingParams { top_k: 5000, ..off.clone() }),
        ("top-p 0.95", SamplingParams { top_p: 0.95, ..off.clone() }),
        ("min-p 0.05", SamplingParams { min_p: 0.05, ..off.clone() }),
        ("typical 0.9", SamplingParams { typical_p: 0.9, ..off }),
    ];
    println!("{:<20} {:>12}", "setting", "us/token");
    for (name, params) in settings {
        let mut sampler = Sampler::new(params, 1, VOCAB);
        let mut row = logits.clone();
        time(name, || {
            let id = sampler.sample(&mut row).id;
            sampler.accept(black_box(id));
        });
    }
    time("top_logprobs 5", || {
        black_box(top_logprobs(black_box(&logits), 5, 0));
    });
}

fn time(name: &str, mut work: impl FnMut()) {
    work();
    let start = Instant::now();
    for _ in 0..ROUNDS {
        work();
    }
    println!("{name:<20} {:>12.1}", start.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS));
}
