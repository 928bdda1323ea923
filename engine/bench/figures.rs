//! What a benchmark is to measure, and what it has to tell.

use std::fmt;

/// Bytes of keys and values that sequences may take on a CPU unless that is said: deep ones of large models
/// would take all memory.
pub(super) const CPU_KV_BYTES: u64 = 2 << 30;

/// What to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BenchOptions {
    /// How often each figure is measured, at least once.
    pub repeats: usize,
    /// Tokens of prompts, each at least one.
    pub prompts: Vec<usize>,
    /// Tokens that each sequence is given at a time, at least one.
    pub tokens: usize,
    /// Tokens that sequences hold before.
    pub depths: Vec<usize>,
    /// Sequences at a time.
    pub batches: Vec<usize>,
    /// Bytes of keys and values that sequences may take on a CPU, beyond those of the session that is
    /// measured in. What takes more is left out.
    pub kv_bytes: u64,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self {
            repeats: 5,
            prompts: vec![512],
            tokens: 32,
            depths: vec![0, 4096],
            batches: vec![1, 2, 4, 8, 16, 32],
            kv_bytes: CPU_KV_BYTES,
        }
    }
}

impl BenchOptions {
    /// Tokens of KV cache, in pages of `page`, that the largest of all takes that fits a context.
    pub(crate) fn kv_tokens(&self, context: usize, page: usize) -> usize {
        let depths = self.depths.iter().map(|depth| depth.saturating_add(self.tokens.max(1)));
        let deepest = depths.filter(|tokens| *tokens <= context).max().unwrap_or(0);
        let sequences = self.batches.iter().copied().max().unwrap_or(0);
        deepest.next_multiple_of(page).saturating_mul(sequences)
    }
}

/// A figure measured several times.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// On average.
    pub mean: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

impl Spread {
    /// Of these figures; `None` of none.
    pub fn of(figures: &[f64]) -> Option<Self> {
        let mean = figures.iter().sum::<f64>() / figures.len() as f64;
        let min = figures.iter().copied().reduce(f64::min)?;
        let max = figures.iter().copied().reduce(f64::max)?;
        Some(Self { mean, min, max })
    }
}

/// What a figure is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BenchTest {
    /// A copy on the device, which bounds how fast it reads weights.
    Copy,
    /// A barrier across the device.
    Barrier,
    /// Something that its caller measures beside a model, by its name.
    Beside(&'static str),
    /// A prompt, in a sequence of its own.
    Prompt {
        /// Its tokens.
        tokens: usize,
        /// Tokens that the sequence holds before.
        depth: usize,
    },
    /// Tokens that sequences are given one after another.
    Decode {
        /// Tokens of each sequence.
        tokens: usize,
        /// Sequences at a time.
        sequences: usize,
        /// Tokens that each holds before.
        depth: usize,
    },
}

/// As in `prefill 512`, `prefill 512 at 4096` and `decode 8 at 4096`, which are 8 sequences.
impl fmt::Display for BenchTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Copy => f.write_str("copy"),
            Self::Barrier => f.write_str("barrier"),
            Self::Beside(name) => f.write_str(name),
            Self::Prompt { tokens, depth: 0 } => write!(f, "prefill {tokens}"),
            Self::Prompt { tokens, depth } => write!(f, "prefill {tokens} at {depth}"),
            Self::Decode { sequences, depth, .. } => write!(f, "decode {sequences} at {depth}"),
        }
    }
}

/// A line of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct BenchRow {
    /// What was measured.
    pub test: BenchTest,
    /// Unit of the figure: `tokens/s` of all sequences together, `GB/s` or `us`.
    pub unit: &'static str,
    /// The figure.
    pub value: Spread,
    /// Tokens a second of each sequence.
    pub per_sequence: Option<f64>,
    /// Weights read, GB/s.
    pub weights_gb_per_s: Option<f64>,
    /// That as a share of what a copy moves.
    pub copy_share: Option<f64>,
    /// Tokens a second, of all sequences, that are predicted for a Tesla M40.
    pub m40_tokens_per_s: Option<f64>,
}

impl BenchRow {
    /// A figure and nothing beside it.
    pub fn plain(test: BenchTest, unit: &'static str, value: Spread) -> Self {
        Self {
            test,
            unit,
            value,
            per_sequence: None,
            weights_gb_per_s: None,
            copy_share: None,
            m40_tokens_per_s: None,
        }
    }
}

/// What a benchmark has to tell.
#[derive(Clone, Debug, PartialEq)]
pub enum BenchLine {
    /// Something was measured.
    Row(BenchRow),
    /// Something does not fit the model's context or its memory.
    LeftOut {
        /// What.
        test: BenchTest,
        /// Why.
        why: String,
    },
}
