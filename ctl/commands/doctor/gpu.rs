//! Findings about cards and their driver.

use m40_control::{CardReading, ThrottleReason};

use super::facts::Facts;
use super::machine::{Driver, Gpu, NodeState};
use super::{Finding, Level};

/// The last branch of the driver that knows Maxwell, Pascal and Volta.
const LAST_BRANCH: u32 = 580;
/// The first that takes what CUDA 12 compiled.
const FIRST_BRANCH: u32 = 525;
/// Numbers of the first devices of Maxwell, and of Turing, which newer drivers know.
const MAXWELL: u32 = 0x1340;
const TURING: u32 = 0x1e00;
/// What gives an old card a driver that knows it.
const INSTALL: &str =
    "install NVIDIA's driver of branch 580 (`apt install nvidia-driver-580` on Ubuntu)";
/// Degrees below which a card slows itself down where it is close to that.
const CLOSE_C: u32 = 6;
/// Bytes of locked memory below which pinned buffers may be refused.
const MEMLOCK_BYTES: u64 = 64 << 20;

impl Gpu {
    /// Whether it is of the generations that later drivers leave out.
    fn is_old(&self) -> bool {
        (MAXWELL..TURING).contains(&self.device)
    }
}

/// Whether the configuration has models run on a GPU.
fn is_wanted(facts: &Facts) -> bool {
    let settings = facts.check.as_ref().ok().and_then(|check| check.settings.as_ref());
    settings.is_some_and(|settings| settings.device == "cuda")
}

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    // A card in a container, or a virtual one, may be on no bus that is seen.
    if facts.gpus.is_empty() && facts.driver.is_none() && facts.cards.is_err() {
        return vec![match is_wanted(facts) {
            true => Finding::new(
                Level::Problem,
                "gpu",
                "[engine] device is \"cuda\", and no NVIDIA card is on the bus",
                "look with `lspci -d 10de:`, or set device = \"cpu\" in m40d.toml",
            ),
            false => Finding::ok("gpu", "no GPU: m40d runs on the CPU"),
        }];
    }
    let mut findings: Vec<_> = facts.gpus.iter().map(|gpu| presence(gpu, facts)).collect();
    let driver = facts.driver.as_ref();
    findings.extend(driver.map(|driver| driver_branch(driver, &facts.gpus)));
    if driver.is_some() {
        findings.extend(nodes(facts));
        findings.extend(nvml(facts));
    }
    findings.extend(facts.gpus.iter().filter_map(link));
    for card in facts.cards.iter().flatten() {
        findings.push(heat(card));
        findings.extend(throttle(card));
        findings.extend(ecc(card, &facts.gpus));
        findings.extend(settings(card));
    }
    if is_wanted(facts) {
        findings.push(nvrtc(facts));
        findings.extend(memlock(facts));
    } else {
        findings.push(Finding::new(
            Level::Note,
            "device",
            "models run on the CPU, though there is a GPU",
            "set device = \"cuda\" in [engine] of m40d.toml, and restart m40d",
        ));
    }
    findings
}

/// Whether a driver has the card that can compute with it.
fn presence(gpu: &Gpu, facts: &Facts) -> Finding {
    let (address, level) =
        (gpu.address, if is_wanted(facts) { Level::Problem } else { Level::Warning });
    match gpu.driver.as_deref() {
        _ if gpu.device < MAXWELL => Finding::new(
            Level::Warning,
            "gpu",
            format!("the card at {address} is older than Maxwell"),
            "use another one: m40d has no kernels for it",
        ),
        Some("nvidia") => Finding::ok("gpu", format!("NVIDIA's driver has the card at {address}")),
        Some("nouveau") => Finding::new(
            level,
            "gpu",
            format!("nouveau has the card at {address}, which cannot compute"),
            format!("{INSTALL}, which keeps nouveau away, and start the machine again"),
        ),
        Some(other) => Finding::new(
            level,
            "gpu",
            format!("the driver {other} has the card at {address}"),
            format!("echo {address} > /sys/bus/pci/drivers/{other}/unbind; modprobe nvidia"),
        ),
        None => Finding::new(
            level,
            "gpu",
            format!("no driver has the card at {address}"),
            format!("{INSTALL}; `modprobe nvidia` and `dmesg` say what is wrong with one"),
        ),
    }
}

fn driver_branch(driver: &Driver, gpus: &[Gpu]) -> Finding {
    let version = &driver.version;
    let branch =
        version.split('.').next().and_then(|branch| branch.parse::<u32>().ok()).unwrap_or(0);
    let is_old = gpus.iter().any(Gpu::is_old);
    let hold = "keep it from being replaced: `apt-mark hold` its package";
    match branch {
        LAST_BRANCH.. if is_old && driver.open => Finding::new(
            Level::Problem,
            "driver",
            format!("{version} has open kernel modules, which know no card before Turing"),
            format!("{INSTALL}, with proprietary modules"),
        ),
        branch if is_old && branch > LAST_BRANCH => Finding::new(
            Level::Problem,
            "driver",
            format!("{version} does not know this card: branch 580 was the last for Maxwell"),
            format!("{INSTALL}, and {hold}"),
        ),
        LAST_BRANCH if is_old => Finding::new(
            Level::Note,
            "driver",
            format!("{version}, of the last branch for Maxwell"),
            hold,
        ),
        branch if branch < FIRST_BRANCH => Finding::new(
            Level::Warning,
            "driver",
            format!("{version} is older than CUDA 12, with which kernels are compiled"),
            INSTALL,
        ),
        _ => Finding::ok("driver", version.clone()),
    }
}

/// Whether CUDA may open its device files.
fn nodes(facts: &Facts) -> Vec<Finding> {
    let findings = facts.nodes.iter().filter_map(|node| {
        let path = node.path.display();
        let (what, cure) = match node.state {
            NodeState::Usable => return None,
            NodeState::Missing => (
                format!("{path} is not there"),
                "`nvidia-modprobe -u -c 0` as root makes it; nvidia-persistenced does at each start",
            ),
            NodeState::Denied => (
                format!("{path} may not be opened by this user"),
                "`ls -l` it: the daemon's user must be in its group",
            ),
        };
        // Another user's daemon may do what this one may not.
        let level = if node.state == NodeState::Denied { Level::Note } else { Level::Warning };
        Some(Finding::new(level, "devices", what, cure))
    });
    let findings: Vec<_> = findings.collect();
    match findings.is_empty() {
        true => vec![Finding::ok("devices", "the device files are there and may be opened")],
        false => findings,
    }
}

fn nvml(facts: &Facts) -> Option<Finding> {
    let error = facts.cards.as_ref().err()?;
    Some(Finding::new(
        Level::Warning,
        "nvml",
        error.clone(),
        "if the driver was just upgraded, start the machine again; else install its libnvidia-ml.so.1",
    ))
}

/// How the card is connected.
fn link(gpu: &Gpu) -> Option<Finding> {
    let ((lanes, lanes_most), (speed, speed_most)) = (gpu.lanes?, gpu.speed.as_ref()?);
    let of = format!("x{lanes} of x{lanes_most} at {speed} of {speed_most}");
    Some(if lanes < lanes_most {
        Finding::new(
            Level::Warning,
            "pcie",
            format!("{of}: models load {} times slower than they could", lanes_most / lanes.max(1)),
            "put the card into a slot with all lanes, or seat it again",
        )
    } else if speed != speed_most {
        Finding::new(
            Level::Note,
            "pcie",
            format!("{of}; an idle card has a slow link"),
            "look again during `m40ctl bench`",
        )
    } else {
        Finding::ok("pcie", format!("x{lanes} at {speed}"))
    })
}

fn heat(card: &CardReading) -> Finding {
    let air =
        "blow more air through it: a Tesla has no fan of its own; `nvidia-smi -pl 180` draws less";
    let watts = |mw: Option<u64>| mw.map(|mw| format!(", {} W", mw / 1000)).unwrap_or_default();
    let power = watts(card.power_mw);
    match (card.temperature_c, card.slowdown_c) {
        (Some(now), Some(limit)) if now >= limit => Finding::new(
            Level::Problem,
            "heat",
            format!("{now} °C{power}: from {limit} °C on the card slows itself down"),
            air,
        ),
        (Some(now), Some(limit)) if now + CLOSE_C >= limit => Finding::new(
            Level::Warning,
            "heat",
            format!("{now} °C{power}: at {limit} °C the card slows itself down"),
            air,
        ),
        (Some(now), Some(limit)) => Finding::ok(
            "heat",
            format!("{now} °C{power}; the card slows itself down at {limit} °C"),
        ),
        (Some(now), None) => Finding::ok("heat", format!("{now} °C{power}")),
        (None, _) => Finding::new(
            Level::Note,
            "heat",
            "the card does not say how warm it is",
            "`nvidia-smi -q -d TEMPERATURE` shows what there is",
        ),
    }
}

/// Why clocks are lower than they could be.
fn throttle(card: &CardReading) -> Vec<Finding> {
    let reasons = card.throttle.iter().flatten();
    let finding = |level, found: &str, cure: &str| Some(Finding::new(level, "clocks", found, cure));
    let most = |mhz: Option<u32>| mhz.map_or_else(|| "?".to_owned(), |mhz| mhz.to_string());
    let mut findings: Vec<_> = reasons
        .filter_map(|reason| match reason {
            reason if reason.is_heat() => finding(
                Level::Warning,
                "the card is slow as it is too hot",
                "blow more air through it",
            ),
            ThrottleReason::HwSlowdown => finding(
                Level::Warning,
                "the card halves its clocks, or more: heat, or power",
                "`nvidia-smi -q -d PERFORMANCE` says which; look at its air and its power plugs",
            ),
            ThrottleReason::HwPowerBrakeSlowdown => finding(
                Level::Warning,
                "the power supply has the card slow down",
                "use a stronger one, or `nvidia-smi -pl 180`",
            ),
            ThrottleReason::SwPowerCap => finding(
                Level::Note,
                "the card draws as much power as it may",
                "`nvidia-smi -q -d POWER` shows the limits; -pl sets one",
            ),
            ThrottleReason::ApplicationsClocksSetting => finding(
                Level::Note,
                &format!("application clocks are below the highest, {} MHz", most(card.sm_mhz_max)),
                "`nvidia-smi -q -d SUPPORTED_CLOCKS`, then `nvidia-smi -ac MEMORY,SM` for more",
            ),
            _ => None,
        })
        .collect();
    if findings.is_empty() && card.sm_mhz_max.is_some() {
        let (now, most) = (most(card.sm_mhz), most(card.sm_mhz_max));
        findings
            .push(Finding::ok("clocks", format!("{now} of {most} MHz, and nothing holds it back")));
    }
    findings
}

/// Whether errors of memory are corrected, and what that costs.
fn ecc(card: &CardReading, gpus: &[Gpu]) -> Vec<Finding> {
    let (address, mut findings) = (card.address, Vec::new());
    let bad = card.ecc_uncorrected.unwrap_or(0);
    if bad > 0 {
        findings.push(Finding::new(
            Level::Problem,
            "ecc",
            format!("{bad} errors of memory could not be corrected since the driver was loaded"),
            format!("`nvidia-smi -i {address} -r` resets the card; one that goes on so is broken"),
        ));
    }
    if card.ecc.is_some() && card.ecc != card.ecc_pending && card.ecc_pending.is_some() {
        findings.push(Finding::new(
            Level::Note,
            "ecc",
            "ECC was switched and is as before until the next start",
            "start the machine again",
        ));
    }
    // GDDR5 has no room of its own for it: each sixteenth byte goes for codes, read and written too.
    let costs = gpus.iter().any(|gpu| gpu.address == address && gpu.is_old());
    match (card.ecc, card.memory_bytes) {
        (Some(true), Some(bytes)) if costs => findings.push(Finding::new(
            Level::Note,
            "ecc",
            format!("ECC is on: it takes {} MiB, a sixteenth, and some of the speed", (bytes / 15) >> 20),
            format!("`nvidia-smi -i {address} -e 0` and a start of the machine, for those who need no ECC"),
        )),
        (Some(true), _) => findings.push(Finding::ok("ecc", "ECC is on")),
        (Some(false), _) => findings.push(Finding::ok("ecc", "ECC is off")),
        (None, _) => {}
    }
    findings
}

/// What is set of the card as a whole.
fn settings(card: &CardReading) -> Option<Finding> {
    Some(match card.persistence? {
        true => Finding::ok("persistence", "the driver keeps the card ready"),
        false => Finding::new(
            Level::Note,
            "persistence",
            "the driver forgets the card, and limits that were set, while nobody uses it",
            "`nvidia-smi -pm 1`, or `systemctl enable --now nvidia-persistenced`",
        ),
    })
}

fn nvrtc(facts: &Facts) -> Finding {
    let is_systems = facts.units.iter().any(|unit| unit.load == "loaded");
    match &facts.nvrtc {
        Some((file, true)) if is_systems => Finding::new(
            Level::Warning,
            "nvrtc",
            format!("only this user has the compiler of kernels, {}", file.display()),
            "copy the files beside it to /usr/lib/m40d for the system's m40d",
        ),
        Some((file, _)) => Finding::ok("nvrtc", file.display().to_string()),
        None => Finding::new(
            Level::Problem,
            "nvrtc",
            "no libnvrtc.so.12, which compiles a model's kernels when it is first loaded",
            "`make nvrtc` in m40d's sources, or name it in M40_NVRTC",
        ),
    }
}

fn memlock(facts: &Facts) -> Option<Finding> {
    let bytes = facts.memlock?;
    Some(match bytes {
        u64::MAX => Finding::ok("memlock", "no limit"),
        MEMLOCK_BYTES.. => Finding::ok("memlock", format!("{} MiB", bytes >> 20)),
        _ => Finding::new(
            Level::Note,
            "memlock",
            format!("{} MiB may be locked, which may be too little for pinned memory", bytes >> 20),
            "LimitMEMLOCK=infinity in `systemctl edit m40d`, or `ulimit -l unlimited`",
        ),
    })
}

#[cfg(test)]
mod tests;
