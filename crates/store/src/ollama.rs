//! A model of Ollama, as a registry has it and a folder: a manifest names layers by hash, of which one
//! is the weights and the others say how to use them.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::sha256::Sha256;

/// Most layers of a model.
const LAYERS_MAX: usize = 64;
/// Where media types of layers differ.
const KIND: &str = "application/vnd.ollama.image.";
/// Longest name of a kind that is told.
const KIND_CHARS_MAX: usize = 64;

/// What an Ollama model has beside its weights.
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

/// Which files a model is.
#[derive(Debug, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) layers: Vec<Layer>,
}

/// A file of a model.
#[derive(Debug, Deserialize)]
pub(crate) struct Layer {
    #[serde(rename = "mediaType")]
    media_type: String,
    #[serde(deserialize_with = "digest")]
    pub(crate) digest: Sha256,
    pub(crate) size: u64,
}

/// What a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Weights,
    /// A text that says how to use them.
    Text(Text),
    Other,
}

/// Which text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Text {
    Template,
    System,
    Params,
    License,
}

fn digest<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Sha256, D::Error> {
    let text = String::deserialize(deserializer)?;
    Sha256::from_digest(&text).map_err(|error| D::Error::custom(format!("a digest {error}")))
}

impl Manifest {
    /// Reads a manifest, or says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let manifest: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if manifest.layers.len() > LAYERS_MAX {
            return Err(format!("the model has more than {LAYERS_MAX} layers"));
        }
        Ok(manifest)
    }

    /// The layer of the weights.
    pub(crate) fn weights(&self) -> Result<&Layer, String> {
        let mut weights = self.layers.iter().filter(|layer| layer.kind() == Kind::Weights);
        match (weights.next(), weights.count()) {
            (Some(layer), 0) => Ok(layer),
            (first, others) => {
                let count = usize::from(first.is_some()) + others;
                Err(format!("the model has {count} layers of weights, not one"))
            }
        }
    }
}

impl Layer {
    pub(crate) fn kind(&self) -> Kind {
        match self.kind_name() {
            "model" => Kind::Weights,
            "template" => Kind::Text(Text::Template),
            "system" => Kind::Text(Text::System),
            "params" => Kind::Text(Text::Params),
            "license" => Kind::Text(Text::License),
            _ => Kind::Other,
        }
    }

    fn kind_name(&self) -> &str {
        self.media_type.strip_prefix(KIND).unwrap_or(&self.media_type)
    }
}

impl OllamaModel {
    /// Takes what is in a layer, or says what is wrong with it.
    pub(crate) fn take(&mut self, kind: Text, text: String) -> Result<(), String> {
        match kind {
            Text::Template => self.template = Some(text),
            Text::System => self.system = Some(text),
            Text::License => self.licenses.push(text),
            Text::Params => {
                self.params = serde_json::from_str(&text).map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    /// Notes that a layer is not used.
    pub(crate) fn leave(&mut self, layer: &Layer) {
        self.left_out.push(layer.kind_name().chars().take(KIND_CHARS_MAX).collect());
    }
}
