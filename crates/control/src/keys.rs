//! API keys of the HTTP listener: what a client has of one, and what the daemon keeps of it.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

/// What every key begins with, so that scanners of repositories and logs know one when they see it.
const PREFIX: &str = "sk-m40-";

/// Longest name of a key, in bytes.
pub const KEY_NAME_BYTES_MAX: usize = 64;

/// A key, as its client sends it. It shows itself only when it is asked for its text.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// A key of 256 bits, which must be random: then a plain hash of it is as good as it is.
    pub fn from_random(bits: [u8; 32]) -> Self {
        Self(format!("{PREFIX}{}", Hex(&bits)))
    }

    /// The text that a client sends.
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}…")
    }
}

/// The SHA-256 of a key.
#[derive(Debug, Clone, Copy)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// Of what a client sent.
    pub fn of(text: &str) -> Self {
        Self(Sha256::digest(text).into())
    }
}

impl ConstantTimeEq for KeyHash {
    fn ct_eq(&self, other: &Self) -> Choice {
        self.0.ct_eq(&other.0)
    }
}

/// 64 hexadecimal digits.
impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Hex(&self.0).fmt(f)
    }
}

/// A text that is not the SHA-256 of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the sha256 of a key has 64 hexadecimal digits, as `m40ctl key new NAME` prints them")]
pub struct NoKeyHash;

impl FromStr for KeyHash {
    type Err = NoKeyHash;
    fn from_str(text: &str) -> Result<Self, NoKeyHash> {
        let mut hash = [0; 32];
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(NoKeyHash);
        }
        for (at, byte) in hash.iter_mut().enumerate() {
            let digits = text.get(2 * at..2 * at + 2).ok_or(NoKeyHash)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| NoKeyHash)?;
        }
        Ok(Self(hash))
    }
}

impl<'de> Deserialize<'de> for KeyHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The text is not shown: it may be a key, put here by mistake.
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Why a text is not the name of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the name of a key has 1 to {KEY_NAME_BYTES_MAX} of a-z A-Z 0-9 _ -")]
pub struct BadKeyName;

/// Checks the name of a key, which is also a bare key of TOML.
///
/// # Errors
/// [`BadKeyName`] for anything but 1 to 64 of `a-z A-Z 0-9 _ -`.
pub fn check_key_name(name: &str) -> Result<(), BadKeyName> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    let fits = (1..=KEY_NAME_BYTES_MAX).contains(&name.len());
    if fits && name.bytes().all(legal) { Ok(()) } else { Err(BadKeyName) }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_survives_its_text_and_is_that_of_its_key_only() {
        let key = ApiKey::from_random([7; 32]);
        assert_eq!(key.text().len(), PREFIX.len() + 64);
        let hash: KeyHash = KeyHash::of(key.text()).to_string().parse().unwrap();
        assert!(bool::from(hash.ct_eq(&KeyHash::of(key.text()))));
        assert!(!bool::from(hash.ct_eq(&KeyHash::of("sk-m40-"))));
    }

    #[test]
    fn what_is_no_hash_is_refused_and_no_key_is_shown() {
        let plus = format!("+{}", "0".repeat(63));
        for bad in ["", "00", &"g".repeat(64), &"é".repeat(32), &plus] {
            assert_eq!(bad.parse::<KeyHash>().map(|_| ()), Err(NoKeyHash), "{bad}");
        }
        assert!(!format!("{:?}", ApiKey::from_random([7; 32])).contains("07"));
    }

    #[test]
    fn names_are_short_and_plain() {
        assert_eq!(check_key_name("laptop-of_A1"), Ok(()));
        for bad in ["", "a b", "a\n", "a.b", "é", &"x".repeat(65)] {
            assert_eq!(check_key_name(bad), Err(BadKeyName), "{bad}");
        }
    }
}
