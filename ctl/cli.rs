//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::commands::{
    adopt, bench, load, plan, prune, pull, queue, reload, rm, run, show, unload, verify,
};

/// Administer m40d: models, status, and a chat in the terminal.
///
/// Exit codes: 0 done · 1 refused in this state · 64 wrong command line · 65 not a usable model,
/// or a wrong manifest · 66 no such model or file · 69 m40d is not running · 70 m40d failed · 73 not
/// enough space on the disk · 74 input or output failed · 75 busy, try again · 76 where a file comes
/// from failed · 77 not permitted · 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "m40ctl", version)]
pub(crate) struct Cli {
    /// Control socket of the daemon [default: $M40_SOCKET, else the user's, else the system's]
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print JSON for programs instead of text for people
    #[arg(long, global = true)]
    pub json: bool,
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
    /// Show the models in memory, and what each does
    Ps,
    /// Show who holds which bytes of the memory that models share
    Vram,
    Plan(plan::PlanArgs),
    /// Show the requests that wait or run
    Queue,
    Cancel(queue::CancelArgs),
}
