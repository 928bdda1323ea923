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

/// Application clocks of a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Clocks {
    memory_mhz: u32,
    graphics_mhz: u32,
}

/// A card whose clocks are as low as they go, and how they were before.
#[derive(Debug)]
pub struct Parked {
    card: Card,
    /// None: as they are by default.
    before: Option<Clocks>,
}

impl Card {
    /// Has applications' clocks as low as they go, so that the card draws the least that it can with memory
    /// in use.
    ///
    /// # Errors
    /// [`NvmlError::NotPermitted`] for users other than root, unless root has said otherwise;
    /// [`NvmlError::Refused`] where the card has one set of clocks alone.
    pub fn park(&self) -> Result<Parked, NvmlError> {
        let refused = |error| NvmlError::refused(SET, &error);
        let mut device = self.device()?;
        let lowest = lowest(&device).map_err(refused)?;
        let usual = clocks(|which| device.default_applications_clock(which));
        // Who was ended while a card was parked has left the lowest.
        let own = |clocks: &Clocks| *clocks != lowest && Some(*clocks) != usual;
        let before = clocks(|which| device.applications_clock(which)).filter(own);
        set(&mut device, lowest).map_err(refused)?;
        Ok(Parked { card: self.clone(), before })
    }

    /// The card as somebody has left it who was ended while it was parked, if that is how it looks: with the
    /// lowest clocks, which are not those by default.
    pub fn found_parked(&self) -> Option<Parked> {
        let device = self.device().ok()?;
        let now = clocks(|which| device.applications_clock(which))?;
        let usual = clocks(|which| device.default_applications_clock(which))?;
        let left = now == lowest(&device).ok()? && now != usual;
        left.then(|| Parked { card: self.clone(), before: None })
    }
}

impl Parked {
    /// Has the clocks as they were before.
    ///
    /// # Errors
    /// As [`Card::park`].
    pub fn unpark(&self) -> Result<(), NvmlError> {
        let mut device = self.card.device()?;
        let done = match self.before {
            Some(clocks) => set(&mut device, clocks),
            None => device.reset_applications_clocks(),
        };
        done.map_err(|error| NvmlError::refused(SET, &error))
    }
}

fn set(device: &mut Device<'_>, clocks: Clocks) -> Result<(), Source> {
    device.set_applications_clocks(clocks.memory_mhz, clocks.graphics_mhz)
}

fn clocks(of: impl Fn(Clock) -> Result<u32, Source>) -> Option<Clocks> {
    let (memory_mhz, graphics_mhz) = (of(Clock::Memory).ok()?, of(Clock::Graphics).ok()?);
    Some(Clocks { memory_mhz, graphics_mhz })
}

/// The lowest clock of the memory, and of the rest beside it.
fn lowest(device: &Device<'_>) -> Result<Clocks, Source> {
    let least = |clocks: Vec<u32>| clocks.into_iter().take(LISTED_MAX).min().ok_or(Source::NoData);
    let memory_mhz = least(device.supported_memory_clocks()?)?;
    let graphics_mhz = least(device.supported_graphics_clocks(memory_mhz)?)?;
    Ok(Clocks { memory_mhz, graphics_mhz })
}
