//! A manifest as written: its keys and the kinds of their values. What the values mean, and which
//! are legal, is [`crate::check`]'s business.

use serde::Deserialize;

use crate::definition::{Capability, KvType, Sampling};

/// A file of several models.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawFile {
    pub model: Vec<RawModel>,
}

/// One model: a file of its own, or a `[[model]]` of a file of several.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawModel {
    pub name: Option<String>,
    #[serde(default)]
    pub aliases: Vec<String>,
    pub source: OneOrMany,
    pub sha256: Option<String>,
    pub size_bytes: Option<i64>,
    #[serde(default)]
    pub mirrors: Vec<String>,
    pub context_tokens: Option<i64>,
    pub sequences_max: Option<i64>,
    pub kv_type: Option<KvType>,
    pub priority: Option<i64>,
    #[serde(default)]
    pub pin: bool,
    #[serde(default)]
    pub preload: bool,
    pub idle_unload_after: Option<String>,
    pub template: Option<RawText>,
    pub tokenizer: Option<RawFileName>,
    pub system: Option<RawText>,
    #[serde(default)]
    pub sampling: Sampling,
    #[serde(default)]
    pub stop: Vec<String>,
    pub capabilities: Option<Vec<Capability>>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a source, or a list of the sources of its parts")]
pub(crate) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a text, or { file = \"PATH\" }")]
pub(crate) enum RawText {
    Inline(String),
    File(RawFileName),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawFileName {
    pub file: String,
}
