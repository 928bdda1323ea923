//! Models of real sizes with random weights run: what they compute is finite and depends on the
//! prompt. Two layers and a small vocabulary are enough for every matrix to have its real size; one
//! model runs whole.

use std::sync::Arc;

use m40_cpu::{Executor, ExecutorOptions, Row};
use m40_gguf::Gguf;
use m40_program::{BuildOptions, build};
use m40_testkit::shapes::Shape;

/// Logits after each of the prompts, which are sequences of one pass.
fn logits(shape: &Shape, prompts: [&[u32]; 2]) -> [Vec<f32>; 2] {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    shape.write(file.path(), 2).expect("there is room for it");
    let bytes = std::fs::read(file.path()).expect("it was just written");
    let gguf = Gguf::parse(bytes).expect("a shape is valid");
    let program = build(&gguf, BuildOptions { context: Some(64), ..BuildOptions::default() })
        .expect("it is known");
    let vocab = program.description.vocab;
    assert_eq!((program.description.layers, vocab), (shape.layers, shape.vocab));
    let options = ExecutorOptions { threads: Some(2), ..ExecutorOptions::default() };
    let mut executor =
        Executor::new(Arc::new(program), Arc::new(gguf), options).expect("every type runs");
    let mut caches = [executor.cache(64), executor.cache(64)];
    let rows = prompts.iter().enumerate().flat_map(|(cache, prompt)| {
        prompt.iter().enumerate().map(move |(position, &token)| {
            let logits = position + 1 == prompt.len();
            Row { token, position, cache, segment: 0, logits }
        })
    });
    let rows: Vec<Row> = rows.collect();
    let found = executor.forward(&rows, &mut caches.each_mut());
    [0, 1].map(|i| found[i * vocab..][..vocab].to_vec())
}

fn shape(name: &str) -> Shape {
    Shape::by_name(name).expect("it is listed")
}

fn check_cut(name: &str) {
    check(&shape(name).with_layers(2).with_vocab(512));
}

fn check(shape: &Shape) {
    let name = shape.name;
    // The last token is the same: what differs went through the attention.
    let [one, other] = logits(shape, [&[5, 77, 300, 9], &[6, 210, 45, 9]]);
    for logits in [&one, &other] {
        assert!(logits.iter().all(|x| x.is_finite()), "{name}: {logits:?}");
        let square = logits.iter().map(|x| x * x).sum::<f32>() / logits.len() as f32;
        assert!((1.0..4.0).contains(&square.sqrt()), "{name}: deviation {}", square.sqrt());
    }
    let difference = one.iter().zip(&other).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
    let difference = (difference / one.len() as f32).sqrt();
    assert!(difference > 0.5, "{name}: logits differ by {difference}");
}

#[test]
fn smollm2_135m_runs_cut() {
    check_cut("135m");
}

#[test]
fn smollm2_135m_runs_whole() {
    check(&shape("135m"));
}

#[test]
fn qwen2_1_5b_runs() {
    check_cut("1.5b");
}

#[test]
fn llama_1b_in_f16_runs() {
    check_cut("1b-f16");
}

#[test]
fn llama_8b_in_q4_0_runs() {
    check_cut("8b-q4_0");
}

#[test]
fn llama_8b_in_q4_k_m_runs() {
    check_cut("8b-q4_k_m");
}

#[test]
fn mistral_24b_runs() {
    check_cut("24b-q4_0");
}
