//! Opening files: what is known of a model, and what is said of a file that is none.

use std::path::Path;

use m40_gguf::TensorType;
use m40_testkit::gguf::{RopeScaling, Vocabulary};
use m40_testkit::models;
use serde_json::json;

use super::*;
use crate::{KvType, LoadError, Numerics, TemplateInput};

fn error_with(path: &Path, options: &ModelOptions) -> LoadError {
    engine().load(path, options).map(|model| model.info().clone()).unwrap_err()
}

/// The error and its text, which is one line that names the file.
#[track_caller]
fn error(path: &Path) -> (LoadError, String) {
    let found = error_with(path, &ModelOptions::default());
    let text = found.to_string();
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(text.contains(name) && !text.contains('\n') && !text.ends_with('.'), "{text:?}");
    (found, text)
}

fn llama() -> GgufBuilder {
    TinyModel::new("llama").builder()
}

#[test]
fn a_model_says_what_it_is() {
    let model = Tiny::of(&TinyModel::new("qwen3").weights(TensorType::Q4K).build()).load();
    let info = model.info();
    assert_eq!((info.name.as_str(), info.architecture.as_str()), ("Tiny qwen3", "qwen3"));
    assert_eq!((info.layers, info.vocab), (2, 288));
    assert_eq!((info.context, info.context_trained), (256, 256));
    assert_eq!(info.quantization, "Q4_K");
    // Two layers of 2 heads of 64 keys and values, 2 bytes each.
    assert_eq!(info.kv_bytes_per_token, 2 * 2 * 128 * 2);
    let layer = 2 * 256 * 256 + 2 * 128 * 256 + 3 * 512 * 256 + 2 * 256 + 2 * 64;
    assert_eq!(info.parameters, 2 * layer + 2 * 288 * 256 + 256);
    let (norms, matrices) = (2 * (2 * 256 + 2 * 64) + 256, info.parameters);
    assert_eq!(info.weight_bytes, norms * 4 + (matrices - norms) / 256 * 144);
    assert_eq!(model.session().kv_bytes(), 0);
    assert!(format!("{model:?}").contains("Tiny qwen3"));
}

#[test]
fn the_real_models_are_known_for_what_they_are() {
    let info = |path: &Path| engine().load(path, &ModelOptions::default()).unwrap().info().clone();
    let smollm2 = info(&models::smollm2());
    assert_eq!((smollm2.architecture.as_str(), smollm2.quantization.as_str()), ("llama", "Q4_1"));
    assert_eq!((smollm2.layers, smollm2.vocab, smollm2.context), (30, 49152, 8192));
    let gemma3 = info(&models::gemma3());
    assert_eq!((gemma3.architecture.as_str(), gemma3.layers), ("gemma3", 18));
    assert_eq!((gemma3.context, gemma3.context_trained), (8192, 32768), "8192 unless asked");
}

#[test]
fn a_device_says_what_it_runs_on() {
    let device = |threads, numerics| {
        let options =
            EngineOptions { threads: Some(threads), numerics, ..EngineOptions::default() };
        Engine::new(options).unwrap().device()
    };
    assert_eq!(device(1, Numerics::Oracle), "cpu, 1 thread, oracle");
    assert_eq!(device(0, Numerics::Oracle), "cpu, 1 thread, oracle");
    let fast = m40_cpu::Isa::detect();
    assert_eq!(device(3, Numerics::Fast), format!("cpu, 3 threads, {fast}"));
}

#[test]
fn the_oracle_gives_what_the_fast_path_gives_on_plain_weights() {
    let file = Tiny::new(&llama());
    let options = EngineOptions { numerics: Numerics::Oracle, ..EngineOptions::default() };
    let oracle = Engine::new(options).unwrap();
    let oracle = oracle.load(&file.path, &ModelOptions::default()).unwrap();
    let [fast, oracle] = [file.load(), oracle]
        .map(|model| generate(&mut model.session(), &prompt(9, 0), &greedy(5)).logprobs);
    for (fast, oracle) in fast.iter().zip(&oracle) {
        assert_eq!(fast.id, oracle.id);
        assert!((fast.logprob - oracle.logprob).abs() < 1e-3);
    }
}

#[test]
fn a_missing_file_is_not_found() {
    let (found, text) = error(Path::new("/nonexistent/model.gguf"));
    assert!(matches!(found, LoadError::NotFound { .. }));
    assert_eq!(text, "model file /nonexistent/model.gguf does not exist: check the path");
}

#[test]
fn a_directory_is_no_model() {
    let file = Tiny::new(&llama());
    let (found, text) = error(file.dir.path());
    assert!(matches!(found, LoadError::Io { .. }));
    assert!(text.contains("not a regular file"), "{text}");
}

#[test]
fn files_that_are_no_models_are_refused() {
    let whole = llama().build();
    let cut = |len: usize| whole[..len].to_vec();
    let text = b"<html><body>404 Not Found</body></html>".to_vec();
    for bytes in [vec![], text, cut(3), cut(30), cut(whole.len() / 2), cut(whole.len() - 1)] {
        let (found, text) = error(&Tiny::of(&bytes).path);
        assert!(matches!(found, LoadError::Gguf { .. }), "{} bytes: {text}", bytes.len());
    }
}

#[test]
fn unknown_architectures_and_half_known_files_are_refused() {
    let (found, text) = error(&Tiny::new(&llama().meta("general.architecture", "mamba")).path);
    assert!(matches!(found, LoadError::Build { .. }));
    assert!(text.contains("\"mamba\"") && text.contains("llama"), "{text}");
    let (found, text) = error(&Tiny::new(&llama().without_tensor("output_norm.weight")).path);
    assert!(matches!(found, LoadError::Build { .. }));
    assert!(text.contains("output_norm.weight"), "{text}");
    let (found, text) = error(&Tiny::new(&llama().without_meta("tokenizer.ggml.model")).path);
    assert!(matches!(found, LoadError::Tokenizer { .. }));
    assert!(text.contains("tokenizer.ggml.model"), "{text}");
}

#[test]
fn weights_of_a_type_that_does_not_run_are_named() {
    let name = "blk.0.ffn_up.weight";
    let blocks = vec![0; 512 * TensorType::IQ2XXS.row_bytes(256).unwrap()];
    let file = llama().without_tensor(name).tensor(name, &[256, 512], TensorType::IQ2XXS, blocks);
    let (found, text) = error(&Tiny::new(&file).path);
    assert!(matches!(found, LoadError::Prepare { .. }));
    assert!(text.contains(name) && text.contains("IQ2_XXS"), "{text}");
}

#[test]
fn a_vocabulary_larger_than_the_embeddings_is_refused() {
    let large = Vocabulary::spm();
    let file = llama()
        .meta("tokenizer.ggml.model", "llama")
        .meta("tokenizer.ggml.tokens", large.tokens)
        .meta("tokenizer.ggml.token_type", large.types)
        .meta("tokenizer.ggml.scores", large.scores)
        .without_meta("tokenizer.ggml.merges");
    let (found, _) = error(&Tiny::new(&file).path);
    assert!(matches!(found, LoadError::Vocabulary { embeddings: 288, vocab: 385, .. }), "{found}");
}

#[test]
fn the_context_is_between_1_and_the_trained_one() {
    let file = Tiny::new(&llama());
    let asking = |context| ModelOptions { context: Some(context), ..ModelOptions::default() };
    for served in [1, 100, 256] {
        let model = engine().load(&file.path, &asking(served)).unwrap();
        assert_eq!((model.info().context, model.info().context_trained), (served, 256));
    }
    for refused in [0, 257, u32::MAX] {
        let found = error_with(&file.path, &asking(refused));
        assert!(
            matches!(found, LoadError::Context { asked, trained: 256, .. } if asked == refused),
            "{found}"
        );
        let text = found.to_string();
        assert!(text.contains(&refused.to_string()) && text.contains("1 to 256"), "{text}");
    }
}

#[test]
fn the_served_context_not_the_trained_one_chooses_rotary_factors() {
    let scaling = RopeScaling::LongRope { original_context: 8192 };
    let file = TinyModel::new("phi3").context(16384).rope_scaling(scaling).builder();
    let file = Tiny::new(&file);
    let serving = |context| {
        let options = ModelOptions { context, ..ModelOptions::default() };
        let model = engine().load(&file.path, &options).unwrap();
        let found = generate(&mut model.session(), &prompt(40, 2), &greedy(1));
        (model.info().context, found.logprobs[0].logprob)
    };
    let (default, short, long) = (serving(None), serving(Some(8192)), serving(Some(8193)));
    assert_eq!(default, short);
    assert_ne!(short.1, long.1);
}

#[test]
fn keys_and_values_of_int8_take_half_and_change_little() {
    let file = Tiny::new(&TinyModel::new("qwen3").sinks(true).builder());
    let keeping = |kv_type| {
        let options = ModelOptions { kv_type, ..ModelOptions::default() };
        let model = engine().load(&file.path, &options).unwrap();
        assert_eq!(model.info().kv_type, kv_type);
        let found = generate(&mut model.session(), &prompt(40, 2), &greedy(1));
        (model.info().kv_bytes_per_token, found.logprobs[0].logprob)
    };
    let (f16, int8) = (keeping(KvType::F16), keeping(KvType::Int8));
    // Two layers of 2 heads of 64 keys and values; integers have a scale for a head's key and value.
    assert_eq!((f16.0, int8.0), (2 * 2 * 128 * 2, 2 * 2 * (128 + 2 * 4)));
    assert_ne!(f16.1, int8.1);
    assert!((f16.1 - int8.1).abs() < 0.05, "{f16:?} {int8:?}");
}

#[test]
fn chat_templates_come_from_the_file_or_from_the_options() {
    let messages = json!([{"role": "user", "content": "hello"}]);
    let render = |model: &Model| model.chat_template().render(&TemplateInput::new(&messages));
    let file = Tiny::new(&llama());
    let found = render(&file.load()).unwrap();
    assert!(found.starts_with("<|im_start|>user\nhello<|im_end|>\n"), "{found}");

    let with = |source: &str| ModelOptions {
        chat_template: Some(source.to_owned()),
        ..ModelOptions::default()
    };
    let own = with("{{ bos_token }}[{{ messages[0].content }}]{{ eos_token }}");
    let found = render(&engine().load(&file.path, &own).unwrap()).unwrap();
    assert_eq!(found, "<|begin_of_text|>[hello]<|end_of_text|>");

    let found = error_with(&file.path, &with("{% for message in messages %}"));
    assert!(matches!(found, LoadError::Template { .. }), "{found}");
    assert!(found.to_string().contains("tiny.gguf"), "{found}");
    let bad = TinyModel::new("llama").chat_template(Some("{{ unclosed"));
    assert!(matches!(error(&Tiny::of(&bad.build()).path).0, LoadError::Template { .. }));
}

#[test]
fn a_split_model_is_the_whole_one() {
    let model = TinyModel::new("llama");
    let shards = model.build_shards(3);
    let dir = TempDir::new().unwrap();
    let path = |i: usize| dir.path().join(format!("tiny-{i:05}-of-00003.gguf"));
    for (i, bytes) in shards.iter().enumerate() {
        fs::write(path(i + 1), bytes).unwrap();
    }
    let whole = Tiny::of(&model.build()).load();
    let expected = generate(&mut whole.session(), &prompt(9, 1), &greedy(5)).ids();
    for named in [1, 3] {
        let split = engine().load(&path(named), &ModelOptions::default()).unwrap();
        assert_eq!(split.info(), whole.info());
        let found = generate(&mut split.session(), &prompt(9, 1), &greedy(5)).ids();
        assert_eq!(found, expected);
    }
    fs::remove_file(path(2)).unwrap();
    let found = error_with(&path(1), &ModelOptions::default());
    assert!(matches!(&found, LoadError::NotFound { path: p } if *p == path(2)), "{found}");
    fs::write(path(2), &shards[0]).unwrap();
    let found = error_with(&path(1), &ModelOptions::default());
    assert!(matches!(found, LoadError::Gguf { .. }), "{found}");
}

/// `tokenizer.json` of a byte-level BPE vocabulary, as the Hugging Face library writes it.
fn tokenizer_json(vocabulary: &Vocabulary) -> String {
    let vocab: serde_json::Map<_, _> =
        vocabulary.tokens.iter().cloned().zip((0u32..).map(Into::into)).collect();
    let added = vocabulary.tokens.iter().take(4).enumerate().map(|(id, content)| {
        json!({
            "id": id, "content": content, "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false,
        })
    });
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocab, "merges": vocabulary.merges,
        },
    });
    file.to_string()
}

#[test]
fn a_tokenizer_json_beside_the_model_stands_in_for_its_vocabulary() {
    let without = [
        "tokenizer.ggml.model",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.token_type",
        "tokenizer.ggml.merges",
    ];
    let bare = without.into_iter().fold(llama(), GgufBuilder::without_meta);
    let file = Tiny::new(&bare);
    let beside = file.dir.path().join("tokenizer.json");

    let (found, _) = error(&file.path);
    assert!(matches!(found, LoadError::Tokenizer { .. }), "{found}");

    fs::write(&beside, tokenizer_json(&Vocabulary::bpe("llama-bpe"))).unwrap();
    let [found, expected] = [file.load(), tiny()].map(|model| {
        let tokenizer = model.tokenizer();
        let ids = tokenizer.encode_prompt("Hello world, the end");
        let text = tokenizer.decode(&ids, false);
        (ids, text, tokenizer.eos(), tokenizer.eot(), tokenizer.vocab_size())
    });
    assert_eq!(found, expected);
    assert_eq!(found.1, "Hello world, the end");

    fs::write(&beside, "{").unwrap();
    assert!(matches!(error(&file.path).0, LoadError::Tokenizer { .. }));

    // One that is named comes before all, the file's own included.
    let named = file.dir.path().join("other.json");
    let options = ModelOptions { tokenizer: Some(named.clone()), ..ModelOptions::default() };
    let whole = Tiny::new(&llama());
    let missing = error_with(&whole.path, &options);
    assert!(matches!(&missing, LoadError::Io { path, .. } if *path == named), "{missing}");
    fs::write(&named, tokenizer_json(&Vocabulary::bpe("llama-bpe"))).unwrap();
    let vocab = engine().load(&file.path, &options).unwrap().tokenizer().vocab_size();
    assert_eq!(vocab, expected.4);
    fs::write(&named, "{").unwrap();
    let broken = error_with(&whole.path, &options);
    assert!(matches!(broken, LoadError::Tokenizer { .. }), "{broken}");
}

#[test]
fn what_a_model_takes_is_known_before_it_is_loaded() {
    let file = Tiny::of(&TinyModel::new("llama").build());
    let footprint = engine().footprint(&file.path, &ModelOptions::default()).unwrap();
    let model = file.load();
    assert_eq!(model.footprint(), &footprint);
    let info = model.info();
    assert_eq!(footprint.weights, info.weight_bytes);
    assert_eq!(footprint.parts().kv, info.kv_bytes_per_token * u64::from(info.context));
    // The input of the widest layer at least.
    assert!(footprint.scratch >= 512 * 512 * 4, "{footprint:?}");

    let prompt: Vec<u32> = (0..40).collect();
    let mut session = model.session();
    session.generate(&prompt, &greedy(200), &CancelToken::new(), &mut |_| {}).unwrap();
    assert!(session.kv_bytes() as u64 <= footprint.parts().kv);
    assert_eq!(model.session_bytes(), footprint.parts().kv, "each session has its own");
    let shorter = ModelOptions { context: Some(64), ..ModelOptions::default() };
    let shorter = engine().footprint(&file.path, &shorter).unwrap();
    assert_eq!(shorter.parts().kv, info.kv_bytes_per_token * 64);
    assert_eq!(engine().capacity(), None);
}
