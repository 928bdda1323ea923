//! The service as systemd runs it.

use crate::machine::Plan;

#[test]
fn it_runs_once_it_is_installed_and_its_group_may_administer_it() {
    let Some(machine) = Plan::new().and_then(Plan::boot_and_install) else { return };
    assert_eq!(machine.ok("systemctl is-active m40d"), "active");
    assert_eq!(machine.ok("systemctl is-enabled m40d"), "enabled");
    let status = machine.property("m40d", "StatusText");
    assert!(status.starts_with("serving on http://127.0.0.1:11434, cpu"), "{status}");
    assert_eq!(machine.get("/health", &[]).status, 200);

    let pid = machine.property("m40d", "MainPID");
    assert_eq!(machine.ok(&format!("stat -c %U:%G /proc/{pid}")), "m40d:m40d");
    assert_eq!(machine.ok("stat -c '%U:%G %a' /run/m40d/control.sock"), "m40d:m40d 660");
    assert_eq!(machine.ok("stat -c '%U:%G %a' /var/lib/m40d"), "m40d:m40d 750");
    let said = machine.ok("m40ctl status");
    assert!(said.contains("state    /var/lib/m40d\n"), "{said}");
    machine.ok("setpriv --reuid nobody --regid m40d --clear-groups m40ctl status");
    let other = machine.run("setpriv --reuid nobody --regid nogroup --clear-groups m40ctl status");
    assert_eq!(other.status.code(), Some(77), "{other:?}");
}

#[test]
fn it_is_reloaded_restarted_and_stopped() {
    let Some(machine) = Plan::new().and_then(Plan::boot_and_install) else { return };
    let pid = || machine.property("m40d", "MainPID");
    let first = pid();
    machine.write("/etc/m40d/models.d/wrong.toml", "nonsense");
    machine.ok("systemctl reload m40d");
    machine.wait_for_log("m40d", "configuration reread, nothing changed", 1);
    assert_eq!(pid(), first);

    machine.ok("systemctl restart m40d");
    assert_ne!(pid(), first);
    let status = machine.property("m40d", "StatusText");
    assert!(status.contains("a manifest is wrong: "), "{status}");

    machine.ok(&format!("kill -KILL {}", pid()));
    machine.wait_for_log("m40d", "Started m40d.service", 3);
    assert_eq!(machine.property("m40d", "NRestarts"), "1");
    machine.ok("m40ctl status");

    machine.ok("systemctl stop m40d");
    assert_eq!(machine.property("m40d", "Result"), "success");
    assert_eq!(machine.run("m40ctl status").status.code(), Some(69));
    assert_eq!(machine.ok("systemctl list-units --failed --no-legend"), "");
}

#[test]
fn keys_are_a_credential_that_nobody_else_can_read() {
    let Some(machine) = Plan::new().and_then(Plan::boot_and_install) else { return };
    let said = machine.ok("m40ctl key new laptop --json");
    let made: serde_json::Value = serde_json::from_str(&said).unwrap();
    machine.write("/etc/m40d/keys.toml", made["line"].as_str().unwrap());
    machine.ok("chmod 600 /etc/m40d/keys.toml");
    machine.ok("echo '[http]\nkeys = \"keys.toml\"\nmetrics = \"keys\"' > /etc/m40d/m40d.toml");
    let drop_in = "[Service]\nLoadCredential=keys.toml:/etc/m40d/keys.toml\n";
    machine.write("/etc/systemd/system/m40d.service.d/keys.conf", drop_in);
    machine.ok("systemctl daemon-reload && systemctl restart m40d");

    assert_eq!(machine.get("/v1/models", &[]).status, 401);
    let key = format!("Bearer {}", made["key"].as_str().unwrap());
    assert_eq!(machine.get("/v1/models", &[("authorization", &key)]).status, 200);
    let readers = "setpriv --reuid m40d --regid m40d --clear-groups cat /etc/m40d/keys.toml";
    assert!(!machine.run(readers).status.success());
}

#[test]
fn an_instance_has_its_own_files_and_sees_its_own_card() {
    let Some(machine) = Plan::new().and_then(Plan::boot_and_install) else { return };
    assert!(!machine.run("systemctl start m40d@1").status.success());
    machine.write("/etc/m40d-1/m40d.toml", "[http]\nlisten = \"127.0.0.1:11435\"\n");
    machine.ok("systemctl start m40d@1");
    let said = machine.ok("M40_SOCKET=/run/m40d-1/control.sock m40ctl status");
    for place in ["http://127.0.0.1:11435\n", "/var/lib/m40d-1\n", "/etc/m40d-1/m40d.toml\n"] {
        assert!(said.contains(place), "{said}");
    }
    let pid = machine.property("m40d@1", "MainPID");
    let environment = machine.ok(&format!("tr '\\0' '\\n' < /proc/{pid}/environ"));
    assert!(environment.lines().any(|line| line == "CUDA_VISIBLE_DEVICES=1"), "{environment}");
    assert_ne!(pid, machine.property("m40d", "MainPID"));
    machine.ok("m40ctl status");

    let doctor = || String::from_utf8(machine.run("m40ctl doctor").stdout).unwrap();
    for said in
        ["m40d.service is active and enabled", "m40d@1.service is active, and does not start"]
    {
        assert!(doctor().contains(said), "{}", doctor());
    }
    machine.ok("systemctl disable --now m40d && systemctl enable m40d@1");
    assert!(doctor().contains("m40d@1.service is active and enabled"), "{}", doctor());
    assert!(!doctor().contains("m40d.service is"), "{}", doctor());
}

#[test]
fn an_address_that_comes_late_is_waited_for_and_what_cannot_be_made_is_not() {
    let Some(machine) = Plan::new().and_then(Plan::boot_and_install) else { return };
    let late = "[http]\nlisten = \"192.0.2.1:11434\"\ninsecure = true\n";
    machine.write("/etc/m40d/m40d.toml", late);
    assert!(!machine.run("systemctl restart m40d").status.success());
    machine.wait_for_log("m40d", "does not have the address of 192.0.2.1:11434", 2);
    machine.ok("ip address add 192.0.2.1/32 dev lo");
    machine.wait_for_log("m40d", "Started m40d.service", 2);
    machine.ok("m40ctl status");

    let in_the_way = "[control]\nsocket = \"/etc/m40d/m40d.toml\"\n";
    machine.write("/etc/m40d/m40d.toml", in_the_way);
    assert!(!machine.run("systemctl restart m40d").status.success());
    assert_eq!(machine.property("m40d", "ActiveState"), "failed");
    assert_eq!(machine.property("m40d", "ExecMainStatus"), "73");
}
