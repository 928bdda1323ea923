//! Durations as people write them: `90s`, `10m`, `1h30m`, `2d`.

use std::time::Duration;

const UNITS: [(char, u64); 4] = [('d', 86_400), ('h', 3600), ('m', 60), ('s', 1)];

/// The duration that a text says; `None` when it says none.
pub(crate) fn parse(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0_u64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        let unit = rest[digits..].chars().next()?;
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
        seconds = seconds.checked_add(number.checked_mul(*factor)?)?;
        rest = &rest[digits + unit.len_utf8()..];
    }
    (!text.is_empty()).then(|| Duration::from_secs(seconds))
}

/// The shortest text that [`parse`] reads as this many whole seconds.
pub(crate) fn show(duration: Duration) -> String {
    let mut seconds = duration.as_secs();
    let mut text = String::new();
    for (unit, factor) in UNITS {
        if seconds >= factor {
            text.push_str(&format!("{}{unit}", seconds / factor));
            seconds %= factor;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_have_units() {
        let seconds = |text| parse(text).map(|duration| duration.as_secs());
        assert_eq!(seconds("90s"), Some(90));
        assert_eq!(seconds("10m"), Some(600));
        assert_eq!(seconds("1h30m"), Some(5400));
        assert_eq!(seconds("2d"), Some(172_800));
        for bad in ["", "10", "m", "10 m", "-5m", "1.5h", "10min", "99999999999999999999d", "é"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
        assert_eq!(seconds("18446744073709551615d"), None);
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(seconds in 0..10_000_000_u64) {
            let duration = Duration::from_secs(seconds);
            prop_assert_eq!(parse(&show(duration)), Some(duration));
        }
    }
}
