//! What llama.cpp makes of tiny models: log-probabilities for every architecture, rope scaling and
//! weight type, so that those without a small real model are checked against another engine too.
//!
//! `data/tiny_golden.json` is written by `data/make_tiny_golden.mjs`, which says how.

use m40_gguf::TensorType;

use crate::gguf::{Noise, RopeScaling, TinyModel, quantizes};

/// The context each model was run with, in tokens.
pub const CONTEXT: u32 = 128;

/// Tokens of the prompt: three times the sliding window of the tiny models.
const PROMPT_TOKENS: usize = 48;

/// What is expected of one model.
#[derive(Debug, Clone)]
pub struct TinyGolden {
    /// Name of the recipe, such as `llama-yarn`.
    pub name: String,
    /// The model; its bytes are those llama.cpp was given.
    pub model: TinyModel,
    /// The prompt's token ids.
    pub prompt: Vec<u32>,
    /// What follows some of the prompt's tokens.
    pub positions: Vec<Position>,
    /// How far, in natural logarithms, another correct run may be from these. llama.cpp rounds
    /// keys and values to f16, activations to f16 or bf16 for such weights, and to 8 bits for
    /// quantised ones, which is worth up to 0.12 against exact arithmetic in models this narrow,
    /// and a little more against a run that rounds otherwise.
    pub tolerance: f32,
}

/// The most probable next tokens at one position.
#[derive(Debug, Clone, PartialEq)]
pub struct Position {
    /// Index of the last prompt token that counts: the logits are those after
    /// `prompt[..=index]`.
    pub index: usize,
    /// Token ids with their natural log-probabilities, the most probable first.
    pub top: Vec<(u32, f32)>,
}

/// Every model by name: one option of the format each, then one of each weight type.
pub fn recipes() -> Vec<(String, TinyModel)> {
    let model = TinyModel::new;
    let scaled = |scaling| model("llama").rope_scaling(scaling);
    let options = [
        ("llama", model("llama")),
        ("llama-tied", model("llama").tied(true)),
        ("llama-biases", model("llama").biases(true)),
        ("llama-one-kv-head", model("llama").heads(8, 1, 32)),
        ("llama-every-kv-head", model("llama").heads(4, 4, 64)),
        ("llama-linear", scaled(RopeScaling::Linear { factor: 4.0 })),
        ("llama-yarn", scaled(RopeScaling::Yarn { factor: 4.0, original_context: 64 })),
        ("llama-llama3", scaled(RopeScaling::Llama3)),
        ("qwen2", model("qwen2")),
        ("qwen2-yarn", {
            let scaling = RopeScaling::Yarn { factor: 4.0, original_context: 64 };
            model("qwen2").rope_scaling(scaling)
        }),
        ("qwen3", model("qwen3")),
        ("qwen3-wide-heads", model("qwen3").heads(4, 2, 128)),
        ("gemma2", model("gemma2")),
        ("gemma2-four-layers", model("gemma2").layers(4)),
        ("gemma3", model("gemma3").layers(6)),
        ("gemma3-wide-heads", model("gemma3").layers(7).heads(4, 1, 128)),
        ("gemma3-linear", {
            model("gemma3").layers(6).rope_scaling(RopeScaling::Linear { factor: 8.0 })
        }),
        ("phi3", model("phi3")),
        ("phi3-long", model("phi3").rope_scaling(RopeScaling::LongRope { original_context: 64 })),
        ("phi3-short", model("phi3").rope_scaling(RopeScaling::LongRope { original_context: 256 })),
    ];
    let options = options.into_iter().map(|(name, model)| (name.to_owned(), model));
    let types = TensorType::ALL.iter().filter(|ty| quantizes(**ty) && **ty != TensorType::F32);
    let types = types.map(|&ty| {
        let name = format!("llama-{}", ty.name().to_lowercase());
        (name, TinyModel::new("llama").weights(ty))
    });
    options.chain(types).map(|(name, model)| (name, model.seed(1))).collect()
}

/// The prompt of every model: ordinary tokens that any vocabulary here has.
pub fn prompt() -> Vec<u32> {
    let mut noise = Noise::new(3);
    (0..PROMPT_TOKENS).map(|_| 6 + noise.below(280) as u32).collect()
}

/// Every recipe with what llama.cpp computed.
///
/// # Panics
/// When the recipes and the committed file do not name the same models.
pub fn all() -> Vec<TinyGolden> {
    let file: serde_json::Value =
        serde_json::from_str(include_str!("../data/tiny_golden.json")).expect("it is JSON");
    let expected = file["models"].as_object().expect("models by name");
    let recipes = recipes();
    assert_eq!(recipes.len(), expected.len(), "run data/make_tiny_golden.mjs");
    let golden = recipes.into_iter().map(|(name, model)| {
        let positions = expected.get(&name).and_then(|positions| positions.as_array());
        let positions = positions.unwrap_or_else(|| panic!("no golden of {name}"));
        let positions = positions.iter().map(position).collect();
        let tolerance = match name.as_str() {
            "llama-f16" => 0.01,
            "llama-bf16" => 0.05,
            _ if model.weight_type() == TensorType::F32 => 0.006,
            _ => 0.2,
        };
        TinyGolden { name, model, prompt: prompt(), positions, tolerance }
    });
    golden.collect()
}

fn position(json: &serde_json::Value) -> Position {
    let top = json["top"].as_array().expect("a list of pairs").iter().map(|pair| {
        let id = pair[0].as_u64().and_then(|id| u32::try_from(id).ok()).expect("a token id");
        (id, pair[1].as_f64().expect("a log-probability") as f32)
    });
    let index = json["index"].as_u64().expect("an index") as usize;
    Position { index, top: top.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_has_plausible_expectations() {
        for golden in all() {
            assert!(golden.positions.len() >= 4, "{}", golden.name);
            for Position { index, top } in &golden.positions {
                assert!(*index < golden.prompt.len());
                assert_eq!(top.len(), 5);
                assert!(top.is_sorted_by(|a, b| a.1 >= b.1), "{}", golden.name);
                assert!(top.iter().all(|(_, p)| *p < 0.0), "{}", golden.name);
                let vocab = golden.model.vocab_size();
                assert!(top.iter().all(|(id, _)| (*id as usize) < vocab));
            }
        }
    }

    #[test]
    fn expectations_differ_between_recipes() {
        let golden = all();
        for (i, a) in golden.iter().enumerate() {
            for b in &golden[i + 1..] {
                assert_ne!(a.positions, b.positions, "{} and {}", a.name, b.name);
            }
        }
    }
}
