//! Embeddings of an engine on a device.

use m40_testkit::gguf::TinyEncoder;
use m40llm::{CancelToken, Decode, EmbedText, Engine, EngineOptions, Model, ModelOptions, Pooling};

use super::gpu;
use super::models::mixed;
use super::real::engine;

/// How far a float of a vector, of size 1, may be from the CPU's.
const TOLERANCE: f32 = 1e-2;

fn load(engine: &Engine, bytes: Vec<u8>) -> Model {
    let file = tempfile::NamedTempFile::with_suffix(".gguf").expect("a temporary file");
    std::fs::write(file.path(), bytes).expect("room for a tiny model");
    let model = engine.load(file.path(), &ModelOptions::default());
    model.unwrap_or_else(|error| panic!("{error}"))
}

fn embed(model: &Model, texts: &[EmbedText], pooling: Option<Pooling>) -> Vec<Vec<f32>> {
    let vectors = model.embed(texts, pooling, &CancelToken::new());
    vectors.unwrap_or_else(|error| panic!("{error}"))
}

fn text(count: u32) -> EmbedText {
    EmbedText { tokens: (0..count).map(|i| 6 + (i * 7) % 250).collect(), second: None }
}

#[test]
fn encoders_run_on_the_cpu_and_take_nothing_of_the_card() {
    let Some(gpu) = gpu() else { return };
    let on_card = engine(&gpu.device, 256, Decode::Graph);
    let on_cpu = Engine::new(EngineOptions::default()).unwrap_or_else(|error| panic!("{error}"));
    let free = on_card.free();
    let encoder = load(&on_card, TinyEncoder::bert().build());
    assert_eq!((encoder.footprint().total(), on_card.free()), (0, free));
    let same = load(&on_cpu, TinyEncoder::bert().build());
    let texts = [EmbedText { tokens: vec![2, 10, 20, 3], second: None }];
    assert_eq!(embed(&encoder, &texts, None), embed(&same, &texts, None));
}

#[test]
fn models_that_generate_make_the_vectors_on_the_card_that_they_make_on_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let on_cpu = Engine::new(EngineOptions::default()).unwrap_or_else(|error| panic!("{error}"));
    // More than a pass, one that a pass ends with, and short ones together.
    let texts = [1, 40, 3, 700, 1, 512].map(text);
    for (architecture, decode) in [("llama", Decode::Graph), ("gemma2", Decode::Persistent)] {
        let on_card = engine(&gpu.device, 256, decode);
        let bytes = mixed(architecture).context(1024).build();
        let (model, same) = (load(&on_card, bytes.clone()), load(&on_cpu, bytes));
        for pooling in [Pooling::Mean, Pooling::Cls, Pooling::Last] {
            let found = embed(&model, &texts, Some(pooling));
            let expected = embed(&same, &texts, Some(pooling));
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let off = found.iter().zip(expected).map(|(f, e)| (f - e).abs());
                let worst = off.fold(0.0, f32::max);
                assert!(worst < TOLERANCE, "{architecture}, {pooling}, text {i}: {worst}");
            }
        }
    }
}
