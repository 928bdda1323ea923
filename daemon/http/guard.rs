//! What stands between a connection and the routes.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Context;
use super::error::HttpError;

/// For routes that add, change or remove models: refuses them unless that is allowed.
pub(super) async fn manage(
    State(context): State<Context>,
    request: Request,
    next: Next,
) -> Response {
    if context.allow_model_management {
        next.run(request).await
    } else {
        HttpError::management_off().into_response()
    }
}
