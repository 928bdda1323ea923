//! What an NVIDIA card says of itself, through the driver's management library (NVML).
//!
//! [`Library::open`] loads the library, [`Library::card`] finds a card by its PCI address: its numbers here
//! and in CUDA need not be the same. [`Card::reading`] asks for all that it says, [`Card::heat`] for what
//! changes quickly and costs little; [`Card::listen`] hears of its errors; [`Card::park`] lowers its clocks
//! while there is nothing to do. Old cards and old drivers say less, so everything but the address may be
//! absent.
#![forbid(unsafe_code)]

mod error;
mod events;
mod park;
mod reading;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use nvml_wrapper::{Device, Nvml};

pub use error::NvmlError;
pub use events::{CardEvent, Listening, Xid};
pub use m40_control::{CardReading as Reading, PciAddress, ThrottleReason};
pub use park::Parked;
pub use reading::Heat;

/// The variable that names the library to load instead of the driver's, by its path.
pub const PATH_VARIABLE: &str = "M40_NVML";

/// The driver's own.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// The loaded library. A cheap handle.
#[derive(Clone)]
pub struct Library(Arc<Nvml>);

impl Library {
    /// Loads the library, at `path` where there is one, and has it look for the driver.
    ///
    /// # Errors
    /// [`NvmlError::NoLibrary`] on machines without NVIDIA's driver, [`NvmlError::NoDriver`] where it is
    /// installed and does not run, or does not let this process near.
    pub fn open(path: Option<&Path>) -> Result<Self, NvmlError> {
        let path = path.unwrap_or_else(|| Path::new(LIBRARY));
        let nvml = Nvml::builder().lib_path(path.as_os_str()).init();
        let nvml = nvml.map_err(|error| NvmlError::of_start(path, &error))?;
        Ok(Self(Arc::new(nvml)))
    }

    /// The version of the driver, as in `535.183.01`.
    pub fn driver(&self) -> Option<String> {
        self.0.sys_driver_version().ok()
    }

    /// All cards that this process may look at.
    ///
    /// # Errors
    /// When the driver does not say how many there are.
    pub fn cards(&self) -> Result<Vec<Card>, NvmlError> {
        let count = self.0.device_count().map_err(|error| NvmlError::refused("count", &error))?;
        let address = |index| {
            let place = self.0.device_by_index(index).ok()?.pci_info().ok()?;
            let (bus, device) = (place.bus.try_into().ok()?, place.device.try_into().ok()?);
            Some(PciAddress { domain: place.domain, bus, device })
        };
        let card = |address| Card { library: self.clone(), address };
        Ok((0..count).filter_map(address).map(card).collect())
    }

    /// The card there.
    ///
    /// # Errors
    /// When there is none, or this process may not look at it.
    pub fn card(&self, address: PciAddress) -> Result<Card, NvmlError> {
        let card = Card { library: self.clone(), address };
        card.device()?;
        Ok(card)
    }
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Library").finish_non_exhaustive()
    }
}

/// One card. A cheap handle.
#[derive(Clone, Debug)]
pub struct Card {
    library: Library,
    address: PciAddress,
}

impl Card {
    /// Where it is.
    pub fn address(&self) -> PciAddress {
        self.address
    }

    fn device(&self) -> Result<Device<'_>, NvmlError> {
        let found = self.library.0.device_by_pci_bus_id(self.address.to_string());
        found.map_err(|error| NvmlError::of_card(self.address, &error))
    }
}
