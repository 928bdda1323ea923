//! Requests, answers and events about what is on disk: pull, rm, prune, verify, adopt, show.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{ApiError, ModelEntry};

/// How far a file is on its way here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PullProgress {
    /// What is being done.
    pub phase: PullPhase,
    /// Bytes that are on disk, or hashed. Within a try they never become fewer.
    pub done_bytes: u64,
    /// Bytes in all, once that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// Bytes per second, lately; 0 where that is not known.
    #[serde(default)]
    pub bytes_per_s: u64,
}

/// What is being done to have a file here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PullPhase {
    /// The origin is asked what there is.
    #[default]
    Resolving,
    /// Others go first.
    Queued,
    /// What is here already is hashed.
    Checking,
    /// Bytes come.
    Downloading,
    /// Something failed, and is tried again soon.
    Waiting,
    /// Wrong bytes are sought and replaced.
    Repairing,
    /// Parts are put together, or a member is taken out of an archive.
    Assembling,
}

impl PullPhase {
    /// The words for people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Resolving => "asking for it",
            Self::Queued => "waiting for its turn",
            Self::Checking => "checking",
            Self::Downloading => "downloading",
            Self::Waiting => "waiting to try again",
            Self::Repairing => "repairing",
            Self::Assembling => "putting together",
        }
    }
}

impl PullProgress {
    /// The share that is done, in percent and never above 100.
    pub fn percent(&self) -> Option<u64> {
        let total = self.total_bytes.filter(|&total| total > 0)?;
        let percent = u128::from(self.done_bytes) * 100 / u128::from(total);
        Some(percent.min(100) as u64)
    }

    /// Seconds until it is done, at the rate there is.
    pub fn seconds_left(&self) -> Option<u64> {
        let left = self.total_bytes?.saturating_sub(self.done_bytes);
        (self.phase == PullPhase::Downloading && self.bytes_per_s > 0)
            .then(|| left.div_ceil(self.bytes_per_s))
    }
}

impl fmt::Display for PullProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.phase.words())?;
        match (self.percent(), self.total_bytes) {
            (Some(percent), Some(total)) => {
                write!(f, " {percent} %, {} of {}", Size(self.done_bytes), Size(total))?;
            }
            _ if self.done_bytes > 0 => write!(f, " {}", Size(self.done_bytes))?,
            _ => {}
        }
        if self.bytes_per_s > 0 && self.phase == PullPhase::Downloading {
            write!(f, ", {}/s", Size(self.bytes_per_s))?;
        }
        match self.seconds_left() {
            Some(seconds @ 5400..) => write!(f, ", {} h left", seconds.div_ceil(3600)),
            Some(seconds @ 90..) => write!(f, ", {} min left", seconds.div_ceil(60)),
            Some(seconds) => write!(f, ", {seconds} s left"),
            None => Ok(()),
        }
    }
}

/// A number of bytes in decimal units, as disks and downloads have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u64); 4] =
            [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1000)];
        match UNITS.iter().find(|(_, unit)| self.0 >= *unit) {
            Some((name, unit)) => write!(f, "{:.1} {name}", self.0 as f64 / *unit as f64),
            None => write!(f, "{} B", self.0),
        }
    }
}

/// Body of `POST /models/pull`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PullRequest {
    /// What to get.
    pub what: PullTarget,
    /// Name to give it; by default made of the source. Not of what has a name already.
    #[serde(default)]
    pub name: Option<String>,
    /// Whether to take the name from another model that has it.
    #[serde(default)]
    pub replace: bool,
    /// Whether to ask the origin also if it is here, for what it has now.
    #[serde(default)]
    pub update: bool,
}

/// What a caller wants to have here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PullTarget {
    /// A model that a manifest defines, or one that was pulled before.
    Name(String),
    /// What is at a source, in the text form that manifests have too.
    Source(String),
    /// A GGUF file of the daemon's machine, by absolute path. Of a split model, any of its files.
    File(PathBuf),
}

/// One line of the answer to `POST /models/pull`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum PullEvent {
    /// It is being fetched; the first line, if there is anything to fetch.
    Begun {
        /// Name of the model that it is or will be.
        model: String,
        /// Whether it goes on when nobody reads these lines, as a manifest defines the model.
        goes_on: bool,
    },
    /// How far it is.
    Progress(PullProgress),
    /// The model is here; the last line.
    Done {
        /// The model.
        model: Box<ModelEntry>,
        /// Whether it was here before.
        was_here: bool,
    },
    /// It could not be had; the last line. What came of a download is kept.
    Error {
        /// Why.
        error: ApiError,
    },
}

/// Body of `POST /models/show` and `POST /models/remove`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NameRequest {
    /// Name of a model.
    pub model: String,
}

/// Answer to `POST /models/show`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelDetails {
    /// What lists say of it.
    pub model: ModelEntry,
    /// What it can do, as its manifest says, or else its file; absent where neither is here to say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Vec<String>>,
    /// Its files, as far as they are here.
    pub files: Vec<FileDetails>,
    /// What is set of how it is used, by its manifest or its source: key and value.
    pub settings: Vec<(String, String)>,
    /// What its source has beside the weights and is not used.
    #[serde(default)]
    pub left_out: Vec<String>,
}

/// A file of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FileDetails {
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub size_bytes: u64,
    /// Its hash; absent of a file that is used where it is and that nobody asked to hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// How it takes space in the store: `own`, `clone`, `hard-link` or `reference`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<String>,
    /// When all of it was last hashed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified_unix_s: Option<u64>,
}

/// Answer to `POST /models/remove`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// Name of the model that there was.
    pub model: String,
    /// Bytes of its files that went with it; those that other models need stay.
    pub freed_bytes: u64,
}

/// Body of `POST /prune`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruneRequest {
    /// Only say what would be removed.
    #[serde(default)]
    pub dry_run: bool,
}

/// Answer to `POST /prune`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// Whether it was only looked at.
    pub dry_run: bool,
    /// Files that no model needs.
    pub files: Vec<PrunedFile>,
    /// Downloads that nobody goes on with, files in quarantine, and references to files that are
    /// gone.
    pub leftovers: Vec<PathBuf>,
    /// Bytes of all of these.
    pub bytes: u64,
}

/// A file that no model needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrunedFile {
    /// Its hash.
    pub sha256: String,
    /// Its size.
    pub size_bytes: u64,
    /// Where it came from, as far as that is known.
    pub sources: Vec<String>,
}

/// Body of `POST /verify`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyRequest {
    /// The model whose files are hashed, also those that are used where they are; all that are stored by
    /// default.
    #[serde(default)]
    pub model: Option<String>,
}

/// One line of the answer to `POST /verify`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum VerifyEvent {
    /// How far it is.
    Progress(PullProgress),
    /// A file was hashed.
    File {
        /// What it should hash to; or, if nobody says that, what it does.
        sha256: String,
        /// Whether somebody says what it should hash to.
        #[serde(default = "yes")]
        expected: bool,
        /// Where it is, if it is used there and not stored.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<PathBuf>,
        /// Its size.
        size_bytes: u64,
        /// The models that need it.
        models: Vec<String>,
        /// What is wrong with it; absent of a good file.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        damage: Option<Damage>,
    },
    /// All are hashed; the last line.
    Done {
        /// How many are good.
        good: u64,
        /// How many are not. Those of the store are in quarantine.
        bad: u64,
    },
    /// Something else went wrong; the last line.
    Error {
        /// What.
        error: ApiError,
    },
}

fn yes() -> bool {
    true
}

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// What it hashes to.
    pub found_sha256: String,
    /// Where it was put, out of the way; absent of a file that is not the daemon's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<PathBuf>,
    /// Which of its pieces of 4 MiB are damaged, counted from 0, as far as that is known.
    pub bad_chunks: Vec<u64>,
}

/// Body of `POST /adopt`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdoptRequest {
    /// Absolute path of a models folder of Ollama, or of a hub cache of Hugging Face.
    pub dir: PathBuf,
}

/// One line of the answer to `POST /adopt`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum AdoptEvent {
    /// How far hashing is.
    Progress(PullProgress),
    /// A model is here now.
    Adopted {
        /// The model.
        model: Box<ModelEntry>,
    },
    /// Something was left where it is.
    Left {
        /// What.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// All was looked at; the last line.
    Done {
        /// How many models are here now.
        adopted: u64,
        /// How many were left.
        left: u64,
    },
    /// Nothing could be adopted; the last line.
    Error {
        /// Why.
        error: ApiError,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_with_what_is_known() {
        let start = PullProgress::default();
        assert_eq!(start.to_string(), "asking for it");
        let some = PullProgress {
            phase: PullPhase::Downloading,
            done_bytes: 1_400_000_000,
            total_bytes: Some(4_100_000_000),
            bytes_per_s: 82_000_000,
        };
        assert_eq!(some.to_string(), "downloading 34 %, 1.4 GB of 4.1 GB, 82.0 MB/s, 33 s left");
        let unknown = PullProgress { total_bytes: None, ..some };
        assert_eq!(unknown.to_string(), "downloading 1.4 GB, 82.0 MB/s");
        let slow = PullProgress { bytes_per_s: 100_000, ..some };
        assert!(slow.to_string().ends_with(", 8 h left"), "{slow}");
        let over = PullProgress { done_bytes: u64::MAX, ..some };
        assert_eq!((over.percent(), over.seconds_left()), (Some(100), Some(0)));
        let none = PullProgress { total_bytes: Some(0), ..some };
        assert_eq!(none.percent(), None);
    }

    #[test]
    fn progress_is_flat_in_an_event() {
        let line = serde_json::to_string(&PullEvent::Progress(PullProgress::default())).unwrap();
        let expected = r#"{"event":"progress","phase":"resolving","done_bytes":0,"bytes_per_s":0}"#;
        assert_eq!(line, expected);
        assert_eq!(
            serde_json::from_str::<PullEvent>(&line).unwrap(),
            PullEvent::Progress(PullProgress::default())
        );
    }
}
