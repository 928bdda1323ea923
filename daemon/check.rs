//! `--check-config`: what is wrong with the configuration and the manifests, without a start.

use std::io::Write;
use std::path::Path;

use clap::ValueEnum;
use m40_control::paths::Env;
use m40_control::{ConfigCheck, ManifestProblem, Settings};

use crate::config::{Config, Device};
use crate::exit::Failure;
use crate::manifests;

/// Who reads what is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Reader {
    /// People: a line for each mistake, and nothing where there is none
    Text,
    /// Programs: what was checked and what is wrong, as one line of JSON on stdout too
    Json,
}

/// Checks them.
///
/// # Errors
/// The failure with which a start would end, or [`Failure::Manifests`].
pub(crate) fn run(reader: Reader, named: Option<&Path>, env: &Env) -> Result<(), Failure> {
    let loaded = Config::load_with_text(named, env);
    let (models, problems) = match &loaded {
        Ok((config, _)) => manifests::check(&config.manifests_dir),
        Err(_) => Default::default(),
    };
    if reader == Reader::Json {
        let said = said(&loaded, models, &problems)?;
        writeln!(std::io::stdout(), "{said}")
            .map_err(|source| Failure::System { action: "print", source })?;
    }
    loaded?;
    if problems.is_empty() { Ok(()) } else { Err(Failure::Manifests(problems)) }
}

fn said(
    loaded: &Result<(Config, String), Failure>,
    models: Vec<String>,
    problems: &[ManifestProblem],
) -> Result<String, Failure> {
    let mut problems = problems.to_vec();
    let (config_file, settings, text) = match loaded {
        Ok((config, text)) => (config.file.clone(), Some(settings(config)), Some(text.clone())),
        Err(failure) => {
            let problem = failure.problem();
            problems.insert(0, problem.clone());
            (Some(problem.file).filter(|file| !file.as_os_str().is_empty()), None, None)
        }
    };
    let check = ConfigCheck { config_file, settings, text, models, problems };
    serde_json::to_string(&check).map_err(|error| {
        // A path that is no UTF-8 is the one thing that JSON does not have.
        let source = std::io::Error::other(error);
        Failure::System { action: "print", source }
    })
}

fn settings(config: &Config) -> Settings {
    let device = match config.device {
        Device::Cpu => "cpu",
        Device::Cuda => "cuda",
    };
    Settings {
        device: device.to_owned(),
        http_listen: config.http.listen,
        http_keys: config.http.keys.is_some(),
        http_tls: config.http.tls.is_some(),
        control_socket: config.control.socket.clone(),
        state_dir: config.state_dir.clone(),
        manifests_dir: config.manifests_dir.clone(),
    }
}
