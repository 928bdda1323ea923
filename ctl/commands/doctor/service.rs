//! What systemd says of the daemon's units.

use std::path::Path;
use std::process::{Command, Stdio};

/// The unit of the system's daemon.
pub(super) const UNIT: &str = "m40d.service";

/// Those of its instances, one for each GPU, that systemd has loaded: all that run, have failed or are
/// started with the machine.
const INSTANCES: &str = "m40d@*.service";
const PROPERTIES: &str = "--property=Id,LoadState,UnitFileState,ActiveState,Result,NRestarts";

/// A unit, in systemd's words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Unit {
    /// Its name, such as `m40d@1.service`.
    pub id: String,
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

impl Unit {
    /// The name as people type it.
    pub(super) fn name(&self) -> &str {
        self.id.trim_end_matches(".service")
    }
}

/// The unit of the system's daemon and then its instances; none where systemd does not run, or does not say.
pub(super) fn units() -> Vec<Unit> {
    if !Path::new("/run/systemd/system").is_dir() {
        return Vec::new();
    }
    let mut command = Command::new("systemctl");
    command.args(["show", UNIT, INSTANCES, PROPERTIES]).stdin(Stdio::null());
    match command.output() {
        Ok(done) if done.status.success() => parsed(&String::from_utf8_lossy(&done.stdout)),
        _ => Vec::new(),
    }
}

/// A paragraph of what is shown is a unit.
fn parsed(shown: &str) -> Vec<Unit> {
    shown.split("\n\n").filter(|shown| !shown.is_empty()).map(unit).collect()
}

fn unit(shown: &str) -> Unit {
    let mut unit = Unit::default();
    for (name, value) in shown.lines().filter_map(|line| line.split_once('=')) {
        let value = value.to_owned();
        match name {
            "Id" => unit.id = value,
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
    fn units_are_what_systemctl_shows() {
        let shown = "Result=exit-code\nNRestarts=4\nId=m40d.service\nLoadState=loaded\nActiveState=failed\n\
                     UnitFileState=enabled\nMore=than=that\n\nId=m40d@1.service\nNRestarts=0\n";
        let unit = Unit {
            id: "m40d.service".into(),
            load: "loaded".into(),
            file: "enabled".into(),
            active: "failed".into(),
            result: "exit-code".into(),
            restarts: 4,
        };
        let instance = Unit { id: "m40d@1.service".into(), ..Unit::default() };
        assert_eq!(instance.name(), "m40d@1");
        assert_eq!(parsed(shown), [unit, instance]);
        assert_eq!(parsed(""), []);
    }
}
