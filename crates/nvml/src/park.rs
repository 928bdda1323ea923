//! The clocks of a card that has nothing to do.
//!
//! A card that has a context, and thus memory in use, may stay at its highest clocks for as long as it has.
//! The clocks of applications bound them. Root may set them, others after `nvidia-smi -acp UNRESTRICTED`.

use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::device::Clock;
use nvml_wrapper::error::NvmlError as Source;

use crate::{Card, NvmlError};

/// What is asked of the card here.
const SET: &str = "have its application clocks set";

/// Most clocks of a list that are looked at; cards have about a hundred.
const LISTED_MAX: usize = 1024;

impl Card {
    /// Has applications' clocks as low as they go, so that the card draws the least that it can with memory
    /// in use.
    ///
    /// # Errors
    /// [`NvmlError::NotPermitted`] for users other than root, unless root has said otherwise;
    /// [`NvmlError::Refused`] where the card has one set of clocks alone.
    pub fn park(&self) -> Result<(), NvmlError> {
        let mut device = self.device()?;
        let (memory, graphics) =
            lowest(&device).map_err(|error| NvmlError::refused(SET, &error))?;
        let set = device.set_applications_clocks(memory, graphics);
        set.map_err(|error| NvmlError::refused(SET, &error))
    }

    /// Whether applications' clocks are as low as they go, by whomever, and would be higher by default.
    pub fn is_parked(&self) -> bool {
        let Ok(device) = self.device() else { return false };
        let set = |which| device.applications_clock(which).ok();
        let usual = |which| device.default_applications_clock(which).ok();
        let now = (set(Clock::Memory), set(Clock::Graphics));
        let lowest = lowest(&device).ok().map(|(memory, graphics)| (Some(memory), Some(graphics)));
        Some(now) == lowest && now != (usual(Clock::Memory), usual(Clock::Graphics))
    }

    /// Has applications' clocks as they are by default.
    ///
    /// # Errors
    /// As [`Self::park`].
    pub fn unpark(&self) -> Result<(), NvmlError> {
        let reset = self.device()?.reset_applications_clocks();
        reset.map_err(|error| NvmlError::refused(SET, &error))
    }
}

/// The lowest clock of the memory, and of the rest beside it, MHz.
fn lowest(device: &Device<'_>) -> Result<(u32, u32), Source> {
    let least = |clocks: Vec<u32>| clocks.into_iter().take(LISTED_MAX).min().ok_or(Source::NoData);
    let memory = least(device.supported_memory_clocks()?)?;
    Ok((memory, least(device.supported_graphics_clocks(memory)?)?))
}
