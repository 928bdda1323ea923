//! Prints what a model's tokenizer costs: building it, and encoding text.
//!
//! `cargo run --release -p m40-tokenizer --example load_time -- MODEL.gguf...`

#![expect(clippy::print_stdout, reason = "a program that prints a table")]

use std::fs::File;
use std::hint::black_box;
use std::time::Instant;

use ahash::AHashMap;
use m40_gguf::Gguf;
use m40_tokenizer::{ChatTemplate, Special, Tokenizer};
use tokenizers::models::bpe::BPE;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!(
        "{:<40} {:>10} {:>10} {:>12} {:>18}",
        "model", "parse ms", "build ms", "encode MB/s", "tokenizers crate ms"
    );
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
        let parse = parse.as_secs_f64() * 1e3;
        let theirs = build_hf_bpe(&gguf)?.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"));
        println!("{name:<40} {parse:>10.1} {build:>10.1} {rate:>12.1} {theirs:>18}");
    }
    Ok(())
}

/// What the `tokenizers` crate takes for the same vocabulary, where it can do it: its model alone,
/// without pre-tokenizer and special tokens.
fn build_hf_bpe(gguf: &Gguf<Vec<u8>>) -> Result<Option<f64>, Box<dyn std::error::Error>> {
    let tokens = gguf.get_array("tokenizer.ggml.tokens")?;
    let merges = gguf.get_array("tokenizer.ggml.merges")?;
    let (Some(tokens), Some(merges)) = (tokens, merges) else { return Ok(None) };
    let start = Instant::now();
    let vocabulary: AHashMap<String, u32> = tokens.strings()?.map(str::to_owned).zip(0..).collect();
    let merges: Vec<(String, String)> = merges
        .strings()?
        .filter_map(|merge| merge.split_once(' '))
        .map(|(left, right)| (left.to_owned(), right.to_owned()))
        .collect();
    let model = BPE::builder().vocab_and_merges(vocabulary, merges).build();
    black_box(model.map_err(|error| error.to_string())?);
    Ok(Some(start.elapsed().as_secs_f64() * 1e3))
}

fn head(path: &str) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut File::open(path)?, &mut bytes)?;
    Ok(bytes)
}
