//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueHint};

use crate::commands::{
    adopt, bench, completions, config, key, load, log_level, logs, plan, prune, pull, queue,
    reload, rm, run, show, top, unload, verify,
};
use crate::error::Kind;
use crate::output::Color;

/// Where help lists what every command takes.
const GLOBAL: &str = "Options of every command";

/// Administer m40d: models, status, and a chat in the terminal
///
/// m40ctl speaks to a running m40d through its control socket. Its user's own daemon comes before the
/// system's. Results go to stdout and all else to stderr, where a failure is one line that says what,
/// where and what to do.
#[derive(Debug, Parser)]
#[command(name = "m40ctl", version, after_help = exit_codes())]
pub(crate) struct Cli {
    /// Control socket of the daemon [default: $M40_SOCKET, else the user's, else the system's]
    #[arg(long, global = true, value_name = "PATH", value_hint = ValueHint::FilePath, help_heading = GLOBAL)]
    pub socket: Option<PathBuf>,
    /// Print JSON for programs instead of text for people
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub json: bool,
    /// Colours in text; auto means on a terminal, unless NO_COLOR is set
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", help_heading = GLOBAL)]
    pub color: Color,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show what the daemon is doing
    Status,
    /// List the models: on disk, in memory, and on their way here
    #[command(visible_alias = "ls")]
    List,
    Show(show::ShowArgs),
    Pull(pull::PullArgs),
    Rm(rm::RmArgs),
    Prune(prune::PruneArgs),
    Verify(verify::VerifyArgs),
    Adopt(adopt::AdoptArgs),
    Load(load::LoadArgs),
    Unload(unload::UnloadArgs),
    Run(run::RunArgs),
    Bench(bench::BenchArgs),
    Reload(reload::ReloadArgs),
    LogLevel(log_level::LogLevelArgs),
    /// Show the models in memory, and what each does
    Ps,
    /// Show who holds which bytes of the memory that models share
    Vram,
    Plan(plan::PlanArgs),
    /// Show the requests that wait or run
    Queue,
    Cancel(queue::CancelArgs),
    Top(top::TopArgs),
    /// Look at all that m40d needs, and say what is wrong and what helps
    ///
    /// Each line is ok, a note, a warning or a problem, with what was found and its cure: of the driver and
    /// the card, the units (m40d and its instances), the configuration and its manifests, the disk, and who
    /// may use m40d. It works with and without a running daemon, and as any user; root sees most. The exit
    /// code is 1 if there is a problem.
    Doctor,
    Logs(logs::LogsArgs),
    Config(config::ConfigArgs),
    Key(key::KeyArgs),
    Completions(completions::CompletionsArgs),
}

/// What exit codes mean, as help and man page have it.
fn exit_codes() -> String {
    let code = |kind: &Kind| format!("  {:>3}  {}\n", kind.exit_code(), kind.meaning());
    format!("Exit codes:\n    0  done\n{}", Kind::ALL.iter().map(code).collect::<String>())
}
