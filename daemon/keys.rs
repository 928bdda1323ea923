//! API keys: who may use the HTTP listener, and for what.
//!
//! The file has a line for each key, with its hash only:
//!
//! ```toml
//! laptop = { sha256 = "…", models = ["chat"], priority = "agent", requests_per_minute = 60 }
//! ```

mod bucket;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use m40_control::keys::{BadKeyName, KeyHash, check_key_name};
use m40_manifest::mistake::Mistake;
use m40_sched::Class;
use serde::Deserialize;
use subtle::ConstantTimeEq;

use bucket::Bucket;

/// Longest file of keys, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Longest key that a client may send, in bytes.
const KEY_BYTES_MAX: usize = 512;

/// Most models in the list of a key.
const MODELS_MAX: usize = 1024;

/// Why a file of keys does not count.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeysError {
    #[error("cannot read the keys in {}: {source}", file.display())]
    Read { file: PathBuf, source: io::Error },
    #[error("the keys in {} are more than 1 MiB", file.display())]
    TooLong { file: PathBuf },
    #[error("{}:{line}:{column}: {message}", file.display())]
    Syntax { file: PathBuf, line: usize, column: usize, message: String },
    #[error("{}: {name:?}: {source}", file.display())]
    Name { file: PathBuf, name: String, source: BadKeyName },
    #[error("{}: {name}: models has more than {MODELS_MAX} names", file.display())]
    Models { file: PathBuf, name: String },
}

/// What a key allows.
#[derive(Debug)]
pub(crate) struct Key {
    pub name: String,
    hash: KeyHash,
    /// The only models that it may ask for; `None` means all.
    pub models: Option<Vec<String>>,
    /// The most urgent that its requests are.
    pub priority: Class,
    /// Whether it may add and remove models, where that is allowed at all.
    pub manage_models: bool,
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
}

impl Key {
    /// Counts a request, or says how soon there may be another.
    pub(crate) fn admit(&self, now: Instant) -> Result<(), Duration> {
        // A client that has to wait for its tokens has not made a request yet.
        self.tokens.as_ref().map_or(Ok(()), |tokens| tokens.ready(now))?;
        self.requests.as_ref().map_or(Ok(()), |requests| requests.take_one(now))
    }

    /// Counts the tokens of a prompt and its answer. They are known when they are there, so a key may
    /// overdraw; then it waits.
    pub(crate) fn charge(&self, tokens: u64, now: Instant) {
        if let Some(bucket) = &self.tokens {
            bucket.charge(tokens, now);
        }
    }
}

/// The keys of a file, which can be read again. A cheap handle.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    file: PathBuf,
    current: Arc<RwLock<Vec<Arc<Key>>>>,
}

impl Keys {
    /// Reads the file.
    pub(crate) fn open(file: PathBuf) -> Result<Self, KeysError> {
        let keys = read(&file)?;
        Ok(Self { file, current: Arc::new(RwLock::new(keys)) })
    }

    /// Reads the file again and where it is wrong the old ones count on. What keys have used of their rates is forgotten.
    pub(crate) fn reload(&self) -> Result<(), KeysError> {
        let keys = read(&self.file)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(())
    }

    /// The key that a client sent. How long that takes says nothing of the keys there are.
    pub(crate) fn find(&self, sent: &str) -> Option<Arc<Key>> {
        if sent.len() > KEY_BYTES_MAX {
            return None;
        }
        let hash = KeyHash::of(sent);
        let keys = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let is_it = |key: &Arc<Key>| bool::from(key.hash.ct_eq(&hash));
        keys.iter().fold(None, |found, key| if is_it(key) { Some(key) } else { found }).cloned()
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKey {
    sha256: KeyHash,
    models: Option<Vec<String>>,
    #[serde(default)]
    priority: RawPriority,
    requests_per_minute: Option<NonZeroU32>,
    tokens_per_minute: Option<NonZeroU32>,
    #[serde(default)]
    manage_models: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawPriority {
    Batch,
    Agent,
    #[default]
    Interactive,
}

fn read(file: &Path) -> Result<Vec<Arc<Key>>, KeysError> {
    let broken = |source| KeysError::Read { file: file.to_path_buf(), source };
    let mut text = String::new();
    let opened = std::fs::File::open(file).map_err(broken)?;
    opened.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(broken)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(KeysError::TooLong { file: file.to_path_buf() });
    }
    let raw: BTreeMap<String, RawKey> = toml::from_str(&text).map_err(|error| {
        let mistake = Mistake::of(&text, &error);
        let (line, column) = mistake.place.map_or((1, 1), |place| (place.line, place.column));
        KeysError::Syntax { file: file.to_path_buf(), line, column, message: mistake.message }
    })?;
    let now = Instant::now();
    raw.into_iter().map(|(name, raw)| key(file, name, raw, now).map(Arc::new)).collect()
}

fn key(file: &Path, name: String, raw: RawKey, now: Instant) -> Result<Key, KeysError> {
    let file = || file.to_path_buf();
    if let Err(source) = check_key_name(&name) {
        return Err(KeysError::Name { file: file(), name, source });
    }
    if raw.models.as_ref().is_some_and(|models| models.len() > MODELS_MAX) {
        return Err(KeysError::Models { file: file(), name });
    }
    let priority = match raw.priority {
        RawPriority::Batch => Class::Batch,
        RawPriority::Agent => Class::Agent,
        RawPriority::Interactive => Class::Interactive,
    };
    Ok(Key {
        name,
        hash: raw.sha256,
        models: raw.models,
        priority,
        manage_models: raw.manage_models,
        requests: raw.requests_per_minute.map(|rate| Bucket::full(rate, now)),
        tokens: raw.tokens_per_minute.map(|rate| Bucket::full(rate, now)),
    })
}

#[cfg(test)]
mod tests {
    use m40_control::keys::ApiKey;

    use super::*;

    fn keys(text: &str) -> Result<Keys, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys.toml");
        std::fs::write(&file, text).unwrap();
        Keys::open(file).map_err(|error| error.to_string())
    }

    #[test]
    fn a_key_is_found_by_its_text_only() {
        let key = ApiKey::from_random([3; 32]);
        let hash = KeyHash::of(key.text());
        let other = KeyHash::of("sk-m40-other");
        let keys =
            keys(&format!("b = {{ sha256 = \"{other}\" }}\na = {{ sha256 = \"{hash}\" }}\n"));
        let keys = keys.unwrap();
        assert_eq!(keys.find(key.text()).unwrap().name, "a");
        for wrong in ["", "a", &hash.to_string(), &key.text()[1..], &"x".repeat(100_000)] {
            assert!(keys.find(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_mistake_has_its_place_and_shows_no_key() {
        let refused = |text: &str| keys(text).unwrap_err();
        let error = refused("a = { sha256 = \"sk-m40-secret\" }");
        assert!(error.contains("keys.toml:1:") && error.contains("64 hex"), "{error}");
        assert!(!error.contains("secret"), "{error}");
        let hash = KeyHash::of("x");
        let error = refused(&format!("a = {{ sha256 = \"{hash}\", model = [\"x\"] }}"));
        assert!(error.contains("`model`"), "{error}");
        let error = refused(&format!("\"a b\" = {{ sha256 = \"{hash}\" }}"));
        assert!(error.contains("name of a key"), "{error}");
        let error = refused(&format!("a = {{ sha256 = \"{hash}\", requests_per_minute = 0 }}"));
        assert!(error.contains("nonzero"), "{error}");
    }

    #[test]
    fn a_rate_is_kept_and_comes_back_with_time() {
        let hash = KeyHash::of("x");
        let rates = "requests_per_minute = 2, tokens_per_minute = 60";
        let keys = keys(&format!("a = {{ sha256 = \"{hash}\", {rates} }}")).unwrap();
        let (key, now) = (keys.find("x").unwrap(), Instant::now());
        assert_eq!((key.admit(now), key.admit(now)), (Ok(()), Ok(())));
        let wait = key.admit(now).unwrap_err();
        assert!(wait > Duration::from_secs(29) && wait <= Duration::from_secs(30), "{wait:?}");
        let later = now + wait;
        assert_eq!(key.admit(later), Ok(()));
        key.charge(70, later);
        let later = later + Duration::from_secs(60);
        assert_eq!(key.admit(later), Ok(()), "a minute's tokens are back");
        key.charge(160, later);
        assert_eq!(key.admit(later).unwrap_err().as_secs(), 110);
    }
}
