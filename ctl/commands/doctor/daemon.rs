//! Findings about the daemon: its configuration, its units, its disk and who can reach it.

use std::net::SocketAddr;

use m40_control::{ManifestProblem, Settings};

use super::facts::Facts;
use super::service::{UNIT, Unit};
use super::{Finding, Level};
use crate::output::size;

/// Restarts from which on something is wrong.
const RESTARTS: u32 = 3;
/// Free bytes of the store's disk below which a model more is unlikely to fit.
const FREE_BYTES: u64 = 2_000_000_000;

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![running(facts)];
    findings.extend(several(facts));
    findings.extend(units(facts));
    findings.extend(configuration(facts));
    findings.extend(http(facts));
    findings.extend(store(facts));
    findings
}

fn settings(facts: &Facts) -> Option<&Settings> {
    facts.check.as_ref().ok()?.settings.as_ref()
}

fn running(facts: &Facts) -> Finding {
    match &facts.status {
        Ok(status) if status.stopping => Finding::new(
            Level::Warning,
            "daemon",
            format!("m40d (pid {}) is stopping", status.pid),
            "wait for its answers to end, then `systemctl start m40d`",
        ),
        Ok(status) => {
            let (version, pid, device) = (&status.version, status.pid, &status.device);
            Finding::ok("daemon", format!("m40d {version} runs, pid {pid}, on {device}"))
        }
        Err(why) if facts.daemons.is_empty() => Finding::new(
            Level::Warning,
            "daemon",
            why.clone(),
            "`systemctl start m40d`, or `m40d` in another terminal",
        ),
        Err(why) => {
            let pids = pids(facts);
            let found = format!("{why}, though there is an m40d (pid {pids})");
            let cure = "name its socket with --socket, or become a user who may use it";
            Finding::new(Level::Warning, "daemon", found, cure)
        }
    }
}

fn pids(facts: &Facts) -> String {
    let pids = facts.daemons.iter().map(|daemon| daemon.pid.to_string());
    pids.collect::<Vec<_>>().join(", ")
}

/// Several share what one takes all of.
fn several(facts: &Facts) -> Option<Finding> {
    if facts.daemons.len() < 2 {
        return None;
    }
    let on_gpu = settings(facts).is_some_and(|settings| settings.device == "cuda");
    let level = if on_gpu { Level::Warning } else { Level::Note };
    let shared = if on_gpu { "the GPU's memory" } else { "the machine's memory and threads" };
    let found = format!(
        "{} daemons run (pids {}), and each takes {shared} for its own",
        facts.daemons.len(),
        pids(facts)
    );
    let cure = "stop all but one, or share out with [gpu] vram_mib_max and [models] memory_mib_max";
    Some(Finding::new(level, "daemons", found, cure))
}

fn units(facts: &Facts) -> impl Iterator<Item = Finding> {
    let is_wanted = |unit: &&Unit| facts.units.len() == 1 || !is_unused(unit);
    facts.units.iter().filter(is_wanted).map(unit)
}

/// Who has an instance for each GPU leaves the one for all out.
fn is_unused(unit: &Unit) -> bool {
    unit.id == UNIT && unit.active == "inactive" && unit.file != "enabled"
}

fn unit(unit: &Unit) -> Finding {
    let (id, name) = (&unit.id, unit.name());
    let finding = |level, found: String, cure: String| Finding::new(level, "unit", found, cure);
    match (unit.load.as_str(), unit.active.as_str(), unit.file.as_str()) {
        ("not-found", ..) => finding(
            Level::Note,
            format!("systemd has no {id}, so m40d does not start with the machine"),
            "install m40d's package, or its unit".to_owned(),
        ),
        ("loaded", "failed", _) => finding(
            Level::Problem,
            format!("{id} has failed ({})", unit.result),
            format!(
                "`m40ctl logs -n 30 --unit {name}` says why; `systemctl restart {name}` tries again"
            ),
        ),
        ("loaded", active, _) if unit.restarts >= RESTARTS => finding(
            Level::Warning,
            format!("{id} is {active}, and had to be started again {} times", unit.restarts),
            format!("`m40ctl logs -n 100 --unit {name}` says why"),
        ),
        ("loaded", active, "disabled") => finding(
            Level::Note,
            format!("{id} is {active}, and does not start with the machine"),
            format!("`systemctl enable {name}`"),
        ),
        ("loaded", active, file) => {
            let file = if file.is_empty() { String::new() } else { format!(" and {file}") };
            Finding::ok("unit", format!("{id} is {active}{file}"))
        }
        (load, ..) => finding(
            Level::Problem,
            format!("systemd cannot use {id} ({load})"),
            format!("`systemctl status {name}` says why"),
        ),
    }
}

/// The configuration and the manifests, whoever has read them.
fn configuration(facts: &Facts) -> Vec<Finding> {
    let check = match &facts.check {
        Ok(check) => check,
        Err(why) => {
            let cure = "run `m40ctl config check`";
            return vec![Finding::new(Level::Warning, "config", why.clone(), cure)];
        }
    };
    let of_daemon = facts.status.as_ref().map(|status| &status.manifest_problems[..]);
    let same = |a: &ManifestProblem, b: &ManifestProblem| a.to_string() == b.to_string();
    let mut problems: Vec<_> = check.problems.iter().collect();
    for problem in of_daemon.unwrap_or_default() {
        if !problems.iter().any(|known| same(known, problem)) {
            problems.push(problem);
        }
    }
    let wrong = |problem: &&ManifestProblem| {
        let cure = "mend it; `m40ctl config check` shows the line";
        Finding::new(Level::Problem, "config", problem.to_string(), cure)
    };
    if !problems.is_empty() {
        return problems.iter().map(wrong).collect();
    }
    let file = check.config_file.as_ref();
    let file = file.map_or_else(|| "defaults".to_owned(), |file| file.display().to_string());
    vec![Finding::ok("config", format!("{file}, models in manifests: {}", check.models.len()))]
}

/// Who can reach it over the network.
fn http(facts: &Facts) -> Option<Finding> {
    let settings = settings(facts)?;
    let bound = facts.status.as_ref().ok().and_then(|status| status.http_address.parse().ok());
    let listen: SocketAddr = bound.unwrap_or(settings.http_listen);
    Some(if listen.ip().to_canonical().is_loopback() {
        Finding::ok("http", format!("{listen}, for this machine only"))
    } else if !settings.http_keys {
        Finding::new(
            Level::Warning,
            "http",
            format!("whoever reaches {listen} may use m40d: no key is asked for"),
            "`m40ctl key new NAME`, then name the file of keys in [http] keys",
        )
    } else if !settings.http_tls {
        Finding::new(
            Level::Note,
            "http",
            format!(
                "{listen} asks for keys and has no TLS, so others on the network may read them"
            ),
            "set [http] tls_certificate and tls_key, or listen behind a proxy that has TLS",
        )
    } else {
        Finding::ok("http", format!("{listen}, with keys and TLS"))
    })
}

fn store(facts: &Facts) -> Option<Finding> {
    let disk = facts.disk.as_ref()?;
    let (free, wanted) = (disk.free_bytes, facts.wanted_bytes);
    let dir = disk.dir.display();
    let of = format!("{} of {} are free for {dir}", size(free), size(disk.total_bytes));
    let cure = "`m40ctl prune`, `m40ctl rm NAME`, or [paths] state_dir on a larger disk";
    Some(if wanted > free {
        let found = format!("{of}, and models on their way take {} more", size(wanted));
        Finding::new(Level::Problem, "store", found, cure)
    } else if free < FREE_BYTES {
        Finding::new(Level::Warning, "store", of, cure)
    } else {
        Finding::ok("store", of)
    })
}

#[cfg(test)]
mod tests;
