//! Files with secrets in them, named by the configuration.

use std::path::{Path, PathBuf};

use m40_control::paths::Env;
use serde::de;
use serde::{Deserialize, Deserializer, Serialize};

use crate::exit::Failure;

/// A file with a secret in it: an absolute path, or the name of a credential of the systemd unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct SecretFile(PathBuf);

impl SecretFile {
    /// Where it is. `key` is what the configuration calls it.
    pub(crate) fn path(&self, key: &'static str, env: &Env) -> Result<PathBuf, Failure> {
        if self.0.is_absolute() {
            return Ok(self.0.clone());
        }
        match env.var("CREDENTIALS_DIRECTORY") {
            Some(dir) => Ok(Path::new(dir).join(&self.0)),
            None => Err(Failure::NoCredentials { key, name: self.0.display().to_string() }),
        }
    }
}

impl<'de> Deserialize<'de> for SecretFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let is_name = !text.is_empty() && !text.contains('/') && text != "." && text != "..";
        if is_name || text.starts_with('/') {
            return Ok(Self(text.into()));
        }
        // The text is left out: it may be a secret, put here by mistake.
        Err(de::Error::custom("name the absolute path of its file, or a credential of the unit"))
    }
}
