//! Models on disk, in the state folder: which there are, and what their files are called. The files
//! themselves are blobs of [`m40_store`], which has the rest of the folder.
//!
//! ```text
//! files/<name>/<file>       links to the blobs under the files' own names (splits need them)
//! models/<name>.toml        what there is; a model exists exactly when this file does
//! sources/<key>/            what a source turned out to be: see [`sources`]
//! pulls/<name>.toml         what `m40ctl pull` is getting: see [`pending`]
//! ```
//!
//! An import ends with the rename of the last one, and everything before it is on disk by then:
//! a crash leaves either a whole model or an unlisted remainder that the next start removes.
//! So does a removal begin with it.

pub(crate) mod defaults;
pub(crate) mod pending;
mod remove;
pub(crate) mod sources;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use m40_control::{NameError, check_model_name, model_name_of_file};
use m40_manifest::Definition;
use m40_store::{OpenError, Settings, Sha256, StoreError as BlobError};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::exit::Failure;
use crate::pulls::Pulls;
use defaults::Defaults;
use pending::PendingPulls;
use sources::{Record, Sources};

/// Folder of what sources turned out to be.
const SOURCES: &str = "sources";
/// Folder of what `m40ctl pull` is getting.
const PULLS: &str = "pulls";

/// A stored model, as its file in `models/` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    pub name: String,
    /// Where it came from: a path, or the text of another source.
    pub source: PathBuf,
    pub imported_at_unix_s: u64,
    pub architecture: String,
    pub quantization: String,
    pub parameters: u64,
    /// One file, or all of a split in order.
    pub files: Vec<StoredFile>,
    #[serde(default, skip_serializing_if = "Defaults::is_empty")]
    pub defaults: Box<Defaults>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoredFile {
    /// Its own name, without folders.
    pub name: String,
    /// Hash of its contents.
    pub sha256: Sha256,
    pub size_bytes: u64,
}

impl Manifest {
    pub(crate) fn size_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size_bytes).sum()
    }
}

/// What an import must find out about a file before it is stored.
#[derive(Debug, Clone)]
pub(crate) struct Description {
    pub architecture: String,
    pub quantization: String,
    pub parameters: u64,
}

/// Why a model was not stored or not found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("{} belongs to a split model and {} is missing beside it", path.display(), shard.display())]
    MissingShard { path: PathBuf, shard: PathBuf },
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("there is another model named {name:?}: use --name for another name, or --replace")]
    NameTaken { name: String },
    #[error("{message}")]
    BadModel { message: String },
    #[error("there is no stored model {name:?}: `m40ctl list` shows which there are")]
    NoModel { name: String },
    #[error(transparent)]
    Blob(#[from] m40_store::StoreError),
}

/// What to import.
#[derive(Debug)]
pub(crate) struct Import<'a> {
    pub path: &'a Path,
    pub name: Option<&'a str>,
    pub replace: bool,
}

/// The models on disk, and on their way there. Having one means having the state folder to oneself.
/// A cheap handle.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    dir: PathBuf,
    blobs: m40_store::Store,
    pulls: Pulls,
    // Two changes of one name or one blob at a time would race for the same files.
    changing: Arc<Mutex<()>>,
}

impl Store {
    /// Opens the state folder, makes what is missing in it and removes what an interrupted
    /// import left.
    pub(crate) fn open(dir: &Path, settings: Settings) -> Result<Self, Failure> {
        let create = |path: &Path| {
            let path = path.to_path_buf();
            move |source| Failure::Create { action: "make the state folder", path, source }
        };
        for part in ["models", "files", SOURCES, PULLS] {
            let part = dir.join(part);
            fs::create_dir_all(&part).map_err(create(&part))?;
        }
        let opened = m40_store::Store::open(dir, settings);
        let blobs = opened.map_err(|error| match error {
            OpenError::InUse { dir } => Failure::StateInUse { dir },
            OpenError::Io { path, source } => create(&path)(source),
        })?;
        let pulls = Pulls::new(blobs.clone(), Sources::open(dir.join(SOURCES)));
        Ok(Self { dir: dir.to_path_buf(), blobs, pulls, changing: Arc::default() })
    }

    /// What comes from elsewhere.
    pub(crate) fn pulls(&self) -> &Pulls {
        &self.pulls
    }

    /// What `m40ctl pull` is getting.
    pub(crate) fn pending(&self) -> PendingPulls {
        PendingPulls::new(self.dir.join(PULLS))
    }

    /// The files by their hashes.
    pub(crate) fn blobs(&self) -> &m40_store::Store {
        &self.blobs
    }

    /// The stored models, sorted by name. A manifest that cannot be read is left out and logged.
    pub(crate) fn list(&self) -> Vec<Manifest> {
        let dir = self.dir.join("models");
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) => {
                warn!(%error, dir = %dir.display(), "cannot list the stored models");
                return Vec::new();
            }
        };
        let names = entries.filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            name.strip_suffix(".toml").map(str::to_owned)
        });
        let mut models: Vec<Manifest> = names.filter_map(|name| self.find(&name)).collect();
        models.sort_by(|a, b| a.name.cmp(&b.name));
        models
    }

    /// The stored model of this name.
    pub(crate) fn find(&self, name: &str) -> Option<Manifest> {
        check_model_name(name).ok()?;
        let path = self.manifest_path(name);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                warn!(%error, manifest = %path.display(), "cannot read a stored model");
                return None;
            }
        };
        match toml::from_str::<Manifest>(&text) {
            Ok(manifest) if manifest.name == name && !manifest.files.is_empty() => Some(manifest),
            Ok(_) => {
                warn!(manifest = %path.display(), "a stored model has another name or no files");
                None
            }
            Err(error) => {
                warn!(error = error.message(), manifest = %path.display(), "a stored model is unreadable");
                None
            }
        }
    }

    /// The file to load of a stored model: of a split, the first.
    pub(crate) fn path_of(&self, manifest: &Manifest) -> PathBuf {
        let links = self.dir.join("files").join(&manifest.name);
        manifest.files.first().map_or_else(|| links.clone(), |file| links.join(&file.name))
    }

    /// Imports a GGUF file, and all files of a split given any one of them. `describe` checks
    /// the first file and says what it is; `progress` hears the bytes done and in all.
    pub(crate) fn import(
        &self,
        import: &Import<'_>,
        describe: &dyn Fn(&Path) -> Result<Description, String>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Manifest, StoreError> {
        let sources = find_sources(import.path)?;
        let name = match import.name {
            Some(name) => name.to_owned(),
            None => model_name_of_file(&file_name(&sources[0].path)),
        };
        let _one_at_a_time = self.changing();
        self.check_free(&name, &sources[0].path, import.replace)?;
        let description =
            describe(&sources[0].path).map_err(|message| StoreError::BadModel { message })?;
        let files = self.store_files(&sources, progress)?;
        let source = sources[0].path.clone();
        self.put(name, source, description, files, Defaults::default())
    }

    /// Gives what came from a source a name. `describe` is as for [`Self::import`].
    pub(crate) fn add(
        &self,
        name: &str,
        record: &Record,
        replace: bool,
        describe: &dyn Fn(&Path) -> Result<Description, String>,
    ) -> Result<Manifest, StoreError> {
        let source = PathBuf::from(record.source.to_string());
        let _one_at_a_time = self.changing();
        self.check_free(name, &source, replace)?;
        let path = self.pulls.sources().path_of(record);
        let description = describe(&path).map_err(|message| StoreError::BadModel { message })?;
        let files = record.files().to_vec();
        self.put(name.to_owned(), source, description, files, record.defaults.clone())
    }

    /// Whether a model from this source may have this name.
    pub(crate) fn check_free(
        &self,
        name: &str,
        source: &Path,
        replace: bool,
    ) -> Result<(), StoreError> {
        check_model_name(name)?;
        match self.find(name) {
            Some(taken) if !replace && taken.source != source => {
                Err(StoreError::NameTaken { name: name.to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// Whether all files of a stored model are there.
    pub(crate) fn is_whole(&self, manifest: &Manifest) -> bool {
        manifest.files.iter().all(|file| self.blobs.path(&file.sha256).is_file())
    }

    /// How a stored model is used, where its source says anything about it.
    pub(crate) fn usage(&self, name: &str) -> Option<Arc<Definition>> {
        let manifest = self.find(name).filter(|manifest| !manifest.defaults.is_empty())?;
        let source = manifest.source.to_str()?.parse().ok()?;
        let plain = Definition::plain(&manifest.name, source).ok()?;
        Some(manifest.defaults.complete(&Arc::new(plain)))
    }

    fn put(
        &self,
        name: String,
        source: PathBuf,
        description: Description,
        files: Vec<StoredFile>,
        defaults: Defaults,
    ) -> Result<Manifest, StoreError> {
        let manifest = Manifest {
            name,
            source,
            imported_at_unix_s: unix_s(SystemTime::now()),
            architecture: description.architecture,
            quantization: description.quantization,
            parameters: description.parameters,
            files,
            defaults: Box::new(defaults),
        };
        let links = self.dir.join("files").join(&manifest.name);
        link_files(&links, Path::new("../../blobs/sha256"), &manifest.files)?;
        write_toml(&self.manifest_path(&manifest.name), &manifest)?;
        Ok(manifest)
    }

    /// While this is held no model comes or goes.
    fn changing(&self) -> MutexGuard<'_, ()> {
        // It guards files, which a panic leaves as an error would.
        self.changing.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    fn store_files(
        &self,
        sources: &[Source],
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Vec<StoredFile>, StoreError> {
        let total: u64 = sources.iter().map(|source| source.size_bytes).sum();
        let mut done = 0;
        let mut files = Vec::with_capacity(sources.len());
        for source in sources {
            let blob = self.blobs.import(&source.path, &mut |bytes| {
                done += bytes;
                progress(done, total);
            })?;
            let (name, sha256) = (file_name(&source.path), blob.sha256);
            files.push(StoredFile { name, sha256, size_bytes: blob.size_bytes });
        }
        Ok(files)
    }

    // Names may hold dots, so the ending is added to the name, not put in place of its "ending".
    fn manifest_path(&self, name: &str) -> PathBuf {
        self.dir.join("models").join(format!("{name}.toml"))
    }
}

/// Makes links to blobs in a folder, under the files' own names. `blobs` leads there from it.
fn link_files(dir: &Path, blobs: &Path, files: &[StoredFile]) -> Result<(), BlobError> {
    fs::create_dir_all(dir).map_err(failed("make the folder", dir))?;
    for file in files {
        let link = dir.join(&file.name);
        let fresh = dir.join(format!(".new-{}", file.name));
        let _ = fs::remove_file(&fresh);
        let target = blobs.join(file.sha256.to_string());
        std::os::unix::fs::symlink(&target, &fresh).map_err(failed("make the link", &fresh))?;
        fs::rename(&fresh, &link).map_err(failed("make the link", &link))?;
    }
    sync_dir(dir)?;
    dir.parent().map_or(Ok(()), sync_dir)
}

/// Writes a file so that a crash leaves the old one or the new one.
fn write_toml(path: &Path, value: &impl Serialize) -> Result<(), BlobError> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let fresh = path.with_file_name(name);
    let text = toml::to_string(value).map_err(io::Error::other);
    let text = text.map_err(failed("write", path))?;
    let write = || {
        let mut file = File::create(&fresh)?;
        io::Write::write_all(&mut file, text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(failed("write", &fresh))?;
    fs::rename(&fresh, path).map_err(failed("write", path))?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// A file to import.
#[derive(Debug)]
struct Source {
    path: PathBuf,
    size_bytes: u64,
}

fn find_sources(path: &Path) -> Result<Vec<Source>, StoreError> {
    if !path.is_absolute() {
        return Err(BlobError::NotAbsolute { path: path.to_path_buf() }.into());
    }
    let given = source_at(path)?;
    let Some(shards) = m40_gguf::split::shard_names(&file_name(path)) else {
        return Ok(vec![given]);
    };
    let shard = |name: String| {
        let shard = path.with_file_name(name);
        source_at(&shard).map_err(|error| match error {
            StoreError::Blob(BlobError::NoFile { path: shard }) => {
                StoreError::MissingShard { path: path.to_path_buf(), shard }
            }
            other => other,
        })
    };
    shards.into_iter().map(shard).collect()
}

fn source_at(path: &Path) -> Result<Source, StoreError> {
    let metadata = fs::metadata(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => BlobError::NoFile { path: path.to_path_buf() },
        _ => BlobError::Io { action: "read", path: path.to_path_buf(), source },
    })?;
    if !metadata.is_file() {
        return Err(BlobError::NotAFile { path: path.to_path_buf() }.into());
    }
    Ok(Source { path: path.to_path_buf(), size_bytes: metadata.len() })
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

pub(crate) fn unix_s(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BlobError {
    let path = path.to_path_buf();
    move |source| BlobError::Io { action, path, source }
}

// A rename is on disk only when its folder is.
fn sync_dir(dir: &Path) -> Result<(), BlobError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("flush", dir))
}

#[cfg(test)]
mod tests;
