//! `m40ctl key`

use clap::{Args, Subcommand};
use m40_control::keys::{ApiKey, KeyHash, check_key_name};
use serde_json::json;

use crate::error::{CommandError, Kind};
use crate::output::Output;

/// Make a key for clients of the HTTP listener
///
/// Keys are in the file that [http] keys of m40d.toml names; `m40ctl reload` has the daemon read it again.
#[derive(Debug, Args)]
pub(crate) struct KeyArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    New(NewArgs),
}

/// Print a new key for a client, and the line for the file of keys, which has only its hash
#[derive(Debug, Args)]
struct NewArgs {
    /// Whose it is, as logs and metrics show it: a-z A-Z 0-9 _ -
    name: String,
}

pub(crate) fn run(args: &KeyArgs, output: &mut Output) -> Result<(), CommandError> {
    let Action::New(NewArgs { name }) = &args.action;
    check_key_name(name).map_err(|error| {
        CommandError::new(Kind::Usage, error.to_string()).hint("as in `m40ctl key new laptop`")
    })?;
    let mut bits = [0; 32];
    getrandom::fill(&mut bits).map_err(|error| {
        CommandError::new(Kind::Internal, format!("the system has no random numbers: {error}"))
            .hint("a sandbox may forbid getrandom(2) and hide /dev/urandom")
    })?;
    let key = ApiKey::from_random(bits);
    let line = format!("{name} = {{ sha256 = \"{}\" }}", KeyHash::of(key.text()));
    if output.json {
        return Ok(output.value(&json!({"name": name, "key": key.text(), "line": line}))?);
    }
    output.note("the key, which is shown this once; give it to the client:")?;
    output.line(key.text())?;
    output.note("the line for the file that [http] keys names:")?;
    Ok(output.line(&line)?)
}
