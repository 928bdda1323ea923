//! What computes: the CPU, or a GPU whose memory all models share.
//!
//! A [`Backend`] loads models, a [`Runner`] is a loaded one, a [`Cache`] what it keeps of one
//! conversation. Sessions see nothing else of either.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use m40_cpu::{Executor, ExecutorOptions, Isa, Numerics, available_threads};
use m40_gguf::Gguf;
use m40_program::{Pooling, Program};
use m40_sched::Footprint;
use memmap2::Mmap;

use crate::bench::{BenchOptions, OnLine};
use crate::cpu::{self, CpuCache, CpuModel};
use crate::duty::Duty;
use crate::embed::{EmbedError, EmbedText};
use crate::footprint;
use crate::generate::{CancelToken, GenerateError, GenerateParams};
use crate::gpu::GpuError;
#[cfg(feature = "cuda")]
use crate::gpu::GpuOptions;
#[cfg(feature = "cuda")]
use crate::gpu::card::{Card, CardCache, CardModel, SEQUENCES};
use crate::model::{Device, EngineOptions, LoadError};
use crate::passes::DecodePasses;
use crate::pulse::Pulse;

/// Tokens of a prompt computed at a time, at most: enough to amortise unpacking weights, few enough
/// that cancelling is prompt.
pub(crate) const PROMPT_ROWS: usize = 512;

/// Loads models.
#[derive(Clone, Debug)]
pub(crate) enum Backend {
    /// The CPU.
    Cpu { threads: usize, numerics: Numerics, duty: Duty },
    /// The first GPU.
    #[cfg(feature = "cuda")]
    Gpu(Arc<Card>),
}

impl Backend {
    pub(crate) fn open(options: &EngineOptions, duty: &Duty) -> Result<Self, GpuError> {
        let threads = options.threads.unwrap_or_else(available_threads).max(1);
        match options.device {
            Device::Cpu => {
                Ok(Self::Cpu { threads, numerics: options.numerics, duty: duty.clone() })
            }
            #[cfg(feature = "cuda")]
            Device::Gpu(options) => Ok(Self::Gpu(Arc::new(Card::open(options, threads, duty)?))),
            #[cfg(not(feature = "cuda"))]
            Device::Gpu(_) => Err(GpuError::NoBackend),
        }
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn on_device(
        device: m40_cuda::Device,
        options: GpuOptions,
        threads: Option<usize>,
        duty: &Duty,
    ) -> Result<Self, GpuError> {
        let threads = threads.unwrap_or_else(available_threads).max(1);
        Ok(Self::Gpu(Arc::new(Card::on(device, options, threads, duty)?)))
    }

    /// What models run on, for people.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Cpu { threads, numerics, .. } => {
                let arithmetic = match numerics {
                    Numerics::Fast => Isa::detect().to_string(),
                    Numerics::Oracle => "oracle".into(),
                };
                let plural = if *threads == 1 { "" } else { "s" };
                format!("cpu, {threads} thread{plural}, {arithmetic}")
            }
            #[cfg(feature = "cuda")]
            Self::Gpu(card) => card.describe(),
        }
    }

    /// Where the GPU is on the PCI bus.
    pub(crate) fn pci_address(&self) -> Option<String> {
        match self {
            Self::Cpu { .. } => None,
            #[cfg(feature = "cuda")]
            Self::Gpu(card) => Some(card.pci_address()),
        }
    }

    /// Bytes that all models have together; `None` where memory is taken as it is needed.
    pub(crate) fn capacity(&self) -> Option<u64> {
        match self {
            Self::Cpu { .. } => None,
            #[cfg(feature = "cuda")]
            Self::Gpu(card) => Some(card.capacity()),
        }
    }

    /// Bytes of the capacity that nothing has.
    pub(crate) fn free(&self) -> Option<u64> {
        match self {
            Self::Cpu { .. } => None,
            #[cfg(feature = "cuda")]
            Self::Gpu(card) => Some(card.free()),
        }
    }

    /// Sessions of a model that gain by going on at a time.
    pub(crate) fn side_by_side(&self) -> u32 {
        match self {
            Self::Cpu { .. } => cpu::SIDE_BY_SIDE as u32,
            #[cfg(feature = "cuda")]
            Self::Gpu(_) => SEQUENCES,
        }
    }

    /// What [`Self::load`] would take.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "only GPUs name files"))]
    pub(crate) fn footprint(
        &self,
        path: &Path,
        program: Program,
        gguf: &Gguf<Mmap>,
        context: u32,
    ) -> Result<Footprint, LoadError> {
        match self {
            Self::Cpu { .. } => Ok(footprint::on_cpu(&program, gguf, context)),
            #[cfg(feature = "cuda")]
            Self::Gpu(_) if is_encoder(&program) => Ok(footprint::beside_gpu(context)),
            #[cfg(feature = "cuda")]
            Self::Gpu(card) => Ok(card.plan(path, program, context)?.1.footprint()),
        }
    }

    /// Makes a model ready to run, for conversations of `context` tokens, and says what it takes. What is
    /// done of that, and of passes on the CPU, are steps of `pulse`.
    pub(crate) fn load(
        &self,
        path: &Path,
        program: Program,
        gguf: Gguf<Mmap>,
        context: u32,
        pulse: &Arc<Pulse>,
    ) -> Result<(Runner, Footprint), LoadError> {
        match self {
            Self::Cpu { threads, numerics, duty } => {
                let footprint = footprint::on_cpu(&program, &gguf, context);
                let how = (*threads, *numerics);
                let runner = on_cpu(path, program, gguf, context, how, pulse, duty)?;
                Ok((runner, footprint))
            }
            #[cfg(feature = "cuda")]
            Self::Gpu(card) if is_encoder(&program) => {
                let how = (card.threads(), Numerics::Fast);
                // The card is no cooler for it.
                let runner = on_cpu(path, program, gguf, context, how, pulse, &Duty::default())?;
                Ok((runner, footprint::beside_gpu(context)))
            }
            #[cfg(feature = "cuda")]
            Self::Gpu(card) => {
                let (model, memory) = card.load(path, program, &gguf, context, pulse)?;
                Ok((Runner::Gpu(model), memory.footprint()))
            }
        }
    }

    /// Whether [`Self::load`] would refuse the model for what it is. Takes no memory of a GPU.
    pub(crate) fn check(
        &self,
        path: &Path,
        program: Program,
        gguf: Gguf<Mmap>,
        context: u32,
    ) -> Result<(), LoadError> {
        let pulse = Arc::default();
        match self {
            Self::Cpu { .. } => self.load(path, program, gguf, context, &pulse).map(|_| ()),
            #[cfg(feature = "cuda")]
            Self::Gpu(_) if is_encoder(&program) => {
                self.load(path, program, gguf, context, &pulse).map(|_| ())
            }
            #[cfg(feature = "cuda")]
            Self::Gpu(card) => card.plan(path, program, context).map(|_| ()),
        }
    }
}

/// Whether a model is an encoder. Those run on the CPU whatever the others run on: no kernel lets a token
/// see those after it.
#[cfg(feature = "cuda")]
fn is_encoder(program: &Program) -> bool {
    !matches!(program.head, m40_program::Head::Logits(_))
}

fn on_cpu(
    path: &Path,
    program: Program,
    gguf: Gguf<Mmap>,
    context: u32,
    (threads, numerics): (usize, Numerics),
    pulse: &Arc<Pulse>,
    duty: &Duty,
) -> Result<Runner, LoadError> {
    let options = ExecutorOptions { threads: Some(threads), numerics, isa: None };
    let mut executor = Executor::new(program.into(), gguf.into(), options)
        .map_err(|source| LoadError::Prepare { path: path.into(), source })?;
    let pulse = Arc::clone(pulse);
    executor.on_step(move || pulse.step());
    Ok(Runner::Cpu(Box::new(CpuModel::new(executor, context as usize, duty.clone()))))
}

/// A prompt, and how it is to go on.
#[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only GPUs choose tokens"))]
pub(crate) struct Start<'a> {
    pub(crate) prompt: &'a [u32],
    pub(crate) params: &'a GenerateParams,
    /// Of the draws.
    pub(crate) seed: u64,
    /// Tokens that end the answer.
    pub(crate) stops: Vec<u32>,
    pub(crate) cancel: &'a CancelToken,
}

/// What a pass yielded.
#[derive(Debug)]
pub(crate) enum Output<'a> {
    /// The pass was not over the last token.
    Nothing,
    /// There was no pass: others had computed these tokens.
    Found,
    /// A token and its probability, 0 if there was none to choose.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only GPUs choose"))]
    Chosen { token: u32, probability: f32 },
    /// `[vocab] f32`, to be changed at will.
    Logits(&'a mut [f32]),
}

/// A loaded model.
#[derive(Debug)]
pub(crate) enum Runner {
    /// On the CPU.
    Cpu(Box<CpuModel>),
    /// On a GPU.
    #[cfg(feature = "cuda")]
    Gpu(CardModel),
}

/// Keys and values of one conversation.
#[derive(Debug)]
pub(crate) enum Cache {
    /// In the memory of the host.
    Cpu(Box<CpuCache>),
    /// On a GPU.
    #[cfg(feature = "cuda")]
    Gpu(CardCache),
}

impl Cache {
    /// Forgets all tokens from position `len` on; returns how many are left. Between answers a GPU
    /// holds none for anybody: it finds them again in the first pass, if they are there still.
    pub(crate) fn truncate(&mut self, len: usize) -> usize {
        match self {
            Self::Cpu(cache) => {
                cache.truncate(len);
                len
            }
            #[cfg(feature = "cuda")]
            Self::Gpu(_) => 0,
        }
    }

    /// Bytes in use.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Cpu(cache) => cache.bytes(),
            #[cfg(feature = "cuda")]
            Self::Gpu(cache) => cache.bytes(),
        }
    }
}

impl Runner {
    /// Whether sessions share one KV cache; else each has its own.
    pub(crate) fn shares_cache(&self) -> bool {
        match self {
            Self::Cpu(_) => false,
            #[cfg(feature = "cuda")]
            Self::Gpu(_) => true,
        }
    }

    /// An empty cache.
    pub(crate) fn cache(&self) -> Cache {
        match self {
            Self::Cpu(model) => Cache::Cpu(Box::new(model.cache())),
            #[cfg(feature = "cuda")]
            Self::Gpu(model) => Cache::Gpu(model.cache()),
        }
    }

    /// A prompt follows, of which the cache was truncated to the start.
    pub(crate) fn begin(&self, cache: &mut Cache, start: &Start<'_>) {
        match (self, cache) {
            (Self::Cpu(model), Cache::Cpu(cache)) => model.begin(cache, start.cancel),
            #[cfg(feature = "cuda")]
            (Self::Gpu(model), Cache::Gpu(cache)) => model.begin(cache, start),
            #[cfg(feature = "cuda")]
            _ => unreachable!("a session's cache is of its own model"),
        }
    }

    /// Computes some of the first of `tokens`, which follow the `base` that the cache holds, or finds
    /// them computed, and returns how many; none where it had to compute others before. After the last
    /// of all it hands the token that it chose to `take`, or the logits for the caller to choose.
    ///
    /// # Errors
    /// When the backend fails; what the cache holds from `base` on is then undefined, and
    /// truncating it there makes it good.
    pub(crate) fn pass<T>(
        &self,
        cache: &mut Cache,
        base: usize,
        tokens: &[u32],
        take: impl FnOnce(Output<'_>) -> T,
    ) -> Result<(usize, T), GenerateError> {
        match (self, cache) {
            (Self::Cpu(model), Cache::Cpu(cache)) => model.pass(cache, base, tokens, take),
            #[cfg(feature = "cuda")]
            (Self::Gpu(model), Cache::Gpu(cache)) => model.pass(cache, base, tokens, take),
            #[cfg(feature = "cuda")]
            _ => unreachable!("a session's cache is of its own model"),
        }
    }

    /// A vector of each text, all of which fit the model's context; see [`Model::embed`].
    ///
    /// [`Model::embed`]: crate::model::Model::embed
    ///
    /// # Errors
    /// When the backend computes none, fails or is cancelled.
    pub(crate) fn embed(
        &self,
        texts: &[EmbedText],
        pooling: Pooling,
        cancel: &CancelToken,
    ) -> Result<Vec<Vec<f32>>, EmbedError> {
        match self {
            Self::Cpu(model) => model.embed(texts, pooling, cancel),
            #[cfg(feature = "cuda")]
            Self::Gpu(model) => model.embed(texts, pooling, cancel),
        }
    }

    /// Measures the model with what a session may have, whose cache is empty afterwards; passes of others
    /// wait meanwhile.
    ///
    /// # Errors
    /// When the backend fails.
    pub(crate) fn bench(
        &self,
        cache: &mut Cache,
        options: &BenchOptions,
        on_line: &mut OnLine<'_>,
    ) -> Result<(), GenerateError> {
        match (self, cache) {
            (Self::Cpu(model), Cache::Cpu(cache)) => model.bench(cache, options, on_line),
            #[cfg(feature = "cuda")]
            (Self::Gpu(model), Cache::Gpu(_)) => model.bench(options, on_line),
            #[cfg(feature = "cuda")]
            _ => unreachable!("a session's cache is of its own model"),
        }
    }

    /// Passes of decoding so far.
    pub(crate) fn decode_passes(&self) -> DecodePasses {
        match self {
            Self::Cpu(model) => model.decode_passes(),
            #[cfg(feature = "cuda")]
            Self::Gpu(model) => model.decode_passes(),
        }
    }

    /// Bytes of KV cache with which nothing is left out for want of it, beyond what a session has anyway.
    pub(crate) fn bench_bytes(&self, options: &BenchOptions) -> u64 {
        match self {
            Self::Cpu(model) => model.bench_bytes(options),
            #[cfg(feature = "cuda")]
            Self::Gpu(_) => 0,
        }
    }

    /// Nothing more is computed for a conversation until its user says something: passes with
    /// others need not wait for it.
    pub(crate) fn rest(&self, cache: &mut Cache) {
        match (self, cache) {
            (Self::Cpu(model), Cache::Cpu(cache)) => model.rest(cache),
            #[cfg(feature = "cuda")]
            (Self::Gpu(model), Cache::Gpu(cache)) => model.rest(cache),
            #[cfg(feature = "cuda")]
            _ => unreachable!("a session's cache is of its own model"),
        }
    }

    /// Whether the CPU computes a pass.
    #[cfg(test)]
    pub(crate) fn is_busy(&self) -> bool {
        match self {
            Self::Cpu(model) => model.is_busy(),
            #[cfg(feature = "cuda")]
            Self::Gpu(_) => false,
        }
    }
}

/// A pass that panicked leaves only scratch behind, which the next one overwrites.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
