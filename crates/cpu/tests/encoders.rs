//! Tiny encoders against numpy, and against themselves in other passes.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::path::Path;
use std::sync::Arc;

use m40_cpu::{Executor, ExecutorOptions, KvCache, Numerics, Row};
use m40_gguf::Gguf;
use m40_program::{BuildOptions, build};
use m40_testkit::gguf::TinyEncoder;
use m40_testkit::tiny_encoders::{EncoderText, recipes, texts};
use serde_json::Value;

fn executor(model: &TinyEncoder, numerics: Numerics) -> Executor<Vec<u8>> {
    let gguf = Gguf::parse(model.build()).unwrap();
    let program = build(&gguf, BuildOptions::default()).unwrap();
    let options = ExecutorOptions { numerics, threads: Some(2), ..ExecutorOptions::default() };
    Executor::new(Arc::new(program), Arc::new(gguf), options).unwrap()
}

fn rows(text: &EncoderText, cache: usize) -> impl Iterator<Item = Row> {
    let tokens = text.tokens.iter().zip(&text.segments).enumerate();
    tokens.map(move |(position, (&token, &segment))| Row {
        token,
        position,
        cache,
        segment,
        logits: true,
    })
}

/// Hidden states of all tokens, `[tokens, embedding]`, and the result for them.
fn run(executor: &mut Executor<Vec<u8>>, texts: &[&EncoderText]) -> (Vec<f32>, Vec<f32>) {
    let rows: Vec<Row> =
        texts.iter().enumerate().flat_map(|(cache, text)| rows(text, cache)).collect();
    let mut caches: Vec<KvCache> = texts.iter().map(|_| executor.cache(192)).collect();
    let hidden = executor.hidden(&rows, &mut caches.iter_mut().collect::<Vec<_>>()).to_vec();
    let mut caches: Vec<KvCache> = texts.iter().map(|_| executor.cache(192)).collect();
    let result = executor.forward(&rows, &mut caches.iter_mut().collect::<Vec<_>>()).to_vec();
    (hidden, result)
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

/// The largest distance from what numpy says, of all texts.
fn distance(name: &str, model: &TinyEncoder, numerics: Numerics) -> f32 {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden/encoders.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let cases = golden["models"][name].as_array().unwrap();
    assert_eq!(cases.len(), texts().len());
    let mut executor = executor(model, numerics);
    let width = executor.program().description.embedding;
    let mut worst = 0.0f32;
    for (case, text) in cases.iter().zip(texts()) {
        assert_eq!(numbers(&case["tokens"]).len(), text.tokens.len());
        let (hidden, result) = run(&mut executor, &[&text]);
        let n = text.tokens.len();
        let mean = (0..8).map(|d| (0..n).map(|t| hidden[t * width + d]).sum::<f32>() / n as f32);
        let classes = &result[..case["classes"].as_array().unwrap().len()];
        let found = [
            ("first", hidden[..8].to_vec()),
            ("last", hidden[(n - 1) * width..][..8].to_vec()),
            ("mean", mean.collect()),
            ("classes", classes.to_vec()),
        ];
        for (key, found) in found {
            let expected = numbers(&case[key]);
            assert_eq!(expected.len(), found.len());
            for (e, f) in expected.iter().zip(found) {
                worst = if (e - f).is_nan() { f32::INFINITY } else { worst.max((e - f).abs()) };
            }
        }
    }
    worst
}

#[test]
fn the_oracle_agrees_with_numpy_on_every_tiny_encoder() {
    for (name, model) in recipes() {
        let worst = distance(name, &model, Numerics::Oracle);
        assert!(worst < 2e-3, "{name} is {worst} off");
    }
}

#[test]
fn the_fast_path_agrees_with_numpy_on_every_tiny_encoder() {
    for (name, model) in recipes() {
        let worst = distance(name, &model, Numerics::Fast);
        let limit = if name.ends_with("q8_0") { 0.1 } else { 2e-3 };
        assert!(worst < limit, "{name} is {worst} off");
    }
}

#[test]
fn a_text_is_the_same_bit_for_bit_alone_and_beside_others() {
    for (name, model) in recipes() {
        let mut executor = executor(&model, Numerics::Fast);
        let texts = texts();
        let all: Vec<&EncoderText> = texts.iter().collect();
        let (together, _) = run(&mut executor, &all);
        let alone: Vec<f32> = all.iter().flat_map(|text| run(&mut executor, &[*text]).0).collect();
        assert!(together == alone, "{name}");
    }
}

#[test]
fn a_token_sees_those_after_it() {
    let mut executor = executor(&TinyEncoder::bert(), Numerics::Fast);
    let mut text = texts()[1].clone();
    let (before, _) = run(&mut executor, &[&text]);
    *text.tokens.last_mut().unwrap() ^= 1;
    let (after, _) = run(&mut executor, &[&text]);
    assert_ne!(before[..8], after[..8]);
}
