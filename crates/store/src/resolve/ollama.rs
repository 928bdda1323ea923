//! Ollama's registry.

use url::Url;

use super::{Found, Remote, answer, below};
use crate::client::Client;
use crate::download::error::{FetchError, shown};
use crate::ollama::{Kind, Manifest, OllamaModel};
use crate::sha256::Sha256;
use crate::source::OllamaName;

const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

pub(super) async fn resolve(
    client: &Client,
    usual: &Url,
    name: &OllamaName,
) -> Result<Found, FetchError> {
    let base = registry(usual, name)?;
    let model = ["v2", name.namespace(), name.name()];
    let url = below(&base, model.into_iter().chain(["manifests", name.tag()]))?;
    let accept = (reqwest::header::ACCEPT, MANIFEST.to_owned());
    let text = client.text(&url, &[accept]).await?;
    let manifest = Manifest::parse(&text).map_err(|reason| answer(&url, reason))?;
    let weights = manifest.weights().map_err(|reason| answer(&url, reason))?;
    let blob = |sha256| {
        let digest = format!("sha256:{sha256}");
        below(&base, model.into_iter().chain(["blobs", &digest]))
    };
    let file = Remote {
        name: format!("{}-{}.gguf", name.name(), name.tag()),
        url: blob(weights.digest)?,
        sha256: Some(weights.digest),
        size_bytes: Some(weights.size),
    };
    let mut found = OllamaModel::default();
    for layer in &manifest.layers {
        match layer.kind() {
            Kind::Weights => {}
            Kind::Text(kind) => {
                let at = blob(layer.digest)?;
                let text = small_layer(client, &at, layer.digest).await?;
                found.take(kind, text).map_err(|reason| answer(&at, reason))?;
            }
            Kind::Other => found.leave(layer),
        }
    }
    Ok(Found { files: vec![file], ollama: Some(found) })
}

fn registry(usual: &Url, name: &OllamaName) -> Result<Url, FetchError> {
    let Some(host) = name.host() else { return Ok(usual.clone()) };
    let bare = host.split(':').next().unwrap_or(host);
    let is_here = bare == "localhost" || bare.starts_with("127.");
    let scheme = if is_here { "http" } else { "https" };
    let url = Url::parse(&format!("{scheme}://{host}"));
    url.map_err(|error| FetchError::Answer { url: host.to_owned(), reason: error.to_string() })
}

/// A small layer, which is what its name says.
async fn small_layer(client: &Client, url: &Url, expected: Sha256) -> Result<String, FetchError> {
    let text = client.text(url, &[]).await?;
    let found = Sha256::of(text.as_bytes());
    if found != expected {
        return Err(FetchError::Digest { url: shown(url), expected, found });
    }
    Ok(text)
}
