//! Embeddings of an engine on a device.

use m40_testkit::gguf::{TinyEncoder, TinyModel};
use m40llm::{CancelToken, Decode, EmbedError, EmbedText, Engine, EngineOptions, ModelOptions};

use super::gpu;
use super::real::engine;

#[test]
fn models_made_for_embeddings_run_on_the_cpu_and_take_nothing_of_the_card() {
    let Some(gpu) = gpu() else { return };
    let dir = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let load = |engine: &Engine, file: &str, bytes: Vec<u8>| {
        let path = dir.path().join(file);
        std::fs::write(&path, bytes).unwrap_or_else(|error| panic!("{error}"));
        let model = engine.load(&path, &ModelOptions::default());
        model.unwrap_or_else(|error| panic!("{error}"))
    };
    let on_card = engine(&gpu.device, 256, Decode::Graph);
    let on_cpu = Engine::new(EngineOptions::default()).unwrap_or_else(|error| panic!("{error}"));
    let texts = [EmbedText { tokens: vec![2, 10, 20, 3], second: None }];
    let embed = |model: &m40llm::Model| model.embed(&texts, None, &CancelToken::new());

    let free = on_card.free();
    let encoder = load(&on_card, "bert.gguf", TinyEncoder::bert().build());
    assert_eq!((encoder.footprint().total(), on_card.free()), (0, free));
    let same = load(&on_cpu, "same.gguf", TinyEncoder::bert().build());
    assert_eq!(embed(&encoder), embed(&same));

    let decoder = load(&on_card, "llama.gguf", TinyModel::new("llama").build());
    assert_eq!(embed(&decoder), Err(EmbedError::OnGpu));
}
