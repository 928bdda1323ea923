//! What is logged, and changing it.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use m40_control::{ApiError, ErrorCode, LogLevel, LogRequest};
use tracing::{error, info};

use super::{Context, Refused, internal};
use crate::http::read_json;
use crate::logging::{Filter, FilterError};

pub(super) async fn level(State(context): State<Context>) -> Json<LogLevel> {
    Json(current(&context))
}

pub(super) async fn set_level(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<LogLevel>, Refused> {
    let request: LogRequest = read_json(&headers, body, context.body_limits).await?;
    let wrong = |error: FilterError| ApiError::new(ErrorCode::InvalidRequest, error.to_string());
    let filter: Filter = request.filter.parse().map_err(wrong)?;
    // Before and after: one of the two shows it.
    info!(%filter, "the log level changes");
    context.levels.set(filter.clone()).map_err(|error| {
        error!(%error, "cannot change the log level");
        internal()
    })?;
    info!(%filter, "the log level has changed");
    Ok(Json(current(&context)))
}

fn current(context: &Context) -> LogLevel {
    let (now, configured) = (context.levels.current(), &context.log_filter);
    LogLevel { filter: now.to_string(), configured: configured.to_string() }
}
