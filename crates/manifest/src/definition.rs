//! What a manifest says of one model, checked.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use m40_control::{NameError, check_model_name};
use m40_sched::sampler::SamplingParams;
use m40_source::{Sha256, Source, WebUrl};
use serde::{Deserialize, Serialize};

use crate::duration;

/// One model. Only this crate makes one, of a text that it has checked.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Definition {
    /// The name that requests use; legal as [`m40_control::check_model_name`] has it.
    pub name: String,
    /// Other names for it, as legal.
    pub aliases: Vec<String>,
    /// Where its file comes from.
    pub source: Source,
    /// Hash of the file, if it is known beforehand.
    pub sha256: Option<Sha256>,
    /// Size of the file, if it is known beforehand.
    pub size_bytes: Option<u64>,
    /// Other places that have the same file.
    pub mirrors: Vec<WebUrl>,
    /// Tokens of prompt and answer together; the daemon's own limit when absent.
    pub context_tokens: Option<u32>,
    /// Most answers at a time.
    pub sequences_max: Option<u32>,
    /// How keys and values are kept; as the daemon is configured when absent.
    pub kv_type: Option<KvType>,
    /// Which models leave memory first: those with the lowest. -100 to 100.
    pub priority: i32,
    /// Whether it never leaves memory for another model.
    pub pin: bool,
    /// Whether it is loaded when the daemon starts, or when the definition comes.
    pub preload: bool,
    /// When it leaves memory without being asked for.
    pub idle_unload: Option<IdleUnload>,
    /// Chat template instead of the file's own.
    pub template: Option<Text>,
    /// A `tokenizer.json` instead of the file's own tokenizer.
    pub tokenizer: Option<PathBuf>,
    /// What conversations begin with that have no system message.
    pub system: Option<Text>,
    /// What requests that do not say so sample with.
    pub sampling: Sampling,
    /// Texts that end an answer, besides those of a request.
    pub stop: Vec<String>,
    /// What the model can do; as its file says when absent.
    pub capabilities: Option<Vec<Capability>>,
}

/// A text and, if it came from a file, which.
#[derive(Debug, Clone)]
pub struct Text {
    /// The text.
    pub content: Arc<str>,
    /// The file that it was read from.
    pub file: Option<PathBuf>,
}

// The same text from another place is no change.
impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        self.content == other.content
    }
}

/// How keys and values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvType {
    /// 16-bit floating point.
    F16,
    /// 8-bit whole numbers with a scale.
    Int8,
}

/// When a model that nobody asks for leaves memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdleUnload {
    /// This long after its last answer.
    After(Duration),
    /// Not on its own.
    Never,
}

/// Something that a model can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Capability {
    /// Answers texts and conversations.
    Completion,
    /// Calls tools.
    Tools,
    /// Fills in between two texts.
    Insert,
    /// Sees images.
    Vision,
    /// Makes embeddings.
    Embedding,
    /// Thinks before it answers.
    Thinking,
}

/// Defaults for sampling; what is absent is as the daemon has it. See [`SamplingParams`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "SamplingParams says what they mean")]
pub struct Sampling {
    pub temperature: Option<f32>,
    pub top_k: Option<u32>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub typical_p: Option<f32>,
    pub repeat_penalty: Option<f32>,
    pub repeat_last_n: Option<u32>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub seed: Option<u64>,
}

impl Definition {
    /// What a manifest says that names a source and nothing else.
    ///
    /// # Errors
    /// [`NameError`] of a name that no model can have.
    pub fn plain(name: &str, source: Source) -> Result<Self, NameError> {
        check_model_name(name)?;
        Ok(Self {
            name: name.to_owned(),
            aliases: Vec::new(),
            source,
            sha256: None,
            size_bytes: None,
            mirrors: Vec::new(),
            context_tokens: None,
            sequences_max: None,
            kv_type: None,
            priority: 0,
            pin: false,
            preload: false,
            idle_unload: None,
            template: None,
            tokenizer: None,
            system: None,
            sampling: Sampling::default(),
            stop: Vec::new(),
            capabilities: None,
        })
    }
}

impl Sampling {
    /// These, and others where these say nothing.
    #[must_use]
    pub fn or(&self, others: &Self) -> Self {
        Self {
            temperature: self.temperature.or(others.temperature),
            top_k: self.top_k.or(others.top_k),
            top_p: self.top_p.or(others.top_p),
            min_p: self.min_p.or(others.min_p),
            typical_p: self.typical_p.or(others.typical_p),
            repeat_penalty: self.repeat_penalty.or(others.repeat_penalty),
            repeat_last_n: self.repeat_last_n.or(others.repeat_last_n),
            presence_penalty: self.presence_penalty.or(others.presence_penalty),
            frequency_penalty: self.frequency_penalty.or(others.frequency_penalty),
            seed: self.seed.or(others.seed),
        }
    }

    /// The parameters of a request that says nothing about sampling.
    pub fn params(&self) -> SamplingParams {
        let plain = SamplingParams::default();
        SamplingParams {
            temperature: self.temperature.unwrap_or(plain.temperature),
            top_k: self.top_k.unwrap_or(plain.top_k),
            top_p: self.top_p.unwrap_or(plain.top_p),
            min_p: self.min_p.unwrap_or(plain.min_p),
            typical_p: self.typical_p.unwrap_or(plain.typical_p),
            repeat_penalty: self.repeat_penalty.unwrap_or(plain.repeat_penalty),
            repeat_last_n: self.repeat_last_n.unwrap_or(plain.repeat_last_n),
            presence_penalty: self.presence_penalty.unwrap_or(plain.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(plain.frequency_penalty),
            seed: self.seed,
            logit_bias: plain.logit_bias,
        }
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F16 => "f16",
            Self::Int8 => "int8",
        })
    }
}

impl fmt::Display for IdleUnload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::After(time) => f.write_str(&duration::show(*time)),
            Self::Never => f.write_str("never"),
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Completion => "completion",
            Self::Tools => "tools",
            Self::Insert => "insert",
            Self::Vision => "vision",
            Self::Embedding => "embedding",
            Self::Thinking => "thinking",
        })
    }
}
