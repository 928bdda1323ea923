//! The crate as a whole on a library that stands in for NVIDIA's.

use std::path::Path;
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::Duration;

use m40_nvml::{Card, CardEvent, Library, NvmlError, PciAddress, ThrottleReason, Xid};
use m40_nvml_fake::{CARD_VARIABLE, Sheet, library};

/// How long an event may take before the test fails.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The library finds its card by a variable of the process, and a program has its variables from when it
/// is started: so the test starts itself again, with one.
#[test]
fn a_card_says_what_it_says_and_does_what_it_may() {
    let Some(path) = std::env::var_os(CARD_VARIABLE) else {
        let dir = tempfile::tempdir().unwrap();
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.env(CARD_VARIABLE, dir.path().join("card")).arg("--nocapture");
        assert!(again.status().unwrap().success());
        return;
    };
    without_a_library_or_a_driver();
    let mut sheet = Sheet::m40(Path::new(&path));
    let card = found_by_address();
    everything_is_read(&card, &mut sheet);
    clocks_are_lowered_and_reset(&card, &mut sheet);
    errors_are_heard(&card, &mut sheet);
}

fn without_a_library_or_a_driver() {
    let missing =
        Library::open(Some("/nowhere/libnvidia-ml.so.1".as_ref())).expect_err("it must be refused");
    assert!(matches!(missing, NvmlError::NoLibrary { .. }), "{missing}");
    assert!(missing.to_string().contains("/nowhere/"), "{missing}");
    let asleep = Library::open(Some(&library())).expect_err("it must be refused");
    assert!(matches!(asleep, NvmlError::NoDriver { .. }), "{asleep}");
}

fn found_by_address() -> Card {
    let nvml = Library::open(Some(&library())).expect("the stand-in has it");
    assert_eq!(nvml.driver().as_deref(), Some("535.183.01"));
    let address = PciAddress { domain: 0, bus: 3, device: 0 };
    let listed: Vec<_> =
        nvml.cards().expect("the stand-in has it").iter().map(Card::address).collect();
    assert_eq!(listed, [address]);
    let other = PciAddress { bus: 4, ..address };
    let none = nvml.card(other).expect_err("it must be refused");
    assert!(matches!(none, NvmlError::NoCard { address, .. } if address == other), "{none}");
    nvml.card(address).expect("the stand-in has it")
}

fn everything_is_read(card: &Card, sheet: &mut Sheet) {
    sheet.set("throttle", 0x44);
    sheet.set("ecc_corrected", 7);
    let reading = card.reading().expect("the stand-in has it");
    assert_eq!(reading.name.as_deref(), Some("Tesla M40 24GB"));
    assert_eq!((reading.temperature_c, reading.slowdown_c), (Some(54), Some(91)));
    assert_eq!((reading.power_mw, reading.power_limit_mw), (Some(187_300), Some(250_000)));
    assert_eq!((reading.sm_mhz, reading.memory_mhz_max), (Some(1112), Some(3004)));
    assert_eq!((reading.ecc, reading.ecc_corrected), (Some(false), Some(7)));
    assert_eq!((reading.pcie_width, reading.pcie_tx_bytes_per_s), (Some(16), Some(1_500_000)));
    assert_eq!((reading.persistence, reading.performance_state), (Some(true), Some(0)));
    assert_eq!(reading.memory_bytes, Some(24_026_021_888));
    let reasons = [ThrottleReason::SwPowerCap, ThrottleReason::HwThermalSlowdown];
    assert_eq!(reading.throttle, Some(reasons.into()));
    // A Maxwell has no counter of energy.
    assert_eq!((reading.energy_mj, reading.ecc_uncorrected), (None, None));
    let heat = card.heat().expect("the stand-in has it");
    assert_eq!((heat.temperature_c, heat.slowdown_c), (Some(54), Some(91)));

    // What cannot be is not believed.
    sheet.set("temperature", 4_000_000);
    sheet.set("slowdown", 0);
    sheet.set("performance_state", 32);
    let reading = card.reading().expect("the stand-in has it");
    assert_eq!((reading.temperature_c, reading.slowdown_c), (None, None));
    assert_eq!(reading.performance_state, None);
}

fn clocks_are_lowered_and_reset(card: &Card, sheet: &mut Sheet) {
    assert!(card.found_parked().is_none());
    let parked = card.park().expect("root may");
    // As after a crash: whoever finds it so has the usual clocks back, and nobody takes the lowest for them.
    let found = card.found_parked().expect("it is parked");
    let again = card.park().expect("root may");
    found.unpark().expect("root may");
    assert!(card.found_parked().is_none());
    parked.unpark().expect("root may");
    again.unpark().expect("root may");
    assert_eq!(sheet.was_set(), ["324 324", "324 324", "reset", "reset", "reset"]);

    // Clocks that somebody has chosen come back.
    sheet.has_set("3004 900");
    card.park().and_then(|parked| parked.unpark()).expect("root may");
    assert_eq!(sheet.was_set()[5..], ["3004 900", "324 324", "3004 900"]);
    assert!(card.found_parked().is_none());

    sheet.set("clocks_permitted", 0);
    assert!(matches!(card.park(), Err(NvmlError::NotPermitted { .. })));
    sheet.remove("clocks_permitted");
    assert!(matches!(card.park(), Err(NvmlError::Refused { .. })));
}

fn errors_are_heard(card: &Card, sheet: &mut Sheet) {
    sheet.set("xid", "1 13");
    let (tell, told) = channel();
    let listening = card
        .listen(move |event| tell.send(event).expect("the test listens"))
        .expect("the stand-in has it");
    sheet.set("xid", "2 79");
    assert_eq!(told.recv_timeout(TIMEOUT), Ok(CardEvent::Xid(Xid(79))));
    sheet.set("lost", 1);
    assert_eq!(told.recv_timeout(TIMEOUT), Ok(CardEvent::Lost));
    drop(listening);
    assert!(matches!(card.reading(), Err(NvmlError::Lost { .. })));
    assert!(matches!(card.heat(), Err(NvmlError::Lost { .. })));
}
