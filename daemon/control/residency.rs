//! What would happen, who waits, and who holds the memory.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use m40_control::{
    ApiError, CancelRequest, ErrorCode, Plan, PlanRequest, QueueEntry, QueueList, Vram,
};

use super::{Context, Refused};
use crate::http::read_json;

pub(super) async fn plan(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Plan>, Refused> {
    let request: PlanRequest = read_json(&headers, body, context.body_limits).await?;
    Ok(Json(context.models.plan(&request.model).await?))
}

pub(super) async fn queue(State(context): State<Context>) -> Json<QueueList> {
    Json(QueueList { requests: context.models.queue() })
}

pub(super) async fn cancel(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<QueueEntry>, Refused> {
    let CancelRequest { request } = read_json(&headers, body, context.body_limits).await?;
    Ok(Json(context.models.cancel(request).ok_or_else(|| {
        let message = format!("no request {request} waits or runs: `m40ctl queue` shows those");
        ApiError::new(ErrorCode::NotFound, message)
    })?))
}

pub(super) async fn vram(State(context): State<Context>) -> Json<Vram> {
    Json(context.models.vram())
}
