//! Names of files at Hugging Face: `org/repo/file[@revision]` and `org/repo:QUANT[@revision]`.

use std::fmt;

use super::{SourceError, is_name, is_relative_path};

/// A file of a repository at Hugging Face.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HuggingFace {
    org: String,
    repo: String,
    pick: Pick,
    revision: Option<String>,
}

/// Which file of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Pick {
    /// The one at this path.
    File(String),
    /// The GGUF file whose name has this quantization in it, like `Q4_K_M`.
    Quantization(String),
}

impl HuggingFace {
    pub(super) fn parse(text: &str) -> Result<Self, SourceError> {
        let bad = |reason| SourceError::HuggingFace { text: format!("hf:{text}"), reason };
        let (path, revision) = match text.rsplit_once('@') {
            Some((path, revision)) => (path, Some(revision)),
            None => (text, None),
        };
        let Some((org, rest)) = path.split_once('/') else { return Err(bad("it has no /")) };
        let Some(end) = rest.find(['/', ':']) else {
            return Err(bad("it does not say which file of the repository"));
        };
        let (repo, picked) = (&rest[..end], &rest[end + 1..]);
        if !is_name(org) || !is_name(repo) {
            return Err(bad("organisation and repository are letters, digits and . _ -"));
        }
        let pick = if rest[end..].starts_with('/') {
            if !is_relative_path(picked) {
                return Err(bad("the file must be a path without empty parts, . or .."));
            }
            Pick::File(picked.to_owned())
        } else {
            if !is_name(picked) {
                return Err(bad("a quantization is letters, digits and . _ -"));
            }
            Pick::Quantization(picked.to_owned())
        };
        let is_revision = |revision: &str| revision.split('/').all(is_name);
        if revision.is_some_and(|revision| !is_revision(revision)) {
            return Err(bad("the revision after @ must be a branch, a tag or a commit"));
        }
        let revision = revision.map(str::to_owned);
        Ok(Self { org: org.to_owned(), repo: repo.to_owned(), pick, revision })
    }

    /// The repository, as `org/repo`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.org, self.repo)
    }

    /// Which file of it.
    pub fn pick(&self) -> &Pick {
        &self.pick
    }

    /// The branch, tag or commit.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

impl fmt::Display for HuggingFace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.org, self.repo)?;
        match &self.pick {
            Pick::File(path) => write!(f, "/{path}")?,
            Pick::Quantization(name) => write!(f, ":{name}")?,
        }
        match &self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}
