//! Tokens, which are sent where they belong and shown nowhere.

use std::fmt;
use std::io;
use std::path::Path;

use crate::blobs::read_capped;
use crate::error::{StoreError, failed};

/// Longest token.
const BYTES_MAX: u64 = 16 << 10;

/// A text that does not get into logs or messages.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// This text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text in a file, without white space around it. A systemd credential is a file too.
    pub fn from_file(path: &Path) -> Result<Self, StoreError> {
        let text = read_capped(path, BYTES_MAX).map_err(failed("read the token in", path))?;
        let token = text.trim();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            let source = io::Error::other("it is not one line of plain text");
            return Err(failed("use the token in", path)(source));
        }
        Ok(Self(token.to_owned()))
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_line_of_a_file_and_is_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "hf_abc\n").unwrap();
        let secret = Secret::from_file(&path).unwrap();
        assert_eq!(secret.reveal(), "hf_abc");
        assert_eq!(format!("{secret:?}"), "Secret");
        for bad in ["", "\n", "two\nlines", "é"] {
            std::fs::write(&path, bad).unwrap();
            let error = Secret::from_file(&path).unwrap_err().to_string();
            assert!(error.contains("token") && !error.contains("two"), "{error}");
        }
    }
}
