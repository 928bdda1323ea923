//! `m40ctl`: administers a running `m40d` through its control socket.
//!
//! [`cli`] is what can be typed, [`commands`] has a file for each command, [`output`] prints for
//! people or programs, [`completion`] answers shells, [`text`] and [`view`] make what people see,
//! [`terminal`] changes a terminal and puts it back, and [`error`] maps what went wrong to an exit code.
//! Nothing here links the engine.
#![forbid(unsafe_code)]

mod cli;
mod commands;
mod completion;
mod error;
mod output;
#[cfg(test)]
mod reference;
mod terminal;
mod text;
mod view;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use m40_control::Client;
use m40_control::paths::{self, Env, PathError};

use crate::cli::{Cli, Command};
use crate::error::{CommandError, Kind};
use crate::output::Output;

fn main() -> ExitCode {
    let cli = match completion::answer() {
        Ok(true) => return ExitCode::SUCCESS,
        Ok(false) => Cli::try_parse(),
        Err(error) => Err(error),
    };
    let cli = match cli {
        Ok(cli) => cli,
        Err(error) => {
            // Failing to print a usage text leaves nobody to tell.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { Kind::Usage.exit_code() } else { 0 });
        }
    };
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = if cli.json {
                error.to_json()
            } else {
                text::harmless(&format!("m40ctl: {error}")).into_owned()
            };
            let _ = writeln!(std::io::stderr(), "{text}");
            ExitCode::from(error.kind.exit_code())
        }
    }
}

fn run(cli: &Cli) -> Result<(), CommandError> {
    let env = environment();
    let socket = match &cli.command {
        // It needs no daemon, nor a home of its user to look for one in.
        Command::Completions(_) | Command::Config(_) | Command::Key(_) => PathBuf::new(),
        _ => socket(cli.socket.as_deref(), &env)?,
    };
    let client = Client::new(socket);
    let mut output = Output::new(cli.json, cli.color, &env);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(commands::run(&cli.command, &client, &env, &mut output));
    // A read of the terminal cannot be interrupted and must not hold up the exit.
    runtime.shutdown_background();
    result.or_else(CommandError::ignore_closed_pipe)
}

/// The environment, as far as it is text.
fn environment() -> Env {
    let vars = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    Env::new(vars, nix::unistd::geteuid().is_root())
}

/// The control socket: the one that was typed, or the one that is found.
fn socket(typed: Option<&Path>, env: &Env) -> Result<PathBuf, PathError> {
    match typed {
        Some(socket) => Ok(socket.to_path_buf()),
        None => paths::client_socket(env, &|path| path.exists()),
    }
}
