//! `[gpu]`, as far as it says how the card is looked after.

use std::path::PathBuf;
use std::time::Duration;

use m40_control::PciAddress;
use m40_control::paths::Env;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// How the card is looked after.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Care {
    pub card: Watched,
    /// Temperature from which on new work waits, degrees Celsius; `None` means what fits the card.
    pub limit_c: Option<u32>,
    /// After how much time without work its clocks are lowered; `None` means never.
    pub park_after: Option<Duration>,
    /// What to load instead of the driver's library.
    pub library: Option<PathBuf>,
}

impl Care {
    /// With what the environment says.
    pub(crate) fn with(self, env: &Env) -> Self {
        Self { library: env.var(m40_nvml::PATH_VARIABLE).map(PathBuf::from), ..self }
    }
}

/// Which card is looked after.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Watched {
    /// The one that models run on, if they run on one.
    #[default]
    Auto,
    Off,
    /// This one, whatever models run on.
    At(PciAddress),
}

impl<'de> Deserialize<'de> for Watched {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.as_str() {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            address => address.parse().map(Self::At).map_err(|error| {
                de::Error::custom(format!("neither \"auto\" nor \"off\", and {error}"))
            }),
        }
    }
}

impl Serialize for Watched {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Off => serializer.serialize_str("off"),
            Self::At(address) => serializer.collect_str(address),
        }
    }
}
