//! What a model is, for those who show models: told by its file, whether or not it is in memory.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use m40_control::ModelRef;
use m40_manifest::Definition;
use m40_store::Sha256;
use m40llm::ModelInfo;
use tracing::debug;

use super::job::lock;
use super::source::{Origin, Source};
use super::weigh::Stamp;
use super::{LoadFailure, ModelError, Models};
use crate::pulls::request_of;

/// Models of which the facts are kept; with more of them all are read anew.
const KEPT_MAX: usize = 4096;

/// What a model is.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// As it is, or would be, loaded.
    pub info: Arc<ModelInfo>,
    /// The file to load: of a split, the first.
    pub path: PathBuf,
    /// Another one for another file, as far as that is known without reading all of it: the file's hash
    /// where there is one, else a hash of what tells files apart.
    pub digest: Sha256,
    /// When it came here, or was written.
    pub modified: SystemTime,
    pub size_bytes: u64,
}

/// What files say, by the model's name, as long as they are as they were.
#[derive(Debug, Default)]
pub(super) struct Cache(Mutex<BTreeMap<String, Kept>>);

#[derive(Debug)]
struct Kept {
    path: PathBuf,
    stamp: Option<Stamp>,
    definition: Option<Arc<Definition>>,
    info: Arc<ModelInfo>,
}

impl Models {
    /// What the model of this name or alias is; `None` where there is none, or its file is not here.
    /// Blocking.
    ///
    /// # Errors
    /// Why its file is of no use.
    pub(crate) fn facts(&self, name: &str) -> Result<Option<Facts>, ModelError> {
        let name = self.own_name(name);
        let Some(source) = self.source(&name, &ModelRef::Name(name.clone()))? else {
            return Ok(None);
        };
        let info = self.info(&name, &source)?;
        let written = fs::metadata(&source.path).and_then(|found| found.modified());
        let written = written.unwrap_or(UNIX_EPOCH);
        let size_of_file = || fs::metadata(&source.path).map_or(0, |found| found.len());
        let (digest, modified, size_bytes) = match &source.origin {
            Origin::Stored(manifest) => {
                let added = UNIX_EPOCH + Duration::from_secs(manifest.imported_at_unix_s);
                let hashes = manifest.files.iter().map(|file| file.sha256);
                (joined(hashes), added, manifest.size_bytes())
            }
            Origin::Defined(model) => {
                let record = self.inner.store.pulls().record(&request_of(&model.definition));
                let files = record.iter().flat_map(|record| record.files());
                let known = joined(files.map(|file| file.sha256)).or(model.definition.sha256);
                let size = record.as_ref().map(|record| record.size_bytes());
                (known, written, size.unwrap_or_else(size_of_file))
            }
            Origin::InPlace => (None, written, size_of_file()),
        };
        let apart = || format!("{}\n{:?}", source.path.display(), Stamp::of(&source.path));
        let digest = digest.unwrap_or_else(|| Sha256::of(apart().as_bytes()));
        Ok(Some(Facts { info, path: source.path, digest, modified, size_bytes }))
    }

    /// As [`Self::facts`], for lists: none, too, where the file is of no use. Blocking.
    pub(crate) fn facts_to_list(&self, name: &str) -> Option<Facts> {
        let found = self.facts(name);
        // Whoever loads it is told.
        found.inspect_err(|error| debug!(model = name, %error, "no facts")).ok()?
    }

    fn info(&self, name: &str, source: &Source) -> Result<Arc<ModelInfo>, ModelError> {
        let loaded = self.with_desk(|desk, _| desk.loaded_of(name).cloned());
        if let Some(loaded) = loaded.filter(|loaded| loaded.source.is_as(source)) {
            return Ok(Arc::new(loaded.model.info().clone()));
        }
        let definition = match &source.origin {
            Origin::Defined(model) => Some(Arc::clone(&model.definition)),
            Origin::Stored(_) | Origin::InPlace => None,
        };
        let (path, stamp) = (source.path.clone(), Stamp::of(&source.path));
        let is_as_it_was = |kept: &&Kept| {
            (&kept.path, &kept.stamp, &kept.definition) == (&path, &stamp, &definition)
        };
        if let Some(kept) = lock(&self.inner.facts.0).get(name).filter(is_as_it_was) {
            return Ok(Arc::clone(&kept.info));
        }
        let info = self.inner.opener.look(source);
        let info = info.map_err(|error| ModelError::Load(Arc::new(LoadFailure::from(&error))))?;
        let info = Arc::new(info);
        let kept = Kept { path, stamp, definition, info: Arc::clone(&info) };
        let mut all = lock(&self.inner.facts.0);
        if all.len() >= KEPT_MAX {
            all.clear();
        }
        all.insert(name.to_owned(), kept);
        Ok(info)
    }
}

/// The hash of one file, or one for those of all.
fn joined(hashes: impl Iterator<Item = Sha256>) -> Option<Sha256> {
    let hashes: Vec<Sha256> = hashes.collect();
    match hashes.as_slice() {
        [] => None,
        [one] => Some(*one),
        several => {
            let text: String = several.iter().map(|hash| format!("{hash}\n")).collect();
            Some(Sha256::of(text.as_bytes()))
        }
    }
}
