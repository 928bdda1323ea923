//! Who may use the control socket.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

use crate::{Done, M40CTL, builder, ctl};

/// The user that owns nothing.
const NOBODY: u32 = 65534;

#[test]
fn the_socket_is_for_its_owner_and_group() {
    let daemon = builder().start();
    let mode = fs::metadata(daemon.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    ctl(&daemon, &["status"]).ok();
}

#[test]
fn strangers_are_refused_even_through_an_open_socket() {
    // Only root can become somebody else to try.
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let daemon = builder().start();
    let as_nobody = || {
        let program = daemon.dir().join("m40ctl");
        let mut command = daemon.ctl(program, &["status"]);
        Done::from(&command.uid(NOBODY).gid(NOBODY).output().unwrap())
    };
    // Built programs may lie where nobody may look.
    fs::copy(M40CTL, daemon.dir().join("m40ctl")).unwrap();
    for dir in [daemon.dir(), &daemon.dir().join("run")] {
        fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).unwrap();
    }
    as_nobody().fails(77, &["no permission", "group"]);
    fs::set_permissions(daemon.socket(), PermissionsExt::from_mode(0o666)).unwrap();
    as_nobody().fails(77, &["only root", "[control] group"]);
}
