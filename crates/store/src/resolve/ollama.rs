//! Ollama's registry: a manifest names layers by hash, of which one is the weights and the others
//! say how to use them.

use serde::Deserialize;
use url::Url;

use super::{Found, Remote, answer, below, parse};
use crate::client::Client;
use crate::download::error::{FetchError, shown};
use crate::sha256::Sha256;
use crate::source::OllamaName;

/// Most layers of a model.
const LAYERS_MAX: usize = 64;
/// Where media types of layers differ.
const KIND: &str = "application/vnd.ollama.image.";
const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// What an Ollama registry has beside a model's weights.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OllamaModel {
    /// The prompt's template, in Go's template language.
    pub template: Option<String>,
    /// The system prompt.
    pub system: Option<String>,
    /// Parameters for sampling and loading, by Ollama's names.
    pub params: serde_json::Map<String, serde_json::Value>,
    /// The licences.
    pub licenses: Vec<String>,
    /// Kinds of layers that are there and were left, as `projector` or `adapter`.
    pub left_out: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    layers: Vec<Layer>,
}

#[derive(Debug, Deserialize)]
struct Layer {
    #[serde(rename = "mediaType")]
    media_type: String,
    digest: Sha256,
    size: u64,
}

pub(super) async fn resolve(
    client: &Client,
    usual: &Url,
    name: &OllamaName,
) -> Result<Found, FetchError> {
    let base = registry(usual, name)?;
    let model = ["v2", name.namespace(), name.name()];
    let url = below(&base, model.into_iter().chain(["manifests", name.tag()]))?;
    let accept = (reqwest::header::ACCEPT, MANIFEST.to_owned());
    let manifest: Manifest = parse(&url, &client.text(&url, &[accept]).await?)?;
    if manifest.layers.len() > LAYERS_MAX {
        return Err(answer(&url, format!("the model has more than {LAYERS_MAX} layers")));
    }
    let mut found = OllamaModel::default();
    let mut weights = Vec::new();
    for layer in &manifest.layers {
        let digest = format!("sha256:{}", layer.digest);
        let at = below(&base, model.into_iter().chain(["blobs", &digest]))?;
        match layer.media_type.strip_prefix(KIND).unwrap_or(&layer.media_type) {
            "model" => weights.push(Remote {
                name: format!("{}-{}.gguf", name.name(), name.tag()),
                url: at,
                sha256: Some(layer.digest),
                size_bytes: Some(layer.size),
            }),
            "template" => found.template = Some(text(client, &at, layer.digest).await?),
            "system" => found.system = Some(text(client, &at, layer.digest).await?),
            "params" => found.params = parse(&at, &text(client, &at, layer.digest).await?)?,
            "license" => found.licenses.push(text(client, &at, layer.digest).await?),
            other => found.left_out.push(other.chars().take(64).collect()),
        }
    }
    match weights.len() {
        1 => Ok(Found { files: weights, ollama: Some(found) }),
        count => Err(answer(&url, format!("the model has {count} layers of weights, not one"))),
    }
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
async fn text(client: &Client, url: &Url, expected: Sha256) -> Result<String, FetchError> {
    let text = client.text(url, &[]).await?;
    let found = Sha256::of(text.as_bytes());
    if found != expected {
        return Err(FetchError::Digest { url: shown(url), expected, found });
    }
    Ok(text)
}
