//! Prints what a model's tokenizer costs: building it, and encoding text.
//!
//! `cargo run --release -p m40-tokenizer --example load_time -- MODEL.gguf...`

#![expect(clippy::print_stdout, reason = "a program that prints a table")]

use std::fs::File;
use std::hint::black_box;
use std::time::Instant;

use m40_gguf::Gguf;
use m40_tokenizer::{ChatTemplate, Special, Tokenizer};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("{:<40} {:>10} {:>10} {:>12}", "model", "parse ms", "build ms", "encode MB/s");
    for path in std::env::args().skip(1) {
        let bytes = head(&path)?;
        let start = Instant::now();
        let gguf = Gguf::parse(bytes)?;
        let parse = start.elapsed();
        let mut build = f64::MAX;
        let mut tokenizer = None;
        for _ in 0..5 {
            let start = Instant::now();
            let built = Tokenizer::from_gguf(&gguf)?;
            black_box(ChatTemplate::from_gguf(&gguf, &built)?);
            build = build.min(start.elapsed().as_secs_f64() * 1e3);
            tokenizer = Some(built);
        }
        let tokenizer = tokenizer.ok_or("nothing built")?;
        let text = include_str!("../src/template/mod.rs").repeat(20);
        let start = Instant::now();
        black_box(tokenizer.encode(&text, Special { add: true, parse: true }));
        let rate = text.len() as f64 / start.elapsed().as_secs_f64() / 1e6;
        let name = path.rsplit('/').next().unwrap_or(&path);
        println!("{name:<40} {:>10.1} {build:>10.1} {rate:>12.1}", parse.as_secs_f64() * 1e3);
    }
    Ok(())
}

fn head(path: &str) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut File::open(path)?, &mut bytes)?;
    Ok(bytes)
}
