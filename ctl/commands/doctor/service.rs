//! What systemd says of the unit.

use std::path::Path;
use std::process::{Command, Stdio};

/// The unit of the system's daemon.
pub(super) const UNIT: &str = "m40d.service";

/// A unit, in systemd's words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Unit {
    /// `loaded`, `not-found`, `masked`, `error` or `bad-setting`.
    pub load: String,
    /// `enabled`, `disabled` and others; empty where there is no file.
    pub file: String,
    /// `active`, `inactive`, `failed` and others.
    pub active: String,
    /// `success`, or how it failed.
    pub result: String,
    /// How often it was started again by itself.
    pub restarts: u32,
}

/// The unit; `None` where systemd does not run, or does not say.
pub(super) fn unit() -> Option<Unit> {
    if !Path::new("/run/systemd/system").is_dir() {
        return None;
    }
    let mut command = Command::new("systemctl");
    command.args(["show", UNIT, "--property=LoadState,UnitFileState,ActiveState,Result,NRestarts"]);
    let done = command.stdin(Stdio::null()).output().ok()?;
    done.status.success().then(|| parsed(&String::from_utf8_lossy(&done.stdout)))
}

fn parsed(shown: &str) -> Unit {
    let mut unit = Unit::default();
    for (name, value) in shown.lines().filter_map(|line| line.split_once('=')) {
        let value = value.to_owned();
        match name {
            "LoadState" => unit.load = value,
            "UnitFileState" => unit.file = value,
            "ActiveState" => unit.active = value,
            "Result" => unit.result = value,
            "NRestarts" => unit.restarts = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_what_systemctl_shows() {
        let shown = "Result=exit-code\nNRestarts=4\nLoadState=loaded\nActiveState=failed\n\
                     UnitFileState=enabled\nMore=than=that\n";
        let unit = Unit {
            load: "loaded".into(),
            file: "enabled".into(),
            active: "failed".into(),
            result: "exit-code".into(),
            restarts: 4,
        };
        assert_eq!(parsed(shown), unit);
        assert_eq!(parsed(""), Unit::default());
    }
}
