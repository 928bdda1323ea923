//! `POST /api/show`: what a model is, and what it can do.

use std::fmt::Write as _;
use std::path::Path;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use m40_gguf::Value as Meta;
use m40_manifest::Definition;
use m40llm::{Engine, LoadError};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::task::spawn_blocking;

use super::listing::details;
use super::{HttpError, names, parse, read, rfc3339};
use crate::http::Context;
use crate::models::{Facts, LoadFailure, ModelError};

/// Longest list that is shown unless all is asked for.
const LIST_MAX: usize = 8;
/// Lists in lists that are followed; the format has no more.
const DEPTH_MAX: usize = 4;
/// What has a field of its own.
const TEMPLATE: &str = "tokenizer.chat_template";

#[derive(Debug, Deserialize)]
struct Request {
    #[serde(default, alias = "name")]
    model: Option<String>,
    #[serde(default)]
    verbose: Option<bool>,
    #[serde(default)]
    system: Option<String>,
}

/// What a file says.
struct Told {
    metadata: Map<String, Value>,
    tensors: Value,
    template: String,
}

pub(super) async fn show(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, HttpError> {
    let request: Request = parse(&read(&context, headers, body).await?)?;
    let asked = request.model.unwrap_or_default();
    let name = names::find(&context.models, &asked).await?;
    let is_verbose = request.verbose.unwrap_or(false);
    let (models, called) = (context.models.clone(), name.clone());
    let looked = spawn_blocking(move || {
        let Some(facts) = models.facts(&called)? else { return Ok(None) };
        let told = Told::of(&facts.path, is_verbose);
        let told = told.map_err(|error| ModelError::Load(LoadFailure::from(&error).into()))?;
        Ok::<_, ModelError>(Some((facts, told)))
    });
    let looked = looked.await.map_err(|_| HttpError::internal())??;
    let Some((facts, told)) = looked else { return Err(names::no_model(&asked)) };
    let can = context.models.capabilities(&name).await.unwrap_or_default();
    let definition = context.models.definition(Some(&name));
    let mut value = shown(&name, &facts, told, definition.as_deref());
    value["capabilities"] = can.iter().map(ToString::to_string).collect();
    if let Some(system) = request.system.filter(|system| !system.is_empty()) {
        value["system"] = json!(system);
    }
    if !is_verbose && let Some(fields) = value.as_object_mut() {
        fields.remove("tensors");
    }
    Ok(Json(value))
}

fn shown(name: &str, facts: &Facts, told: Told, definition: Option<&Definition>) -> Value {
    let own = definition.and_then(|definition| definition.template.as_ref());
    let template = own.map_or(told.template, |text| text.content.to_string());
    let system = definition.and_then(|definition| definition.system.as_ref());
    let system = system.map(|text| text.content.to_string());
    let parameters = definition.map(parameters).unwrap_or_default();
    let mut info = told.metadata;
    info.insert("general.parameter_count".to_owned(), json!(facts.info.parameters));
    // What requests can have, which is what clients plan with.
    let context = format!("{}.context_length", facts.info.architecture);
    info.insert(context, json!(facts.info.context));
    let mut value = json!({
        "modelfile": modelfile(name, &template, system.as_deref(), &parameters),
        "parameters": parameters.iter().map(|(name, value)| format!("{name:<30} {value}"))
            .collect::<Vec<_>>().join("\n"),
        "template": template,
        "details": details(&facts.info),
        "model_info": info,
        "tensors": told.tensors,
        "modified_at": rfc3339(facts.modified),
    });
    if let Some(system) = system {
        value["system"] = json!(system);
    }
    value
}

impl Told {
    /// Reads a file. Blocking.
    fn of(path: &Path, is_verbose: bool) -> Result<Self, LoadError> {
        let gguf = Engine::gguf(path)?;
        let longest = if is_verbose { usize::MAX } else { LIST_MAX };
        let shown = gguf.metadata().filter(|(key, _)| *key != TEMPLATE);
        let metadata =
            shown.map(|(key, value)| (key.to_owned(), json_of(value, longest, DEPTH_MAX)));
        let template = match gguf.get(TEMPLATE) {
            Some(Meta::Str(text)) => text.to_owned(),
            _ => String::new(),
        };
        let tensor = |tensor: &m40_gguf::TensorInfo| {
            json!({
                "name": tensor.name,
                "type": tensor.ty.name(),
                "shape": tensor.dims.as_slice(),
            })
        };
        let tensors = if is_verbose { gguf.tensors() } else { &[] }.iter().map(tensor).collect();
        Ok(Self { metadata: metadata.collect(), tensors, template })
    }
}

/// A value of a file; `null` for a list that is longer.
fn json_of(value: Meta<'_>, longest: usize, depth: usize) -> Value {
    match value {
        Meta::Str(text) => json!(text),
        Meta::Bool(flag) => json!(flag),
        Meta::F32(number) => json!(number),
        Meta::F64(number) => json!(number),
        Meta::Array(list) if list.len() > longest || depth == 0 => Value::Null,
        Meta::Array(list) => list.iter().map(|item| json_of(item, longest, depth - 1)).collect(),
        Meta::U64(number) => json!(number),
        integer => json!(integer.as_integer().and_then(|number| i64::try_from(number).ok())),
    }
}

/// What a definition says of sampling and the like, by Ollama's names.
fn parameters(definition: &Definition) -> Vec<(&'static str, String)> {
    let sampling = &definition.sampling;
    let real = |value: Option<f32>| value.map(|value| value.to_string());
    let count = |value: Option<u32>| value.map(|value| value.to_string());
    let said = [
        ("num_ctx", count(definition.context_tokens)),
        ("temperature", real(sampling.temperature)),
        ("top_k", count(sampling.top_k)),
        ("top_p", real(sampling.top_p)),
        ("min_p", real(sampling.min_p)),
        ("typical_p", real(sampling.typical_p)),
        ("repeat_penalty", real(sampling.repeat_penalty)),
        ("repeat_last_n", count(sampling.repeat_last_n)),
        ("presence_penalty", real(sampling.presence_penalty)),
        ("frequency_penalty", real(sampling.frequency_penalty)),
        ("seed", sampling.seed.map(|seed| seed.to_string())),
    ];
    let said = said.into_iter().filter_map(|(name, value)| Some((name, value?)));
    // Quoted, as Ollama shows them and its clients read them.
    let stops = definition.stop.iter().map(|stop| ("stop", format!("{stop:?}")));
    said.chain(stops).collect()
}

/// The same as the text of a file from which Ollama would make the model.
fn modelfile(
    name: &str,
    template: &str,
    system: Option<&str>,
    parameters: &[(&str, String)],
) -> String {
    let mut text = format!("FROM {}\n", names::shown(name));
    let quoted = [("TEMPLATE", Some(template).filter(|text| !text.is_empty())), ("SYSTEM", system)];
    for (key, value) in quoted.into_iter().filter_map(|(key, value)| Some((key, value?))) {
        // Writing into a string does not fail.
        let _ = writeln!(text, "{key} \"\"\"{value}\"\"\"");
    }
    for (name, value) in parameters {
        let _ = writeln!(text, "PARAMETER {name} {value}");
    }
    text
}

#[cfg(test)]
mod tests {
    use m40_manifest::Sampling;
    use m40_testkit::gguf::TinyModel;

    use super::*;

    #[test]
    fn long_lists_are_left_out_unless_all_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tiny.gguf");
        std::fs::write(&path, TinyModel::new("llama").build()).unwrap();
        let told = Told::of(&path, false).unwrap();
        assert_eq!(told.metadata["general.architecture"], "llama");
        assert_eq!(told.metadata["tokenizer.ggml.tokens"], Value::Null);
        assert_eq!(told.tensors, json!([]));
        let told = Told::of(&path, true).unwrap();
        assert!(told.metadata["tokenizer.ggml.tokens"].as_array().unwrap().len() > LIST_MAX);
        assert!(told.tensors[0]["shape"].is_array(), "{}", told.tensors);
    }

    #[test]
    fn parameters_are_named_as_ollama_does() {
        let mut definition = Definition::plain("m", "/m.gguf".parse().unwrap()).unwrap();
        definition.sampling = Sampling { temperature: Some(0.5), ..Sampling::default() };
        definition.stop = vec!["<end>".to_owned()];
        let said = parameters(&definition);
        let want = [("temperature", "0.5".to_owned()), ("stop", "\"<end>\"".to_owned())];
        assert_eq!(said, want);
        let text = modelfile("m", "T", Some("S"), &said);
        let want = "FROM m:latest\nTEMPLATE \"\"\"T\"\"\"\nSYSTEM \"\"\"S\"\"\"\n\
                    PARAMETER temperature 0.5\nPARAMETER stop \"<end>\"\n";
        assert_eq!(text, want);
    }
}
