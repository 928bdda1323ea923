//! The hash that names a file, as text.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::Digest;

/// What comes before the digits where a hash may be of several kinds.
const PREFIXES: [&str; 2] = ["sha256:", "sha256-"];

/// A SHA-256 hash; text is 64 hexadecimal digits, in lower case where it is written.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Sha256([u8; 32]);

/// Why a text is no [`Sha256`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be 64 hexadecimal digits, as `sha256sum FILE` prints them")]
pub struct Sha256Error;

impl Sha256 {
    /// The hash of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// Reads a hash as registries write it, with `sha256:` or `sha256-` before it or without.
    ///
    /// # Errors
    /// [`Sha256Error`] if the rest is not 64 hexadecimal digits.
    pub fn from_digest(text: &str) -> Result<Self, Sha256Error> {
        let digits = PREFIXES.iter().find_map(|prefix| text.strip_prefix(prefix));
        digits.unwrap_or(text).parse()
    }
}

impl From<[u8; 32]> for Sha256 {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl FromStr for Sha256 {
    type Err = Sha256Error;

    /// Reads 64 hexadecimal digits, and nothing else.
    fn from_str(text: &str) -> Result<Self, Sha256Error> {
        if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(Sha256Error);
        }
        let mut bytes = [0; 32];
        for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| Sha256Error)?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Sha256 {
    type Error = Sha256Error;

    fn try_from(text: String) -> Result<Self, Sha256Error> {
        text.parse()
    }
}

impl From<Sha256> for String {
    fn from(hash: Sha256) -> Self {
        hash.to_string()
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // FIPS 180-4's example for "abc".
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_hash_is_its_digits_and_registries_may_say_which_kind() {
        let hash = Sha256::of(b"abc");
        assert_eq!(ABC.parse(), Ok(hash));
        assert_eq!((hash.to_string(), ABC.to_uppercase().parse()), (ABC.to_owned(), Ok(hash)));
        for text in [ABC, &format!("sha256:{ABC}"), &format!("sha256-{ABC}")] {
            assert_eq!(Sha256::from_digest(text), Ok(hash));
        }
        assert_eq!(format!("sha256:{ABC}").parse::<Sha256>(), Err(Sha256Error));
        for text in ["", "abc", &ABC[1..], &format!("{}é", &ABC[2..]), "../../etc/passwd"] {
            assert_eq!(text.parse::<Sha256>(), Err(Sha256Error), "{text}");
            assert_eq!(Sha256::from_digest(text), Err(Sha256Error), "{text}");
        }
        let json = serde_json::to_string(&hash).unwrap();
        assert_eq!(serde_json::from_str::<Sha256>(&json).unwrap(), hash);
    }
}
