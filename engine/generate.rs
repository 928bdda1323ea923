//! What is asked of a generation, what it yields, and how it ends.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use m40_grammar::{Constraint, GrammarError};
use m40_sched::sampler::{ParamError, SamplingParams};

use crate::backend::lock;
use crate::gpu::GpuError;

/// What to generate and when to stop.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerateParams {
    /// How each token is chosen.
    pub sampling: SamplingParams,
    /// Most tokens to generate; as many as the context holds when absent.
    pub max_tokens: Option<u32>,
    /// Texts that end the generation; they are not part of the output.
    pub stop: Vec<String>,
    /// Tokens that end the generation, besides the model's own end-of-generation tokens.
    pub stop_tokens: Vec<u32>,
    /// What the answer has to look like, as [`Model::grammar`](crate::Model::grammar) makes it; any text
    /// when absent. The answer ends when nothing can follow.
    pub constraint: Option<Constraint>,
    /// Control tokens whose text is part of the output, as that of others is not.
    pub keep_special: Vec<u32>,
    /// Report the log-probability of each token, and of this many of the likeliest ones.
    pub logprobs: Option<u32>,
    /// Go on past end-of-generation tokens (benchmarks).
    pub ignore_eos: bool,
    /// Whose room in the KV cache it may take, if there is none for all: that of answers of less
    /// priority. They go on when there is room again.
    pub priority: i64,
}

/// Log-probability of a generated token under the model's plain distribution: before penalties,
/// biases, grammar, filters and temperature.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub id: u32,
    /// Its bytes, which need not be whole UTF-8 characters.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The likeliest tokens, likeliest first: id, bytes, log-probability.
    pub top: Vec<(u32, Vec<u8>, f32)>,
}

/// A piece of output.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chunk {
    /// Whole characters; empty when only log-probabilities are reported.
    pub text: String,
    /// One per token since the last chunk, if asked for.
    pub logprobs: Vec<TokenLogprob>,
    /// Tokens generated since the last chunk.
    pub tokens: u32,
    /// Tokens of the prompt computed since the last chunk: none after the first.
    pub prompt_tokens: u32,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended its turn, or a stop text or token came.
    Stop,
    /// `max_tokens` or the end of the context was reached.
    Length,
    /// The caller cancelled.
    Cancelled,
    /// It took too long for the caller: [`CancelToken::with_deadline`].
    Deadline,
}

/// How a generation went.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// Why it ended.
    pub finish: FinishReason,
    /// Which of [`GenerateParams::stop`] ended it, if one did.
    pub stopped_by: Option<usize>,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the prompt that were not computed, but held by the session or found.
    pub cached_tokens: u32,
    /// Tokens generated, the end-of-generation token not counted.
    pub completion_tokens: u32,
    /// These tokens.
    pub tokens: Vec<u32>,
    /// From the start to the first token.
    pub prompt_time: Duration,
    /// From the first token to the last.
    pub decode_time: Duration,
}

/// Ends a generation from another thread, or at a time, between two tokens or two pieces of a long
/// prompt.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<Cancelled>);

#[derive(Debug, Default)]
struct Cancelled {
    asked: AtomicBool,
    deadline: Option<Instant>,
    /// What is to hear of it at once.
    also: Mutex<Vec<Weak<dyn Cancel>>>,
}

/// Something that goes on by itself until it is cancelled.
pub(crate) trait Cancel: fmt::Debug + Send + Sync {
    /// Ends it.
    fn cancel(&self);
}

impl CancelToken {
    /// A token that nobody has cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// A token that ends the generation by itself: no token comes of a pass that begins after
    /// `deadline`.
    pub fn with_deadline(deadline: Instant) -> Self {
        Self(Arc::new(Cancelled { deadline: Some(deadline), ..Cancelled::default() }))
    }

    /// Asks the generation to end.
    pub fn cancel(&self) {
        self.0.asked.store(true, Ordering::Relaxed);
        lock(&self.0.also).iter().filter_map(Weak::upgrade).for_each(|also| also.cancel());
    }

    /// Whether somebody asked, or it is too late.
    pub fn is_cancelled(&self) -> bool {
        self.reason().is_some()
    }

    /// Why the generation is to end, if it is.
    pub(crate) fn reason(&self) -> Option<FinishReason> {
        if self.0.asked.load(Ordering::Relaxed) {
            return Some(FinishReason::Cancelled);
        }
        let late = self.0.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        late.then_some(FinishReason::Deadline)
    }

    /// Cancels this too when somebody asks, while it lives; now if somebody has.
    #[cfg(feature = "cuda")]
    pub(crate) fn cancels(&self, also: &Arc<impl Cancel + 'static>) {
        let mut all = lock(&self.0.also);
        all.retain(|other| other.strong_count() > 0);
        all.push(Arc::downgrade(also) as Weak<dyn Cancel>);
        drop(all);
        // Who asks meanwhile finds it in the list.
        if self.is_cancelled() {
            also.cancel();
        }
    }
}

/// Why nothing is generated.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GenerateError {
    /// An encoder has no logits.
    #[error("the model is an encoder: it makes embeddings and generates no text")]
    Encoder,
    /// The model has nothing to continue from.
    #[error("the prompt is empty: give at least one token")]
    EmptyPrompt,
    /// The prompt leaves no room for an answer.
    #[error(
        "the prompt has {prompt_tokens} tokens, the context holds {context} including the answer: \
         shorten the prompt or load the model with a larger context"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Tokens of context.
        context: u32,
    },
    /// A token id that the vocabulary does not have.
    #[error("token {token} is outside the vocabulary of {vocab}")]
    UnknownToken {
        /// The id.
        token: u32,
        /// Size of the vocabulary.
        vocab: u32,
    },
    /// A sampling parameter out of its range.
    #[error(transparent)]
    Sampling(#[from] ParamError),
    /// A constraint that was made for another model.
    #[error("the grammar was compiled for another model: compile it for this one")]
    ForeignConstraint,
    /// The answer cannot go on by its grammar.
    #[error(transparent)]
    Grammar(#[from] GrammarError),
    /// More log-probabilities than are served.
    #[error("{asked} log-probabilities per token asked for, at most {max} are given")]
    TooManyLogprobs {
        /// Asked for.
        asked: u32,
        /// Given at most.
        max: u32,
    },
    /// Every token was banned, or the model's output was not a number.
    #[error("no token can be chosen: all are banned or the logits are not numbers")]
    NoToken,
    /// The model's KV cache, which its sessions share, has no room for more tokens.
    #[error(
        "the KV cache is full: {free} of its {capacity} tokens are free, {needed} more are needed; \
         try again when others have ended"
    )]
    CacheFull {
        /// Tokens needed beyond those that the session has.
        needed: u64,
        /// Tokens that no session has.
        free: u64,
        /// Tokens of the cache.
        capacity: u64,
    },
    /// The model keeps no more sessions.
    #[error("all {most} sessions that the model keeps are in use: try again when one has ended")]
    TooManySessions {
        /// Sessions at a time.
        most: usize,
    },
    /// The GPU.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// A pass was asked for that the backend cannot run.
    #[error("internal error: {reason}")]
    Pass {
        /// What it says.
        reason: String,
    },
}
