//! What a graphics card says of itself, and what m40d makes of it.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a card is on the PCI bus. As text it is as `lspci -D` has it: `0000:03:00.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PciAddress {
    /// Of the bus, 0 on nearly every machine.
    pub domain: u32,
    /// Of the slot.
    pub bus: u8,
    /// On the bus.
    pub device: u8,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.0", self.domain, self.bus, self.device)
    }
}

/// Why a text is no [`PciAddress`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the PCI address of a card, such as \"0000:03:00.0\" (`lspci -D` lists them)")]
pub struct NotAnAddress(pub String);

impl FromStr for PciAddress {
    type Err = NotAnAddress;

    /// Also takes a domain of eight digits, as NVIDIA's tools write it, and none.
    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        let wrong = || NotAnAddress(text.chars().take(64).collect());
        let number = |digits: &str, most: usize| {
            let legal = (1..=most).contains(&digits.len())
                && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            legal.then(|| u32::from_str_radix(digits, 16).ok()).flatten().ok_or_else(wrong)
        };
        let byte = |digits| number(digits, 2).map(|number| number as u8);
        let place = text.strip_suffix(".0").unwrap_or(text);
        let (place, device) = place.rsplit_once(':').ok_or_else(wrong)?;
        let (domain, bus) = place.rsplit_once(':').unwrap_or(("0", place));
        Ok(Self { domain: number(domain, 8)?, bus: byte(bus)?, device: byte(device)? })
    }
}

impl TryFrom<String> for PciAddress {
    type Error = NotAnAddress;

    fn try_from(text: String) -> Result<Self, NotAnAddress> {
        text.parse()
    }
}

impl From<PciAddress> for String {
    fn from(address: PciAddress) -> Self {
        address.to_string()
    }
}

/// Why a card's clocks are lower than they could be, in NVIDIA's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ThrottleReason {
    /// Nothing runs.
    GpuIdle,
    /// Somebody set the clocks of applications.
    ApplicationsClocksSetting,
    /// It draws as much power as it may.
    SwPowerCap,
    /// Its hardware halves the clocks or more: it is too hot, draws too much, or its power supply says so.
    HwSlowdown,
    /// It goes as fast as the others of its group.
    SyncBoost,
    /// The driver lowers the clocks as it is too hot.
    SwThermalSlowdown,
    /// Its hardware does.
    HwThermalSlowdown,
    /// Its power supply says so.
    HwPowerBrakeSlowdown,
    /// The clocks of a display.
    DisplayClockSetting,
    /// What this version has no word for.
    #[serde(other)]
    Other,
}

impl ThrottleReason {
    /// All that have a name.
    pub const ALL: [Self; 9] = [
        Self::GpuIdle,
        Self::ApplicationsClocksSetting,
        Self::SwPowerCap,
        Self::HwSlowdown,
        Self::SyncBoost,
        Self::SwThermalSlowdown,
        Self::HwThermalSlowdown,
        Self::HwPowerBrakeSlowdown,
        Self::DisplayClockSetting,
    ];

    /// The word for it; the same as on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::GpuIdle => "gpu_idle",
            Self::ApplicationsClocksSetting => "applications_clocks_setting",
            Self::SwPowerCap => "sw_power_cap",
            Self::HwSlowdown => "hw_slowdown",
            Self::SyncBoost => "sync_boost",
            Self::SwThermalSlowdown => "sw_thermal_slowdown",
            Self::HwThermalSlowdown => "hw_thermal_slowdown",
            Self::HwPowerBrakeSlowdown => "hw_power_brake_slowdown",
            Self::DisplayClockSetting => "display_clock_setting",
            Self::Other => "other",
        }
    }

    /// Whether the card says with it that it is too hot.
    pub const fn is_heat(self) -> bool {
        matches!(self, Self::SwThermalSlowdown | Self::HwThermalSlowdown)
    }
}

/// What a card says of itself at one moment; what it does not say is absent, as cards differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardReading {
    /// Where it is.
    pub address: PciAddress,
    /// As in `Tesla M40 24GB`.
    pub name: Option<String>,
    /// Its own number, as in `GPU-7bb7cd1c-…`.
    pub uuid: Option<String>,
    /// The version of the driver, as in `535.183.01`.
    pub driver: Option<String>,
    /// Degrees Celsius.
    pub temperature_c: Option<u32>,
    /// From when on it slows itself down.
    pub slowdown_c: Option<u32>,
    /// From when on it is switched off.
    pub shutdown_c: Option<u32>,
    /// What it draws, milliwatts.
    pub power_mw: Option<u64>,
    /// What it may draw, milliwatts.
    pub power_limit_mw: Option<u64>,
    /// What it has drawn since the driver was loaded, millijoules.
    pub energy_mj: Option<u64>,
    /// Clock of the multiprocessors, MHz.
    pub sm_mhz: Option<u32>,
    /// The highest that there is.
    pub sm_mhz_max: Option<u32>,
    /// Clock of the memory, MHz.
    pub memory_mhz: Option<u32>,
    /// The highest that there is.
    pub memory_mhz_max: Option<u32>,
    /// Why the clocks are not higher.
    pub throttle: Option<BTreeSet<ThrottleReason>>,
    /// Whether errors of the memory are corrected.
    pub ecc: Option<bool>,
    /// Whether they are to be after the next start of the machine.
    pub ecc_pending: Option<bool>,
    /// Errors that were corrected, since the driver was loaded.
    pub ecc_corrected: Option<u64>,
    /// Those that could not be.
    pub ecc_uncorrected: Option<u64>,
    /// Errors that were corrected, in the life of the card.
    pub ecc_corrected_ever: Option<u64>,
    /// Those that could not be.
    pub ecc_uncorrected_ever: Option<u64>,
    /// Generation of PCI Express that the link has now; idle links go down.
    pub pcie_generation: Option<u32>,
    /// What card and slot can do.
    pub pcie_generation_max: Option<u32>,
    /// Lanes of the link.
    pub pcie_width: Option<u32>,
    /// What card and slot can do.
    pub pcie_width_max: Option<u32>,
    /// What the card sends, bytes per second.
    pub pcie_tx_bytes_per_s: Option<u64>,
    /// What it receives.
    pub pcie_rx_bytes_per_s: Option<u64>,
    /// Whether the driver keeps the card ready while nobody uses it.
    pub persistence: Option<bool>,
    /// From 0, the most, to 15.
    pub performance_state: Option<u8>,
    /// Its memory, bytes.
    pub memory_bytes: Option<u64>,
    /// What of it is in use, by whomever.
    pub memory_used_bytes: Option<u64>,
}

impl CardReading {
    /// Of a card that says nothing.
    pub const fn new(address: PciAddress) -> Self {
        Self {
            address,
            name: None,
            uuid: None,
            driver: None,
            temperature_c: None,
            slowdown_c: None,
            shutdown_c: None,
            power_mw: None,
            power_limit_mw: None,
            energy_mj: None,
            sm_mhz: None,
            sm_mhz_max: None,
            memory_mhz: None,
            memory_mhz_max: None,
            throttle: None,
            ecc: None,
            ecc_pending: None,
            ecc_corrected: None,
            ecc_uncorrected: None,
            ecc_corrected_ever: None,
            ecc_uncorrected_ever: None,
            pcie_generation: None,
            pcie_generation_max: None,
            pcie_width: None,
            pcie_width_max: None,
            pcie_tx_bytes_per_s: None,
            pcie_rx_bytes_per_s: None,
            persistence: None,
            performance_state: None,
            memory_bytes: None,
            memory_used_bytes: None,
        }
    }
}

/// What m40d does about a card.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CardCare {
    /// Share of the time in which passes may run; below 1 as the card is hot.
    pub duty: f64,
    /// Temperature from which on new requests and loads wait, degrees Celsius.
    pub limit_c: u32,
    /// Whether they do.
    pub holds: bool,
    /// How many of them wait for that.
    pub held: u64,
    /// Whether its clocks are low as it has nothing to do.
    pub parked: bool,
    /// How long passes have waited in all, milliseconds.
    pub paused_ms: u64,
    /// The last error that the driver has reported of it, by NVIDIA's number.
    #[serde(default)]
    pub xid: Option<u64>,
}

/// The card that m40d looks after.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CardStatus {
    /// What it says of itself.
    #[serde(flatten)]
    pub reading: CardReading,
    /// What m40d does about it.
    pub care: CardCare,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_tools_write_them_and_nothing_else_is() {
        let address = PciAddress { domain: 0, bus: 0x3b, device: 0 };
        for text in ["0000:3b:00.0", "00000000:3B:00.0", "3b:00.0", "0000:3b:00", "3b:0"] {
            assert_eq!(text.parse(), Ok(address), "{text}");
        }
        assert_eq!(address.to_string(), "0000:3b:00.0");
        assert_eq!(serde_json::to_string(&address).unwrap(), "\"0000:3b:00.0\"");
        for text in ["", "3b", ":", "0:1:2:3", "3b:00.1", "100:00.0", "+b:00", "000000000:3b:00.0"]
        {
            assert_eq!(text.parse::<PciAddress>(), Err(NotAnAddress(text.into())), "{text}");
        }
        let long = "x".repeat(1000).parse::<PciAddress>().unwrap_err();
        assert!(long.to_string().len() < 200);
    }

    #[test]
    fn reasons_have_one_name_and_those_of_later_versions_do_no_harm() {
        for reason in ThrottleReason::ALL {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.name());
        }
        let later: ThrottleReason = serde_json::from_str("\"quantum_slowdown\"").unwrap();
        assert_eq!(later, ThrottleReason::Other);
    }
}
