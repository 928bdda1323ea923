//! Tiny but complete encoders, laid out as the converters of ggml's project lay them out.
//!
//! Keys and tensor names are those of the Python package `gguf` (`constants.py`).

use m40_gguf::{TensorType, ValueType};

use super::noise::Noise;
use super::{GgufBuilder, Meta, quantize};

const HIDDEN: usize = 128;
const HEADS: usize = 4;
const FEED_FORWARD: usize = 256;
const LAYERS: usize = 2;

/// Tokens that are no text: padding, unknown, start, end of a text, mask.
const CONTROL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
/// Words that are one token.
const WORDS: [&str; 10] = ["the", "a", "cat", "dog", "sat", "on", "mat", "river", "bank", "money"];

/// How a file says that a text's vector is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TinyPooling {
    /// Of all tokens.
    Mean = 1,
    /// Of the first token.
    Cls = 2,
    /// Of the last token.
    Last = 3,
    /// By a classifier, which is there then.
    Rank = 4,
}

/// A seeded tiny encoder: width 128, 4 heads, 2 layers, a context of 192 tokens, a WordPiece vocabulary
/// of letters, digits and a few words.
#[derive(Debug, Clone)]
pub struct TinyEncoder {
    architecture: &'static str,
    seed: u64,
    context: u32,
    weights: TensorType,
    pooling: Option<TinyPooling>,
}

impl TinyEncoder {
    /// Learnt positions, biases, and a plain feed-forward block; the first token's vector.
    pub fn bert() -> Self {
        Self::new("bert", TinyPooling::Cls)
    }

    /// Rotary positions, one tensor for Q, K and V, and a gated feed-forward block; the mean of all
    /// tokens' vectors.
    pub fn nomic_bert() -> Self {
        Self::new("nomic-bert", TinyPooling::Mean)
    }

    /// A `bert` that judges pairs of texts.
    pub fn cross_encoder() -> Self {
        Self::new("bert", TinyPooling::Rank)
    }

    fn new(architecture: &'static str, pooling: TinyPooling) -> Self {
        let weights = TensorType::F32;
        Self { architecture, seed: 0, context: 192, weights, pooling: Some(pooling) }
    }

    /// Another seed gives other weights.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The trained context in tokens.
    pub fn context(mut self, tokens: u32) -> Self {
        self.context = tokens;
        self
    }

    /// The type of every matrix but positions and segments.
    pub fn weights(mut self, ty: TensorType) -> Self {
        self.weights = ty;
        self
    }

    /// What the file says of pooling; `None` leaves it out.
    pub fn pooling(mut self, pooling: Option<TinyPooling>) -> Self {
        self.pooling = pooling;
        self
    }

    /// The file's bytes.
    pub fn build(&self) -> Vec<u8> {
        self.builder().build()
    }

    /// The file before it is written, to change or take away single parts.
    pub fn builder(&self) -> GgufBuilder {
        self.write_tensors(vocabulary(self.write_metadata(GgufBuilder::new())))
    }

    fn is_nomic(&self) -> bool {
        self.architecture == "nomic-bert"
    }

    fn write_metadata(&self, file: GgufBuilder) -> GgufBuilder {
        let key = |name: &str| format!("{}.{name}", self.architecture);
        let mut file = file
            .meta("general.architecture", self.architecture)
            .meta("general.type", "model")
            .meta("general.name", format!("Tiny {}", self.architecture))
            .meta(&key("block_count"), LAYERS as u32)
            .meta(&key("context_length"), self.context)
            .meta(&key("embedding_length"), HIDDEN as u32)
            .meta(&key("feed_forward_length"), FEED_FORWARD as u32)
            .meta(&key("attention.head_count"), HEADS as u32)
            .meta(&key("attention.layer_norm_epsilon"), 1e-12f32)
            .meta(&key("attention.causal"), false);
        if let Some(pooling) = self.pooling {
            file = file.meta(&key("pooling_type"), pooling as u32);
        }
        if self.is_nomic() { file.meta(&key("rope.freq_base"), 1000f32) } else { file }
    }

    fn write_tensors(&self, file: GgufBuilder) -> GgufBuilder {
        let (width, context) = (HIDDEN, self.context as usize);
        let words = tokens().len();
        let mut file = self.matrix(file, "token_embd.weight", [width, words], 1.0);
        file = self.table(file, "token_types.weight", [width, 2]);
        if !self.is_nomic() {
            file = self.table(file, "position_embd.weight", [width, context]);
        }
        file = self.norm(file, "token_embd_norm");
        for layer in 0..LAYERS {
            file = self.write_layer(file, &format!("blk.{layer}"));
        }
        if self.pooling == Some(TinyPooling::Rank) {
            file = self.biased(file, "cls", [width, width]);
            file = self.biased(file, "cls.output", [width, 1]);
        }
        file
    }

    fn write_layer(&self, mut file: GgufBuilder, block: &str) -> GgufBuilder {
        let (width, hidden) = (HIDDEN, FEED_FORWARD);
        let of = |part: &str| format!("{block}.{part}");
        if self.is_nomic() {
            file = self.projection(file, &of("attn_qkv"), [width, 3 * width]);
            file = self.projection(file, &of("attn_output"), [width, width]);
            file = self.projection(file, &of("ffn_gate"), [width, hidden]);
            file = self.projection(file, &of("ffn_up"), [width, hidden]);
            file = self.projection(file, &of("ffn_down"), [hidden, width]);
        } else {
            for part in ["attn_q", "attn_k", "attn_v", "attn_output"] {
                file = self.biased(file, &of(part), [width, width]);
            }
            file = self.biased(file, &of("ffn_up"), [width, hidden]);
            file = self.biased(file, &of("ffn_down"), [hidden, width]);
        }
        let file = self.norm(file, &of("attn_output_norm"));
        self.norm(file, &of("layer_output_norm"))
    }

    fn biased(&self, file: GgufBuilder, stem: &str, dims: [usize; 2]) -> GgufBuilder {
        let file = self.projection(file, stem, dims);
        self.vector(file, &format!("{stem}.bias"), dims[1], 0.0)
    }

    /// Half as wide again as what keeps the size of its inputs, so that a block counts beside the
    /// stream that it is added to.
    fn projection(&self, file: GgufBuilder, stem: &str, dims: [usize; 2]) -> GgufBuilder {
        self.matrix(file, &format!("{stem}.weight"), dims, 1.5 / (dims[0] as f32).sqrt())
    }

    fn matrix(&self, file: GgufBuilder, name: &str, dims: [usize; 2], size: f32) -> GgufBuilder {
        let weights = self.noise(name).normals(dims[0] * dims[1], size);
        file.tensor(name, &dims, self.weights, quantize(self.weights, &weights))
    }

    fn table(&self, file: GgufBuilder, name: &str, dims: [usize; 2]) -> GgufBuilder {
        let rows = self.noise(name).normals(dims[0] * dims[1], 0.5);
        file.tensor_of(name, &dims, TensorType::F32, &rows)
    }

    fn norm(&self, file: GgufBuilder, stem: &str) -> GgufBuilder {
        let file = self.vector(file, &format!("{stem}.weight"), HIDDEN, 1.0);
        self.vector(file, &format!("{stem}.bias"), HIDDEN, 0.0)
    }

    fn vector(&self, file: GgufBuilder, name: &str, width: usize, mean: f32) -> GgufBuilder {
        let mut values = self.noise(name).normals(width, 0.1);
        values.iter_mut().for_each(|value| *value += mean);
        file.tensor_of(name, &[width], TensorType::F32, &values)
    }

    fn noise(&self, name: &str) -> Noise {
        Noise::named(name, self.seed)
    }
}

/// Control tokens, words, and letters and digits at the start of a word and within one.
fn tokens() -> Vec<String> {
    let characters = || ('a'..='z').chain('0'..='9').chain(['.', ',', '?', '!']);
    let control = CONTROL.iter().map(|token| (*token).to_owned());
    let words = WORDS.iter().map(|word| format!("▁{word}"));
    let starts = characters().map(|c| format!("▁{c}")).filter(|c| c != "▁a");
    control.chain(words).chain(starts).chain(characters().map(String::from)).collect()
}

fn vocabulary(file: GgufBuilder) -> GgufBuilder {
    let tokens = tokens();
    let types: Vec<i32> =
        (0..tokens.len()).map(|id| if id < CONTROL.len() { 3 } else { 1 }).collect();
    file.meta("tokenizer.ggml.model", "bert")
        .meta("tokenizer.ggml.token_type_count", 2u32)
        .meta("tokenizer.ggml.pre", "jina-v2-en")
        .meta("tokenizer.ggml.tokens", Meta::array(ValueType::Str, tokens))
        .meta("tokenizer.ggml.token_type", types)
        .meta("tokenizer.ggml.padding_token_id", 0u32)
        .meta("tokenizer.ggml.unknown_token_id", 1u32)
        .meta("tokenizer.ggml.cls_token_id", 2u32)
        .meta("tokenizer.ggml.bos_token_id", 2u32)
        .meta("tokenizer.ggml.seperator_token_id", 3u32)
        .meta("tokenizer.ggml.eos_token_id", 3u32)
        .meta("tokenizer.ggml.mask_token_id", 4u32)
}
