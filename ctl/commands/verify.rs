//! `m40ctl verify`

use clap::Args;
use m40_control::{Client, ClientError, Damage, VerifyEvent, VerifyRequest};

use super::bar::Bar;
use crate::completion::names;
use crate::error::{CommandError, Kind};
use crate::output::{Output, size};

/// Hash stored files again, and put damaged ones into quarantine
///
/// Gives way to all other use of the disk. Damaged files of models that manifests define are fetched
/// again. Of a model that is named, files that are used where they are count too; they stay there. Exits with
/// 65 if a file is damaged.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Name of a model [default: all that is stored]
    #[arg(add = names())]
    name: Option<String>,
}

pub(crate) async fn run(
    args: &VerifyArgs,
    client: &Client,
    output: &mut Output,
) -> Result<(), CommandError> {
    let mut events = client.verify(&VerifyRequest { model: args.name.clone() }).await?;
    let mut bar = Bar::default();
    while let Some(event) = events.next().await? {
        if output.json && !matches!(event, VerifyEvent::Error { .. }) {
            output.value(&event)?;
        }
        match event {
            VerifyEvent::Progress(progress) => bar.show(&progress, output)?,
            VerifyEvent::File { sha256, expected, path, size_bytes, models, damage } => {
                bar.clear(output)?;
                if !output.json {
                    let models = models.join(", ");
                    let word = match &damage {
                        Some(damage) => damaged(damage),
                        None if expected => "good".to_owned(),
                        None => "hashed, and nobody says what it should be".to_owned(),
                    };
                    let path = path.map_or_else(String::new, |path| format!(" {}", path.display()));
                    let size = size(size_bytes);
                    output.line(&format!("{sha256} ({size}) {models}{path}: {word}"))?;
                }
            }
            VerifyEvent::Done { good: 0, bad: 0 } if !output.json => {
                return Ok(output.line("nothing is stored")?);
            }
            VerifyEvent::Done { bad: 0, .. } => return Ok(()),
            VerifyEvent::Done { bad, .. } => {
                let message = match bad {
                    1 => "a file is damaged".to_owned(),
                    bad => format!("{bad} files are damaged"),
                };
                let hint = "`m40ctl pull NAME` gets a model's files again";
                return Err(CommandError::new(Kind::BadData, message).hint(hint));
            }
            VerifyEvent::Error { error } => {
                bar.clear(output)?;
                return Err(error.into());
            }
        }
    }
    Err(ClientError::Closed.into())
}

fn damaged(damage: &Damage) -> String {
    let chunks: Vec<String> = damage.bad_chunks.iter().map(ToString::to_string).collect();
    let chunks = match chunks.len() {
        0 => String::new(),
        _ => format!(" in pieces {} of 4 MiB", chunks.join(", ")),
    };
    match &damage.quarantine {
        Some(quarantine) => format!("damaged{chunks}, now {}", quarantine.display()),
        None => format!("is another file, its sha256 is {}", damage.found_sha256),
    }
}
