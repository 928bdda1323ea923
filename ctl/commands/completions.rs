//! `m40ctl completions`

use std::io::{self, Write};

use clap::Args;
use clap_complete::Shell;

use crate::completion;
use crate::error::CommandError;

/// Print what makes a shell complete the commands of m40ctl
///
/// For bash: m40ctl completions bash > ~/.local/share/bash-completion/completions/m40ctl
///
/// The shell asks m40ctl, which asks the daemon for the names of models, and does without them if it does
/// not answer.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

pub(crate) fn run(args: &CompletionsArgs) -> Result<(), CommandError> {
    let mut script = Vec::new();
    completion::write_script(args.shell, &mut script)?;
    Ok(io::stdout().write_all(&script)?)
}
