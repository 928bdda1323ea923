//! Tiny but complete models, laid out as the converters of ggml's project lay them out.
//!
//! Keys and tensor names are those of the Python package `gguf` (`constants.py`); which of them an
//! architecture has was read off real files and that package's tables.

use m40_gguf::TensorType;

use super::noise::Noise;
use super::vocabulary::{CHATML, Vocabulary};
use super::{GgufBuilder, quantize};

/// The architectures [`TinyModel`] can write.
const ARCHITECTURES: [&str; 6] = ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"];

/// How positions beyond the trained context are handled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Positions divided by `factor`.
    Linear {
        /// The factor.
        factor: f32,
    },
    /// YaRN with its default betas.
    Yarn {
        /// The factor.
        factor: f32,
        /// The context the model was trained with, in tokens.
        original_context: u32,
    },
    /// The tensor `rope_freqs.weight` with the factors of Llama 3.1.
    Llama3,
    /// The tensors `rope_factors_long.weight` and `rope_factors_short.weight` of Phi-3.
    LongRope {
        /// The context above which the long factors hold, in tokens.
        original_context: u32,
    },
}

/// A seeded tiny model of a given architecture: about a megabyte, with activations and logits of
/// ordinary size, every row a multiple of 256 weights so that every tensor type fits.
///
/// ```
/// use m40_gguf::{Gguf, TensorType};
/// use m40_testkit::gguf::TinyModel;
///
/// let bytes = TinyModel::new("llama").layers(2).weights(TensorType::Q4K).seed(1).build();
/// let file = Gguf::parse(bytes).unwrap();
/// assert_eq!(file.get_str("general.architecture"), Ok(Some("llama")));
/// ```
///
/// Weights depend on the seed and on the tensor's name only: an option that adds a tensor leaves
/// the others as they are.
#[derive(Debug, Clone)]
pub struct TinyModel {
    architecture: &'static str,
    seed: u64,
    layers: usize,
    context: u32,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    feed_forward: usize,
    weights: TensorType,
    embedding: Option<TensorType>,
    overrides: Vec<(String, TensorType)>,
    tied: bool,
    biases: bool,
    rope_base: Option<f32>,
    rope_scaling: Option<RopeScaling>,
    sliding_window: Option<u32>,
    attention_softcap: Option<f32>,
    sinks: bool,
    final_softcap: Option<f32>,
    vocabulary: Vocabulary,
    add_bos: bool,
    chat_template: Option<String>,
}

impl TinyModel {
    /// A model with what is usual for the architecture: `llama`, `qwen2`, `qwen3`, `gemma2`,
    /// `gemma3` or `phi3`.
    ///
    /// Two layers, width 256, 4 query heads on 2 key-value heads of 64, feed-forward width 512, a
    /// context of 256 tokens, `F32` weights and a ChatML template. The vocabulary is SPM for the
    /// architectures whose real models have one (`gemma2`, `gemma3`, `phi3`), byte-level BPE for the
    /// others.
    ///
    /// # Panics
    /// For another architecture.
    pub fn new(architecture: &str) -> Self {
        let architecture = ARCHITECTURES
            .into_iter()
            .find(|known| *known == architecture)
            .unwrap_or_else(|| panic!("{architecture:?} is none of {ARCHITECTURES:?}"));
        let gemma2 = architecture == "gemma2";
        let vocabulary = match architecture {
            "llama" => Vocabulary::bpe("llama-bpe"),
            "qwen2" | "qwen3" => Vocabulary::bpe("qwen2"),
            _ => Vocabulary::spm(),
        };
        Self {
            architecture,
            seed: 0,
            layers: 2,
            context: 256,
            hidden: 256,
            heads: 4,
            kv_heads: 2,
            head_dim: 64,
            feed_forward: 512,
            weights: TensorType::F32,
            embedding: None,
            overrides: Vec::new(),
            tied: architecture.starts_with("gemma"),
            biases: architecture == "qwen2",
            rope_base: match architecture {
                "gemma2" => None,
                "gemma3" | "qwen2" | "qwen3" => Some(1e6),
                _ => Some(1e4),
            },
            rope_scaling: None,
            sliding_window: architecture.starts_with("gemma").then_some(16),
            attention_softcap: gemma2.then_some(50.0),
            sinks: false,
            final_softcap: gemma2.then_some(30.0),
            vocabulary,
            add_bos: false,
            chat_template: Some(CHATML.to_owned()),
        }
    }

    /// Every architecture there is a model of.
    pub const fn architectures() -> [&'static str; 6] {
        ARCHITECTURES
    }

    /// Another seed gives other weights.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The number of layers. With 6 or more, `gemma3` has a global one.
    pub fn layers(mut self, layers: usize) -> Self {
        self.layers = layers;
        self
    }

    /// The trained context in tokens.
    pub fn context(mut self, tokens: u32) -> Self {
        self.context = tokens;
        self
    }

    /// The width of the residual stream, a multiple of 256.
    pub fn hidden(mut self, width: usize) -> Self {
        self.hidden = width;
        self
    }

    /// Query heads, key-value heads and the size of each; `query * size` a multiple of 256.
    pub fn heads(mut self, query: usize, kv: usize, size: usize) -> Self {
        (self.heads, self.kv_heads, self.head_dim) = (query, kv, size);
        self
    }

    /// The width of the feed-forward part, a multiple of 256.
    pub fn feed_forward(mut self, width: usize) -> Self {
        self.feed_forward = width;
        self
    }

    /// The type of every matrix.
    pub fn weights(mut self, ty: TensorType) -> Self {
        self.weights = ty;
        self
    }

    /// The type of the token embedding, where it differs from the other matrices.
    pub fn embedding(mut self, ty: TensorType) -> Self {
        self.embedding = Some(ty);
        self
    }

    /// The type of the matrices whose name contains `part`; later calls win.
    pub fn weights_of(mut self, part: &str, ty: TensorType) -> Self {
        self.overrides.push((part.to_owned(), ty));
        self
    }

    /// Whether the embedding serves as the output head too, so that there is no `output.weight`.
    pub fn tied(mut self, tied: bool) -> Self {
        self.tied = tied;
        self
    }

    /// Whether query, key and value projections have biases.
    ///
    /// # Panics
    /// With `true` for `phi3`, whose projection is one tensor.
    pub fn biases(mut self, biases: bool) -> Self {
        assert!(!(biases && self.architecture == "phi3"), "phi3 has no biases");
        self.biases = biases;
        self
    }

    /// The base of the rotary frequencies.
    pub fn rope_base(mut self, base: f32) -> Self {
        self.rope_base = Some(base);
        self
    }

    /// Scales rotary positions.
    pub fn rope_scaling(mut self, scaling: RopeScaling) -> Self {
        self.rope_scaling = Some(scaling);
        self
    }

    /// Attention reaches back this many tokens, in the layers where the architecture says so.
    pub fn sliding_window(mut self, tokens: u32) -> Self {
        self.sliding_window = Some(tokens);
        self
    }

    /// Soft caps of attention scores and logits; `None` leaves the key out.
    pub fn softcaps(mut self, attention: Option<f32>, logits: Option<f32>) -> Self {
        (self.attention_softcap, self.final_softcap) = (attention, logits);
        self
    }

    /// Whether layers have attention sinks, about as strong as a token.
    pub fn sinks(mut self, sinks: bool) -> Self {
        self.sinks = sinks;
        self
    }

    /// Another vocabulary.
    pub fn vocabulary(mut self, vocabulary: Vocabulary) -> Self {
        self.vocabulary = vocabulary;
        self
    }

    /// Whether a text starts with the bos token.
    pub fn add_bos(mut self, add: bool) -> Self {
        self.add_bos = add;
        self
    }

    /// Another chat template; `None` leaves it out.
    pub fn chat_template(mut self, template: Option<&str>) -> Self {
        self.chat_template = template.map(str::to_owned);
        self
    }

    /// The type of every matrix that no other option gives a type of its own.
    pub const fn weight_type(&self) -> TensorType {
        self.weights
    }

    /// Tokens in the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.tokens.len()
    }

    /// The file's bytes.
    pub fn build(&self) -> Vec<u8> {
        self.builder().build()
    }

    /// The model split over `n` files.
    pub fn build_shards(&self, n: usize) -> Vec<Vec<u8>> {
        self.builder().build_shards(n)
    }

    /// The file's bytes with `damage` done to them.
    pub fn corrupt(&self, damage: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        self.builder().corrupt(damage)
    }

    /// The file before it is written, to change or take away single parts.
    pub fn builder(&self) -> GgufBuilder {
        let file = self.write_metadata(GgufBuilder::new());
        let mut file = self.vocabulary.write(file, self.add_bos);
        if let Some(template) = &self.chat_template {
            file = file.meta("tokenizer.chat_template", template.as_str());
        }
        self.write_tensors(file)
    }

    fn write_metadata(&self, file: GgufBuilder) -> GgufBuilder {
        let key = |name: &str| format!("{}.{name}", self.architecture);
        let gemma = self.architecture.starts_with("gemma");
        let epsilon = if self.architecture == "llama" || self.architecture == "phi3" {
            1e-5
        } else {
            1e-6f32
        };
        let mut file = file
            .meta("general.architecture", self.architecture)
            .meta("general.type", "model")
            .meta("general.name", format!("Tiny {}", self.architecture))
            .meta("general.file_type", file_type(self.weights))
            .meta("general.quantization_version", 2u32)
            .meta(&key("block_count"), count(self.layers))
            .meta(&key("context_length"), self.context)
            .meta(&key("embedding_length"), count(self.hidden))
            .meta(&key("feed_forward_length"), count(self.feed_forward))
            .meta(&key("attention.head_count"), count(self.heads))
            .meta(&key("attention.head_count_kv"), count(self.kv_heads))
            .meta(&key("attention.layer_norm_rms_epsilon"), epsilon);
        if matches!(self.architecture, "llama" | "phi3") {
            file = file.meta(&key("rope.dimension_count"), count(self.head_dim));
        }
        if self.architecture == "llama" {
            file = file.meta(&key("vocab_size"), count(self.vocab_size()));
        }
        if gemma || self.architecture == "qwen3" || self.head_dim * self.heads != self.hidden {
            file = file
                .meta(&key("attention.key_length"), count(self.head_dim))
                .meta(&key("attention.value_length"), count(self.head_dim));
        }
        let optional = [
            ("rope.freq_base", self.rope_base),
            ("attn_logit_softcapping", self.attention_softcap),
            ("final_logit_softcapping", self.final_softcap),
        ];
        for (name, value) in optional {
            file = value.into_iter().fold(file, |file, value| file.meta(&key(name), value));
        }
        if let Some(window) = self.sliding_window {
            file = file.meta(&key("attention.sliding_window"), window);
        }
        self.write_rope_scaling(file)
    }

    fn write_rope_scaling(&self, file: GgufBuilder) -> GgufBuilder {
        let key = |name: &str| format!("{}.rope.scaling.{name}", self.architecture);
        match self.rope_scaling {
            Some(RopeScaling::Linear { factor }) => {
                file.meta(&key("type"), "linear").meta(&key("factor"), factor)
            }
            Some(RopeScaling::Yarn { factor, original_context }) => file
                .meta(&key("type"), "yarn")
                .meta(&key("factor"), factor)
                .meta(&key("original_context_length"), original_context),
            Some(RopeScaling::LongRope { original_context }) => file
                .meta(&key("type"), "longrope")
                .meta(&key("original_context_length"), original_context)
                .meta(&key("attn_factor"), 1.19f32),
            Some(RopeScaling::Llama3) | None => file,
        }
    }

    fn write_tensors(&self, file: GgufBuilder) -> GgufBuilder {
        let (hidden, vocab) = (self.hidden, self.vocab_size());
        // Small enough that logits of a tied head have a deviation of 2.
        let deviation = 2.0 / (hidden as f32).sqrt();
        let name = "token_embd.weight";
        let embedding = self.embedding.unwrap_or_else(|| self.type_of(name));
        let mut file = self.matrix(file, name, [hidden, vocab], embedding, deviation);
        file = self.write_rope_tensors(file);
        for layer in 0..self.layers {
            file = self.write_attention(file, &format!("blk.{layer}"));
            file = self.write_feed_forward(file, &format!("blk.{layer}"));
        }
        file = self.norm(file, "output_norm.weight", hidden);
        if !self.tied {
            let name = "output.weight";
            file = self.matrix(file, name, [hidden, vocab], self.type_of(name), deviation);
        }
        file
    }

    fn write_rope_tensors(&self, file: GgufBuilder) -> GgufBuilder {
        let half = self.head_dim / 2;
        let tensor = |file: GgufBuilder, name, factors: Vec<f32>| {
            file.tensor_of(name, &[half], TensorType::F32, &factors)
        };
        match self.rope_scaling {
            Some(RopeScaling::Llama3) => {
                let base = self.rope_base.unwrap_or(1e4);
                tensor(file, "rope_freqs.weight", llama3_factors(half, base, 8.0, 128.0))
            }
            Some(RopeScaling::LongRope { .. }) => {
                let long = (0..half).map(|i| 1.0 + i as f32 / 4.0).collect();
                let short = (0..half).map(|i| 1.0 + i as f32 / 64.0).collect();
                let file = tensor(file, "rope_factors_long.weight", long);
                tensor(file, "rope_factors_short.weight", short)
            }
            _ => file,
        }
    }

    fn write_attention(&self, file: GgufBuilder, block: &str) -> GgufBuilder {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut file = self.norm(file, &format!("{block}.attn_norm.weight"), self.hidden);
        if self.architecture == "phi3" {
            file =
                self.projection(file, &format!("{block}.attn_qkv.weight"), self.hidden, q + 2 * kv);
        } else {
            for (part, rows) in [("attn_q", q), ("attn_k", kv), ("attn_v", kv)] {
                file = self.projection(file, &format!("{block}.{part}.weight"), self.hidden, rows);
                if self.biases {
                    let name = format!("{block}.{part}.bias");
                    let bias = self.noise(&name).normals(rows, 0.1);
                    file = file.tensor_of(&name, &[rows], TensorType::F32, &bias);
                }
            }
        }
        if matches!(self.architecture, "qwen3" | "gemma3") {
            for part in ["attn_q_norm", "attn_k_norm"] {
                file = self.norm(file, &format!("{block}.{part}.weight"), self.head_dim);
            }
        }
        if self.sinks {
            let name = format!("{block}.attn_sinks.weight");
            let sinks = self.noise(&name).normals(self.heads, 1.0);
            file = file.tensor_of(&name, &[self.heads], TensorType::F32, &sinks);
        }
        file = self.projection(file, &format!("{block}.attn_output.weight"), q, self.hidden);
        if self.architecture.starts_with("gemma") {
            file = self.post_norm(file, &format!("{block}.post_attention_norm.weight"));
        }
        file
    }

    fn write_feed_forward(&self, file: GgufBuilder, block: &str) -> GgufBuilder {
        let (hidden, width) = (self.hidden, self.feed_forward);
        let mut file = self.norm(file, &format!("{block}.ffn_norm.weight"), hidden);
        if self.architecture == "phi3" {
            // Gate and up in one tensor, the gate's rows first.
            file = self.projection(file, &format!("{block}.ffn_up.weight"), hidden, 2 * width);
        } else {
            file = self.projection(file, &format!("{block}.ffn_gate.weight"), hidden, width);
            file = self.projection(file, &format!("{block}.ffn_up.weight"), hidden, width);
        }
        file = self.projection(file, &format!("{block}.ffn_down.weight"), width, hidden);
        if self.architecture.starts_with("gemma") {
            file = self.post_norm(file, &format!("{block}.post_ffw_norm.weight"));
        }
        file
    }

    /// A matrix that keeps the size of normalised inputs.
    fn projection(&self, file: GgufBuilder, name: &str, cols: usize, rows: usize) -> GgufBuilder {
        self.matrix(file, name, [cols, rows], self.type_of(name), 1.0 / (cols as f32).sqrt())
    }

    fn matrix(
        &self,
        file: GgufBuilder,
        name: &str,
        dims: [usize; 2],
        ty: TensorType,
        deviation: f32,
    ) -> GgufBuilder {
        let weights = self.noise(name).normals(dims[0] * dims[1], deviation);
        file.tensor(name, &dims, ty, quantize(ty, &weights))
    }

    fn norm(&self, file: GgufBuilder, name: &str, width: usize) -> GgufBuilder {
        self.norm_around(file, name, width, 1.0)
    }

    /// The norm of a block's output in Gemma. Larger than 1, because the embedding is scaled up and
    /// tied: the model would otherwise repeat its last token whatever the blocks compute.
    fn post_norm(&self, file: GgufBuilder, name: &str) -> GgufBuilder {
        self.norm_around(file, name, self.hidden, 6.0)
    }

    fn norm_around(&self, file: GgufBuilder, name: &str, width: usize, mean: f32) -> GgufBuilder {
        let mut weights = self.noise(name).normals(width, 0.1 * mean);
        weights.iter_mut().for_each(|w| *w += mean);
        file.tensor_of(name, &[width], TensorType::F32, &weights)
    }

    fn type_of(&self, name: &str) -> TensorType {
        let named = self.overrides.iter().rev().find(|(part, _)| name.contains(part.as_str()));
        named.map_or(self.weights, |(_, ty)| *ty)
    }

    /// Numbers for the tensor of this name.
    fn noise(&self, name: &str) -> Noise {
        Noise::named(name, self.seed)
    }
}

/// The divisors of Llama 3.1's `pairs` rotary frequencies (low 1, high 4), for contexts `factor`
/// times the one it was trained with, of `trained` tokens.
pub(crate) fn llama3_factors(pairs: usize, base: f32, factor: f64, trained: f64) -> Vec<f32> {
    let (low, high) = (1.0, 4.0);
    (0..pairs)
        .map(|i| {
            let frequency = f64::from(base).powf(-(i as f64) / pairs as f64);
            let wavelength = std::f64::consts::TAU / frequency;
            let smooth = ((trained / wavelength - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
        })
        .collect()
}

fn count(n: usize) -> u32 {
    u32::try_from(n).expect("a tiny model has small numbers")
}

/// `general.file_type`: what most matrices are, as ggml's tools number it.
fn file_type(ty: TensorType) -> u32 {
    match ty {
        TensorType::F16 => 1,
        TensorType::Q4_0 => 2,
        TensorType::Q4_1 => 3,
        TensorType::Q8_0 => 7,
        TensorType::Q5_0 => 8,
        TensorType::Q5_1 => 9,
        TensorType::Q2K => 10,
        TensorType::Q3K => 12,
        TensorType::Q4K => 15,
        TensorType::Q5K => 17,
        TensorType::Q6K => 18,
        TensorType::IQ4NL => 25,
        TensorType::IQ4XS => 30,
        TensorType::BF16 => 32,
        TensorType::MXFP4 => 38,
        _ => 0,
    }
}
