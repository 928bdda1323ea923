//! What Ollama's clients call a model.

use m40_control::model_name_of_file;
use m40_store::Source;

use super::HttpError;
use crate::control::name_of;
use crate::models::Models;

/// The tag that a name has where it says none.
const LATEST: &str = ":latest";

/// A model's name for clients, which always has a tag.
pub(super) fn shown(name: &str) -> String {
    if name.contains(':') { name.to_owned() } else { format!("{name}{LATEST}") }
}

/// The model that a client means: in capitals or not, with the tag `latest` or without, or by the whole
/// name under which a registry has it.
pub(super) async fn find(models: &Models, asked: &str) -> Result<String, HttpError> {
    look_for(models, asked).await?.ok_or_else(|| no_model(asked))
}

/// As [`find`], but `None` where there is no such model.
pub(super) async fn look_for(models: &Models, asked: &str) -> Result<Option<String>, HttpError> {
    if asked.is_empty() {
        return Err(HttpError::bad_request("model is required".to_owned()));
    }
    let meant = candidates(asked);
    let found = match meant.iter().find(|name| models.has(name)) {
        Some(name) => Some(name.clone()),
        None => find_in_capitals(models, &meant).await?,
    };
    let Some(name) = found.map(|name| models.own_name(&name)) else { return Ok(None) };
    models.check_allowed(&name)?;
    Ok(Some(name))
}

async fn find_in_capitals(models: &Models, meant: &[String]) -> Result<Option<String>, HttpError> {
    let listed = models.listed().await?.into_iter();
    let mut names = listed.flat_map(|model| [vec![model.name], model.aliases].concat());
    let is_meant = |name: &String| meant.iter().any(|other| other.eq_ignore_ascii_case(name));
    Ok(names.find(is_meant))
}

/// In the words by which clients know it.
pub(super) fn no_model(asked: &str) -> HttpError {
    HttpError::not_found(format!("model '{asked}' not found"))
}

/// Where a registry has the model of this name.
pub(super) fn source_of(asked: &str) -> Result<Source, HttpError> {
    let of_hub = ["hf.co/", "huggingface.co/"].iter().find_map(|hub| asked.strip_prefix(hub));
    let text = match of_hub {
        Some(rest) => format!("hf:{rest}"),
        None => format!("ollama:{asked}"),
    };
    text.parse().map_err(|error: m40_store::SourceError| HttpError::bad_request(error.to_string()))
}

/// A name for a new model: as asked, if a model can have that, and without a needless tag.
pub(super) fn new_name(asked: &str) -> String {
    let last = asked.rsplit('/').next().unwrap_or(asked);
    model_name_of_file(last.strip_suffix(LATEST).unwrap_or(last))
}

/// The names that a model that is meant may have, the likeliest first.
fn candidates(asked: &str) -> Vec<String> {
    let mut all = vec![asked.to_owned()];
    match asked.strip_suffix(LATEST) {
        Some(plain) => all.push(plain.to_owned()),
        None if !asked.contains(':') => all.push(format!("{asked}{LATEST}")),
        None => {}
    }
    if asked.contains('/') {
        all.extend(source_of(asked).ok().map(|source| name_of(&source)));
        let last = new_name(asked);
        all.push(shown(&last));
        all.push(last);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_tag_for_clients_and_are_found_with_and_without() {
        assert_eq!(shown("smollm2"), "smollm2:latest");
        assert_eq!(shown("llama3.2:3b"), "llama3.2:3b");
        assert_eq!(candidates("a"), ["a", "a:latest"]);
        assert_eq!(candidates("a:latest"), ["a:latest", "a"]);
        assert_eq!(candidates("a:7b"), ["a:7b"]);
        let of_hub = candidates("hf.co/org/Some-3B-GGUF:Q4_K_M");
        assert!(of_hub.contains(&"Some-3B:Q4_K_M".to_owned()), "{of_hub:?}");
        assert!(candidates("me/m:7b").contains(&"m:7b".to_owned()));
        assert_eq!(new_name("me/m:latest"), "m");
        assert_eq!(new_name("../.ssh:x"), "ssh:x");
    }
}
