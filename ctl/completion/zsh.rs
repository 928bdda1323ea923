//! Completion in zsh: clap's script, for which being loaded is not yet being asked.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;

use clap_complete::env::{self, EnvCompleter};

/// From a folder of functions zsh loads the script when it is asked for the first time, and expects an answer.
const ANSWER: &str = r#"[[ $funcstack[1] != _m40ctl ]] || _clap_dynamic_completer_m40ctl "$@""#;

pub(super) struct Zsh;

impl EnvCompleter for Zsh {
    fn name(&self) -> &'static str {
        env::Zsh.name()
    }

    fn is(&self, name: &str) -> bool {
        env::Zsh.is(name)
    }

    fn write_registration(
        &self,
        variable: &str,
        name: &str,
        program: &str,
        completer: &str,
        to: &mut dyn Write,
    ) -> io::Result<()> {
        env::Zsh.write_registration(variable, name, program, completer, to)?;
        writeln!(to, "{ANSWER}")
    }

    fn write_complete(
        &self,
        command: &mut clap::Command,
        words: Vec<OsString>,
        folder: Option<&Path>,
        to: &mut dyn Write,
    ) -> io::Result<()> {
        env::Zsh.write_complete(command, words, folder, to)
    }
}
