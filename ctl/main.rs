//! `m40ctl`: administers a running `m40d` through its control socket.
//!
//! [`cli`] is what can be typed, [`commands`] has a file for each command, [`output`] prints for
//! people or programs, and [`error`] maps what went wrong to an exit code. Nothing here links the
//! engine.
#![forbid(unsafe_code)]

mod cli;
mod commands;
mod error;
mod output;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use m40_control::Client;
use m40_control::paths::{self, Env};

use crate::cli::Cli;
use crate::error::{CommandError, Kind};
use crate::output::Output;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
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
            let text = if cli.json { error.to_json() } else { format!("m40ctl: {error}") };
            let _ = writeln!(std::io::stderr(), "{text}");
            ExitCode::from(error.kind.exit_code())
        }
    }
}

fn run(cli: &Cli) -> Result<(), CommandError> {
    let vars = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let env = Env::new(vars, nix::unistd::geteuid().is_root());
    let socket = match &cli.socket {
        Some(socket) => socket.clone(),
        None => paths::client_socket(&env, &|path| path.exists())?,
    };
    let client = Client::new(socket);
    let mut output = Output::new(cli.json);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(commands::run(&cli.command, &client, &mut output));
    // A read of the terminal cannot be interrupted and must not hold up the exit.
    runtime.shutdown_background();
    result.or_else(CommandError::ignore_closed_pipe)
}
