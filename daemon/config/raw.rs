//! The configuration file as written, with the place of every mistake; and as it could be written.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use m40_manifest::mistake::Mistake;
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};

use super::care::Watched;
use super::http::RawHttp;
use super::store::RawStore;
use super::{Decode, Device, KvType};
use crate::logging::Filter;

/// Parses a configuration file.
pub(super) fn parse(text: &str) -> Result<RawConfig, Mistake> {
    toml::from_str(text).map_err(|error| Mistake::of(text, &error))
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawConfig {
    pub http: RawHttp,
    pub control: RawControl,
    pub engine: RawEngine,
    pub gpu: RawGpu,
    pub models: RawModels,
    pub store: RawStore,
    pub paths: RawPaths,
    pub limits: RawLimits,
    pub log: RawLog,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawControl {
    pub socket: Option<PathBuf>,
    pub group: Option<String>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawEngine {
    pub device: Device,
    pub threads: Bounded<0, 1024>,
}

impl Default for RawEngine {
    fn default() -> Self {
        Self { device: Device::Cpu, threads: Bounded(0) }
    }
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawGpu {
    pub vram_mib_max: Bounded<0, 65_536>,
    pub decode: Decode,
    pub care: Watched,
    pub temperature_c_max: Bounded<0, 120>,
    pub park_after_s: Bounded<0, 86_400>,
}

impl Default for RawGpu {
    fn default() -> Self {
        Self {
            vram_mib_max: Bounded(0),
            decode: Decode::Persistent,
            care: Watched::Auto,
            temperature_c_max: Bounded(0),
            park_after_s: Bounded(300),
        }
    }
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawModels {
    pub context_tokens_max: Bounded<0, 16_777_216>,
    pub kv_type: KvType,
    pub memory_mib_max: Bounded<0, 67_108_864>,
    pub patience_ms: Bounded<0, 3_600_000>,
    pub resident_ms_min: Bounded<0, 3_600_000>,
}

impl Default for RawModels {
    fn default() -> Self {
        Self {
            context_tokens_max: Bounded(0),
            kv_type: KvType::F16,
            memory_mib_max: Bounded(0),
            patience_ms: Bounded(5000),
            resident_ms_min: Bounded(2000),
        }
    }
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawPaths {
    pub state_dir: Option<PathBuf>,
    pub runtime_dir: Option<PathBuf>,
    pub manifests_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLimits {
    pub queued_jobs_max: Bounded<1, 65_536>,
    pub shutdown_grace_s: Bounded<0, 3600>,
}

impl Default for RawLimits {
    fn default() -> Self {
        Self { queued_jobs_max: Bounded(256), shutdown_grace_s: Bounded(30) }
    }
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLog {
    pub level: Filter,
}

/// A number from `MIN` to `MAX`, checked while parsing so that the error has the value's place.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Bounded<const MIN: u32, const MAX: u32>(pub(super) u32);

impl<const MIN: u32, const MAX: u32> Bounded<MIN, MAX> {
    pub(super) fn get(self) -> u64 {
        u64::from(self.0)
    }

    pub(super) fn to_u32(self) -> u32 {
        self.0
    }

    pub(super) fn to_usize(self) -> usize {
        // usize is at least 32 bits wide wherever this runs.
        self.0 as usize
    }
}

impl<'de, const MIN: u32, const MAX: u32> Deserialize<'de> for Bounded<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number<const MIN: u32, const MAX: u32>;
        impl<const MIN: u32, const MAX: u32> Visitor<'_> for Number<MIN, MAX> {
            type Value = Bounded<MIN, MAX>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a whole number from {MIN} to {MAX}")
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Self::Value, E> {
                u32::try_from(value)
                    .ok()
                    .filter(|value| (MIN..=MAX).contains(value))
                    .map(Bounded)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Signed(value), &self))
            }
        }
        deserializer.deserialize_i64(Number)
    }
}

/// `ADDRESS:PORT`; an IPv6 address in brackets; port 0 lets the system choose.
#[derive(Debug, Clone, Serialize)]
pub(super) struct ListenAddress(pub SocketAddr);

impl<'de> Deserialize<'de> for ListenAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(|_| {
            de::Error::custom(format!(
                "{text:?} is not an address with a port, such as \"127.0.0.1:11434\" or \"[::1]:11434\""
            ))
        })
    }
}

/// Every key below a section.
#[cfg(test)]
pub(super) fn all_keys() -> Vec<String> {
    // serde lists the keys that a section knows when it meets one that it does not.
    let sections = known("nonsense = 1");
    assert!(!sections.is_empty());
    sections.iter().flat_map(|section| known(&format!("[{section}]\nnonsense = 1"))).collect()
}

#[cfg(test)]
fn known(text: &str) -> Vec<String> {
    let error = toml::from_str::<RawConfig>(text).unwrap_err();
    error.message().split('`').skip(3).step_by(2).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, line: usize, column: usize, says: &[&str]) {
        let error = parse(text).unwrap_err();
        let at = error.place.as_ref().map(|place| (place.line, place.column));
        assert_eq!(at, Some((line, column)), "{error:?}");
        for part in says {
            assert!(error.message.contains(part), "{error:?} lacks {part:?}");
        }
        assert!(!error.message.contains('\n'), "{error:?}");
    }

    #[test]
    fn every_mistake_has_its_place() {
        check("[htp]\n", 1, 2, &["unknown key `htp`", "did you mean `http`?"]);
        check("[http]\n\nzzzzzzzz = 1\n", 3, 1, &["unknown key `zzzzzzzz`: known here are listen"]);
        check("[log]\nlevel = \"loud\"\n", 2, 9, &["\"loud\"", "debug"]);
        check("[http]\nlisten = \"localhost\"\n", 2, 10, &["127.0.0.1:11434"]);
        check("[http]\nconnections_max = 0\n", 2, 19, &["from 1 to 65536"]);
        check("[limits]\nshutdown_grace_s = -1\n", 2, 20, &["from 0 to 3600"]);
        check("[engine]\ndevice = \"tpu\"\n", 2, 10, &["tpu", "cuda"]);
        check("[engine]\nthreads = \"é\"; x\n", 2, 14, &[]);
    }
}
