//! The card that the daemon looks after, played by a library that takes what it says from a file.

use std::time::{Duration, Instant};

use m40_nvml_fake::{CARD_VARIABLE, Sheet, library};
use m40_testkit::daemon::{Builder, Daemon};
use m40_testkit::gguf::TinyModel;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{builder, ctl, endless, load, path_str};

/// How long the daemon may take to see what its card says.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A daemon on the CPU that looks after a card, with more lines for `[gpu]`.
fn with_card(lines: &str) -> (Builder, Sheet) {
    let builder = builder();
    let path = builder.dir().join("card");
    let sheet = Sheet::m40(&path);
    let section = format!("[gpu]\ncare = \"0000:03:00.0\"\n{lines}");
    let builder = builder.config(&section).env("M40_NVML", path_str(&library()));
    (builder.env(CARD_VARIABLE, path_str(&path)), sheet)
}

fn status(daemon: &Daemon) -> Value {
    ctl(daemon, &["status", "--json"]).ok().json()["card"].clone()
}

/// Waits until the daemon says this of its card, and returns all that it says.
#[track_caller]
fn until(daemon: &Daemon, is: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + TIMEOUT;
    loop {
        let card = status(daemon);
        if is(&card) {
            return card;
        }
        assert!(Instant::now() < end, "it never was: {card}");
    }
}

fn answer(tokens: u32, stream: bool) -> Value {
    json!({"prompt": "a", "stream": stream, "ignore_eos": true, "max_tokens": tokens})
}

#[test]
fn what_a_card_says_is_in_status_top_and_metrics() {
    let (builder, mut sheet) = with_card("");
    let daemon = builder.start();
    let card = status(&daemon);
    assert_eq!((&card["name"], &card["temperature_c"]), (&json!("Tesla M40 24GB"), &json!(54)));
    assert_eq!((&card["energy_mj"], &card["care"]["limit_c"]), (&json!(null), &json!(88)));
    for command in [["status"].as_slice(), &["top", "-n", "1"]] {
        let text = ctl(&daemon, command).ok().out;
        for part in ["Tesla M40 24GB", "54 of 91 C", "187 of 250 W", "PCIe 3 x16", "535.183.01"] {
            assert!(text.contains(part), "no {part} in\n{text}");
        }
        assert!(!text.contains("hot"), "{text}");
    }
    sheet.set("power", 62_000);
    sheet.remove("sm_clock");
    let text = daemon.get("/metrics").body;
    for line in [
        "m40d_gpu_power_usage_watts 62.0",
        "m40d_gpu_temperature_celsius 54.0",
        "m40d_gpu_memory_clock_hertz 3004000000.0",
        "m40d_gpu_throttle_reason{reason=\"hw_thermal_slowdown\"} 0",
        "m40d_gpu_pcie_throughput_bytes_per_second{direction=\"rx\"} 250000.0",
        "m40d_gpu_duty_ratio 1.0",
    ] {
        assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
    }
    assert!(!text.contains("m40d_gpu_sm_clock_hertz"), "{text}");
}

#[test]
fn a_hot_card_gets_pauses_and_no_new_work_until_it_is_cooler() {
    let (builder, mut sheet) = with_card("temperature_c_max = 80");
    let daemon = endless(builder);
    let mut running = daemon.post_stream("/generate", &answer(50_000, true));
    running.line().unwrap();
    assert_eq!(status(&daemon)["care"]["duty"], json!(1.0));

    sheet.set("temperature", 75);
    until(&daemon, |card| card["care"]["duty"] == json!(0.5));
    let text = ctl(&daemon, &["status"]).ok().out;
    assert!(text.contains("passes run 50 % of the time, at 75 C"), "{text}");
    // Tokens come all the same, each after a pause.
    let paused = until(&daemon, |card| card["care"]["paused_ms"].as_u64() > Some(0));
    let before = paused["care"]["paused_ms"].as_u64();
    (0..20).for_each(|_| assert!(running.line().is_some()));
    until(&daemon, |card| card["care"]["paused_ms"].as_u64() > before);

    sheet.set("temperature", 80);
    until(&daemon, |card| card["care"]["holds"] == json!(true));
    std::thread::scope(|scope| {
        let new = scope.spawn(|| daemon.post("/generate", &answer(1, false)));
        let load = scope.spawn(|| ctl(&daemon, &["load", "tiny"]));
        until(&daemon, |card| card["care"]["held"] == json!(2));
        let text = ctl(&daemon, &["status"]).ok().out;
        assert!(text.contains("2 requests wait until it is cooler than 80 C"), "{text}");
        assert!(!new.is_finished() && !load.is_finished());
        let late = json!({"prompt": "a", "max_tokens": 1, "deadline_s": 0.01});
        assert_ne!(daemon.post("/generate", &late).status, 200);
        // What runs goes on.
        assert!(running.line().is_some());
        sheet.set("temperature", 60);
        assert_eq!(new.join().unwrap().status, 200);
        load.join().unwrap().ok();
    });
    let cool = until(&daemon, |card| card["care"]["holds"] == json!(false));
    assert_eq!(cool["care"]["held"], json!(0));
    // All of it is given back, in steps.
    until(&daemon, |card| card["care"]["duty"].as_f64() > Some(0.2));
    let log = daemon.log();
    for said in ["the card is hot", "new work waits", "takes new work again"] {
        assert_eq!(log.matches(said).count(), 1, "{said} in\n{log}");
    }
}

#[test]
fn who_waits_for_a_hot_card_is_told_when_the_daemon_stops() {
    let (builder, mut sheet) = with_card("");
    let mut daemon = endless(builder.config("[limits]\nshutdown_grace_s = 0"));
    let mut running = daemon.post_stream("/generate", &answer(50_000, true));
    running.line().unwrap();
    sheet.set("throttle", 0x40);
    sheet.set("temperature", 89);
    until(&daemon, |card| card["care"]["holds"] == json!(true));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| daemon.post("/generate", &answer(1, false)));
        until(&daemon, |card| card["care"]["held"] == json!(1));
        daemon.signal(Signal::SIGTERM);
        let told = waiting.join().unwrap();
        assert_eq!((told.status, &told.json()["error"]["code"]), (503, &json!("stopping")));
    });
    assert!(daemon.wait().success());
}

#[test]
fn an_idle_card_has_low_clocks_and_those_from_before_for_work_and_after_the_end() {
    let (builder, sheet) = with_card("park_after_s = 1");
    let mut daemon = load(builder, &TinyModel::new("llama"));
    let parked = |card: &Value| card["care"]["parked"] == json!(true);
    until(&daemon, parked);
    assert_eq!(sheet.was_set(), ["324 324"]);
    assert!(ctl(&daemon, &["status"]).ok().out.contains("its clocks are lowered"));
    assert_eq!(daemon.post("/generate", &answer(3, false)).status, 200);
    until(&daemon, |card| parked(card) && sheet.was_set().len() == 3);
    assert_eq!(sheet.was_set(), ["324 324", "reset", "324 324"]);
    assert!(daemon.stop().success());
    assert_eq!(sheet.was_set()[3..], ["reset"]);
}

#[test]
fn who_may_not_set_clocks_is_told_once_what_would_help() {
    let (builder, mut sheet) = with_card("park_after_s = 1");
    sheet.set("clocks_permitted", 0);
    let daemon = load(builder, &TinyModel::new("llama"));
    let end = Instant::now() + TIMEOUT;
    while !daemon.log().contains("nvidia-smi -acp UNRESTRICTED") {
        assert!(Instant::now() < end, "{}", daemon.log());
    }
    assert_eq!(status(&daemon)["care"]["parked"], json!(false));
    assert!(sheet.was_set().is_empty());
}

#[test]
fn an_error_of_the_card_ends_the_daemon_after_its_answers_and_one_of_a_process_does_not() {
    let (builder, mut sheet) = with_card("");
    let mut daemon = load(builder, &TinyModel::new("llama"));
    sheet.set("xid", "1 31");
    until(&daemon, |card| card["care"]["xid"] == json!(31));
    assert_eq!(daemon.post("/generate", &answer(2, false)).status, 200);
    assert!(daemon.get("/metrics").body.contains("m40d_gpu_xid_errors 31.0\n"));
    assert!(daemon.log().contains("an error of a process"), "{}", daemon.log());

    sheet.set("xid", "2 79");
    daemon.notification("STOPPING=1");
    assert_eq!(daemon.wait().code(), Some(71));
    let log = daemon.log();
    assert!(log.contains("Xid 79: the card has fallen off the bus"), "{log}");
    assert!(log.lines().last().is_some_and(|line| line.contains("the GPU failed")), "{log}");
}

#[test]
fn a_card_that_is_not_there_any_more_ends_the_daemon_too() {
    let (builder, mut sheet) = with_card("");
    let mut daemon = builder.start();
    sheet.set("lost", 1);
    assert_eq!(daemon.wait().code(), Some(71));
    assert!(daemon.log().contains("not there any more"), "{}", daemon.log());
}

#[test]
fn without_a_card_or_its_library_nothing_happens_and_nothing_is_said() {
    let (with_card, _sheet) = with_card("");
    for builder in [
        builder(),
        with_card.clone().env("M40_NVML", "/nowhere/libnvidia-ml.so.1"),
        // On the CPU there is no card to look after.
        builder().env("M40_NVML", path_str(&library())),
    ] {
        let daemon = load(builder, &TinyModel::new("llama"));
        assert_eq!(status(&daemon), json!(null));
        assert_eq!(daemon.post("/generate", &answer(2, false)).status, 200);
        assert!(!daemon.get("/metrics").body.contains("m40d_gpu"));
        assert!(!daemon.log().contains("card"), "{}", daemon.log());
    }
}
