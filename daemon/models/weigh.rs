//! What the scheduler has to know of a model before it is loaded.

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroU32;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use m40_manifest::{self as manifest, Definition, IdleUnload};
use m40_sched::{Footprint, residency};
use m40llm::{Engine, KvType, LoadError, Model, ModelInfo, ModelOptions};

use super::job::lock;
use super::source::Source;

/// Bytes of weights that a load is thought to bring into memory in a second until one was seen.
const LOAD_BYTES_PER_S: f64 = 1e9;

/// Opens model files as they are defined and configured.
#[derive(Debug)]
pub(super) struct Opener {
    engine: Engine,
    context_tokens_max: Option<u32>,
    kv_type: KvType,
    /// Footprints of files that are as they were, by the model's name.
    weighed: Mutex<BTreeMap<String, Weighed>>,
}

/// A footprint, and what it depends on.
#[derive(Debug)]
struct Weighed {
    path: PathBuf,
    context: Option<u32>,
    kv_type: KvType,
    stamp: Stamp,
    footprint: Footprint,
}

/// What tells whether a file is another one than it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl Stamp {
    pub(super) fn of(path: &Path) -> Option<Self> {
        let file = fs::metadata(path).ok()?;
        let modified = (file.mtime(), file.mtime_nsec());
        Some(Self { inode: file.ino(), bytes: file.size(), modified })
    }
}

impl Opener {
    pub(super) fn new(engine: Engine, context_tokens_max: Option<u32>, kv_type: KvType) -> Self {
        Self { engine, context_tokens_max, kv_type, weighed: Mutex::default() }
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Blocking.
    pub(super) fn load(&self, source: &Source) -> Result<Model, LoadError> {
        let load = |options: &_| self.engine.load(&source.path, options);
        self.with_options(source.definition(), load)
    }

    /// What a file is, if it could be loaded into enough memory. Blocking.
    pub(super) fn inspect(&self, path: &Path) -> Result<ModelInfo, LoadError> {
        self.with_options(None, |options| self.engine.inspect(path, options))
    }

    /// What the scheduler has to know of a model. A matter of milliseconds, since weights are mapped,
    /// and of less if the file is as it was. Blocking.
    pub(super) fn define(
        &self,
        name: &str,
        source: &Source,
    ) -> Result<residency::Definition, LoadError> {
        Ok(self.definition(source, self.footprint(name, source)?))
    }

    /// The same of a model that takes so much.
    pub(super) fn definition(
        &self,
        source: &Source,
        footprint: Footprint,
    ) -> residency::Definition {
        let definition = source.definition();
        let most = definition.and_then(|definition| definition.sequences_max);
        let slots = self.engine.sessions_side_by_side().min(most.unwrap_or(u32::MAX));
        residency::Definition {
            footprint,
            revision: source.revision(),
            slots: NonZeroU32::new(slots).unwrap_or(NonZeroU32::MIN),
            priority: definition.map_or(0, |definition| definition.priority),
            pinned: definition.is_some_and(|definition| definition.pin),
            preload: definition.is_some_and(|definition| definition.preload),
            idle: definition.and_then(|definition| match definition.idle_unload {
                Some(IdleUnload::After(time)) => Some(time),
                Some(IdleUnload::Never) | None => None,
            }),
            load_time: Duration::from_secs_f64(footprint.weights as f64 / LOAD_BYTES_PER_S),
        }
    }

    /// Forgets the footprints of models that are not among these.
    pub(super) fn keep_only(&self, is_known: impl Fn(&str) -> bool) {
        lock(&self.weighed).retain(|name, _| is_known(name));
    }

    fn footprint(&self, name: &str, source: &Source) -> Result<Footprint, LoadError> {
        let (path, stamp) = (&source.path, Stamp::of(&source.path));
        let context = source.definition().and_then(|definition| definition.context_tokens);
        let kv_type = self.kv_type(source.definition());
        let is_as_it_was = |weighed: &&Weighed| {
            weighed.path == *path
                && (weighed.context, weighed.kv_type) == (context, kv_type)
                && Some(weighed.stamp) == stamp
        };
        if let Some(weighed) = lock(&self.weighed).get(name).filter(is_as_it_was) {
            return Ok(weighed.footprint);
        }
        let weigh = |options: &_| self.engine.footprint(path, options);
        let footprint = self.with_options(source.definition(), weigh)?;
        if let Some(stamp) = stamp {
            let weighed = Weighed { path: path.clone(), context, kv_type, stamp, footprint };
            lock(&self.weighed).insert(name.to_owned(), weighed);
        }
        Ok(footprint)
    }

    fn kv_type(&self, definition: Option<&Definition>) -> KvType {
        match definition.and_then(|definition| definition.kv_type) {
            None => self.kv_type,
            Some(manifest::KvType::F16) => KvType::F16,
            Some(manifest::KvType::Int8) => KvType::Int8,
        }
    }

    /// With what a definition asks for, and else as is configured; with the context that the
    /// definition says, or else that the file was trained for, within the configured limit.
    fn with_options<T>(
        &self,
        definition: Option<&Definition>,
        open: impl Fn(&ModelOptions) -> Result<T, LoadError>,
    ) -> Result<T, LoadError> {
        let options = definition.map(options).unwrap_or_default();
        let kv_type = self.kv_type(definition);
        let with = |context| open(&ModelOptions { context, kv_type, ..options.clone() });
        let limit = self.context_tokens_max;
        if let Some(asked) = options.context {
            return with(Some(limit.map_or(asked, |limit| limit.min(asked))));
        }
        match with(limit) {
            Err(LoadError::Context { trained, .. }) => with(Some(trained)),
            result => result,
        }
    }
}

/// What a definition asks of a load, but for how keys and values are kept.
fn options(definition: &Definition) -> ModelOptions {
    ModelOptions {
        context: definition.context_tokens,
        chat_template: definition.template.as_ref().map(|text| text.content.to_string()),
        tokenizer: definition.tokenizer.clone(),
        ..ModelOptions::default()
    }
}
