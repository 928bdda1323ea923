//! What a source is on the web: addresses, hashes and lengths.

mod hugging_face;
mod ollama;

use serde::de::DeserializeOwned;
use url::Url;

use crate::client::Client;
use crate::download::error::{FetchError, shown};
use crate::ollama::OllamaModel;
use crate::settings::Settings;
use crate::sha256::Sha256;
use crate::source::{Pick, Source};

/// A file on the web.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remote {
    /// Its own name, without folders.
    pub(crate) name: String,
    pub(crate) url: Url,
    /// What its registry says of it.
    pub(crate) sha256: Option<Sha256>,
    pub(crate) size_bytes: Option<u64>,
}

/// What a source on the web is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Found {
    /// At least one file; several are a split in their order.
    pub(crate) files: Vec<Remote>,
    pub(crate) ollama: Option<OllamaModel>,
}

impl From<Remote> for Found {
    fn from(file: Remote) -> Self {
        Self { files: vec![file], ollama: None }
    }
}

/// Asks the registry of a source what it is; `None` of one that is not on the web itself.
pub(crate) async fn resolve(
    client: &Client,
    settings: &Settings,
    source: &Source,
) -> Result<Option<Found>, FetchError> {
    match source {
        Source::Web(web) => {
            let name = source.file_name().unwrap_or("model.gguf").to_owned();
            let url = web.url().clone();
            Ok(Some(Remote { name, url, sha256: None, size_bytes: None }.into()))
        }
        Source::HuggingFace(file) => {
            hugging_face::resolve(client, &settings.hugging_face, file).await.map(Some)
        }
        Source::Ollama(name) => ollama::resolve(client, &settings.ollama, name).await.map(Some),
        Source::File(_) | Source::Member(_) | Source::Parts(_) => Ok(None),
    }
}

/// Where a source is, if that can be said without asking anybody.
pub(crate) fn plain_url(settings: &Settings, source: &Source) -> Option<Url> {
    match source {
        Source::Web(web) => Some(web.url().clone()),
        Source::HuggingFace(found) => match found.pick() {
            Pick::File(path) => hugging_face::file_url(&settings.hugging_face, found, path).ok(),
            Pick::Quantization(_) => None,
        },
        Source::Ollama(_) | Source::File(_) | Source::Member(_) | Source::Parts(_) => None,
    }
}

/// A URL below another, with these parts as its path.
fn below<'a>(base: &Url, parts: impl IntoIterator<Item = &'a str>) -> Result<Url, FetchError> {
    let mut url = base.clone();
    match url.path_segments_mut() {
        Ok(mut path) => {
            path.pop_if_empty().extend(parts);
        }
        Err(()) => return Err(answer(base, "the registry's address has no path")),
    }
    Ok(url)
}

fn answer(url: &Url, reason: impl Into<String>) -> FetchError {
    FetchError::Answer { url: shown(url), reason: reason.into() }
}

fn parse<T: DeserializeOwned>(url: &Url, text: &str) -> Result<T, FetchError> {
    serde_json::from_str(text).map_err(|error| answer(url, error.to_string()))
}
