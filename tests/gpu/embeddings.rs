//! Embeddings of an engine on a device.

use m40_testkit::gguf::TinyEncoder;
use m40llm::{CancelToken, Decode, EmbedText, Engine, EngineOptions, Model, ModelOptions, Pooling};

use super::models::{Model as Tiny, mixed, worst};
use super::real::engine;
use super::{gpu, say};

/// How far a float of a vector, of size 1, may be from the oracle's.
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

/// What a model that generates makes of a text, by the oracle.
fn oracle(model: &Tiny, text: &EmbedText, pooling: Pooling) -> Vec<f32> {
    let states = model.oracle_states(&text.tokens);
    match pooling {
        Pooling::Cls => states[0].clone(),
        Pooling::Last => states[states.len() - 1].clone(),
        Pooling::Mean => {
            let mean = |i: usize| states.iter().map(|state| f64::from(state[i])).sum::<f64>();
            (0..states[0].len()).map(|i| (mean(i) / states.len() as f64) as f32).collect()
        }
        Pooling::Rank => panic!("a model that generates ranks nothing"),
    }
}

#[test]
fn models_that_generate_make_the_vectors_on_the_card_that_the_oracle_does() {
    let Some(gpu) = gpu() else { return };
    // More than a pass, one that a pass ends with, and short ones together.
    let texts = [1, 40, 3, 700, 1, 512].map(text);
    for (architecture, decode) in [("llama", Decode::Graph), ("gemma2", Decode::Persistent)] {
        let on_card = engine(&gpu.device, 256, decode);
        let tiny = mixed(architecture).context(1024);
        let (model, same) = (load(&on_card, tiny.build()), Tiny::new(&tiny));
        for pooling in [Pooling::Mean, Pooling::Cls, Pooling::Last] {
            let found = embed(&model, &texts, Some(pooling));
            let off = found
                .iter()
                .zip(&texts)
                .map(|(found, text)| worst(found, &oracle(&same, text, pooling)));
            let off: Vec<_> = off.collect();
            say(&format!("{architecture}, {pooling}: at most {off:?} from the oracle"));
            assert!(off.iter().all(|off| *off < TOLERANCE), "{architecture}, {pooling}: {off:?}");
        }
    }
}
