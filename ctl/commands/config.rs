//! `m40ctl config`: the configuration, without a daemon.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{Args, Subcommand, ValueHint};
use m40_control::ConfigCheck;
use m40_control::paths::{self, Env};

use crate::error::{CommandError, Kind};
use crate::output::Output;

/// Check m40d.toml and the manifests, or show what counts
#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Check(CheckArgs),
    Show(ShowArgs),
}

/// Say what is wrong with m40d.toml and the manifests, and where; no daemon has to run
///
/// The m40d beside this m40ctl, else the one in PATH, reads them as it would for a start. Without a FILE
/// they are those of this user, else, where there are none, the system's in /etc/m40d.
#[derive(Debug, Args)]
struct CheckArgs {
    /// The configuration file
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    file: Option<PathBuf>,
}

/// Show the configuration that m40d would go by: m40d.toml, and defaults for the rest
///
/// As a file of TOML, which leaves out only what has no default and is not set, and begins with where it
/// is from; with --json as one object. Secrets are in files of their own, whose names are shown. No daemon
/// has to run, and one that does goes by what it read at its start.
#[derive(Debug, Args)]
struct ShowArgs {
    /// The configuration file
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    file: Option<PathBuf>,
}

pub(crate) fn run(args: &ConfigArgs, env: &Env, output: &mut Output) -> Result<(), CommandError> {
    let (Action::Check(CheckArgs { file }) | Action::Show(ShowArgs { file })) = &args.action;
    let check = check(file.as_deref(), systems_folder(file.as_deref(), env))?;
    match &args.action {
        Action::Check(_) => report(&check, output),
        Action::Show(_) => show(&check, output),
    }
}

/// Prints what counts.
fn show(check: &ConfigCheck, output: &mut Output) -> Result<(), CommandError> {
    let Some(text) = &check.text else {
        let why = check.problems.first().map(ToString::to_string);
        let why = why.unwrap_or_else(|| "m40d does not say what counts".to_owned());
        return Err(CommandError::new(Kind::BadData, why).hint("`m40ctl config check` says more"));
    };
    if output.json {
        let keys: serde_json::Value = toml::from_str(text).map_err(|error| {
            CommandError::new(Kind::Internal, format!("m40d wrote no TOML: {}", error.message()))
                .hint("is it the same version as this m40ctl?")
        })?;
        return Ok(output.value(&keys)?);
    }
    output.line(&format!("# {}", source(check)))?;
    Ok(text.lines().try_for_each(|line| output.line(line))?)
}

/// Prints what is wrong, or that nothing is.
fn report(check: &ConfigCheck, output: &mut Output) -> Result<(), CommandError> {
    if output.json {
        output.value(check)?;
    } else {
        for problem in &check.problems {
            output.line(&problem.to_string())?;
            for line in problem.excerpt().lines() {
                output.line(&format!("    {line}"))?;
            }
        }
    }
    let wrong = match check.problems.len() {
        0 if output.json => return Ok(()),
        0 => return Ok(output.line(&summary(check))?),
        1 => "a mistake in the configuration".to_owned(),
        count => format!("{count} mistakes in the configuration"),
    };
    Err(CommandError::new(Kind::BadData, wrong).hint(
        "m40d does not start with a wrong m40d.toml, and serves no model of a wrong manifest",
    ))
}

/// What was checked, where nothing is wrong.
fn summary(check: &ConfigCheck) -> String {
    let config = source(check);
    let models = match check.models.len() {
        1 => "1 model".to_owned(),
        count => format!("{count} models"),
    };
    let folder = check.settings.as_ref().map(|settings| settings.manifests_dir.display());
    let folder = folder.map_or_else(String::new, |folder| format!(" in {folder}"));
    format!("good: {config}; {models}{folder}")
}

/// Where the configuration is from.
fn source(check: &ConfigCheck) -> String {
    match &check.config_file {
        Some(file) => file.display().to_string(),
        None => "no configuration file, so the defaults".to_owned(),
    }
}

/// Has m40d check a configuration file, or the one that it finds; `folder` is that of the configuration
/// where it is not this user's.
///
/// It is m40d that knows what its configuration may say: whatever else read the file would know it
/// twice, and a daemon that runs may be another version, or not run because of the mistake.
pub(super) fn check(
    file: Option<&Path>,
    folder: Option<&Path>,
) -> Result<ConfigCheck, CommandError> {
    let program = m40d();
    let mut command = Command::new(&program);
    command.arg("--check-config=json");
    if let Some(folder) = folder {
        command.envs(folders(folder));
    }
    if let Some(file) = file {
        command.arg("--config").arg(file);
    }
    let done = command.output().map_err(|error| {
        CommandError::new(Kind::NotFound, format!("cannot run {}: {error}", program.display()))
            .hint("install m40d beside m40ctl, or where PATH finds it")
    })?;
    serde_json::from_slice(&done.stdout).map_err(|_| {
        let said = String::from_utf8_lossy(&done.stderr);
        let said = said.lines().next().unwrap_or("nothing").to_owned();
        CommandError::new(Kind::Internal, format!("{} does not check: {said}", program.display()))
            .hint("is it the same version as this m40ctl?")
    })
}

/// What systemd tells a daemon that has this folder of configuration: those of our units have their other
/// folders by the same name.
fn folders(configuration: &Path) -> Vec<(&'static str, PathBuf)> {
    let mut folders = vec![("CONFIGURATION_DIRECTORY", configuration.to_path_buf())];
    let name = configuration.strip_prefix("/etc").ok().and_then(Path::to_str);
    if let Some(name) = name.filter(|name| name.starts_with("m40d") && !name.contains('/')) {
        folders.push(("STATE_DIRECTORY", Path::new("/var/lib").join(name)));
        folders.push(("RUNTIME_DIRECTORY", Path::new("/run").join(name)));
    }
    folders
}

/// The daemon's program: the one beside this, as packages and builds have it, else any.
fn m40d() -> PathBuf {
    let beside = env::current_exe().ok().and_then(|this| Some(this.parent()?.join("m40d")));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| "m40d".into())
}

/// The folder of the configuration, where it is not this user's: that of a file in /etc, beside which its
/// manifests are, or the system's, where there is no file and only the system has a configuration.
pub(super) fn systems_folder<'a>(file: Option<&'a Path>, env: &Env) -> Option<&'a Path> {
    let systems = Path::new(paths::SYSTEM_CONFIG);
    match file {
        Some(file) => file.parent().filter(|folder| folder.starts_with("/etc")),
        None if paths::config_dir(env).is_ok_and(|dir| dir.is_dir()) => None,
        None => Some(systems).filter(|folder| folder.is_dir()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_checked_is_said() {
        let mut check = ConfigCheck {
            config_file: None,
            settings: None,
            text: None,
            models: vec!["m".into()],
            problems: vec![],
        };
        assert_eq!(summary(&check), "good: no configuration file, so the defaults; 1 model");
        (check.config_file, check.models) = (Some("/etc/m40d/m40d.toml".into()), vec![]);
        assert_eq!(summary(&check), "good: /etc/m40d/m40d.toml; 0 models");
    }

    #[test]
    fn a_file_of_the_systems_has_its_manifests_beside_it() {
        let env = Env::new([("HOME".to_owned(), "/nonexistent".to_owned())], false);
        let folder = |file: &'static str| systems_folder(Some(Path::new(file)), &env);
        assert_eq!(folder("/etc/m40d/m40d.toml"), Some(Path::new("/etc/m40d")));
        assert_eq!(folder("/etc/m40d-1/m40d.toml"), Some(Path::new("/etc/m40d-1")));
        assert_eq!(folder("/home/u/m40d.toml"), None);
    }

    #[test]
    fn a_daemon_of_the_system_has_its_folders_by_one_name() {
        let of = |folder: &str| {
            folders(Path::new(folder)).into_iter().map(|(_, path)| path).collect::<Vec<_>>()
        };
        let instance = ["/etc/m40d-1", "/var/lib/m40d-1", "/run/m40d-1"];
        assert_eq!(of("/etc/m40d-1"), instance.map(PathBuf::from));
        for other in ["/etc/m40d/models", "/etc/other", "/home/m40d"] {
            assert_eq!(of(other), [PathBuf::from(other)]);
        }
    }
}
