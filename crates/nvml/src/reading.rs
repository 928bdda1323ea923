//! What a card says at one moment.

use std::collections::BTreeSet;

use m40_control::{CardReading, ThrottleReason};
use nvml_wrapper::Device;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{
    Clock, EccCounter, MemoryError, PcieUtilCounter, TemperatureSensor, TemperatureThreshold,
};
use nvml_wrapper::error::NvmlError as Source;

use crate::{Card, NvmlError};

/// Longest name, version or number that is taken from the library, in characters.
const TEXT_MAX: usize = 96;

/// Highest temperature that is believed, in degrees Celsius.
const BELIEVED_C_MAX: u32 = 200;

/// How warm a card is, and whether it does something about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heat {
    /// Degrees Celsius.
    pub temperature_c: Option<u32>,
    /// From when on it slows itself down.
    pub slowdown_c: Option<u32>,
    /// Why its clocks are not higher.
    pub throttle: Option<BTreeSet<ThrottleReason>>,
}

impl Card {
    /// Asks for all that it says. Takes 40 ms where it counts what goes over the bus: the driver does so
    /// for 20 ms each way.
    ///
    /// # Errors
    /// When the card is not there any more.
    pub fn reading(&self) -> Result<CardReading, NvmlError> {
        let device = self.device()?;
        let ecc = device.is_ecc_enabled().ok();
        let memory = device.memory_info().ok();
        let clock = |which| device.clock_info(which).ok();
        let clock_max = |which| device.max_clock_info(which).ok();
        let errors = |kind, since| device.total_ecc_errors(kind, since).ok();
        // The library counts in KB.
        let rate = |way| Some(u64::from(device.pcie_throughput(way).ok()?) * 1000);
        Ok(CardReading {
            address: self.address(),
            name: text(device.name()),
            uuid: text(device.uuid()),
            driver: self.library.driver().map(|version| bounded(&version)),
            temperature_c: temperature(&device),
            slowdown_c: threshold(&device, TemperatureThreshold::Slowdown),
            shutdown_c: threshold(&device, TemperatureThreshold::Shutdown),
            power_mw: device.power_usage().ok().map(u64::from),
            power_limit_mw: device.enforced_power_limit().ok().map(u64::from),
            energy_mj: device.total_energy_consumption().ok(),
            sm_mhz: clock(Clock::SM),
            sm_mhz_max: clock_max(Clock::SM),
            memory_mhz: clock(Clock::Memory),
            memory_mhz_max: clock_max(Clock::Memory),
            throttle: throttle(&device),
            ecc: ecc.as_ref().map(|state| state.currently_enabled),
            ecc_pending: ecc.as_ref().map(|state| state.pending_enabled),
            ecc_corrected: errors(MemoryError::Corrected, EccCounter::Volatile),
            ecc_uncorrected: errors(MemoryError::Uncorrected, EccCounter::Volatile),
            ecc_corrected_ever: errors(MemoryError::Corrected, EccCounter::Aggregate),
            ecc_uncorrected_ever: errors(MemoryError::Uncorrected, EccCounter::Aggregate),
            pcie_generation: device.current_pcie_link_gen().ok(),
            pcie_generation_max: device.max_pcie_link_gen().ok(),
            pcie_width: device.current_pcie_link_width().ok(),
            pcie_width_max: device.max_pcie_link_width().ok(),
            pcie_tx_bytes_per_s: rate(PcieUtilCounter::Send),
            pcie_rx_bytes_per_s: rate(PcieUtilCounter::Receive),
            persistence: device.is_in_persistent_mode().ok(),
            // An enumeration of the numbers 0 to 15, and 32 for none.
            performance_state: device
                .performance_state()
                .ok()
                .map(|state| state.as_c())
                .and_then(|state| u8::try_from(state).ok().filter(|&state| state < 16)),
            memory_bytes: memory.as_ref().map(|memory| memory.total),
            memory_used_bytes: memory.as_ref().map(|memory| memory.used),
        })
    }

    /// Asks how warm it is.
    ///
    /// # Errors
    /// When the card is not there any more.
    pub fn heat(&self) -> Result<Heat, NvmlError> {
        let device = self.device()?;
        Ok(Heat {
            temperature_c: temperature(&device),
            slowdown_c: threshold(&device, TemperatureThreshold::Slowdown),
            throttle: throttle(&device),
        })
    }
}

fn temperature(device: &Device<'_>) -> Option<u32> {
    device.temperature(TemperatureSensor::Gpu).ok().filter(|&degrees| degrees <= BELIEVED_C_MAX)
}

fn threshold(device: &Device<'_>, which: TemperatureThreshold) -> Option<u32> {
    // Cards without one say 0.
    let believed = 1..=BELIEVED_C_MAX;
    device.temperature_threshold(which).ok().filter(|degrees| believed.contains(degrees))
}

fn throttle(device: &Device<'_>) -> Option<BTreeSet<ThrottleReason>> {
    let reasons = device.current_throttle_reasons().ok()?;
    Some(
        NAMED.into_iter().filter(|(bit, _)| reasons.contains(*bit)).map(|(_, name)| name).collect(),
    )
}

const NAMED: [(ThrottleReasons, ThrottleReason); 9] = [
    (ThrottleReasons::GPU_IDLE, ThrottleReason::GpuIdle),
    (ThrottleReasons::APPLICATIONS_CLOCKS_SETTING, ThrottleReason::ApplicationsClocksSetting),
    (ThrottleReasons::SW_POWER_CAP, ThrottleReason::SwPowerCap),
    (ThrottleReasons::HW_SLOWDOWN, ThrottleReason::HwSlowdown),
    (ThrottleReasons::SYNC_BOOST, ThrottleReason::SyncBoost),
    (ThrottleReasons::SW_THERMAL_SLOWDOWN, ThrottleReason::SwThermalSlowdown),
    (ThrottleReasons::HW_THERMAL_SLOWDOWN, ThrottleReason::HwThermalSlowdown),
    (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, ThrottleReason::HwPowerBrakeSlowdown),
    (ThrottleReasons::DISPLAY_CLOCK_SETTING, ThrottleReason::DisplayClockSetting),
];

fn text(said: Result<String, Source>) -> Option<String> {
    said.ok().map(|text| bounded(&text))
}

fn bounded(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(TEXT_MAX).collect()
}
