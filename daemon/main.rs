//! `m40d`: serves language models over HTTP, and a control API on a Unix socket.
//!
//! Reads its arguments and configuration, then hands over to [`lifecycle`]. The map of the
//! modules: [`config`] what the file says · [`check`] whether it may · [`lifecycle`] start, signals, stop ·
//! [`listeners`] what listens · [`inherited`] what of that a service manager handed over · [`net`]
//! connections · [`tls`] their certificate · [`keys`] who may · [`caller`] who asks · [`http`] what clients
//! on the network speak · [`control`] what `m40ctl` speaks · [`manifests`] which models there are ·
//! [`models`] what is loaded · [`generation`] one answer · [`embedding`] vectors · [`store`] what is on
//! disk · [`pulls`] what comes there from elsewhere · [`watchdog`] whether the engine gets on · [`care`]
//! how hot the card is.
#![forbid(unsafe_code)]

mod bench;
mod caller;
mod care;
mod check;
mod config;
mod control;
mod doors;
mod embedding;
mod exit;
mod generation;
mod http;
mod inherited;
mod keys;
mod lifecycle;
mod listeners;
mod logging;
mod manifests;
mod memory;
mod metrics;
mod models;
mod net;
mod pulls;
#[cfg(test)]
mod reference;
mod socket;
mod store;
mod systemd;
mod tls;
mod watchdog;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use m40_control::paths::Env;

use crate::config::Config;
use crate::exit::Failure;

/// LLM daemon: serves GGUF models over HTTP; `m40ctl` administers it
///
/// m40d reads its configuration, m40d.toml(5), and the manifests of the models that it is to serve,
/// m40d-manifest(5), tells systemd when it is ready, and logs to the journal, or to stderr. It runs as a
/// service of the system, or as any user, in whose folders its files then are.
#[derive(Debug, Parser)]
#[command(name = "m40d", version = m40llm::version())]
struct Args {
    /// Read this configuration file instead of the default one, which may be absent
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration and the manifests, and exit; as text, nothing is said of good ones
    #[arg(
        long,
        value_name = "READER",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "text"
    )]
    check_config: Option<check::Reader>,
    /// Say what GPU there is, have it compute something, and exit
    #[arg(long)]
    check_gpu: bool,
}

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Failing to print a usage text leaves nobody to tell.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { 0 });
        }
    };
    let vars = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let env = Env::new(vars, nix::unistd::geteuid().is_root());
    match run(&args, &env) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let prefix = if logging::to_journal(&env) { "<3>" } else { "" };
            let _ = writeln!(std::io::stderr(), "{prefix}m40d: {failure}");
            ExitCode::from(&failure)
        }
    }
}

fn run(args: &Args, env: &Env) -> Result<(), Failure> {
    if args.check_gpu {
        let said = m40llm::check_gpu()?;
        return writeln!(std::io::stdout(), "{said}")
            .map_err(|source| Failure::System { action: "print", source });
    }
    if let Some(reader) = args.check_config {
        return check::run(reader, args.config.as_deref(), env);
    }
    let config = Config::load(args.config.as_deref(), env)?;
    let levels = logging::start(config.log_filter.clone(), env);
    lifecycle::run(config, levels, env)
}
