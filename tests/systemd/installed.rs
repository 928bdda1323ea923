//! What is installed, upgraded, removed and purged.

use std::process::Command;

use m40_testkit::gguf::TinyModel;

use crate::machine::Plan;
use crate::package;

#[test]
fn an_upgrade_restarts_it_and_keeps_state_which_goes_with_a_purge() {
    let Some(machine) = Plan::new().and_then(Plan::boot_and_install) else { return };
    let models = || machine.ok("m40ctl list --json");
    let pid = || machine.property("m40d", "MainPID");
    std::fs::write(machine.path("/srv/tiny.gguf"), TinyModel::new("llama").build()).unwrap();
    machine.ok("m40ctl pull /srv/tiny.gguf --name kept");
    machine.ok("echo '# changed' >> /etc/m40d/m40d.toml");
    let (before, first) = (models(), pid());
    assert!(before.contains("\"kept\""), "{before}");

    let (_folder, newer) = package::newer();
    machine.install(&newer);
    assert_eq!(machine.ok("dpkg-query -W -f '${Version}' m40d"), "1000.0");
    assert_ne!(pid(), first);
    assert_eq!(models(), before);
    machine.ok("grep -q '# changed' /etc/m40d/m40d.toml");

    // Whoever disabled it wants it so after an upgrade, too.
    machine.ok("systemctl disable --now m40d");
    machine.install(&newer);
    assert_eq!(machine.property("m40d", "ActiveState"), "inactive");
    assert_eq!(machine.run("systemctl is-enabled m40d").stdout, b"disabled\n");
    machine.ok("systemctl enable --now m40d");

    machine.ok("dpkg --remove m40d");
    assert_eq!(machine.property("m40d", "ActiveState"), "inactive");
    assert_ne!(machine.ok("find /var/lib/m40d -name 'kept*'"), "");
    machine.ok("grep -q '# changed' /etc/m40d/m40d.toml");

    machine.ok("dpkg --purge m40d");
    let left = "find /etc /usr/bin /usr/lib/systemd /var/lib /var/cache /run -name 'm40*'";
    assert_eq!(machine.ok(left), "");
    assert_eq!(machine.ok("systemctl list-units --all --no-legend 'm40d*'"), "");
}

#[test]
fn what_root_left_when_it_ran_m40d_itself_is_taken_over() {
    let Some(machine) = Plan::new().and_then(Plan::boot) else { return };
    machine.ok("mkdir -p /var/lib/m40d/models && touch /var/lib/m40d/lock");
    machine.install(package::built());
    assert_eq!(machine.ok("systemctl is-active m40d"), "active");
}

#[test]
fn an_installation_is_below_its_prefix_and_leaves_what_is_configured() {
    let folder = tempfile::tempdir().unwrap();
    let path = |place: &str| folder.path().join(place);
    let install = || {
        let mut install = package::script("install", "m40d", package::programs());
        install.env("DESTDIR", folder.path()).env("PREFIX", "/opt/m40d");
        let output = install.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    install();
    let read = |place: &str| std::fs::read_to_string(path(place)).unwrap();
    let unit = read("opt/m40d/lib/systemd/system/m40d.service");
    assert!(unit.contains("\nExecStart=/opt/m40d/bin/m40d\n"), "{unit}");
    assert!(read("opt/m40d/share/bash-completion/completions/m40ctl").contains("complete -o"));
    assert!(read("etc/m40d/m40d.toml").contains("\ngroup = \"m40d\"\n"));

    std::fs::write(path("etc/m40d/m40d.toml"), "mine").unwrap();
    install();
    assert_eq!(read("etc/m40d/m40d.toml"), "mine");
}

/// What a program prints that must succeed.
#[track_caller]
fn printed(command: &mut Command) -> String {
    let output = command.output().expect("a program of Debian");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("a text")
}

#[test]
fn packages_say_their_own_version_and_what_has_changed() {
    if Plan::new().is_none() {
        return;
    }
    for (name, (_folder, package)) in
        [("m40d", package::newer()), ("libm40llm-dev", package::newer_for_c())]
    {
        let folder = tempfile::tempdir().unwrap();
        printed(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(folder.path()));
        let changelog = folder.path().join(format!("usr/share/doc/{name}/changelog.Debian.gz"));
        let changelog = printed(Command::new("gzip").arg("-dc").arg(changelog));
        let lines: Vec<_> = changelog.lines().collect();
        let [heading, "", change, "", ending] = lines[..] else { panic!("{changelog}") };
        assert_eq!(heading, format!("{name} ({}) unstable; urgency=medium", package::NEWER));
        assert!(change.starts_with("  * Version 1000.0 of m40d"), "{change}");
        let (author, date) = ending.split_once(">  ").unwrap();
        assert_eq!(author, " -- The m40d authors <m40d@localhost");
        printed(Command::new("date").args(["--date", date]));

        if name == "libm40llm-dev" {
            let pkg_config = folder.path().join("usr/lib/pkgconfig/m40llm.pc");
            let pkg_config = std::fs::read_to_string(pkg_config).unwrap();
            assert!(pkg_config.contains("\nVersion: 1000.0\n"), "{pkg_config}");
        }
    }
}
