//! How much a model is to reason, in OpenAI's words.

use crate::generation::Reasoning;
use crate::http::error::HttpError;

/// OpenAI's words, and one of Ollama's, from the least effort to the most.
const EFFORTS: [&str; 6] = ["minimal", "low", "medium", "high", "xhigh", "max"];

/// What a request's `param` says of reasoning.
pub(super) fn of_effort(effort: Option<&str>, param: &str) -> Result<Reasoning, HttpError> {
    match effort {
        None => Ok(Reasoning::Default),
        Some("none") => Ok(Reasoning::Off),
        Some(effort) if EFFORTS.contains(&effort) => Ok(Reasoning::Effort(effort.to_owned())),
        Some(_) => {
            let message = format!("must be none, or one of {}", EFFORTS.join(", "));
            Err(HttpError::bad_param(param, message))
        }
    }
}
