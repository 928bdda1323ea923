//! `m40ctl completions`

use std::io;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::cli::Cli;
use crate::error::CommandError;

/// Print what makes a shell complete the commands of m40ctl
///
/// For bash: m40ctl completions bash > ~/.local/share/bash-completion/completions/m40ctl
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

pub(crate) fn run(args: &CompletionsArgs) -> Result<(), CommandError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "m40ctl", &mut script);
    Ok(io::Write::write_all(&mut io::stdout(), &script)?)
}
