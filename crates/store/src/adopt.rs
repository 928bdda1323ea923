//! Models that another program has downloaded become blobs, and take no space again.
//!
//! Their files are hashed like everything else: what a folder says of them is not believed. Where
//! the file system allows it a file gets another name in the store and outlives the other program's;
//! elsewhere the store refers to it where it is, and the blob is gone when the file is.

use std::fs;
use std::path::{Path, PathBuf};

use crate::blobs::{Blob, names_in, read_capped};
use crate::error::{StoreError, failed};
use crate::import::Ways;
use crate::ollama::{Kind, Manifest, OllamaModel};
use crate::sha256::Sha256;
use crate::source::Source;
use crate::store::Inner;

/// Deepest folder that is looked into.
const DEPTH_MAX: usize = 8;
/// Most files that are looked at.
const FILES_MAX: usize = 100_000;
/// Longest manifest, and longest text that it names.
const TEXT_BYTES_MAX: u64 = 1 << 20;

/// What was adopted.
#[derive(Debug, Default)]
pub struct Adopted {
    /// The models, by source.
    pub models: Vec<AdoptedModel>,
    /// What was left, and why.
    pub left: Vec<(PathBuf, String)>,
}

/// A model that was adopted.
#[derive(Debug, Clone, PartialEq)]
pub struct AdoptedModel {
    /// Where the other program had it from; pulling this finds it in the store.
    pub source: Source,
    /// Its file's own name.
    pub name: String,
    /// Its weights.
    pub blob: Blob,
    /// What Ollama has beside them.
    pub ollama: Option<OllamaModel>,
}

/// A file of another program that may be adopted.
#[derive(Debug)]
struct Candidate {
    path: PathBuf,
    name: String,
    source: Result<Source, String>,
    /// What the other program says that it hashes to.
    said: Option<Sha256>,
    /// What Ollama has beside it.
    ollama: Option<OllamaModel>,
}

impl Inner {
    pub(crate) fn adopt(
        &self,
        dir: &Path,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Adopted, StoreError> {
        if !dir.is_absolute() {
            return Err(StoreError::NotAbsolute { path: dir.to_path_buf() });
        }
        let mut adopted = Adopted::default();
        let candidates = find(dir, &mut adopted.left)?;
        let length = |candidate: &Candidate| fs::metadata(&candidate.path).map_or(0, |f| f.len());
        let total = candidates.iter().map(length).sum();
        let mut done = 0;
        for candidate in candidates {
            let mut hear = |bytes| {
                done += bytes;
                progress(done, total);
            };
            match self.adopt_one(&candidate, &mut hear) {
                Ok(model) => adopted.models.push(model),
                Err(reason) => adopted.left.push((candidate.path, reason)),
            }
        }
        adopted.models.sort_by(|a, b| a.source.cmp(&b.source));
        Ok(adopted)
    }

    fn adopt_one(
        &self,
        candidate: &Candidate,
        progress: &mut dyn FnMut(u64),
    ) -> Result<AdoptedModel, String> {
        let source = candidate.source.clone()?;
        if let Some(blob) = candidate.said.and_then(|said| self.blobs.find(&said)) {
            progress(blob.size_bytes);
            return Ok(candidate.adopted(source, blob));
        }
        let sources = vec![source.clone()];
        let blob = self.import(&candidate.path, Ways::UpToReference, sources, progress);
        let blob = blob.map_err(|error| error.to_string())?;
        if let Some(said) = candidate.said.filter(|&said| said != blob.sha256) {
            // It is in the store as what it is, and nothing refers to it.
            return Err(format!("it should hash to {said} and hashes to {}", blob.sha256));
        }
        Ok(candidate.adopted(source, blob))
    }
}

impl Candidate {
    fn adopted(&self, source: Source, blob: Blob) -> AdoptedModel {
        let (name, ollama) = (self.name.clone(), self.ollama.clone());
        AdoptedModel { source, name, blob, ollama }
    }
}

fn find(dir: &Path, left: &mut Vec<(PathBuf, String)>) -> Result<Vec<Candidate>, StoreError> {
    if dir.join("manifests").is_dir() && dir.join("blobs").is_dir() {
        return ollama(dir, left);
    }
    let repositories = names_in(dir)?;
    let repositories: Vec<&String> =
        repositories.iter().filter(|name| name.starts_with("models--")).collect();
    if repositories.is_empty() {
        return Err(StoreError::NotAdoptable { dir: dir.to_path_buf() });
    }
    let mut found = Vec::new();
    for repository in repositories {
        hugging_face(dir, repository, &mut found)?;
    }
    Ok(found)
}

/// `manifests/<host>/<namespace>/<name>/<tag>` and `blobs/sha256-<hex>`.
fn ollama(dir: &Path, left: &mut Vec<(PathBuf, String)>) -> Result<Vec<Candidate>, StoreError> {
    let mut found = Vec::new();
    let manifests = dir.join("manifests");
    for path in files_below(&manifests)? {
        let text = read_capped(&path, TEXT_BYTES_MAX).map_err(|error| error.to_string());
        let manifest = text.and_then(|text| Manifest::parse(&text));
        let weights = |manifest: Manifest| {
            let sha256 = manifest.weights()?.digest;
            Ok::<_, String>((manifest, sha256))
        };
        let (manifest, said) = match manifest.and_then(weights) {
            Ok(found) => found,
            Err(reason) => {
                left.push((path, reason));
                continue;
            }
        };
        let parts = path.strip_prefix(&manifests).unwrap_or(&path);
        let parts: Vec<String> =
            parts.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        let blobs = dir.join("blobs");
        found.push(Candidate {
            path: blob_in(&blobs, said),
            name: ollama_name(&parts),
            source: ollama_source(&parts),
            said: Some(said),
            ollama: Some(beside(&manifest, &blobs)),
        });
    }
    Ok(found)
}

fn blob_in(blobs: &Path, sha256: Sha256) -> PathBuf {
    blobs.join(format!("sha256-{sha256}"))
}

/// What there is beside the weights. A layer that is not what its name says is left.
fn beside(manifest: &Manifest, blobs: &Path) -> OllamaModel {
    let mut found = OllamaModel::default();
    for layer in &manifest.layers {
        let is_taken = match layer.kind() {
            Kind::Weights => true,
            Kind::Other => false,
            Kind::Text(kind) => read_capped(&blob_in(blobs, layer.digest), TEXT_BYTES_MAX)
                .ok()
                .filter(|text| Sha256::of(text.as_bytes()) == layer.digest)
                .is_some_and(|text| found.take(kind, text).is_ok()),
        };
        if !is_taken {
            found.leave(layer);
        }
    }
    found
}

fn ollama_name(parts: &[String]) -> String {
    match parts {
        [.., name, tag] => format!("{name}-{tag}.gguf"),
        _ => "model.gguf".to_owned(),
    }
}

fn ollama_source(parts: &[String]) -> Result<Source, String> {
    let [host, namespace, name, tag] = parts else {
        return Err("it does not lie in HOST/NAMESPACE/NAME/TAG".to_owned());
    };
    let text = match (host.as_str(), namespace.as_str()) {
        ("registry.ollama.ai", "library") => format!("ollama:{name}:{tag}"),
        ("registry.ollama.ai", namespace) => format!("ollama:{namespace}/{name}:{tag}"),
        (host, namespace) => format!("ollama:{host}/{namespace}/{name}:{tag}"),
    };
    text.parse().map_err(|error: crate::SourceError| error.to_string())
}

/// `models--<org>--<repo>/snapshots/<commit>/<path>`, links to `blobs/<hash>` beside.
fn hugging_face(
    dir: &Path,
    repository: &str,
    found: &mut Vec<Candidate>,
) -> Result<(), StoreError> {
    let snapshots = dir.join(repository).join("snapshots");
    let name = repository.trim_start_matches("models--").replacen("--", "/", 1);
    for path in files_below(&snapshots)? {
        if path.extension().is_none_or(|ending| ending != "gguf") {
            continue;
        }
        let parts = path.strip_prefix(&snapshots).unwrap_or(&path).to_string_lossy().into_owned();
        let Some((commit, file)) = parts.split_once('/') else { continue };
        let text = format!("hf:{name}/{file}@{commit}");
        let blob = path.canonicalize().ok();
        let blob_name = blob.as_ref().and_then(|blob| blob.file_name()?.to_str());
        found.push(Candidate {
            // Large files are named by their SHA-256, small ones by another hash.
            said: blob_name.and_then(|name| name.parse().ok()),
            name: file.rsplit('/').next().unwrap_or(file).to_owned(),
            source: text.parse().map_err(|error: crate::SourceError| error.to_string()),
            path,
            ollama: None,
        });
    }
    Ok(())
}

/// All files below a folder, in order, without following links to folders.
fn files_below(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut files = Vec::new();
    let mut folders = vec![(dir.to_path_buf(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        if !folder.exists() {
            continue;
        }
        for name in names_in(&folder)? {
            let path = folder.join(name);
            let kind = fs::symlink_metadata(&path).map_err(failed("read", &path))?;
            if kind.is_dir() && depth < DEPTH_MAX {
                folders.push((path, depth + 1));
            } else if !kind.is_dir() && files.len() < FILES_MAX {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}
