//! Figures of the card: what it says of itself, and what is done about it. What it does not say has no
//! line. The names are those of NVIDIA's exporter (DCGM), in Prometheus' units.

use std::sync::atomic::AtomicU64;

use m40_control::{CardStatus, ThrottleReason};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Direction {
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

pub(super) fn add(registry: &mut Registry, card: &CardStatus) {
    add_name(registry, card);
    add_heat(registry, card);
    add_clocks(registry, card);
    add_errors(registry, card);
    add_bus(registry, card);
    add_care(registry, card);
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: Option<f64>) {
    if let Some(value) = value {
        registry.register(name, help, ConstGauge::<f64>::new(value));
    }
}

fn add_name(registry: &mut Registry, card: &CardStatus) {
    let reading = &card.reading;
    let labels = [
        ("pci_bus_id", Some(reading.address.to_string())),
        ("name", reading.name.clone()),
        ("uuid", reading.uuid.clone()),
        ("driver_version", reading.driver.clone()),
    ];
    let labels: Vec<(&str, String)> =
        labels.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    registry.register("gpu", "The card", Info::new(labels));
}

fn add_heat(registry: &mut Registry, card: &CardStatus) {
    let reading = &card.reading;
    let watts = |milliwatts: u64| milliwatts as f64 / 1e3;
    let mut add = |name: &str, help: &str, value| gauge(registry, name, help, value);
    let help = "Temperature of the card";
    add("gpu_temperature_celsius", help, reading.temperature_c.map(f64::from));
    let help = "Temperature at which the card slows itself down";
    add("gpu_slowdown_temperature_celsius", help, reading.slowdown_c.map(f64::from));
    add("gpu_power_usage_watts", "What the card draws", reading.power_mw.map(watts));
    add("gpu_power_limit_watts", "What it may draw", reading.power_limit_mw.map(watts));
    if let Some(energy) = reading.energy_mj {
        let energy = ConstCounter::<f64>::new(energy as f64 / 1e3);
        let help = "What the card has drawn since its driver was loaded";
        registry.register_with_unit("gpu_energy_consumption", help, Unit::Joules, energy);
    }
}

fn add_clocks(registry: &mut Registry, card: &CardStatus) {
    let reading = &card.reading;
    let hertz = |mhz: Option<u32>| mhz.map(|mhz| f64::from(mhz) * 1e6);
    let mut add = |name: &str, help: &str, value| gauge(registry, name, help, value);
    add("gpu_sm_clock_hertz", "Clock of the multiprocessors", hertz(reading.sm_mhz));
    add("gpu_memory_clock_hertz", "Clock of the memory", hertz(reading.memory_mhz));
    let help = "From 0, the most, to 15";
    add("gpu_performance_state", help, reading.performance_state.map(f64::from));
    let Some(reasons) = &reading.throttle else { return };
    let family = Family::<Reason, Gauge>::default();
    for reason in ThrottleReason::ALL {
        let holds = reasons.contains(&reason);
        family.get_or_create(&Reason { reason: reason.name() }).set(holds.into());
    }
    let help = "Whether this keeps the clocks from being higher, 1 or 0";
    registry.register("gpu_throttle_reason", help, family);
}

fn add_errors(registry: &mut Registry, card: &CardStatus) {
    let reading = &card.reading;
    let errors = Family::<Kind, Gauge<f64, AtomicU64>>::default();
    for (kind, count) in
        [("corrected", reading.ecc_corrected), ("uncorrected", reading.ecc_uncorrected)]
    {
        if let Some(count) = count {
            errors.get_or_create(&Kind { kind }).set(count as f64);
        }
    }
    let help = "Errors of the card's memory since its driver was loaded";
    registry.register("gpu_ecc_errors", help, errors);
    let help = "The last error that the driver has reported, by NVIDIA's number";
    gauge(registry, "gpu_xid_errors", help, card.care.xid.map(|xid| xid as f64));
}

fn add_bus(registry: &mut Registry, card: &CardStatus) {
    let reading = &card.reading;
    let rates = Family::<Direction, Gauge<f64, AtomicU64>>::default();
    for (direction, rate) in
        [("tx", reading.pcie_tx_bytes_per_s), ("rx", reading.pcie_rx_bytes_per_s)]
    {
        if let Some(rate) = rate {
            rates.get_or_create(&Direction { direction }).set(rate as f64);
        }
    }
    let help = "What the card sends (tx) and receives (rx) over its bus";
    registry.register("gpu_pcie_throughput_bytes_per_second", help, rates);
    let mut add = |name: &str, help: &str, value: Option<u32>| {
        gauge(registry, name, help, value.map(f64::from));
    };
    add("gpu_pcie_link_generation", "Generation of the link", reading.pcie_generation);
    add("gpu_pcie_link_width", "Lanes of the link", reading.pcie_width);
}

fn add_care(registry: &mut Registry, card: &CardStatus) {
    let care = &card.care;
    let flag = |flag: bool| Some(f64::from(u8::from(flag)));
    let mut add = |name: &str, help: &str, value| gauge(registry, name, help, value);
    let help = "Share of the time in which passes may run, below 1 as the card is hot";
    add("gpu_duty_ratio", help, Some(care.duty));
    let help = "Requests that wait for the card to be cooler";
    add("gpu_requests_held", help, Some(care.held as f64));
    add("gpu_parked", "Whether its clocks are low as it is idle", flag(care.parked));
    let paused = ConstCounter::<f64>::new(care.paused_ms as f64 / 1e3);
    let help = "Time that passes have waited for the card to be cooler";
    registry.register_with_unit("gpu_paused", help, Unit::Seconds, paused);
}

#[cfg(test)]
mod tests {
    use m40_control::{CardCare, CardReading};
    use prometheus_client::encoding::text::encode;

    use super::*;

    fn text(card: &CardStatus) -> String {
        let mut registry = Registry::with_prefix("m40d");
        add(&mut registry, card);
        let mut text = String::new();
        encode(&mut text, &registry).expect("a string takes everything");
        text
    }

    #[test]
    fn a_card_has_lines_for_what_it_says_and_none_for_what_it_does_not() {
        let address = "0000:03:00.0".parse().unwrap();
        let care = CardCare {
            duty: 0.5,
            limit_c: 88,
            holds: true,
            held: 3,
            parked: false,
            paused_ms: 1500,
            xid: Some(31),
        };
        let mut card = CardStatus { reading: CardReading::new(address), care };
        let little = text(&card);
        assert!(!little.contains("temperature") && !little.contains("throttle"), "{little}");
        assert!(!little.contains("gpu_ecc_errors{"), "{little}");
        card.reading.temperature_c = Some(83);
        card.reading.power_mw = Some(187_300);
        card.reading.energy_mj = Some(5000);
        card.reading.sm_mhz = Some(1112);
        card.reading.throttle = Some([ThrottleReason::SwThermalSlowdown].into());
        card.reading.ecc_corrected = Some(2);
        card.reading.pcie_tx_bytes_per_s = Some(1_500_000);
        let text = text(&card);
        for line in [
            "m40d_gpu_info{pci_bus_id=\"0000:03:00.0\"} 1",
            "m40d_gpu_temperature_celsius 83.0",
            "m40d_gpu_power_usage_watts 187.3",
            "m40d_gpu_energy_consumption_joules_total 5.0",
            "m40d_gpu_sm_clock_hertz 1112000000.0",
            "m40d_gpu_throttle_reason{reason=\"sw_thermal_slowdown\"} 1",
            "m40d_gpu_throttle_reason{reason=\"hw_slowdown\"} 0",
            "m40d_gpu_ecc_errors{kind=\"corrected\"} 2.0",
            "m40d_gpu_pcie_throughput_bytes_per_second{direction=\"tx\"} 1500000.0",
            "m40d_gpu_duty_ratio 0.5",
            "m40d_gpu_requests_held 3.0",
            "m40d_gpu_paused_seconds_total 1.5",
            "m40d_gpu_xid_errors 31.0",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
    }
}
