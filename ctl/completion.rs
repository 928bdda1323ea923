//! What a shell offers for the word that is being typed: commands and options, which clap knows, files, and
//! the names of models, which the daemon is asked for.
//!
//! The scripts of `m40ctl completions` ask by running m40ctl with [`VARIABLE`] set to the name of the shell,
//! and the words so far behind `--`.

mod bash;
mod zsh;

use std::env;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::CommandFactory;
use clap_complete::engine::ValueCompleter;
use clap_complete::env::{Elvish, Fish, Powershell, Shells};
use clap_complete::{
    ArgValueCandidates, ArgValueCompleter, CompleteEnv, CompletionCandidate, PathCompleter, Shell,
};
use m40_control::{Client, ModelEntry};
use tokio::time::timeout;

use crate::cli::Cli;

/// What a shell that asks is named by.
const VARIABLE: &str = "M40CTL_COMPLETE";

const SHELLS: Shells<'_> = Shells(&[&bash::Bash, &Elvish, &Fish, &Powershell, &zsh::Zsh]);

/// Longest that the daemon may take: somebody waits at a prompt.
const PATIENCE: Duration = Duration::from_millis(500);

/// Answers a shell, if it is one that has started this.
pub(crate) fn answer() -> clap::error::Result<bool> {
    let shells = CompleteEnv::with_factory(Cli::command).var(VARIABLE).shells(SHELLS);
    shells.try_complete(env::args_os(), env::current_dir().ok().as_deref())
}

/// Writes what makes a shell ask.
pub(crate) fn write_script(shell: Shell, to: &mut dyn Write) -> io::Result<()> {
    let known = SHELLS.completer(&shell.to_string());
    let known = known.ok_or_else(|| io::Error::other(format!("no script is known for {shell}")))?;
    known.write_registration(VARIABLE, "m40ctl", "m40ctl", "m40ctl", to)
}

/// Names of all models.
pub(crate) fn names() -> ArgValueCandidates {
    ArgValueCandidates::new(|| candidates(|_| true))
}

/// Names of the models in memory.
pub(crate) fn names_in_memory() -> ArgValueCandidates {
    ArgValueCandidates::new(|| candidates(|model| model.loaded.is_some()))
}

/// Names of the models that can be removed.
pub(crate) fn names_removable() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        candidates(|model| model.manifest.is_none() && model.loaded.is_none())
    })
}

/// Names of all models, and files.
pub(crate) fn names_and_files() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| {
        let mut candidates = candidates(|_| true);
        let typed_bytes = typed.as_encoded_bytes();
        candidates.retain(|name| name.get_value().as_encoded_bytes().starts_with(typed_bytes));
        candidates.extend(PathCompleter::file().complete(typed));
        candidates
    })
}

/// The models that are wanted, by each of their names, with what they are doing.
fn candidates(is_wanted: impl Fn(&ModelEntry) -> bool) -> Vec<CompletionCandidate> {
    let models = models().unwrap_or_default().into_iter().filter(is_wanted);
    let named = models.flat_map(|model| {
        let state = model.state.name();
        let names = std::iter::once(model.name).chain(model.aliases);
        names.map(|name| CompletionCandidate::new(name).help(Some(state.into())))
    });
    named.collect()
}

/// The models that the daemon has; `None` where there is none to ask, or it takes too long.
fn models() -> Option<Vec<ModelEntry>> {
    let words = env::args_os().filter_map(|word| word.into_string().ok());
    let env = crate::environment();
    let client = Client::new(crate::socket(typed_socket(words).as_deref(), &env).ok()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let answer = runtime.block_on(async { timeout(PATIENCE, client.models()).await });
    Some(answer.ok()?.ok()?.models)
}

/// The control socket that the words name.
fn typed_socket(mut words: impl Iterator<Item = String>) -> Option<PathBuf> {
    let word = words.find_map(|word| Some(word.strip_prefix("--socket")?.to_owned()))?;
    match word.strip_prefix('=') {
        Some(path) => Some(path.into()),
        None => words.next().map(PathBuf::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_the_one_that_was_typed() {
        let socket = |typed: &str| typed_socket(typed.split(' ').map(str::to_owned));
        assert_eq!(socket("m40ctl --socket /s load"), Some("/s".into()));
        assert_eq!(socket("m40ctl load --socket=/s x"), Some("/s".into()));
        assert_eq!(socket("m40ctl load x"), None);
        assert_eq!(socket("m40ctl --socket"), None);
    }

    #[test]
    fn there_is_a_script_for_every_shell() {
        for shell in <Shell as clap::ValueEnum>::value_variants() {
            let mut script = Vec::new();
            write_script(*shell, &mut script).unwrap();
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains(VARIABLE) && script.contains("m40ctl"), "{shell}: {script}");
        }
    }
}
