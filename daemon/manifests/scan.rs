//! Reading the folder: which manifests there are, and what is in them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use m40_manifest::{FILE_BYTES_MAX, Input, Surroundings};
use m40_tokenizer::ChatTemplate;
use nix::libc::O_NONBLOCK;

/// Most manifests of a folder.
const FILES_MAX: usize = 1024;
/// Most entries of a folder that are looked at.
const ENTRIES_MAX: usize = 16_384;
/// Most bytes of all manifests together, and of all files that they name.
const BYTES_MAX: usize = 64 << 20;

/// Why a folder cannot be read as a whole.
#[derive(Debug, thiserror::Error)]
pub(super) enum ScanError {
    #[error("cannot read the folder: {0}")]
    Io(#[from] io::Error),
    #[error("the folder has more than {FILES_MAX} manifests")]
    TooManyFiles,
    #[error("the folder has more than {ENTRIES_MAX} entries")]
    TooManyEntries,
    #[error("the manifests have more than {BYTES_MAX} bytes together")]
    TooManyBytes,
}

impl ScanError {
    /// Whether there is no folder.
    pub(super) fn is_absence(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::NotFound)
    }
}

/// Every `*.toml` of a folder, sorted by path. Names with a leading dot are editors' own.
pub(super) fn read_all(dir: &Path) -> Result<Vec<Input>, ScanError> {
    let mut inputs = Vec::new();
    let mut bytes = 0;
    for (count, entry) in fs::read_dir(dir)?.enumerate() {
        if count == ENTRIES_MAX {
            return Err(ScanError::TooManyEntries);
        }
        let name = entry?.file_name();
        let hidden = name.as_encoded_bytes().starts_with(b".");
        if hidden || Path::new(&name).extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        if inputs.len() == FILES_MAX {
            return Err(ScanError::TooManyFiles);
        }
        let file = dir.join(name);
        let text = read_text(&file, FILE_BYTES_MAX);
        bytes += text.as_ref().map_or(0, String::len);
        if bytes > BYTES_MAX {
            return Err(ScanError::TooManyBytes);
        }
        inputs.push(Input { file, text });
    }
    inputs.sort_by(|a, b| a.file.cmp(&b.file));
    Ok(inputs)
}

/// What is in a file of at most so many bytes, or why it cannot be had.
fn read_text(path: &Path, bytes_max: usize) -> Result<String, String> {
    let cannot = |error: io::Error| format!("cannot read the file: {error}");
    // Opening a pipe must not wait for somebody who writes.
    let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path).map_err(cannot)?;
    if !file.metadata().map_err(cannot)?.is_file() {
        return Err("is not a file".to_owned());
    }
    let mut bytes = Vec::new();
    let most = u64::try_from(bytes_max).unwrap_or(u64::MAX);
    file.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() > bytes_max {
        return Err(format!("has more than {bytes_max} bytes"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        format!("is not UTF-8 text: byte {at} belongs to no character")
    })
}

/// What manifests need from outside, and which files that were.
#[derive(Debug, Default)]
pub(super) struct Disk {
    paths: RefCell<BTreeSet<PathBuf>>,
    bytes: Cell<usize>,
}

impl Disk {
    /// The files that were asked for, there or not.
    pub(super) fn into_paths(self) -> BTreeSet<PathBuf> {
        self.paths.into_inner()
    }
}

impl Surroundings for Disk {
    fn read(&self, path: &Path, bytes_max: usize) -> Result<String, String> {
        self.paths.borrow_mut().insert(path.to_path_buf());
        let most = bytes_max.min(BYTES_MAX.saturating_sub(self.bytes.get()));
        let text = read_text(path, most).map_err(|why| format!("{}: {why}", path.display()))?;
        self.bytes.set(self.bytes.get() + text.len());
        Ok(text)
    }

    fn check_template(&self, template: &str) -> Result<(), String> {
        ChatTemplate::new(template, "", "").map(drop).map_err(|error| error.to_string())
    }
}
