//! `POST /api/create`: a model of another's files, or of a file that was sent, used in its own way.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use m40_control::{ApiError, ErrorCode};
use m40_manifest::TEXT_BYTES_MAX;
use m40_store::Sha256;
use m40_tokenizer::ChatTemplate;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::task::spawn_blocking;

use super::reply::{line, respond};
use super::{HttpError, is_empty, names, parse, read};
use crate::control;
use crate::http::Context;
use crate::models::Models;
use crate::pulls::request_of;
use crate::store::defaults::Defaults;
use crate::store::{Description, Import, Manifest, StoreError, StoredFile, unix_s};

/// The name that a sent file has here.
const FILE_NAME: &str = "model.gguf";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Request {
    #[serde(alias = "name")]
    model: Option<String>,
    from: Option<String>,
    /// Digests of blobs by the names of files.
    files: Option<BTreeMap<String, String>>,
    template: Option<String>,
    system: Option<String>,
    parameters: Option<Map<String, Value>>,
    stream: Option<bool>,
    adapters: Value,
    messages: Value,
    quantize: Value,
}

pub(super) async fn create(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HttpError> {
    let request: Request = parse(&read(&context, headers, body).await?)?;
    let name = request.model.clone().unwrap_or_default();
    if name.is_empty() {
        return Err(HttpError::bad_request("model is required".to_owned()));
    }
    request.check()?;
    let mut base = match (&request.from, &request.files) {
        (Some(from), None) => {
            let from = names::find(&context.models, from).await?;
            Base::model(&context, from, &name).await?
        }
        (None, Some(files)) => Base::file(&context, files).await?,
        _ => {
            let message = "either 'from' or 'files' must be specified";
            return Err(HttpError::bad_request(message.to_owned()));
        }
    };
    let left_out = request.change(&mut base.defaults)?;
    put(&context, &name, base).await?;
    if !request.stream.unwrap_or(true) {
        return Ok(Json(json!({"status": "success"})).into_response());
    }
    let ignored = left_out.into_iter().map(|what| format!("ignoring parameter {what}"));
    let said = ["using existing layer", "writing manifest", "success"].map(str::to_owned);
    let lines = ignored.chain(said).map(|status| line(&json!({"status": status})));
    Ok(respond(Body::from_stream(stream::iter(lines.collect::<Vec<_>>()))))
}

impl Request {
    /// What would make another model and cannot be done is refused, not dropped.
    fn check(&self) -> Result<(), HttpError> {
        let others = [
            ("adapters", &self.adapters, "send a file that the adapter was merged into"),
            ("messages", &self.messages, "send them with each request, or say it in 'system'"),
            ("quantize", &self.quantize, "files stay as they are: send one that is quantised"),
        ];
        match others.iter().find(|(_, value, _)| !is_empty(value)) {
            Some((what, _, instead)) => {
                Err(HttpError::bad_request(format!("'{what}' is not supported: {instead}")))
            }
            None => Ok(()),
        }
    }

    /// Changes how a model is used; returns the parameters that mean nothing here.
    fn change(&self, defaults: &mut Defaults) -> Result<Vec<String>, HttpError> {
        let too_long = |what: &str| {
            HttpError::bad_request(format!("{what} is longer than {TEXT_BYTES_MAX} bytes"))
        };
        if let Some(system) = &self.system {
            if system.len() > TEXT_BYTES_MAX {
                return Err(too_long("system"));
            }
            defaults.system = Some(system.clone()).filter(|system| !system.is_empty());
        }
        if let Some(template) = self.template.as_ref().filter(|template| !template.is_empty()) {
            if template.len() > TEXT_BYTES_MAX {
                return Err(too_long("template"));
            }
            ChatTemplate::new(template, "", "")
                .map_err(|error| HttpError::bad_request(format!("template: {error}")))?;
            defaults.template = Some(template.clone());
        }
        let parameters = self.parameters.iter().flatten();
        let ignored = parameters.filter_map(|(name, value)| {
            let is_taken = defaults.take(name, value);
            (!is_taken).then(|| name.clone())
        });
        Ok(ignored.collect())
    }
}

/// What a new model is made of.
pub(super) struct Base {
    source: PathBuf,
    description: Description,
    files: Vec<StoredFile>,
    defaults: Defaults,
}

impl Base {
    /// Another model, whose files come into the store under the new name if they are not there.
    pub(super) async fn model(
        context: &Context,
        from: String,
        to: &str,
    ) -> Result<Self, HttpError> {
        let to = names::new_name(to);
        check_free(&context.control, &to)?;
        let (models, control) = (context.models.clone(), context.control.clone());
        let made = spawn_blocking(move || Self::of_model(&models, &control, &from, &to));
        Ok(made.await.map_err(|_| HttpError::internal())??)
    }

    fn of_model(
        models: &Models,
        control: &control::Context,
        from: &str,
        to: &str,
    ) -> Result<Self, ApiError> {
        let gone = || ApiError::new(ErrorCode::NotFound, format!("model '{from}' not found"));
        let facts = models.facts(from)?.ok_or_else(gone)?;
        let defaults = models.definition(Some(from)).map(|def| Defaults::of_definition(&def));
        let (source, files) = match control.manifests.current().find(from) {
            Some(defined) => {
                let record = control.store.pulls().record(&request_of(&defined.definition));
                let files = record.map(|record| record.files().to_vec()).unwrap_or_default();
                (PathBuf::from(defined.definition.source.to_string()), files)
            }
            None => match control.store.find(from) {
                Some(manifest) => (manifest.source, manifest.files),
                None => (facts.path.clone(), Vec::new()),
            },
        };
        let files = if files.is_empty() {
            let import = Import { path: &facts.path, name: Some(to), replace: true };
            models.import(&import, &mut |_, _| {})?;
            control.store.find(to).ok_or_else(gone)?.files
        } else {
            files
        };
        let description = Description {
            architecture: facts.info.architecture.clone(),
            quantization: facts.info.quantization.clone(),
            parameters: facts.info.parameters,
        };
        Ok(Self { source, description, files, defaults: defaults.unwrap_or_default() })
    }

    /// A file that was sent.
    async fn file(context: &Context, files: &BTreeMap<String, String>) -> Result<Self, HttpError> {
        let [digest] = files.values().collect::<Vec<_>>()[..] else {
            let message = "'files' must have one file: models of several are not made here";
            return Err(HttpError::bad_request(message.to_owned()));
        };
        let sha256 = Sha256::from_digest(digest)
            .map_err(|error| HttpError::bad_request(format!("files: the digest {error}")))?;
        let (models, store) = (context.models.clone(), context.control.store.clone());
        let made = spawn_blocking(move || {
            let found = store.blobs().find(&sha256);
            let blob = found.ok_or(StoreError::Blob(m40_store::StoreError::NoBlob { sha256 }))?;
            let path = store.blobs().path(&sha256);
            let described = models.describe(Path::new(&path));
            let description = described.map_err(|message| StoreError::BadModel { message })?;
            let size_bytes = blob.size_bytes;
            let file = StoredFile { name: FILE_NAME.to_owned(), sha256, size_bytes };
            let (files, defaults) = (vec![file], Defaults::default());
            Ok::<_, StoreError>(Self { source: path, description, files, defaults })
        });
        let made = made.await.map_err(|_| HttpError::internal())?;
        Ok(made.map_err(ApiError::from)?)
    }
}

/// Gives what a model is made of a name, in the place of whatever had it.
pub(super) async fn put(context: &Context, name: &str, base: Base) -> Result<(), HttpError> {
    let name = names::new_name(name);
    check_free(&context.control, &name)?;
    let store = context.control.store.clone();
    let Base { source, description, files, defaults } = base;
    let Description { architecture, quantization, parameters } = description;
    let manifest = Manifest {
        name,
        source,
        imported_at_unix_s: unix_s(SystemTime::now()),
        architecture,
        quantization,
        parameters,
        files,
        defaults: Box::new(defaults),
    };
    let named = spawn_blocking(move || store.name_files(manifest)).await;
    let manifest = named.map_err(|_| HttpError::internal())?.map_err(ApiError::from)?;
    tracing::info!(model = manifest.name, "added");
    Ok(())
}

/// What a manifest defines is for it to say.
fn check_free(control: &control::Context, name: &str) -> Result<(), ApiError> {
    match control.manifests.current().find(name) {
        Some(model) => {
            let manifest = model.file.display();
            let message = format!("{name:?} is defined by {manifest}: use another name");
            Err(ApiError::new(ErrorCode::Conflict, message))
        }
        None => Ok(()),
    }
}
