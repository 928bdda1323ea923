//! What `m40ctl pull` is getting, on disk, so that it goes on after a restart.
//!
//! `pulls/<name>.toml` is there from when a fetch begins until its end is known, or until whoever asked leaves
//! while the daemon serves. What manifests name needs no such file.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use m40_control::check_model_name;
use m40_store::Source;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{BlobError, failed, write_toml};

/// Longest file that is read.
const BYTES_MAX: u64 = 1 << 20;

/// A model that is to come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pending {
    /// What it will be called.
    pub name: String,
    pub source: Source,
    /// Whether it may take the name from another model.
    pub replace: bool,
}

/// The folder of them.
#[derive(Debug, Clone)]
pub(crate) struct PendingPulls {
    dir: PathBuf,
}

impl PendingPulls {
    /// Of a folder, which must be there.
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// All of them. What cannot be read is left out and logged.
    pub(crate) fn list(&self) -> Vec<Pending> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let paths = entries.map(|entry| entry.path());
        let files = paths.filter(|path| path.extension().is_some_and(|end| end == "toml"));
        let pending = files.filter_map(|path| {
            let read = read(&path);
            read.inspect_err(
                |error| warn!(error, file = %path.display(), "cannot go on with a pull"),
            )
            .ok()
        });
        pending.collect()
    }

    /// Whether a model of this name is to come.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    /// A model is to come. On disk when this returns.
    pub(crate) fn note(&self, pending: &Pending) -> Result<(), BlobError> {
        write_toml(&self.path(&pending.name), pending)
    }

    /// It has come, or is not to any more.
    pub(crate) fn forget(&self, name: &str) -> Result<(), BlobError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.toml"))
    }
}

fn read(path: &Path) -> Result<Pending, String> {
    let mut text = String::new();
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(BYTES_MAX).read_to_string(&mut text).map_err(|error| error.to_string())?;
    let pending: Pending = toml::from_str(&text).map_err(|error| error.message().to_owned())?;
    check_model_name(&pending.name).map_err(|error| error.to_string())?;
    Ok(pending)
}
