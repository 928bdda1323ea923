//! `m40ctl show`

use clap::Args;
use m40_control::{Client, FileDetails, NameRequest};

use crate::completion::names;
use crate::error::CommandError;
use crate::output::{Output, count, size, state};

/// Show all that is known of a model: source, files, settings
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// Name of the model
    #[arg(add = names())]
    name: String,
}

pub(crate) async fn run(
    args: &ShowArgs,
    client: &Client,
    output: &mut Output,
) -> Result<(), CommandError> {
    let details = client.show(&NameRequest { model: args.name.clone() }).await?;
    if output.json {
        return Ok(output.value(&details)?);
    }
    let model = &details.model;
    let mut rows = vec![
        ("name", model.name.clone()),
        ("aliases", model.aliases.join(", ")),
        ("state", state(model)),
        ("source", model.source.display().to_string()),
        ("manifest", model.manifest.as_ref().map_or_else(String::new, |m| m.display().to_string())),
        ("format", format!("{} {}", model.architecture, model.quantization).trim().to_owned()),
        ("parameters", if model.parameters > 0 { count(model.parameters) } else { String::new() }),
        ("can", details.capabilities.as_ref().map_or_else(String::new, |all| all.join(", "))),
    ];
    rows.extend(details.files.iter().map(|found| ("file", file(found))));
    rows.retain(|(_, value)| !value.is_empty());
    for (key, value) in rows {
        output.line(&format!("{key:<11} {value}"))?;
    }
    for (key, value) in &details.settings {
        output.line(&format!("{:<11} {key} = {value}", "setting"))?;
    }
    if !details.left_out.is_empty() {
        output.line(&format!("{:<11} {}", "not used", details.left_out.join(", ")))?;
    }
    Ok(())
}

fn file(file: &FileDetails) -> String {
    let kept = file.kept.as_ref().map(|kept| format!(", {kept}")).unwrap_or_default();
    let sha256 = file.sha256.as_ref().map(|sha| format!(", sha256 {sha}")).unwrap_or_default();
    format!("{} ({}{kept}{sha256})", file.path.display(), size(file.size_bytes))
}
