//! One file per command.

mod bar;

pub(crate) mod adopt;
pub(crate) mod bench;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod doctor;
pub(crate) mod key;
pub(crate) mod list;
pub(crate) mod load;
pub(crate) mod log_level;
pub(crate) mod logs;
pub(crate) mod plan;
pub(crate) mod prune;
pub(crate) mod pull;
pub(crate) mod queue;
pub(crate) mod reload;
pub(crate) mod rm;
pub(crate) mod run;
pub(crate) mod show;
pub(crate) mod status;
pub(crate) mod top;
pub(crate) mod unload;
pub(crate) mod verify;
pub(crate) mod vram;

use std::path::{Path, absolute};

use m40_control::paths::Env;
use m40_control::{Client, ModelRef};

use crate::cli::Command;
use crate::error::CommandError;
use crate::output::Output;

/// Runs the command.
pub(crate) async fn run(
    command: &Command,
    client: &Client,
    env: &Env,
    output: &mut Output,
) -> Result<(), CommandError> {
    match command {
        Command::Status => status::run(client, output).await,
        Command::List => list::run(client, output).await,
        Command::Show(args) => show::run(args, client, output).await,
        Command::Pull(args) => pull::run(args, client, output).await,
        Command::Rm(args) => rm::run(args, client, output).await,
        Command::Prune(args) => prune::run(args, client, output).await,
        Command::Verify(args) => verify::run(args, client, output).await,
        Command::Adopt(args) => adopt::run(args, client, output).await,
        Command::Load(args) => load::run(args, client, output).await,
        Command::Unload(args) => unload::run(args, client, output).await,
        Command::Bench(args) => bench::run(args, client, output).await,
        Command::Run(args) => run::run(args, client, env, output).await,
        Command::Reload(args) => reload::run(args, client, output).await,
        Command::LogLevel(args) => log_level::run(args, client, output).await,
        Command::Ps => vram::ps(client, output).await,
        Command::Vram => vram::run(client, output).await,
        Command::Plan(args) => plan::run(args, client, output).await,
        Command::Queue => queue::run(client, output).await,
        Command::Cancel(args) => queue::cancel(args, client, output).await,
        Command::Top(args) => top::run(args, client, output).await,
        Command::Doctor => doctor::run(client, env, output).await,
        Command::Logs(args) => logs::run(args, client, output).await,
        Command::Config(args) => config::run(args, env, output),
        Command::Key(args) => key::run(args, output),
        Command::Completions(args) => completions::run(args),
    }
}

/// What a person types for a model: a path when it looks like one, else a name.
fn model_ref(typed: &str) -> Result<ModelRef, CommandError> {
    if typed.contains('/') || typed.ends_with(".gguf") {
        return Ok(ModelRef::File(absolute(Path::new(typed))?));
    }
    Ok(ModelRef::Name(typed.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_names_are_told_apart() {
        assert_eq!(model_ref("qwen3:8b").unwrap(), ModelRef::Name("qwen3:8b".into()));
        assert_eq!(model_ref("/m/x").unwrap(), ModelRef::File("/m/x".into()));
        let ModelRef::File(path) = model_ref("x.gguf").unwrap() else { panic!("a name") };
        assert!(path.is_absolute() && path.ends_with("x.gguf"));
    }
}
