//! What NVIDIA's management library says of the card that CUDA computes on.

use m40_nvml::{Library, NvmlError};

use super::{gpu, say};

#[test]
fn the_card_that_computes_is_found_by_its_address_and_says_how_it_is() {
    let Some(gpu) = gpu() else { return };
    let info = gpu.device.info();
    let library = match Library::open(None) {
        Ok(library) => library,
        Err(error @ NvmlError::NoLibrary { .. }) => {
            return say(&format!("the card is not looked at: {error}"));
        }
        Err(error) => panic!("{error}"),
    };
    let card = library.card(info.pci.parse().unwrap()).unwrap_or_else(|error| panic!("{error}"));
    let reading = card.reading().unwrap();
    say(&format!("{reading:?}"));
    assert_eq!(reading.name.as_ref(), Some(&info.name));
    let degrees = reading.temperature_c.unwrap();
    assert!((10..110).contains(&degrees) && Some(degrees) < reading.shutdown_c, "{reading:?}");
    assert!(reading.driver.is_some() && reading.throttle.is_some(), "{reading:?}");
    assert_eq!(reading.ecc, Some(info.ecc));
    let heat = card.heat().unwrap();
    assert_eq!(heat.slowdown_c, reading.slowdown_c);
}
