//! Sockets that systemd holds for the service, and a watchdog that ends one that hangs.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use m40_testkit::http;

use crate::machine::{HTTP, Machine, Plan};

/// Clients that ask all the time while the service is started again.
const CLIENTS: usize = 4;
/// How often it is.
const RESTARTS: usize = 3;

/// The service, stopped, and its sockets, which systemd holds.
fn with_sockets() -> Option<Machine> {
    let machine = Plan::new()?.boot_and_install()?;
    machine.ok("systemctl stop m40d && systemctl enable --now m40d.socket");
    Some(machine)
}

#[test]
fn it_starts_when_somebody_connects() {
    let Some(machine) = with_sockets() else { return };
    let state = || machine.property("m40d", "ActiveState");
    assert_eq!(machine.ok("stat -c '%U:%G %a' /run/m40d/control.sock"), "m40d:m40d 660");
    assert_eq!(state(), "inactive");
    machine.ok("m40ctl status");
    assert_eq!(state(), "active");

    // The sockets stay, and with them the way in.
    machine.run("systemctl stop m40d");
    assert_eq!(state(), "inactive");
    assert_eq!(machine.get("/health", &[]).status, 200);
    assert_eq!(state(), "active");
    machine.ok("m40ctl status");

    machine.ok("systemctl stop m40d.socket m40d");
    assert!(!machine.path("/run/m40d/control.sock").exists());
    machine.ok("systemctl start m40d && m40ctl status");
}

#[test]
fn an_instance_starts_when_somebody_connects_to_its_sockets() {
    let Some(machine) = Plan::new().and_then(Plan::boot_and_install) else { return };
    machine.write("/etc/m40d-1/m40d.toml", "");
    machine.ok("systemctl enable --now m40d@1.socket");
    let state = || machine.property("m40d@1", "ActiveState");
    assert_eq!(machine.ok("stat -c '%U:%G %a' /run/m40d-1/control.sock"), "m40d:m40d 660");
    assert_eq!(state(), "inactive");
    let said = machine.ok("M40_SOCKET=/run/m40d-1/control.sock m40ctl status");
    assert!(said.contains("http://127.0.0.1:11441\n"), "{said}");
    assert_eq!(state(), "active");

    machine.run("systemctl stop m40d@1");
    assert_eq!(state(), "inactive");
    let health = || http::request(([127, 0, 0, 1], 11441).into(), "GET", "/health", None).status;
    assert_eq!(machine.inside(health), 200);
    assert_eq!(state(), "active");

    machine.ok("dpkg --remove m40d");
    assert!(!machine.path("/run/m40d-1/control.sock").exists());
}

#[test]
fn restarts_under_load_refuse_nobody() {
    let Some(machine) = with_sockets() else { return };
    machine.ok("systemctl start m40d");
    let is_over = AtomicBool::new(false);
    let ask = || {
        let mut answers = 0;
        while !is_over.load(Ordering::Relaxed) {
            // Fails the test when the connection is refused, or ends without an answer.
            let answer = http::request(HTTP.into(), "GET", "/v1/models", None);
            let told_that_it_stops = answer.status == 503 && answer.body.contains("stopping");
            assert!(answer.status == 200 || told_that_it_stops, "{answer:?}");
            answers += usize::from(answer.status == 200);
        }
        answers
    };
    let answers = machine.inside(|| {
        thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(ask)).collect();
            let restarts = (0..RESTARTS).map(|_| machine.run("systemctl restart m40d"));
            let done = restarts.filter(|output| output.status.success()).count();
            is_over.store(true, Ordering::Relaxed);
            assert_eq!(done, RESTARTS);
            let answers = clients.into_iter().map(|client| client.join().expect("an answer"));
            answers.collect::<Vec<usize>>()
        })
    });
    assert!(answers.iter().all(|&count| count > 0), "{answers:?}");
}

#[test]
fn a_service_that_hangs_is_killed_and_comes_back() {
    let Some(machine) = Plan::new().and_then(Plan::boot_and_install) else { return };
    assert_eq!(machine.property("m40d", "WatchdogUSec"), "1min");
    let drop_in = "[Service]\nWatchdogSec=2s\n";
    machine.write("/etc/systemd/system/m40d.service.d/watchdog.conf", drop_in);
    machine.ok("systemctl daemon-reload && systemctl restart m40d");

    let control = UnixStream::connect(machine.path("/run/m40d/control.sock")).unwrap();
    let request = b"POST /test/hang HTTP/1.1\r\nhost: m40d\r\nconnection: close\r\n\r\n";
    let answer = http::exchange(control, request);
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    machine.wait_for_log("m40d", "Watchdog timeout", 1);
    machine.wait_for_log("m40d", "Started m40d.service", 3);
    machine.ok("m40ctl status");
    assert_eq!(machine.property("m40d", "Result"), "success");
}
