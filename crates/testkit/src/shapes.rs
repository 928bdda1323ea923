//! Models of real sizes with random weights, for tests and measurements that need the size and not
//! the sense.
//!
//! ```
//! use m40_gguf::Gguf;
//! use m40_testkit::shapes::Shape;
//!
//! let file = tempfile::NamedTempFile::new()?;
//! Shape::by_name("1.5b").unwrap().with_layers(1).with_vocab(512).write(file.path(), 2)?;
//! let model = Gguf::parse(std::fs::read(file.path())?).unwrap();
//! assert_eq!(model.get_u32("qwen2.feed_forward_length"), Ok(Some(8960)));
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! A weight depends on the seed, on its tensor's name and type and on its place: not on the number
//! of threads, nor on what was cut away.

mod blocks;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use m40_gguf::TensorType;

use crate::gguf::{CHATML, GgufBuilder, Noise, TensorEntry, Vocabulary, llama3_factors};
use blocks::Filler;

/// What one thread makes and writes at a time.
const SLAB_BYTES: usize = 1 << 20;
/// Every tensor begins at a multiple of this.
const ALIGNMENT: u64 = 32;

/// A model's sizes and the types of its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// What [`by_name`](Self::by_name) knows it as.
    pub name: &'static str,
    /// `general.architecture`.
    pub architecture: &'static str,
    /// Number of layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward part.
    pub feed_forward: usize,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Size of a head.
    pub head_dim: usize,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Trained context in tokens.
    pub context: u32,
    /// Base of the rotary frequencies.
    pub rope_base: f32,
    /// Name of the pre-tokenizer.
    pub pre: &'static str,
    /// Type of the matrices in layers.
    pub weights: TensorType,
    /// Type of `attn_v` and `ffn_down` in every layer that ggml's quantiser gives more bits.
    pub more_bits: Option<TensorType>,
    /// Type of the token embedding.
    pub embedding: TensorType,
    /// Type of the output head; `None` when the embedding serves as such.
    pub output: Option<TensorType>,
    /// Other weights for another seed.
    pub seed: u64,
}

impl Shape {
    /// SmolLM2-135M as the real test model is quantised: `Q4_1`, embedding and head `Q8_0`.
    fn smollm2_135m() -> Self {
        Self {
            name: "135m",
            architecture: "llama",
            layers: 30,
            hidden: 576,
            feed_forward: 1536,
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            vocab: 49_152,
            context: 8192,
            rope_base: 1e5,
            pre: "smollm",
            weights: TensorType::Q4_1,
            more_bits: None,
            embedding: TensorType::Q8_0,
            output: None,
            seed: 0,
        }
    }

    /// Qwen2.5-1.5B, `Q4_K_M`.
    fn qwen2_1_5b() -> Self {
        Self {
            name: "1.5b",
            architecture: "qwen2",
            layers: 28,
            hidden: 1536,
            feed_forward: 8960,
            heads: 12,
            kv_heads: 2,
            head_dim: 128,
            vocab: 151_936,
            context: 32_768,
            rope_base: 1e6,
            pre: "qwen2",
            weights: TensorType::Q4K,
            more_bits: Some(TensorType::Q6K),
            embedding: TensorType::Q6K,
            output: None,
            seed: 0,
        }
    }

    /// Llama-3.2-1B, `F16`.
    fn llama_1b() -> Self {
        Self {
            name: "1b-f16",
            architecture: "llama",
            layers: 16,
            hidden: 2048,
            feed_forward: 8192,
            heads: 32,
            kv_heads: 8,
            head_dim: 64,
            vocab: 128_256,
            context: 131_072,
            rope_base: 5e5,
            pre: "llama-bpe",
            weights: TensorType::F16,
            more_bits: None,
            embedding: TensorType::F16,
            output: None,
            seed: 0,
        }
    }

    /// Llama-3-8B, every matrix `Q4_0`.
    fn llama_8b() -> Self {
        Self {
            name: "8b-q4_0",
            architecture: "llama",
            layers: 32,
            hidden: 4096,
            feed_forward: 14_336,
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            vocab: 128_256,
            context: 8192,
            rope_base: 5e5,
            pre: "llama-bpe",
            weights: TensorType::Q4_0,
            more_bits: None,
            embedding: TensorType::Q4_0,
            output: Some(TensorType::Q4_0),
            seed: 0,
        }
    }

    /// Llama-3-8B, `Q4_K_M`.
    fn llama_8b_k() -> Self {
        Self {
            name: "8b-q4_k_m",
            weights: TensorType::Q4K,
            more_bits: Some(TensorType::Q6K),
            embedding: TensorType::Q4K,
            output: Some(TensorType::Q6K),
            ..Self::llama_8b()
        }
    }

    /// Mistral-Small-24B, every matrix `Q4_0`. Its heads together are narrower than the residual
    /// stream.
    fn mistral_24b() -> Self {
        Self {
            name: "24b-q4_0",
            layers: 40,
            hidden: 5120,
            feed_forward: 32_768,
            vocab: 131_072,
            context: 32_768,
            rope_base: 1e8,
            pre: "tekken",
            ..Self::llama_8b()
        }
    }

    /// Every shape there is, the smallest first.
    pub fn all() -> [Self; 6] {
        [
            Self::smollm2_135m(),
            Self::qwen2_1_5b(),
            Self::llama_1b(),
            Self::llama_8b(),
            Self::llama_8b_k(),
            Self::mistral_24b(),
        ]
    }

    /// The shape of this name: `135m`, `1.5b`, `1b-f16`, `8b-q4_0`, `8b-q4_k_m` or `24b-q4_0`.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|shape| shape.name == name)
    }

    /// The same with so many layers. Which of them get more bits is chosen anew, as a quantiser
    /// would.
    pub const fn with_layers(mut self, layers: usize) -> Self {
        self.layers = layers;
        self
    }

    /// The same with so many tokens, 300 at least.
    pub const fn with_vocab(mut self, tokens: usize) -> Self {
        self.vocab = tokens;
        self
    }

    /// The same with other weights.
    pub const fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Bytes of all tensors' data.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors().iter().map(|tensor| tensor.bytes).sum()
    }

    /// Writes the model to `path` with so many threads. A file that is there is replaced.
    ///
    /// # Errors
    /// When the file cannot be made or written; what was written stays.
    ///
    /// # Panics
    /// When the vocabulary is too small, or the sizes are no whole blocks.
    pub fn write(&self, path: impl AsRef<Path>, threads: usize) -> io::Result<()> {
        let tensors = self.tensors();
        let entries: Vec<_> = tensors.iter().map(Tensor::entry).collect();
        let head = self.metadata().head(&entries);
        let mut end = (head.len() as u64).next_multiple_of(ALIGNMENT);
        let mut slabs = Vec::new();
        for tensor in &tensors {
            slabs.extend(tensor.slabs(end));
            end += tensor.bytes.next_multiple_of(ALIGNMENT);
        }

        let file = File::create(path)?;
        file.set_len(end)?;
        file.write_all_at(&head, 0)?;
        let next = AtomicUsize::new(0);
        let work = || {
            let mut buffer = vec![0; SLAB_BYTES];
            while let Some(slab) = slabs.get(next.fetch_add(1, Ordering::Relaxed)) {
                let data = &mut buffer[..slab.bytes];
                slab.make(self.seed, data);
                file.write_all_at(data, slab.offset)?;
            }
            Ok(())
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
            // Each is waited for, whatever the others returned.
            let ends: Vec<_> = workers.into_iter().map(|w| w.join()).collect();
            ends.into_iter().try_for_each(|end| end.expect("writing does not panic"))
        })
    }

    fn metadata(&self) -> GgufBuilder {
        let key = |name: &str| format!("{}.{name}", self.architecture);
        let count = |n: usize| u32::try_from(n).expect("sizes of models fit");
        let epsilon = if self.architecture == "llama" { 1e-5f32 } else { 1e-6 };
        let file = GgufBuilder::new()
            .meta("general.architecture", self.architecture)
            .meta("general.type", "model")
            .meta("general.name", format!("Random {}", self.name))
            .meta("general.quantization_version", 2u32)
            .meta(&key("vocab_size"), count(self.vocab))
            .meta(&key("block_count"), count(self.layers))
            .meta(&key("context_length"), self.context)
            .meta(&key("embedding_length"), count(self.hidden))
            .meta(&key("feed_forward_length"), count(self.feed_forward))
            .meta(&key("attention.head_count"), count(self.heads))
            .meta(&key("attention.head_count_kv"), count(self.kv_heads))
            .meta(&key("attention.key_length"), count(self.head_dim))
            .meta(&key("attention.value_length"), count(self.head_dim))
            .meta(&key("attention.layer_norm_rms_epsilon"), epsilon)
            .meta(&key("rope.dimension_count"), count(self.head_dim))
            .meta(&key("rope.freq_base"), self.rope_base);
        let vocabulary = Vocabulary::bpe(self.pre).filled(self.vocab);
        vocabulary.write(file, false).meta("tokenizer.chat_template", CHATML)
    }

    /// Every tensor, as converters order them: embedding, layers, final norm, head.
    fn tensors(&self) -> Vec<Tensor> {
        let (hidden, width) = (self.hidden, self.feed_forward);
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        // Logits get a deviation of 2.
        let spread = 2.0 / (hidden as f32).sqrt();
        let mut all = vec![Tensor::matrix("token_embd.weight", hidden, self.vocab, self.embedding)];
        all[0].content = Content::Noise { deviation: spread };
        all.extend(self.rope_factors());
        for layer in 0..self.layers {
            let plain = self.weights;
            let more = self.more_bits.filter(|_| gets_more_bits(layer, self.layers));
            let more = more.unwrap_or(plain);
            let name = |part: &str| format!("blk.{layer}.{part}");
            all.push(Tensor::floats(&name("attn_norm.weight"), hidden, 1.0));
            for (part, rows, ty) in [("q", q, plain), ("k", kv, plain), ("v", kv, more)] {
                all.push(Tensor::matrix(&name(&format!("attn_{part}.weight")), hidden, rows, ty));
                if self.architecture == "qwen2" {
                    all.push(Tensor::floats(&name(&format!("attn_{part}.bias")), rows, 0.0));
                }
            }
            all.push(Tensor::matrix(&name("attn_output.weight"), q, hidden, plain));
            all.push(Tensor::floats(&name("ffn_norm.weight"), hidden, 1.0));
            all.push(Tensor::matrix(&name("ffn_gate.weight"), hidden, width, plain));
            all.push(Tensor::matrix(&name("ffn_up.weight"), hidden, width, plain));
            all.push(Tensor::matrix(&name("ffn_down.weight"), width, hidden, more));
        }
        all.push(Tensor::floats("output_norm.weight", hidden, 1.0));
        if let Some(ty) = self.output {
            let mut output = Tensor::matrix("output.weight", hidden, self.vocab, ty);
            output.content = Content::Noise { deviation: spread };
            all.push(output);
        }
        all
    }

    /// The rotary factors of Llama 3.2, whose context is 16 times that of Llama 3.
    fn rope_factors(&self) -> Option<Tensor> {
        let is_llama_3_2 = self.architecture == "llama" && self.context == 131_072;
        is_llama_3_2.then(|| {
            let factors = llama3_factors(self.head_dim / 2, self.rope_base, 32.0, 8192.0);
            let mut tensor = Tensor::floats("rope_freqs.weight", factors.len(), 0.0);
            tensor.content = Content::Values(factors);
            tensor
        })
    }
}

/// Whether ggml's `Q4_K_M` gives `attn_v` and `ffn_down` of this layer more bits: the first and the
/// last eighth of the layers, and every third between.
const fn gets_more_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// A tensor to be written.
#[derive(Debug, Clone)]
struct Tensor {
    name: String,
    dims: Vec<u64>,
    ty: TensorType,
    bytes: u64,
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    /// Random weights of mean zero.
    Noise { deviation: f32 },
    /// Random floats, a tenth around this.
    Around(f32),
    /// These floats.
    Values(Vec<f32>),
}

impl Tensor {
    /// A matrix that keeps the size of normalised inputs.
    fn matrix(name: &str, cols: usize, rows: usize, ty: TensorType) -> Self {
        let row = ty.row_bytes(cols).unwrap_or_else(|| panic!("{name}: {cols} columns of {ty}"));
        let content = Content::Noise { deviation: 1.0 / (cols as f32).sqrt() };
        let dims = vec![cols as u64, rows as u64];
        Self { name: name.to_owned(), dims, ty, bytes: (row * rows) as u64, content }
    }

    fn floats(name: &str, len: usize, mean: f32) -> Self {
        let content = Content::Around(mean);
        let (dims, bytes) = (vec![len as u64], 4 * len as u64);
        Self { name: name.to_owned(), dims, ty: TensorType::F32, bytes, content }
    }

    fn entry(&self) -> TensorEntry<'_> {
        TensorEntry { name: &self.name, dims: &self.dims, ty: self.ty, bytes: self.bytes }
    }

    /// The pieces it is written in, when it begins at `offset` of the file.
    fn slabs(&self, offset: u64) -> impl Iterator<Item = Slab<'_>> {
        let block = self.ty.block_bytes();
        let step = SLAB_BYTES / block * block;
        (0..self.bytes).step_by(step).map(move |at| {
            let bytes = step.min((self.bytes - at) as usize);
            Slab { tensor: self, at, offset: offset + at, bytes }
        })
    }
}

/// A part of a tensor, whole blocks.
#[derive(Debug)]
struct Slab<'a> {
    tensor: &'a Tensor,
    /// Where it begins in the tensor's data.
    at: u64,
    /// Where it begins in the file.
    offset: u64,
    bytes: usize,
}

impl Slab<'_> {
    fn make(&self, seed: u64, out: &mut [u8]) {
        let mut noise = Noise::named(&self.tensor.name, seed);
        let mut floats = |next: &mut dyn FnMut() -> f32| {
            assert_eq!(self.at, 0, "tensors of floats are one slab");
            let (floats, _) = out.as_chunks_mut();
            floats.iter_mut().for_each(|float| *float = next().to_le_bytes());
        };
        match &self.tensor.content {
            Content::Noise { deviation } => {
                let filler = Filler::new(self.tensor.ty, *deviation, noise.clone());
                let mut noise = Noise::new(noise.bits() ^ self.at);
                // One more step, so that neighbours do not begin beside each other.
                filler.fill(&mut Noise::new(noise.bits()), out);
            }
            Content::Around(mean) => floats(&mut || mean + 0.1 * noise.normal()),
            Content::Values(values) => {
                let mut values = values.iter();
                floats(&mut || *values.next().expect("as many values as floats"));
            }
        }
    }
}
