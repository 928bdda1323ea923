//! Where a model's file comes from, as one line of text, and the hash that it has.
//!
//! ```text
//! https://host/path/file.gguf           a file on the web (http too)
//! hf:org/repo/file.gguf[@revision]      a file of a Hugging Face repository
//! hf:org/repo:QUANT[@revision]          the file there that has this quantization
//! ollama:[[host/]namespace/]name[:tag]  a model of an Ollama registry
//! /path/file.gguf                       a file of this machine
//! zip+ARCHIVE!/member                   a member of a zip or wheel; ARCHIVE is any of those above
//!                                       that name one file
//! SOURCE + SOURCE …                     parts of one file, in their order
//! ```
//!
//! Text and value are one to one: what `Display` writes, `FromStr` reads back as an equal value.
//! In TOML or JSON a source is such a text, or a list of them for parts.
#![forbid(unsafe_code)]

mod error;
mod hugging_face;
mod ollama;
mod sha256;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::de::{self, SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use url::Url;

pub use error::SourceError;
pub use hugging_face::{HuggingFace, Pick};
pub use ollama::OllamaName;
pub use sha256::{Sha256, Sha256Error};

/// Longest text of one source, in bytes.
const LENGTH_MAX: usize = 4096;
/// Most parts of one file.
const PARTS_MAX: usize = 256;
/// Between parts in text.
const PLUS: &str = " + ";
/// What a source may begin with.
const BEGINNINGS: [&str; 6] = ["https://", "http://", "hf:", "ollama:", "zip+", "/"];

/// Where a model's file comes from. The module's documentation has the text forms.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// A file on the web.
    Web(WebUrl),
    /// A file of a Hugging Face repository.
    HuggingFace(HuggingFace),
    /// A model of an Ollama registry.
    Ollama(OllamaName),
    /// A file of this machine.
    File(FilePath),
    /// A member of a zip archive, which a wheel is too.
    Member(Member),
    /// One file in several pieces.
    Parts(Parts),
}

/// An HTTP or HTTPS address without a user, a password or a fragment.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WebUrl(Url);

/// An absolute path of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FilePath(PathBuf);

/// A file inside an archive.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Member {
    archive: Box<Source>,
    name: String,
}

/// At least two sources, none of which is a list of parts itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Parts(Vec<Source>);

impl Source {
    /// One file out of the pieces that these texts name; of a single one, that source itself.
    pub fn from_parts<T: AsRef<str>>(
        texts: impl IntoIterator<Item = T>,
    ) -> Result<Self, SourceError> {
        let mut sources = Vec::new();
        for text in texts {
            if sources.len() == PARTS_MAX {
                return Err(SourceError::TooManyParts { limit: PARTS_MAX });
            }
            sources.push(one(text.as_ref())?);
        }
        match sources.len() {
            0 => Err(SourceError::Empty),
            1 => Ok(sources.swap_remove(0)),
            _ => Ok(Self::Parts(Parts(sources))),
        }
    }

    /// The text for logs: without the queries of URLs, which may hold keys.
    pub fn shown(&self) -> String {
        match self {
            Self::Web(url) => {
                let mut url = url.0.clone();
                url.set_query(None);
                url.into()
            }
            Self::Member(member) => format!("zip+{}!/{}", member.archive.shown(), member.name),
            Self::Parts(parts) => parts.0.iter().map(Self::shown).collect::<Vec<_>>().join(PLUS),
            Self::HuggingFace(_) | Self::Ollama(_) | Self::File(_) => self.to_string(),
        }
    }

    /// The name of the file itself, without folders, where the source says it.
    pub fn file_name(&self) -> Option<&str> {
        match self {
            Self::Web(url) => url.file_name(),
            Self::HuggingFace(found) => match found.pick() {
                Pick::File(path) => path.rsplit('/').next(),
                Pick::Quantization(_) => None,
            },
            Self::File(path) => path.path().file_name().and_then(|name| name.to_str()),
            Self::Member(member) => member.name().rsplit('/').next(),
            Self::Ollama(_) | Self::Parts(_) => None,
        }
    }
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        Self::from_parts(split_parts(text))
    }
}

/// Splits where a plus has a source after it: a file's name may hold a plus as well.
fn split_parts(text: &str) -> impl Iterator<Item = &str> {
    let starts_source = |rest: &str| BEGINNINGS.iter().any(|begin| rest.starts_with(begin));
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let whole = rest.take()?;
        let end = whole
            .match_indices(PLUS)
            .map(|(at, _)| at)
            .find(|at| starts_source(&whole[at + PLUS.len()..]));
        let Some(end) = end else { return Some(whole) };
        rest = Some(&whole[end + PLUS.len()..]);
        Some(&whole[..end])
    })
}

fn one(text: &str) -> Result<Source, SourceError> {
    if text.is_empty() {
        return Err(SourceError::Empty);
    }
    if text.len() > LENGTH_MAX {
        return Err(SourceError::TooLong { limit: LENGTH_MAX });
    }
    if text.chars().any(char::is_control) {
        return Err(SourceError::ControlCharacter { text: text.escape_debug().to_string() });
    }
    if split_parts(text).nth(1).is_some() {
        return Err(SourceError::PlusInside { text: text.to_owned() });
    }
    if text.starts_with("https://") || text.starts_with("http://") {
        WebUrl::parse(text).map(Source::Web)
    } else if let Some(rest) = text.strip_prefix("hf:") {
        HuggingFace::parse(rest).map(Source::HuggingFace)
    } else if let Some(rest) = text.strip_prefix("ollama:") {
        OllamaName::parse(rest).map(Source::Ollama)
    } else if let Some(rest) = text.strip_prefix("zip+") {
        Member::parse(rest).map(Source::Member)
    } else if text.starts_with('/') {
        FilePath::parse(text).map(Source::File)
    } else {
        Err(SourceError::Unknown { text: text.to_owned() })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Web(url) => f.write_str(url.0.as_str()),
            Self::HuggingFace(found) => write!(f, "hf:{found}"),
            Self::Ollama(name) => write!(f, "ollama:{name}"),
            Self::File(path) => write!(f, "{}", path.0.display()),
            Self::Member(member) => write!(f, "zip+{}!/{}", member.archive, member.name),
            Self::Parts(parts) => {
                for (index, part) in parts.0.iter().enumerate() {
                    let between = if index == 0 { "" } else { PLUS };
                    write!(f, "{between}{part}")?;
                }
                Ok(())
            }
        }
    }
}

impl WebUrl {
    fn parse(text: &str) -> Result<Self, SourceError> {
        let url = Url::parse(text)
            .map_err(|source| SourceError::Url { text: text.to_owned(), source })?;
        if !url.username().is_empty() || url.password().is_some() {
            // The text is left out: it has a password in it.
            return Err(SourceError::Credentials { host: host_of(&url) });
        }
        if url.fragment().is_some() {
            return Err(SourceError::Fragment { text: text.to_owned() });
        }
        Ok(Self(url))
    }

    /// The address.
    pub fn url(&self) -> &Url {
        &self.0
    }

    fn file_name(&self) -> Option<&str> {
        self.0.path_segments()?.next_back().filter(|name| !name.is_empty())
    }
}

fn host_of(url: &Url) -> String {
    url.host_str().unwrap_or_default().to_owned()
}

impl FilePath {
    fn parse(text: &str) -> Result<Self, SourceError> {
        if text.ends_with('/') {
            return Err(SourceError::Folder { text: text.to_owned() });
        }
        Ok(Self(PathBuf::from(text)))
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Member {
    fn parse(text: &str) -> Result<Self, SourceError> {
        let bad = |reason| SourceError::Member { text: format!("zip+{text}"), reason };
        let Some((archive, name)) = text.rsplit_once("!/") else {
            return Err(bad("it has no !/ between the archive and the member"));
        };
        let archive = one(archive)?;
        let is_file = match &archive {
            Source::Web(_) | Source::File(_) => true,
            Source::HuggingFace(found) => matches!(found.pick(), Pick::File(_)),
            Source::Ollama(_) | Source::Member(_) | Source::Parts(_) => false,
        };
        if !is_file {
            return Err(bad("the archive must be one file: a path, a URL or hf:org/repo/file"));
        }
        if !is_relative_path(name) {
            return Err(bad("the member must be a relative path without . or .. in it"));
        }
        Ok(Self { archive: Box::new(archive), name: name.to_owned() })
    }

    /// The archive, which is one file.
    pub fn archive(&self) -> &Source {
        &self.archive
    }

    /// The member's path in it.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Parts {
    /// The pieces in their order.
    pub fn as_slice(&self) -> &[Source] {
        &self.0
    }
}

/// Whether all of a path's folders have names that lead nowhere else.
pub(crate) fn is_relative_path(path: &str) -> bool {
    path.split('/').all(|part| !matches!(part, "" | "." | "..") && !part.contains(['\\', '\0']))
}

/// Whether a text is one name of the characters that registries allow in theirs.
pub(crate) fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !text.is_empty() && text.len() <= 96 && text.chars().all(allowed) && !text.starts_with('.')
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self::Parts(parts) = self else { return serializer.collect_str(self) };
        let mut texts = serializer.serialize_seq(Some(parts.0.len()))?;
        for part in &parts.0 {
            texts.serialize_element(&part.to_string())?;
        }
        texts.end()
    }
}

impl<'de> Deserialize<'de> for Source {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOrList)
    }
}

struct TextOrList;

impl<'de> Visitor<'de> for TextOrList {
    type Value = Source;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a source, or a list of the sources of its parts")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Source, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Source, A::Error> {
        let mut texts = Vec::new();
        while let Some(text) = list.next_element::<String>()? {
            if texts.len() == PARTS_MAX {
                return Err(de::Error::custom(SourceError::TooManyParts { limit: PARTS_MAX }));
            }
            texts.push(text);
        }
        Source::from_parts(texts).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests;
