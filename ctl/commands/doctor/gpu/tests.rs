use std::collections::BTreeSet;

use super::super::check_odd;
use super::super::facts::bare;
use super::super::machine::Node;
use super::super::service::Unit;
use super::*;

fn gpu(driver: Option<&str>) -> Gpu {
    Gpu {
        address: "0000:03:00.0".parse().expect("an address"),
        device: 0x17fd,
        driver: driver.map(str::to_owned),
        lanes: Some((16, 16)),
        speed: Some(("8.0 GT/s PCIe".into(), "8.0 GT/s PCIe".into())),
    }
}

/// A machine with a Tesla M40 on which models run, where all is well.
fn with_card() -> Facts {
    let gpu = gpu(Some("nvidia"));
    let card = CardReading {
        temperature_c: Some(54),
        slowdown_c: Some(91),
        power_mw: Some(61_000),
        sm_mhz: Some(1112),
        sm_mhz_max: Some(1112),
        throttle: Some(BTreeSet::from([ThrottleReason::GpuIdle])),
        ecc: Some(false),
        ecc_pending: Some(false),
        persistence: Some(true),
        memory_bytes: Some(24_026_021_888),
        ..CardReading::new(gpu.address)
    };
    let node = |path: &str| Node { path: path.into(), state: NodeState::Usable };
    let mut facts = Facts {
        gpus: vec![gpu],
        driver: Some(Driver { version: "535.183.01".into(), open: false }),
        nodes: vec![node("/dev/nvidiactl"), node("/dev/nvidia-uvm"), node("/dev/nvidia0")],
        cards: Ok(vec![card]),
        nvrtc: Some(("/usr/lib/m40d/libnvrtc.so.12".into(), false)),
        memlock: Some(u64::MAX),
        ..bare()
    };
    set_device(&mut facts, "cuda");
    facts
}

fn set_device(facts: &mut Facts, device: &str) {
    let settings = facts.check.as_mut().ok().and_then(|check| check.settings.as_mut());
    settings.expect("it has some").device = device.to_owned();
}

/// The one finding that is not as it should be after this was changed must be of this level and check,
/// and say all of this.
#[track_caller]
fn check(change: impl FnOnce(&mut Facts), level: Level, of: &str, says: &[&str]) {
    let mut facts = with_card();
    change(&mut facts);
    check_odd(&findings(&facts), level, of, says);
}

fn card(facts: &mut Facts) -> &mut CardReading {
    &mut facts.cards.as_mut().expect("there is one")[0]
}

#[test]
fn a_machine_without_a_gpu_is_well_unless_one_is_asked_for() {
    let mut facts = bare();
    assert_eq!(findings(&facts), [Finding::ok("gpu", "no GPU: m40d runs on the CPU")]);
    set_device(&mut facts, "cuda");
    assert_eq!(findings(&facts)[0].level, Level::Problem);
}

#[test]
fn a_card_that_is_well_has_findings_that_say_so() {
    let findings = findings(&with_card());
    assert!(findings.iter().all(|finding| finding.level == Level::Ok), "{findings:#?}");
    let checks: Vec<_> = findings.iter().map(|finding| finding.check).collect();
    let all = ["gpu", "driver", "devices", "pcie", "heat", "clocks", "ecc", "persistence"];
    assert_eq!(checks, [&all[..], &["nvrtc", "memlock"]].concat());
    let unused = |facts: &mut Facts| set_device(facts, "cpu");
    check(
        unused,
        Level::Note,
        "device",
        &["runs on the CPU".replace("runs", "run").as_str(), "cuda"],
    );
}

#[test]
fn the_driver_must_know_the_card() {
    let of = |version: &'static str, open| {
        move |facts: &mut Facts| facts.driver = Some(Driver { version: version.into(), open })
    };
    check(of("580.126.09", false), Level::Note, "driver", &["last branch", "apt-mark hold"]);
    let newer = ["590.48.01 does not know this card", "nvidia-driver-580"];
    check(of("590.48.01", false), Level::Problem, "driver", &newer);
    check(of("580.126.09", true), Level::Problem, "driver", &["open kernel modules", "Turing"]);
    check(of("470.239.06", false), Level::Warning, "driver", &["older than CUDA 12"]);
    check(of("garbage", false), Level::Warning, "driver", &["garbage"]);
    let nouveau = |facts: &mut Facts| {
        (facts.gpus, facts.driver) = (vec![gpu(Some("nouveau"))], None);
    };
    check(nouveau, Level::Problem, "gpu", &["nouveau", "nvidia-driver-580"]);
    let none = |facts: &mut Facts| (facts.gpus, facts.driver) = (vec![gpu(None)], None);
    check(none, Level::Problem, "gpu", &["no driver", "0000:03:00.0"]);
    let kepler = |facts: &mut Facts| facts.gpus[0].device = 0x102d;
    check(kepler, Level::Warning, "gpu", &["older than Maxwell"]);
    let mut turing = with_card();
    turing.gpus[0].device = 0x1eb8;
    turing.driver = Some(Driver { version: "590.48.01".into(), open: true });
    assert!(findings(&turing).iter().all(|finding| finding.level == Level::Ok));
}

#[test]
fn cuda_must_get_at_the_card() {
    let node = |state| move |facts: &mut Facts| facts.nodes[1].state = state;
    let uvm = ["/dev/nvidia-uvm is not there", "nvidia-modprobe -u"];
    check(node(NodeState::Missing), Level::Warning, "devices", &uvm);
    check(node(NodeState::Denied), Level::Note, "devices", &["/dev/nvidia-uvm", "group"]);
    let slow = |facts: &mut Facts| facts.gpus[0].lanes = Some((4, 16));
    check(slow, Level::Warning, "pcie", &["x4 of x16", "4 times slower", "slot"]);
    let asleep = |facts: &mut Facts| {
        facts.gpus[0].speed = Some(("2.5 GT/s PCIe".into(), "8.0 GT/s PCIe".into()));
    };
    check(asleep, Level::Note, "pcie", &["2.5 GT/s PCIe of 8.0 GT/s PCIe", "m40ctl bench"]);
    let mute = |facts: &mut Facts| facts.cards = Err("version mismatch".into());
    check(mute, Level::Warning, "nvml", &["version mismatch", "start the machine again"]);
}

#[test]
fn a_card_that_is_hot_or_held_back_says_so() {
    let heat = |degrees| move |facts: &mut Facts| card(facts).temperature_c = Some(degrees);
    check(heat(86), Level::Warning, "heat", &["86 °C, 61 W", "91 °C", "air"]);
    check(heat(91), Level::Problem, "heat", &["91 °C", "air"]);
    let reason =
        |reason| move |facts: &mut Facts| card(facts).throttle = Some(BTreeSet::from([reason]));
    let hot = ThrottleReason::HwThermalSlowdown;
    check(reason(hot), Level::Warning, "clocks", &["too hot", "air"]);
    check(reason(ThrottleReason::HwSlowdown), Level::Warning, "clocks", &["power plugs"]);
    check(reason(ThrottleReason::SwPowerCap), Level::Note, "clocks", &["-pl"]);
    let set = ThrottleReason::ApplicationsClocksSetting;
    check(reason(set), Level::Note, "clocks", &["1112 MHz", "nvidia-smi -ac"]);
    let forgets = |facts: &mut Facts| card(facts).persistence = Some(false);
    check(forgets, Level::Note, "persistence", &["nvidia-smi -pm 1"]);
}

#[test]
fn ecc_costs_a_sixteenth_of_an_m40() {
    let on = |facts: &mut Facts| {
        let card = card(facts);
        (card.ecc, card.ecc_pending) = (Some(true), Some(true));
        // What is left of 24 GiB.
        card.memory_bytes = Some((24 << 30) / 16 * 15);
    };
    check(on, Level::Note, "ecc", &["1536 MiB, a sixteenth", "nvidia-smi -i 0000:03:00.0 -e 0"]);
    let switched = |facts: &mut Facts| card(facts).ecc_pending = Some(true);
    check(switched, Level::Note, "ecc", &["next start"]);
    let broken = |facts: &mut Facts| card(facts).ecc_uncorrected = Some(3);
    check(broken, Level::Problem, "ecc", &["3 errors", "-r"]);
}

#[test]
fn what_a_model_on_a_gpu_needs_is_there() {
    let none = |facts: &mut Facts| facts.nvrtc = None;
    check(none, Level::Problem, "nvrtc", &["libnvrtc.so.12", "M40_NVRTC"]);
    let own = |facts: &mut Facts| {
        facts.nvrtc = Some(("/home/u/.cache/m40d/libnvrtc.so.12".into(), true));
        facts.units = vec![Unit { load: "loaded".into(), ..Unit::default() }];
    };
    check(own, Level::Warning, "nvrtc", &["only this user", "/usr/lib/m40d"]);
    let little = |facts: &mut Facts| facts.memlock = Some(8 << 20);
    check(little, Level::Note, "memlock", &["8 MiB", "LimitMEMLOCK=infinity"]);
}
