//! Where a model comes from.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;

use m40_manifest::{self as manifest, Definition};

use crate::store::Manifest;

/// Where a model comes from.
#[derive(Debug, Clone)]
pub(super) struct Source {
    /// The file to load.
    pub path: PathBuf,
    pub origin: Origin,
}

/// Who knows of a model.
#[derive(Debug, Clone)]
pub(super) enum Origin {
    /// Whoever asked for its file.
    InPlace,
    /// The store.
    Stored(Manifest),
    /// A manifest.
    Defined(manifest::Model),
}

impl Source {
    pub(super) fn in_place(path: PathBuf) -> Self {
        Self { path, origin: Origin::InPlace }
    }

    pub(super) fn stored(path: PathBuf, manifest: Manifest) -> Self {
        Self { path, origin: Origin::Stored(manifest) }
    }

    pub(super) fn defined(path: PathBuf, model: manifest::Model) -> Self {
        Self { path, origin: Origin::Defined(model) }
    }

    /// Whether its name is known without its file having been asked for.
    pub(super) fn is_known(&self) -> bool {
        !matches!(self.origin, Origin::InPlace)
    }

    /// What a manifest says of it.
    pub(super) fn definition(&self) -> Option<&Definition> {
        match &self.origin {
            Origin::Defined(model) => Some(&model.definition),
            Origin::InPlace | Origin::Stored(_) => None,
        }
    }

    /// A number that is another one where what was loaded from the one cannot stand for the other.
    pub(super) fn revision(&self) -> u64 {
        let mut hash = DefaultHasher::new();
        self.path.hash(&mut hash);
        match &self.origin {
            Origin::InPlace => 0.hash(&mut hash),
            Origin::Stored(manifest) => {
                1.hash(&mut hash);
                manifest.files.iter().for_each(|file| file.sha256.hash(&mut hash));
            }
            Origin::Defined(model) => {
                let Definition { source, sha256, size_bytes, .. } = &*model.definition;
                (2, source.to_string(), sha256, size_bytes).hash(&mut hash);
            }
        }
        hash.finish()
    }

    /// Whether another one says all the same.
    pub(super) fn is_as(&self, other: &Self) -> bool {
        let same = match (&self.origin, &other.origin) {
            (Origin::InPlace, Origin::InPlace) => true,
            (Origin::Stored(one), Origin::Stored(other)) => one == other,
            (Origin::Defined(one), Origin::Defined(other)) => one.definition == other.definition,
            _ => false,
        };
        same && self.path == other.path
    }
}
