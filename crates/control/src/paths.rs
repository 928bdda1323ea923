//! Where the daemon keeps things, and where `m40ctl` therefore finds its socket.
//!
//! For each folder in turn: what systemd passed (`RUNTIME_DIRECTORY` and the like), else the
//! system's place for root, else the user's XDG base directory.
//!
//! | | systemd | root | user |
//! |---|---|---|---|
//! | configuration | `$CONFIGURATION_DIRECTORY` | `/etc/m40d` | `$XDG_CONFIG_HOME/m40d`, `~/.config/m40d` |
//! | state | `$STATE_DIRECTORY` | `/var/lib/m40d` | `$XDG_STATE_HOME/m40d`, `~/.local/state/m40d` |
//! | runtime | `$RUNTIME_DIRECTORY` | `/run/m40d` | `$XDG_RUNTIME_DIR/m40d`, else `run` in the state folder |

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Name of the control socket in the runtime folder.
pub const SOCKET_NAME: &str = "control.sock";
/// Name of the configuration file in the configuration folder.
pub const CONFIG_NAME: &str = "m40d.toml";

/// Name of the folder of manifests in the configuration folder.
pub const MANIFESTS_NAME: &str = "models.d";

/// Folder of the system's configuration.
pub const SYSTEM_CONFIG: &str = "/etc/m40d";

const SYSTEM_SOCKET: &str = "/run/m40d/control.sock";

/// A snapshot of what the path rules look at, taken once at the start of a program.
#[derive(Debug, Clone, Default)]
pub struct Env {
    vars: BTreeMap<String, String>,
    is_root: bool,
}

impl Env {
    /// A snapshot of these variables for a process that is root or not.
    pub fn new(vars: impl IntoIterator<Item = (String, String)>, is_root: bool) -> Self {
        Self { vars: vars.into_iter().collect(), is_root }
    }

    /// The variable's value; empty counts as unset.
    pub fn var(&self, name: &str) -> Option<&str> {
        self.vars.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Whether this is root's or systemd's daemon rather than a user's.
    pub fn is_system(&self) -> bool {
        self.is_root || self.systemd_dir("RUNTIME_DIRECTORY").is_some()
    }

    // systemd joins several folders with colons; the first is the unit's own.
    fn systemd_dir(&self, name: &str) -> Option<PathBuf> {
        self.var(name)?.split(':').next().filter(|dir| !dir.is_empty()).map(PathBuf::from)
    }

    // The specification says to ignore a relative path in these variables.
    fn xdg(&self, name: &str, below_home: &str) -> Option<PathBuf> {
        let absolute = |value: &str| Path::new(value).is_absolute().then(|| PathBuf::from(value));
        self.var(name)
            .and_then(absolute)
            .or_else(|| Some(self.var("HOME").and_then(absolute)?.join(below_home)))
    }
}

/// Why there is no place for a folder.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot tell where the {what} folder is: set HOME or {variable}")]
pub struct PathError {
    /// Which folder.
    pub what: &'static str,
    /// The XDG variable that would say.
    pub variable: &'static str,
}

/// The folder of the configuration file.
///
/// # Errors
/// [`PathError`] for a user without `HOME`.
pub fn config_dir(env: &Env) -> Result<PathBuf, PathError> {
    if let Some(dir) = env.systemd_dir("CONFIGURATION_DIRECTORY") {
        return Ok(dir);
    }
    if env.is_root {
        return Ok(SYSTEM_CONFIG.into());
    }
    let base = env.xdg("XDG_CONFIG_HOME", ".config");
    base.map(|dir| dir.join("m40d"))
        .ok_or(PathError { what: "configuration", variable: "XDG_CONFIG_HOME" })
}

/// The folder that models are kept in.
///
/// # Errors
/// [`PathError`] for a user without `HOME`.
pub fn state_dir(env: &Env) -> Result<PathBuf, PathError> {
    if let Some(dir) = env.systemd_dir("STATE_DIRECTORY") {
        return Ok(dir);
    }
    if env.is_root {
        return Ok("/var/lib/m40d".into());
    }
    let base = env.xdg("XDG_STATE_HOME", ".local/state");
    base.map(|dir| dir.join("m40d")).ok_or(PathError { what: "state", variable: "XDG_STATE_HOME" })
}

/// The folder of what `m40ctl` remembers for its user, root or not.
///
/// # Errors
/// [`PathError`] for a user without `HOME`.
pub fn client_state_dir(env: &Env) -> Result<PathBuf, PathError> {
    let base = env.xdg("XDG_STATE_HOME", ".local/state");
    base.map(|dir| dir.join("m40ctl"))
        .ok_or(PathError { what: "state", variable: "XDG_STATE_HOME" })
}

/// The folder of the control socket.
///
/// # Errors
/// [`PathError`] for a user without `XDG_RUNTIME_DIR` and `HOME`.
pub fn runtime_dir(env: &Env) -> Result<PathBuf, PathError> {
    if let Some(dir) = env.systemd_dir("RUNTIME_DIRECTORY") {
        return Ok(dir);
    }
    if env.is_root {
        return Ok("/run/m40d".into());
    }
    match env.var("XDG_RUNTIME_DIR").map(Path::new).filter(|dir| dir.is_absolute()) {
        Some(dir) => Ok(dir.join("m40d")),
        None => Ok(state_dir(env)?.join("run")),
    }
}

/// The socket that a client should use when told none: `$M40_SOCKET`, else that of the user's
/// own daemon, else (when only that exists) the system's. `exists` says whether a path does.
///
/// # Errors
/// [`PathError`] when the user's own place cannot be told and there is no system socket.
pub fn client_socket(env: &Env, exists: &dyn Fn(&Path) -> bool) -> Result<PathBuf, PathError> {
    if let Some(socket) = env.var("M40_SOCKET") {
        return Ok(socket.into());
    }
    let own = runtime_dir(env).map(|dir| dir.join(SOCKET_NAME));
    match &own {
        Ok(path) if exists(path) => own,
        _ if exists(Path::new(SYSTEM_SOCKET)) => Ok(SYSTEM_SOCKET.into()),
        _ => own,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(vars: &[(&str, &str)], is_root: bool) -> Env {
        Env::new(vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())), is_root)
    }

    #[track_caller]
    fn check(env: &Env, config: &str, state: &str, runtime: &str) {
        assert_eq!(config_dir(env).unwrap(), Path::new(config));
        assert_eq!(state_dir(env).unwrap(), Path::new(state));
        assert_eq!(runtime_dir(env).unwrap(), Path::new(runtime));
    }

    #[test]
    fn root_uses_the_system_folders() {
        check(&env(&[("HOME", "/root")], true), "/etc/m40d", "/var/lib/m40d", "/run/m40d");
    }

    #[test]
    fn systemd_has_the_first_word() {
        let vars = [
            ("CONFIGURATION_DIRECTORY", "/etc/m40d"),
            ("STATE_DIRECTORY", "/var/lib/private/m40d:/var/lib/other"),
            ("RUNTIME_DIRECTORY", "/run/m40d"),
            ("HOME", "/"),
        ];
        let env = env(&vars, false);
        assert!(env.is_system());
        check(&env, "/etc/m40d", "/var/lib/private/m40d", "/run/m40d");
    }

    #[test]
    fn a_user_has_xdg_folders() {
        let all = [
            ("XDG_CONFIG_HOME", "/c"),
            ("XDG_STATE_HOME", "/s"),
            ("XDG_RUNTIME_DIR", "/run/user/1000"),
        ];
        check(&env(&all, false), "/c/m40d", "/s/m40d", "/run/user/1000/m40d");
        let home = env(&[("HOME", "/home/u"), ("XDG_STATE_HOME", "relative")], false);
        check(
            &home,
            "/home/u/.config/m40d",
            "/home/u/.local/state/m40d",
            "/home/u/.local/state/m40d/run",
        );
        assert!(!home.is_system());
    }

    #[test]
    fn what_a_client_remembers_is_its_users_even_roots() {
        let home = [("HOME", "/home/u"), ("STATE_DIRECTORY", "/var/lib/m40d")];
        let own = Path::new("/home/u/.local/state/m40ctl");
        assert_eq!(client_state_dir(&env(&home, true)).unwrap(), own);
        let own = Path::new("/s/m40ctl");
        assert_eq!(client_state_dir(&env(&[("XDG_STATE_HOME", "/s")], false)).unwrap(), own);
        assert!(client_state_dir(&env(&[], true)).is_err());
    }

    #[test]
    fn nowhere_to_go_is_an_error_that_names_the_variable() {
        let error = state_dir(&env(&[], false)).unwrap_err();
        assert!(error.to_string().contains("XDG_STATE_HOME"), "{error}");
    }

    #[test]
    fn clients_prefer_the_named_then_their_own_then_the_system_socket() {
        let user = [("XDG_RUNTIME_DIR", "/run/user/7")];
        let find = |vars: &[(&str, &str)], there: &'static str| {
            client_socket(&env(vars, false), &|path| path == Path::new(there)).unwrap()
        };
        assert_eq!(find(&[("M40_SOCKET", "/x.sock")], ""), Path::new("/x.sock"));
        let own = "/run/user/7/m40d/control.sock";
        assert_eq!(find(&user, own), Path::new(own));
        assert_eq!(find(&user, SYSTEM_SOCKET), Path::new(SYSTEM_SOCKET));
        assert_eq!(find(&user, ""), Path::new(own));
        assert_eq!(find(&[], SYSTEM_SOCKET), Path::new(SYSTEM_SOCKET));
    }
}
