//! Names of models of an Ollama registry: `[[host/]namespace/]name[:tag]`.

use std::fmt;

use super::{SourceError, is_name};

/// A model of an Ollama registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OllamaName {
    host: Option<String>,
    namespace: Option<String>,
    name: String,
    tag: Option<String>,
}

impl OllamaName {
    pub(super) fn parse(text: &str) -> Result<Self, SourceError> {
        let bad = |reason| SourceError::Ollama { text: format!("ollama:{text}"), reason };
        let (folders, last) = match text.rsplit_once('/') {
            Some((folders, last)) => (Some(folders), last),
            None => (None, text),
        };
        let (name, tag) = match last.split_once(':') {
            Some((name, tag)) => (name, Some(tag)),
            None => (last, None),
        };
        let (host, namespace) = match folders.map(|folders| folders.rsplit_once('/')) {
            Some(Some((host, namespace))) => (Some(host), Some(namespace)),
            Some(None) => (None, folders),
            None => (None, None),
        };
        if host.is_some_and(|host| !is_host(host)) {
            return Err(bad("the first part of three must be a host, or host:port"));
        }
        if ![namespace, tag].into_iter().flatten().all(is_name) || !is_name(name) {
            return Err(bad("namespace, name and tag are letters, digits and . _ -"));
        }
        Ok(Self {
            host: host.map(str::to_owned),
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
            tag: tag.map(str::to_owned),
        })
    }

    /// The registry's host, and its port after a colon, if it is not the usual registry.
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// Who published the model.
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or("library")
    }

    /// The model's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which of its variants.
    pub fn tag(&self) -> &str {
        self.tag.as_deref().unwrap_or("latest")
    }
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    is_name(host) && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

impl fmt::Display for OllamaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for folder in [&self.host, &self.namespace].into_iter().flatten() {
            write!(f, "{folder}/")?;
        }
        f.write_str(&self.name)?;
        match &self.tag {
            Some(tag) => write!(f, ":{tag}"),
            None => Ok(()),
        }
    }
}
