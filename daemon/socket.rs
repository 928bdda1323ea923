//! The control socket: made with its mode and group, replaced when stale, removed at the end;
//! and who may use it.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Group, Uid, User};
use tokio::net::UnixListener;
use tokio::net::unix::UCred;

use crate::config::Control;
use crate::exit::Failure;

/// The socket's path; removes it when dropped.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody else may have removed it, which is what is wanted.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Makes the socket. A stale one (nobody listens) is replaced.
pub(crate) fn bind(
    config: &Control,
    access: &Access,
) -> Result<(UnixListener, SocketFile), Failure> {
    let path = &config.socket;
    let create = |action| move |source| Failure::Create { action, path: path.clone(), source };
    if let Some(dir) = path.parent() {
        make_dir(dir)?;
    }
    remove_stale(path)?;
    let listener = UnixListener::bind(path).map_err(create("make the control socket"))?;
    let file = SocketFile { path: path.clone() };
    if let Some(gid) = access.group {
        std::os::unix::fs::chown(path, None, Some(gid.as_raw()))
            .map_err(create("give [control] group to the control socket"))?;
    }
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o660))
        .map_err(create("set the mode of the control socket"))?;
    Ok((listener, file))
}

fn make_dir(dir: &Path) -> Result<(), Failure> {
    let created = std::fs::create_dir_all(dir);
    created.map_err(|source| Failure::Create {
        action: "make the runtime folder",
        path: dir.to_path_buf(),
        source,
    })
}

fn remove_stale(path: &Path) -> Result<(), Failure> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(Failure::NotASocket { path: path.to_path_buf() });
        }
        _ => {}
    }
    match StdUnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(socket = %path.display(), "replacing a stale control socket");
            std::fs::remove_file(path).map_err(|source| Failure::Create {
                action: "replace the stale socket",
                path: path.to_path_buf(),
                source,
            })
        }
        Err(source) => Err(Failure::Create {
            action: "find out who listens on",
            path: path.to_path_buf(),
            source,
        }),
        Ok(_) => Err(Failure::SocketInUse { socket: path.to_path_buf() }),
    }
}

/// Who may use the control socket: root, the daemon's own user, and members of one group.
/// The socket's mode says the same; the peer's credentials are checked as well, because a mode
/// can be changed and a descriptor can be handed on.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    own: Uid,
    group: Option<Gid>,
}

impl Access {
    pub(crate) fn new(config: &Control) -> Result<Self, Failure> {
        let group = config.group.as_deref().map(find_group).transpose()?;
        Ok(Self { own: nix::unistd::geteuid(), group })
    }

    /// Whether the peer may use the socket.
    pub(crate) fn allows(&self, peer: UCred) -> bool {
        let uid = Uid::from_raw(peer.uid());
        if uid.is_root() || uid == self.own {
            return true;
        }
        self.group.is_some_and(|group| Gid::from_raw(peer.gid()) == group || is_member(uid, group))
    }
}

fn find_group(name: &str) -> Result<Gid, Failure> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid),
        Ok(None) => Err(Failure::NoGroup { group: name.to_owned() }),
        Err(source) => Err(Failure::GroupLookup { group: name.to_owned(), source }),
    }
}

// A peer's credentials carry its primary group only; the others are in the group database.
fn is_member(uid: Uid, group: Gid) -> bool {
    let Ok(Some(user)) = User::from_uid(uid) else { return false };
    if user.gid == group {
        return true;
    }
    let Ok(name) = std::ffi::CString::new(user.name) else { return false };
    nix::unistd::getgrouplist(&name, user.gid).is_ok_and(|groups| groups.contains(&group))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(socket: PathBuf) -> Control {
        Control { socket, group: None }
    }

    fn access() -> Access {
        Access { own: nix::unistd::geteuid(), group: None }
    }

    #[tokio::test]
    async fn the_socket_is_0660_and_goes_away_with_its_guard() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/control.sock");
        let (_listener, file) = bind(&config(path.clone()), &access()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        drop(file);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        // Closing a listener leaves its file behind, like a killed daemon does.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let (_listener, _file) = bind(&config(path.clone()), &access()).unwrap();
        let error = bind(&config(path), &access()).unwrap_err();
        assert!(matches!(error, Failure::SocketInUse { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_file_in_the_way_is_never_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        std::fs::write(&path, "precious").unwrap();
        let error = bind(&config(path.clone()), &access()).unwrap_err();
        assert!(matches!(error, Failure::NotASocket { .. }), "{error}");
        assert_eq!(std::fs::read_to_string(path).unwrap(), "precious");
    }

    #[test]
    fn an_unknown_group_is_named() {
        let config = Control { socket: "/x".into(), group: Some("no-such-group-m40".to_owned()) };
        let error = Access::new(&config).unwrap_err();
        assert!(error.to_string().contains("no-such-group-m40"), "{error}");
    }

    #[test]
    fn root_is_a_member_of_its_own_group_only() {
        assert!(is_member(Uid::from_raw(0), Gid::from_raw(0)));
        assert!(!is_member(Uid::from_raw(0), Gid::from_raw(4_242_424)));
    }
}
