use m40_control::Status;
use serde_json::json;

use super::super::check_odd;
use super::super::facts::bare;
use super::super::machine::Process;
use super::*;
use crate::view;

fn status() -> Status {
    view::test_status(json!([]))
}

/// A machine whose daemon runs, where all is well.
fn well() -> Facts {
    let daemons = vec![Process { pid: 7, uid: 990 }];
    let unit = Unit {
        id: UNIT.into(),
        load: "loaded".into(),
        file: "enabled".into(),
        active: "active".into(),
        result: "success".into(),
        restarts: 0,
    };
    Facts { status: Ok(status()), daemons, units: vec![unit], ..bare() }
}

/// The one finding that is not as it should be after this was changed must be of this level and check,
/// and say all of this.
#[track_caller]
fn check(change: impl FnOnce(&mut Facts), level: Level, of: &str, says: &[&str]) {
    let mut facts = well();
    change(&mut facts);
    check_odd(&findings(&facts), level, of, says);
}

fn change_settings(facts: &mut Facts, change: impl FnOnce(&mut Settings)) {
    let settings = facts.check.as_mut().ok().and_then(|check| check.settings.as_mut());
    change(settings.expect("it has some"));
}

fn problem(message: &str) -> ManifestProblem {
    let (file, message) = ("/etc/m40d/models.d/a.toml".into(), message.to_owned());
    ManifestProblem { file, place: None, message, serving_old: true }
}

#[test]
fn a_daemon_that_is_well_has_findings_that_say_so() {
    let findings = findings(&well());
    assert!(findings.iter().all(|finding| finding.level == Level::Ok), "{findings:#?}");
    let checks: Vec<_> = findings.iter().map(|finding| finding.check).collect();
    assert_eq!(checks, ["daemon", "unit", "config", "http", "store"]);
    let all = findings.iter().all(|finding| finding.level == Level::Ok || finding.cure.is_some());
    assert!(all, "{findings:#?}");
}

#[test]
fn a_daemon_that_does_not_answer_is_a_warning() {
    let gone = |facts: &mut Facts| {
        (facts.status, facts.daemons) = (Err("m40d is not running".into()), vec![]);
    };
    check(gone, Level::Warning, "daemon", &["not running", "systemctl start m40d"]);
    let elsewhere = |facts: &mut Facts| facts.status = Err("no permission".into());
    check(elsewhere, Level::Warning, "daemon", &["no permission", "pid 7", "--socket"]);
    let two = |facts: &mut Facts| facts.daemons.push(Process { pid: 9, uid: 0 });
    check(two, Level::Note, "daemons", &["2 daemons", "7, 9"]);
    let two_on_gpu = |facts: &mut Facts| {
        two(facts);
        change_settings(facts, |settings| settings.device = "cuda".into());
    };
    check(two_on_gpu, Level::Warning, "daemons", &["the GPU's memory", "vram_mib_max"]);
}

#[test]
fn a_unit_says_what_is_wrong_with_it() {
    fn unit(change: impl FnOnce(&mut Unit)) -> impl FnOnce(&mut Facts) {
        |facts| change(&mut facts.units[0])
    }
    let absent = unit(|unit| unit.load = "not-found".into());
    check(absent, Level::Note, "unit", &["does not start with the machine", "package"]);
    let masked = unit(|unit| unit.load = "masked".into());
    check(masked, Level::Problem, "unit", &["masked"]);
    let failed = unit(|unit| (unit.active, unit.result) = ("failed".into(), "watchdog".into()));
    check(failed, Level::Problem, "unit", &["watchdog", "m40ctl logs"]);
    let again = unit(|unit| unit.restarts = 3);
    check(again, Level::Warning, "unit", &["3 times", "m40ctl logs"]);
    let disabled = unit(|unit| unit.file = "disabled".into());
    check(disabled, Level::Note, "unit", &["systemctl enable m40d"]);
    let mut facts = well();
    facts.units.clear();
    assert!(findings(&facts).iter().all(|finding| finding.check != "unit"));
}

#[test]
fn each_instance_has_a_finding_and_the_unit_that_it_stands_for_none() {
    let add = |facts: &mut Facts, active: &str| {
        let (id, active) = ("m40d@1.service".into(), active.into());
        facts.units.push(Unit { id, active, ..facts.units[0].clone() });
    };
    let failed = |facts: &mut Facts| add(facts, "failed");
    check(
        failed,
        Level::Problem,
        "unit",
        &["m40d@1.service has failed", "logs -n 30 --unit m40d@1"],
    );

    let mut facts = well();
    add(&mut facts, "active");
    let found = |facts: &Facts| {
        let units = findings(facts).into_iter().filter(|finding| finding.check == "unit");
        units.map(|finding| finding.found).collect::<Vec<_>>()
    };
    let (one, instance) =
        ("m40d.service is active and enabled", "m40d@1.service is active and enabled");
    assert_eq!(found(&facts), [one, instance]);
    (facts.units[0].active, facts.units[0].file) = ("inactive".into(), "disabled".into());
    assert_eq!(found(&facts), [instance]);
}

#[test]
fn each_mistake_of_the_configuration_is_a_problem_once() {
    let both = |facts: &mut Facts| {
        facts.check.as_mut().expect("there is one").problems.push(problem("no such key"));
        facts.status.as_mut().expect("it runs").manifest_problems.push(problem("no such key"));
    };
    let says = ["models.d/a.toml: no such key", "m40ctl config check"];
    check(both, Level::Problem, "config", &says);
    let of_daemon = |facts: &mut Facts| {
        facts.status.as_mut().expect("it runs").manifest_problems.push(problem("pinned too much"));
    };
    check(of_daemon, Level::Problem, "config", &["pinned too much"]);
    // Without what it says nothing is known of HTTP.
    let mut facts = well();
    facts.check = Err("cannot run m40d".into());
    let found = findings(&facts);
    assert!(found.iter().any(|f| f.check == "config" && f.level == Level::Warning), "{found:#?}");
    assert!(found.iter().all(|finding| finding.check != "http"), "{found:#?}");
}

#[test]
fn who_serves_a_network_asks_for_keys() {
    let serve = |keys, tls| {
        move |facts: &mut Facts| {
            facts.status.as_mut().expect("it runs").http_address = "0.0.0.0:11434".into();
            change_settings(facts, |settings| {
                (settings.http_keys, settings.http_tls) = (keys, tls);
            });
        }
    };
    check(serve(false, true), Level::Warning, "http", &["0.0.0.0:11434", "m40ctl key new"]);
    check(serve(true, false), Level::Note, "http", &["TLS", "tls_certificate"]);
    let mut facts = well();
    serve(true, true)(&mut facts);
    assert!(findings(&facts).iter().all(|finding| finding.level == Level::Ok));
}

#[test]
fn a_disk_has_room_for_what_is_wanted() {
    let much = |facts: &mut Facts| facts.wanted_bytes = 60_000_000_000;
    check(much, Level::Problem, "store", &["50.0 GB of 100.0 GB", "60.0 GB more", "m40ctl prune"]);
    let full = |facts: &mut Facts| {
        facts.disk.as_mut().expect("there is one").free_bytes = 1_000_000_000;
    };
    check(full, Level::Warning, "store", &["1.0 GB of 100.0 GB", "state_dir"]);
}
