//! The card that the daemon looks after, as lines.

use anstyle::{AnsiColor, Style};
use m40_control::{CardReading, CardStatus, ThrottleReason};

use crate::text::Line;

/// The card in a line: what it says of itself.
pub(crate) fn card(card: &CardStatus) -> String {
    let reading = &card.reading;
    let name = reading.name.clone().unwrap_or_else(|| reading.address.to_string());
    let said = [temperature(reading), power(reading), clocks(reading), bus(reading), ecc(reading)];
    let said = said.into_iter().flatten();
    let driver = reading.driver.as_ref().map(|version| format!("driver {version}"));
    let parts: Vec<String> = [name].into_iter().chain(said).chain(driver).collect();
    parts.join(", ")
}

/// A line for each thing that is not as it is with a card that is cool and at work.
pub(crate) fn care(card: &CardStatus) -> Vec<Line> {
    let (reading, care) = (&card.reading, &card.care);
    let yellow = AnsiColor::Yellow.on_default();
    let line = |style, word: &str, text: String| Line::default().then(style, word).plain(text);
    let is = reading.temperature_c.map_or_else(String::new, |degrees| format!(", at {degrees} C"));
    let mut lines = vec![];
    if care.duty < 1.0 {
        let percent = 100.0 * care.duty;
        let text = format!(
            ": passes run {percent:.0} % of the time{is}; from {} C on new requests wait",
            care.limit_c
        );
        lines.push(line(yellow, "the card is hot", text));
    }
    if care.holds {
        let waiting = match care.held {
            1 => "1 request waits".to_owned(),
            held => format!("{held} requests wait"),
        };
        let text = format!(": {waiting} until it is cooler than {} C", care.limit_c);
        lines.push(line(AnsiColor::Red.on_default(), "the card is too hot for new work", text));
    }
    let slows = |reason: &&ThrottleReason| {
        !matches!(reason, ThrottleReason::GpuIdle | ThrottleReason::ApplicationsClocksSetting)
    };
    let reasons: Vec<&str> =
        reading.throttle.iter().flatten().filter(slows).map(|reason| reason.name()).collect();
    if !reasons.is_empty() {
        let text = format!(" by itself: {}", reasons.join(", "));
        lines.push(line(yellow, "the card goes slower", text));
    }
    if care.parked {
        let text = " has nothing to do: its clocks are lowered".to_owned();
        lines.push(line(Style::new(), "the card", text));
    }
    if let Some(xid) = care.xid {
        let text = format!(" of the card: Xid {xid}; the kernel's log has more (`journalctl -k`)");
        lines.push(line(yellow, "the driver has reported an error", text));
    }
    lines
}

fn of(now: Option<String>, most: Option<String>, unit: &str) -> Option<String> {
    let now = now?;
    Some(most.map_or_else(|| format!("{now} {unit}"), |most| format!("{now} of {most} {unit}")))
}

fn temperature(reading: &CardReading) -> Option<String> {
    let text = |degrees: Option<u32>| degrees.map(|degrees| degrees.to_string());
    of(text(reading.temperature_c), text(reading.slowdown_c), "C")
}

fn power(reading: &CardReading) -> Option<String> {
    let text = |mw: Option<u64>| mw.map(|mw| format!("{:.0}", mw as f64 / 1e3));
    of(text(reading.power_mw), text(reading.power_limit_mw), "W")
}

fn clocks(reading: &CardReading) -> Option<String> {
    let text = |mhz: Option<u32>| mhz.map(|mhz| mhz.to_string());
    of(text(reading.sm_mhz), text(reading.sm_mhz_max), "MHz")
}

fn bus(reading: &CardReading) -> Option<String> {
    let mut text = format!("PCIe {} x{}", reading.pcie_generation?, reading.pcie_width?);
    let rate = |rate: u64| format!("{:.1}", rate as f64 / 1e6);
    if let (Some(tx), Some(rx)) = (reading.pcie_tx_bytes_per_s, reading.pcie_rx_bytes_per_s) {
        text.push_str(&format!(" (sends {}, receives {} MB/s)", rate(tx), rate(rx)));
    }
    Some(text)
}

fn ecc(reading: &CardReading) -> Option<String> {
    let (corrected, uncorrected) = (reading.ecc_corrected, reading.ecc_uncorrected);
    match (reading.ecc?, corrected, uncorrected) {
        (false, ..) => Some("ECC off".to_owned()),
        (true, Some(corrected), Some(uncorrected)) => {
            Some(format!("ECC on ({corrected} errors corrected, {uncorrected} not)"))
        }
        (true, ..) => Some("ECC on".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(reading: &serde_json::Value, care: &serde_json::Value) -> CardStatus {
        let mut all = json!({
            "address": "0000:03:00.0",
            "care": {"duty": 1.0, "limit_c": 88, "holds": false, "held": 0, "parked": false,
                     "paused_ms": 0},
        });
        let add = |to: &mut serde_json::Value, more: &serde_json::Value| {
            for (name, value) in more.as_object().into_iter().flatten() {
                to[name] = value.clone();
            }
        };
        add(&mut all, reading);
        add(&mut all["care"], care);
        serde_json::from_value(all).expect("it has every field that a card must have")
    }

    fn shown(lines: &[Line]) -> Vec<String> {
        lines.iter().map(|line| line.show(usize::MAX, false)).collect()
    }

    #[test]
    fn a_card_is_a_line_of_what_it_says() {
        let silent = status(&json!({}), &json!({}));
        assert_eq!(card(&silent), "0000:03:00.0");
        let reading = json!({
            "name": "Tesla M40 24GB", "driver": "535.183.01", "temperature_c": 54, "slowdown_c": 91,
            "power_mw": 187_300, "power_limit_mw": 250_000, "sm_mhz": 1112, "sm_mhz_max": 1114,
            "pcie_generation": 3, "pcie_width": 16, "pcie_tx_bytes_per_s": 1_500_000,
            "pcie_rx_bytes_per_s": 250_000, "ecc": true, "ecc_corrected": 2, "ecc_uncorrected": 0,
        });
        let status = status(&reading, &json!({}));
        assert_eq!(
            card(&status),
            "Tesla M40 24GB, 54 of 91 C, 187 of 250 W, 1112 of 1114 MHz, \
              PCIe 3 x16 (sends 1.5, receives 0.2 MB/s), ECC on (2 errors corrected, 0 not), \
              driver 535.183.01"
        );
        assert!(care(&status).is_empty());
    }

    #[test]
    fn what_is_wrong_with_a_card_and_done_about_it_is_said() {
        let reading = json!({"temperature_c": 88, "throttle": ["gpu_idle", "sw_thermal_slowdown"]});
        let hot = json!({"duty": 0.1, "holds": true, "held": 3, "parked": true, "xid": 31});
        assert_eq!(
            shown(&care(&status(&reading, &hot))),
            [
                "the card is hot: passes run 10 % of the time, at 88 C; from 88 C on new requests wait",
                "the card is too hot for new work: 3 requests wait until it is cooler than 88 C",
                "the card goes slower by itself: sw_thermal_slowdown",
                "the card has nothing to do: its clocks are lowered",
                "the driver has reported an error of the card: Xid 31; the kernel's log has more \
                 (`journalctl -k`)",
            ]
        );
    }
}
