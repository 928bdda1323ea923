//! `keep_alive`: how long a model stays in memory after a request.

use std::time::Duration;

use m40_sched::residency::Stay;
use serde::Deserialize;

/// What is longer is for ever: a hundred years.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Seconds, or a text in the form of Go's durations, or one of seconds. Negative is for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Raw")]
pub(super) struct KeepAlive(pub Stay);

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected seconds, or a text like \"10m\"")]
enum Raw {
    Seconds(f64),
    Text(String),
}

impl KeepAlive {
    /// Whether the model is to leave at once.
    pub(super) fn is_none(self) -> bool {
        self.0 == Stay::For(Duration::ZERO)
    }
}

impl TryFrom<Raw> for KeepAlive {
    type Error = String;

    fn try_from(raw: Raw) -> Result<Self, String> {
        let seconds = match raw {
            Raw::Seconds(seconds) => seconds,
            Raw::Text(text) => seconds(&text).ok_or_else(|| {
                format!("{text:?} is no duration: write seconds, or one like \"10m\" or \"1h30m\"")
            })?,
        };
        let legal = (0.0..=LONGEST.as_secs_f64()).contains(&seconds);
        let stay = if legal { Stay::For(Duration::from_secs_f64(seconds)) } else { Stay::Forever };
        Ok(Self(stay))
    }
}

/// Seconds of a text like `1h30m`, `-1s`, `1.5m` or `300`.
fn seconds(text: &str) -> Option<f64> {
    const UNITS: [(&str, f64); 8] = [
        ("ns", 1e-9),
        ("us", 1e-6),
        ("µs", 1e-6),
        ("μs", 1e-6),
        ("ms", 1e-3),
        ("s", 1.0),
        ("m", 60.0),
        ("h", 3600.0),
    ];
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if is_number(rest) {
        return rest.parse().ok().map(|seconds: f64| sign * seconds);
    }
    let mut sum = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        let after = &rest[end..];
        let (unit, factor) = UNITS.iter().find(|(unit, _)| after.starts_with(unit))?;
        sum += number * factor;
        rest = &after[unit.len()..];
    }
    Some(sign * sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Option<Stay> {
        serde_json::from_str::<KeepAlive>(json).ok().map(|keep| keep.0)
    }

    #[test]
    fn numbers_are_seconds_and_texts_are_durations_of_go() {
        let stay = |ms: u64| Some(Stay::For(Duration::from_millis(ms)));
        for (json, want) in [
            ("0", stay(0)),
            ("\"0\"", stay(0)),
            ("\"0s\"", stay(0)),
            ("300", stay(300_000)),
            ("0.5", stay(500)),
            ("\"300\"", stay(300_000)),
            ("\"10m\"", stay(600_000)),
            ("\"1h30m\"", stay(5_400_000)),
            ("\"1.5h\"", stay(5_400_000)),
            ("\"1m0.5s\"", stay(60_500)),
            ("\"250ms\"", stay(250)),
            ("-1", Some(Stay::Forever)),
            ("\"-1\"", Some(Stay::Forever)),
            ("\"-1m\"", Some(Stay::Forever)),
            ("1e300", Some(Stay::Forever)),
        ] {
            assert_eq!(read(json), want, "{json}");
        }
        for bad in ["\"\"", "\"m\"", "\"10 m\"", "\"1d\"", "\"1..2s\"", "\"10m5\"", "true", "[]"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
