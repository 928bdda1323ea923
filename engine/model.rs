//! Opening a model file and what is known of it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use m40_cpu::{Numerics, PrepareError};
use m40_gguf::{Gguf, GgufError, TensorType, split};
use m40_grammar::{Compiler, Constraint, Grammar, GrammarError, Vocabulary};
use m40_program::{BuildError, BuildOptions, Head, KvType, Pooling, Program, build};
use m40_sched::Footprint;
use m40_tokenizer::{ChatTemplate, TemplateError, Tokenizer, TokenizerError};
use memmap2::Mmap;

use crate::backend::{Backend, Runner};
use crate::duty::Duty;
use crate::gpu::{GpuError, GpuMemory, GpuOptions};
use crate::mapping;
use crate::passes::DecodePasses;
use crate::pulse::Pulse;
use crate::session::Session;

/// Context served when the caller names none: enough for chat, small enough for its KV cache.
const DEFAULT_CONTEXT: u32 = 8192;

/// How to run models.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineOptions {
    /// CPU threads; all the process may use when absent. For a GPU they bring weights there.
    pub threads: Option<usize>,
    /// Which arithmetic of the CPU.
    pub numerics: Numerics,
    /// What computes.
    pub device: Device,
}

/// What computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The CPU.
    #[default]
    Cpu,
    /// The first GPU.
    Gpu(GpuOptions),
}

/// Loads models on one backend. Clones share it.
#[derive(Clone, Debug)]
pub struct Engine {
    backend: Backend,
    pulse: Arc<Pulse>,
    duty: Duty,
}

/// How to load one model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelOptions {
    /// Tokens of context; the trained context, at most 8192, when absent.
    pub context: Option<u32>,
    /// How keys and values are kept: int8 takes about half the memory of f16, and the answers differ a
    /// little.
    pub kv_type: KvType,
    /// Chat template to use instead of the file's.
    pub chat_template: Option<String>,
    /// A `tokenizer.json` to use instead of the file's own tokenizer.
    pub tokenizer: Option<PathBuf>,
}

/// What is known of a loaded model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// `general.name`, or empty.
    pub name: String,
    /// `general.architecture`.
    pub architecture: String,
    /// Weights, counted one by one.
    pub parameters: u64,
    /// Block format that holds most of the weights' bytes, as `Q4_1`.
    pub quantization: String,
    /// Bytes of weights in the file.
    pub weight_bytes: u64,
    /// Tokens of context served.
    pub context: u32,
    /// Tokens of context trained for.
    pub context_trained: u32,
    /// Transformer blocks.
    pub layers: u32,
    /// Tokens of the vocabulary.
    pub vocab: u32,
    /// Floats of a text's vector.
    pub embedding: u32,
    /// How the file says that a text's vector is made, if it does.
    pub pooling: Option<Pooling>,
    /// Whether it generates text. Encoders do not.
    pub generates: bool,
    /// What its classifier says of a pair of texts, in floats; 0 where there is none.
    pub classes: u32,
    /// How keys and values are kept.
    pub kv_type: KvType,
    /// Bytes of KV cache per token of context.
    pub kv_bytes_per_token: u64,
}

/// Why a model cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No such file.
    #[error("model file {} does not exist: check the path", path.display())]
    NotFound {
        /// The path tried.
        path: PathBuf,
    },
    /// The file cannot be read or mapped.
    #[error("cannot read model file {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is not a valid GGUF.
    #[error("model file {} is not usable: {source}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: GgufError,
    },
    /// The model's architecture or a variant of it is not supported.
    #[error("cannot run model {}: {source}", path.display())]
    Build {
        /// The file.
        path: PathBuf,
        /// What is missing or unknown.
        source: BuildError,
    },
    /// A weight's type is not supported by the backend.
    #[error("cannot run model {}: {source}", path.display())]
    Prepare {
        /// The file.
        path: PathBuf,
        /// Which weight.
        source: PrepareError,
    },
    /// The tokenizer in the file is not usable.
    #[error("cannot use the tokenizer of {}: {source}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: TokenizerError,
    },
    /// The vocabulary and the embeddings have different sizes.
    #[error(
        "model file {} has {embeddings} embeddings for a vocabulary of {vocab} tokens",
        path.display()
    )]
    Vocabulary {
        /// The file.
        path: PathBuf,
        /// Rows of the embedding table.
        embeddings: usize,
        /// Tokens of the tokenizer.
        vocab: usize,
    },
    /// The chat template does not parse.
    #[error("cannot use the chat template of {}: {source}", path.display())]
    Template {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: TemplateError,
    },
    /// The asked context is not one the model can serve.
    #[error(
        "a context of {asked} tokens was asked of {}: it serves 1 to {trained}",
        path.display()
    )]
    Context {
        /// The file.
        path: PathBuf,
        /// Asked for.
        asked: u32,
        /// Trained context.
        trained: u32,
    },
    /// The GPU's memory does not hold it beside the models that are there.
    #[error("model {} does not fit the GPU's memory: {memory}", path.display())]
    NoRoom {
        /// The file.
        path: PathBuf,
        /// What it takes and what there is.
        memory: Box<GpuMemory>,
    },
    /// The GPU does not run the model.
    #[cfg(feature = "cuda")]
    #[error("cannot run model {} on the GPU: {source}", path.display())]
    Place {
        /// The file.
        path: PathBuf,
        /// What is in the way.
        source: Box<m40_gpu::executor::LoadError>,
    },
    /// The GPU failed.
    #[error("cannot load model {}: {source}", path.display())]
    Gpu {
        /// The file.
        path: PathBuf,
        /// What it says.
        source: GpuError,
    },
}

impl Engine {
    /// An engine on a backend: a GPU is opened, and its memory taken, here and once.
    ///
    /// # Errors
    /// [`GpuError`], if a GPU was asked for and it cannot be had. The CPU never stands in.
    pub fn new(options: EngineOptions) -> Result<Self, GpuError> {
        let pulse = Arc::default();
        let duty = Duty::new(&pulse);
        Ok(Self { backend: Backend::open(&options, &duty)?, pulse, duty })
    }

    /// An engine on a GPU that is open already, with the kernels of [`kernel_image`](crate::kernel_image)
    /// among those that it has; `threads` bring weights there, all the process may use when absent.
    ///
    /// # Errors
    /// [`GpuError`], if the memory for models is not there.
    #[cfg(feature = "cuda")]
    pub fn on_device(
        device: m40_cuda::Device,
        options: GpuOptions,
        threads: Option<usize>,
    ) -> Result<Self, GpuError> {
        let pulse = Arc::default();
        let duty = Duty::new(&pulse);
        let backend = Backend::on_device(device, options, threads, &duty)?;
        Ok(Self { backend, pulse, duty })
    }

    /// What models run on, for people: `cpu, 2 threads, avx512-vnni`.
    pub fn device(&self) -> String {
        self.backend.describe()
    }

    /// How long nothing has got on that is in hand: no op of a pass on the CPU, no pass or token of a
    /// session on a GPU, no tensor of a load. None where nothing is in hand. Takes no lock. What is
    /// longer than any step may take (a load compiles kernels for seconds, a card that is taken by a
    /// benchmark keeps others waiting while that gets on) says that the engine hangs.
    pub fn stalled(&self) -> Option<Duration> {
        self.pulse.stalled()
    }

    /// Has something be in hand for ever that never gets on, as if a kernel or a thread hung. For tests of
    /// what watches [`Self::stalled`], in builds that are for tests.
    #[cfg(debug_assertions)]
    pub fn hang(&self) {
        self.pulse.hang();
    }

    /// The share of the time in which passes of its models may run.
    pub fn duty(&self) -> &Duty {
        &self.duty
    }

    /// Where the GPU is on the PCI bus, as in `0000:03:00.0`; `None` on the CPU.
    pub fn pci_address(&self) -> Option<String> {
        self.backend.pci_address()
    }

    /// Opens a model. Of a split model, any of its files may be named. A `tokenizer.json` beside
    /// the file is used if the file itself holds no tokenizer.
    ///
    /// # Errors
    /// See [`LoadError`]; each names the file and what to do about it.
    pub fn load(&self, path: &Path, options: &ModelOptions) -> Result<Model, LoadError> {
        let pulse = Arc::clone(&self.pulse);
        let working = pulse.work();
        let Opened { gguf, program, info, tokenizer, template } = self.open(path, options)?;
        let loaded = self.backend.load(path, program, gguf, info.context, &pulse);
        drop(working);
        let (runner, footprint) = loaded?;
        let (tokenizer, grammars) = (Arc::new(tokenizer), OnceLock::new());
        let inner = Inner { info, tokenizer, grammars, template, runner, footprint, pulse };
        Ok(Model(Arc::new(inner)))
    }

    /// Says what a model is, if [`Self::load`] could load it into enough memory.
    ///
    /// # Errors
    /// As [`Self::load`], but for a lack of memory.
    pub fn inspect(&self, path: &Path, options: &ModelOptions) -> Result<ModelInfo, LoadError> {
        let Opened { gguf, program, info, .. } = self.open(path, options)?;
        self.backend.check(path, program, gguf, info.context)?;
        Ok(info)
    }

    /// Bytes that all models have together, taken when the engine was made; `None` on the CPU, where
    /// memory is taken as it is needed.
    pub fn capacity(&self) -> Option<u64> {
        self.backend.capacity()
    }

    /// Bytes of [`Self::capacity`] that nothing has, as the memory itself knows it.
    pub fn free(&self) -> Option<u64> {
        self.backend.free()
    }

    /// Sessions of a model that gain by generating at a time: on a GPU they share passes, on the CPU
    /// they wait for each other's.
    pub fn sessions_side_by_side(&self) -> u32 {
        self.backend.side_by_side()
    }

    /// What [`Self::load`] would take of the memory, without doing any of it. Reads the file's metadata
    /// alone: a tokenizer or weight type that cannot be used is met by the load.
    ///
    /// # Errors
    /// As [`Self::load`], as far as they are met.
    pub fn footprint(&self, path: &Path, options: &ModelOptions) -> Result<Footprint, LoadError> {
        let gguf = open(path)?;
        let program = self.program(path, &gguf, options)?;
        let context = served_context(&program, options);
        self.backend.footprint(path, program, &gguf, context)
    }

    /// What a file says of itself; of a split model, of any of its files. The file must not be changed
    /// while this is held.
    ///
    /// # Errors
    /// [`LoadError`], if there is no file, or it is no GGUF.
    pub fn gguf(path: &Path) -> Result<Gguf<impl AsRef<[u8]> + use<>>, LoadError> {
        open(path)
    }

    fn open(&self, path: &Path, options: &ModelOptions) -> Result<Opened, LoadError> {
        let gguf = open(path)?;
        let program = self.program(path, &gguf, options)?;
        let tokenizer = tokenizer(path, &gguf, options)?;
        if tokenizer.vocab_size() > program.description.vocab {
            return Err(LoadError::Vocabulary {
                path: path.into(),
                embeddings: program.description.vocab,
                vocab: tokenizer.vocab_size(),
            });
        }
        let template = chat_template(path, &gguf, &tokenizer, options)?;
        let info = describe(&gguf, &program, options);
        Ok(Opened { gguf, program, info, tokenizer, template })
    }

    fn program(
        &self,
        path: &Path,
        gguf: &Gguf<Mmap>,
        options: &ModelOptions,
    ) -> Result<Program, LoadError> {
        let build = |context| {
            build(gguf, BuildOptions { context, kv_type: options.kv_type })
                .map_err(|source| LoadError::Build { path: path.into(), source })
        };
        let program = build(options.context)?;
        let trained = program.description.context;
        match options.context {
            Some(asked) if asked == 0 || asked > trained => {
                Err(LoadError::Context { path: path.into(), asked, trained })
            }
            Some(_) => Ok(program),
            None if trained > DEFAULT_CONTEXT => build(Some(DEFAULT_CONTEXT)),
            None => Ok(program),
        }
    }
}

/// A file and what was made of it, for any backend.
struct Opened {
    gguf: Gguf<Mmap>,
    program: Program,
    info: ModelInfo,
    tokenizer: Tokenizer,
    template: ChatTemplate,
}

fn served_context(program: &Program, options: &ModelOptions) -> u32 {
    options.context.unwrap_or_else(|| program.description.context.min(DEFAULT_CONTEXT))
}

/// The files of a model, of which one is named: all of a split model, or that one.
pub fn model_files(path: &Path) -> Vec<PathBuf> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    match split::shard_names(name) {
        Some(names) => names.into_iter().map(|name| path.with_file_name(name)).collect(),
        None => vec![path.to_owned()],
    }
}

/// Whether a model's file has a chat template of its own.
///
/// # Errors
/// [`LoadError`], which names the file, if it cannot be read.
pub fn has_chat_template(path: &Path) -> Result<bool, LoadError> {
    Ok(open(path)?.get("tokenizer.chat_template").is_some())
}

/// Maps and reads a file, or all files of a split model.
pub(crate) fn open(path: &Path) -> Result<Gguf<Mmap>, LoadError> {
    let maps = model_files(path).into_iter().map(|path| {
        mapping::map(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => LoadError::NotFound { path },
            _ => LoadError::Io { path, source },
        })
    });
    let maps = maps.collect::<Result<Vec<_>, _>>()?;
    Gguf::parse_shards(maps).map_err(|source| LoadError::Gguf { path: path.into(), source })
}

fn tokenizer(
    path: &Path,
    gguf: &Gguf<Mmap>,
    options: &ModelOptions,
) -> Result<Tokenizer, LoadError> {
    let beside = path.with_file_name("tokenizer.json");
    let is_alone = gguf.get("tokenizer.ggml.model").is_none() && beside.is_file();
    let made = match options.tokenizer.clone().or_else(|| is_alone.then_some(beside)) {
        Some(file) => {
            let json =
                std::fs::read(&file).map_err(|source| LoadError::Io { path: file, source })?;
            Tokenizer::from_json(&json, gguf)
        }
        None => Tokenizer::from_gguf(gguf),
    };
    made.map_err(|source| LoadError::Tokenizer { path: path.into(), source })
}

fn chat_template(
    path: &Path,
    gguf: &Gguf<Mmap>,
    tokenizer: &Tokenizer,
    options: &ModelOptions,
) -> Result<ChatTemplate, LoadError> {
    let made = match &options.chat_template {
        Some(source) => ChatTemplate::for_tokenizer(source, tokenizer),
        None => ChatTemplate::from_gguf(gguf, tokenizer),
    };
    made.map_err(|source| LoadError::Template { path: path.into(), source })
}

fn describe(gguf: &Gguf<Mmap>, program: &Program, options: &ModelOptions) -> ModelInfo {
    let weights = |info: &m40_gguf::TensorInfo| (info.dims.rows() * info.dims.cols()) as u64;
    let bytes = |info: &m40_gguf::TensorInfo| gguf.tensor_data(info).len() as u64;
    let mut by_type: Vec<(TensorType, u64)> = vec![];
    for info in gguf.tensors() {
        match by_type.iter_mut().find(|(ty, _)| *ty == info.ty) {
            Some((_, sum)) => *sum += weights(info),
            None => by_type.push((info.ty, weights(info))),
        }
    }
    // Embeddings are often kept in a wider type; the type of most other weights names the file.
    let embedding = gguf.tensor_info("token_embd.weight");
    if let Some(info) = embedding
        && by_type.len() > 1
        && let Some((_, sum)) = by_type.iter_mut().find(|(ty, _)| *ty == info.ty)
    {
        *sum -= weights(info);
    }
    let main = by_type.iter().max_by_key(|(_, sum)| *sum).map_or("none", |(ty, _)| ty.name());
    ModelInfo {
        name: program.description.name.clone(),
        architecture: program.description.architecture.clone(),
        parameters: gguf.tensors().iter().map(weights).sum(),
        quantization: main.to_owned(),
        weight_bytes: gguf.tensors().iter().map(bytes).sum(),
        context: served_context(program, options),
        context_trained: program.description.context,
        layers: program.description.layers as u32,
        vocab: program.description.vocab as u32,
        embedding: program.description.embedding as u32,
        pooling: program.description.pooling,
        generates: matches!(program.head, Head::Logits(_)),
        classes: match program.head {
            Head::Classes(classes) => program.buffer(classes).width as u32,
            Head::Logits(_) | Head::None => 0,
        },
        kv_type: options.kv_type,
        kv_bytes_per_token: program.kv_bytes_per_token() as u64,
    }
}

/// A loaded model. Clones are handles to the same one; it is unloaded with the last of them and
/// of its sessions.
#[derive(Clone)]
pub struct Model(Arc<Inner>);

struct Inner {
    info: ModelInfo,
    tokenizer: Arc<Tokenizer>,
    /// Made when the first grammar is compiled.
    grammars: OnceLock<Result<Compiler, GrammarError>>,
    template: ChatTemplate,
    runner: Runner,
    footprint: Footprint,
    /// Of the engine.
    pulse: Arc<Pulse>,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("info", &self.0.info).finish_non_exhaustive()
    }
}

impl Model {
    /// What is known of it.
    pub fn info(&self) -> &ModelInfo {
        &self.0.info
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.0.tokenizer
    }

    /// Its chat template.
    pub fn chat_template(&self) -> &ChatTemplate {
        &self.0.template
    }

    /// Compiles a grammar for answers of this model, unless it did of late. The first one takes tens of
    /// milliseconds more, for the vocabulary.
    ///
    /// # Errors
    /// See [`GrammarError`]: what of the grammar is wrong, or more than is allowed.
    pub fn grammar(&self, grammar: &Grammar) -> Result<Constraint, GrammarError> {
        let made = || Vocabulary::new(Arc::clone(&self.0.tokenizer)).map(Compiler::new);
        self.0.grammars.get_or_init(made).as_ref().map_err(Clone::clone)?.compile(grammar)
    }

    /// Whether a constraint came of [`Self::grammar`].
    pub(crate) fn compiled(&self, constraint: &Constraint) -> bool {
        let grammars = self.0.grammars.get().and_then(|made| made.as_ref().ok());
        grammars.is_some_and(|grammars| constraint.is_for(grammars.vocabulary()))
    }

    /// Passes of decoding since it was loaded.
    pub fn decode_passes(&self) -> DecodePasses {
        self.runner().decode_passes()
    }

    /// A new conversation.
    pub fn session(&self) -> Session {
        Session::new(self.clone())
    }

    /// Bytes that each session takes beyond the footprint that runs beside another: nothing where
    /// sessions share one KV cache, or where there are none and a KV cache lasts for a pass.
    pub fn session_bytes(&self) -> u64 {
        let shares = self.runner().shares_cache() || !self.info().generates;
        if shares { 0 } else { self.footprint().parts().kv }
    }

    /// What it takes of the memory.
    pub fn footprint(&self) -> &Footprint {
        &self.0.footprint
    }

    /// Where its work is counted.
    pub(crate) fn pulse(&self) -> &Pulse {
        &self.0.pulse
    }

    /// What computes passes of it.
    pub(crate) fn runner(&self) -> &Runner {
        &self.0.runner
    }
}
