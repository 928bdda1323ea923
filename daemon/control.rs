//! The control API on the Unix socket: see the table in `m40_control`.
//!
//! Everything here is for those who may use the socket; [`crate::socket::Access`] says who.

#[cfg(debug_assertions)]
mod faults;
mod log;
mod pull;
mod residency;
mod resume;
mod run;
mod stored;
mod verify;

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use m40_control::{
    ApiError, BenchRequest, ErrorBody, ErrorCode, LoadRequest, ModelEntry, ModelList, Reload,
    ReloadRequest, Status, UnloadRequest,
};
use serde::Serialize;
use tokio::sync::mpsc;

pub(crate) use resume::resume;

use crate::bench;
use crate::doors::Doors;
use crate::exit::Failure;
use crate::http::{BodyError, BodyLimits, read_json};
use crate::logging::{Filter, Levels};
use crate::manifests::Manifests;
use crate::models::{Models, Urgency};
use crate::net::{Peer, Phase};
use crate::pulls::blob_error;
use crate::socket::Access;
use crate::store::{Store, StoreError};
pub(crate) use pull::{begin as begin_pull, name_of};
pub(crate) use stored::remove_model;

/// What every handler has.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub models: Models,
    pub manifests: Manifests,
    pub store: Store,
    pub body_limits: BodyLimits,
    pub access: Access,
    pub doors: Doors,
    pub started: Instant,
    pub http_address: String,
    pub control_socket: PathBuf,
    pub config_file: Option<PathBuf>,
    pub levels: Levels,
    /// What is logged from the start on.
    pub log_filter: Filter,
    pub state_dir: PathBuf,
}

/// The routes of the control socket.
pub(crate) fn router(context: Context) -> Router {
    let routes = Router::new()
        .route("/status", get(status))
        .route("/models", get(models))
        .route("/models/pull", post(pull::pull))
        .route("/models/show", post(stored::show))
        .route("/models/remove", post(stored::remove))
        .route("/prune", post(stored::prune))
        .route("/verify", post(verify::verify))
        .route("/adopt", post(stored::adopt))
        .route("/models/load", post(load))
        .route("/models/unload", post(unload))
        .route("/models/plan", post(residency::plan))
        .route("/models/bench", post(bench_model))
        .route("/run", post(run::run))
        .route("/reload", post(reload))
        .route("/log", get(log::level).post(log::set_level))
        .route("/queue", get(residency::queue))
        .route("/queue/cancel", post(residency::cancel))
        .route("/vram", get(residency::vram));
    #[cfg(debug_assertions)]
    let routes = routes.merge(faults::routes());
    routes
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn_with_state(context.clone(), check_peer))
        .with_state(context)
}

/// An [`ApiError`] as a response.
#[derive(Debug)]
struct Refused(ApiError);

impl<E: Into<ApiError>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.http_status());
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(ErrorBody { error: self.0 })).into_response()
    }
}

async fn check_peer(
    State(context): State<Context>,
    Extension(peer): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    match peer {
        Peer::Unix(credentials) if context.access.allows(credentials) => next.run(request).await,
        _ => {
            let message = "only root, the user of m40d and members of [control] group may do this";
            Refused(ApiError::new(ErrorCode::Forbidden, message)).into_response()
        }
    }
}

async fn status(State(context): State<Context>) -> Result<Json<Status>, Refused> {
    let care = context.models.care().clone();
    // Asking a card takes a while.
    let card = tokio::task::spawn_blocking(move || care.status()).await.map_err(|_| internal())?;
    Ok(Json(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_s: context.started.elapsed().as_secs(),
        device: context.models.device(),
        http_address: context.http_address,
        tls: context.doors.certificate.is_some(),
        control_socket: context.control_socket,
        config_file: context.config_file,
        state_dir: context.state_dir,
        manifests_dir: context.manifests.dir().to_path_buf(),
        manifest_problems: context.manifests.current().problems().to_vec(),
        card,
        stopping: *context.models.phase().borrow() != Phase::Serving,
        models: context.models.active().into_iter().chain(context.models.coming()).collect(),
    }))
}

async fn models(State(context): State<Context>) -> Result<Json<ModelList>, Refused> {
    let models = context.models.clone();
    let listed = tokio::task::spawn_blocking(move || models.list()).await;
    Ok(Json(ModelList { models: listed.map_err(|_| internal())? }))
}

async fn load(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<ModelEntry>, Refused> {
    let request: LoadRequest = read_json(&headers, body, context.body_limits).await?;
    Ok(Json(context.models.load(&request.model).await?))
}

async fn unload(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<ModelEntry>, Refused> {
    let request: UnloadRequest = read_json(&headers, body, context.body_limits).await?;
    Ok(Json(context.models.unload(&request.model, request.force).await?))
}

async fn reload(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Reload>, Refused> {
    let request: ReloadRequest = read_json(&headers, body, context.body_limits).await?;
    if !request.dry_run {
        let wrong = |error: Failure| ApiError::new(ErrorCode::Conflict, error.to_string());
        context.doors.reload().map_err(wrong)?;
    }
    let reload = context.manifests.reload(request.dry_run).await;
    Ok(Json(reload.map_err(|_| internal())?))
}

fn received<E>(receiver: mpsc::UnboundedReceiver<E>) -> impl Stream<Item = E> {
    stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|event| (event, receiver))
    })
}

async fn bench_model(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    let request: BenchRequest = read_json(&headers, body, context.body_limits).await?;
    let options = bench::options(&request)?;
    let ticket = context.models.ask_for(&request.model, Urgency::default()).await?;
    let run = ticket.turn().await?;
    Ok(lines(received(bench::start(&context.models, run, options))))
}

fn lines<E: Serialize + 'static>(events: impl Stream<Item = E> + Send + 'static) -> Response {
    let lines = futures_util::StreamExt::map(events, |event| {
        // These types have no map with keys that are not texts, the one thing JSON cannot hold.
        let mut line = serde_json::to_vec(&event).unwrap_or_default();
        line.push(b'\n');
        Ok::<_, Infallible>(Bytes::from(line))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

async fn no_route(uri: axum::http::Uri) -> Refused {
    let message = format!("there is no route {} on the control socket", uri.path());
    Refused(ApiError::new(ErrorCode::NotFound, message))
}

async fn no_method(method: axum::http::Method, uri: axum::http::Uri) -> Refused {
    let message = format!("{} does not take {method}", uri.path());
    Refused(ApiError::new(ErrorCode::MethodNotAllowed, message))
}

fn internal() -> ApiError {
    ApiError::new(ErrorCode::Internal, "m40d failed, see its log")
}

impl From<BodyError> for ApiError {
    fn from(error: BodyError) -> Self {
        let code = match error {
            BodyError::ContentType => ErrorCode::UnsupportedMediaType,
            BodyError::TooLarge { .. } => ErrorCode::TooLarge,
            _ => ErrorCode::InvalidRequest,
        };
        Self::new(code, error.to_string())
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::Name(_) => ErrorCode::InvalidRequest,
            StoreError::MissingShard { .. } | StoreError::NoModel { .. } => ErrorCode::NotFound,
            StoreError::NameTaken { .. } => ErrorCode::Conflict,
            StoreError::BadModel { .. } => ErrorCode::BadModel,
            StoreError::Blob(error) => blob_error(error),
        };
        Self::new(code, error.to_string())
    }
}
