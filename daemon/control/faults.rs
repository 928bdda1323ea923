//! Faults that tests ask for, of which there is no other way to have them without a broken machine. Only
//! builds with debug assertions have these routes, and only who may use the control socket reaches them.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;

use super::Context;

pub(super) fn routes() -> Router<Context> {
    let routes = Router::new().route("/test/hang", post(hang));
    #[cfg(feature = "cuda")]
    let routes = routes.route("/test/lose-gpu", post(lose_gpu));
    routes
}

/// The engine has something in hand from now on that never gets on.
async fn hang(State(context): State<Context>) -> StatusCode {
    context.models.engine().hang();
    StatusCode::NO_CONTENT
}

/// The GPU stops working for this process, whatever the engine runs on.
#[cfg(feature = "cuda")]
async fn lose_gpu(State(context): State<Context>) -> StatusCode {
    let call = m40_cuda::Call::cuStreamSynchronize;
    let name = "LAUNCH_FAILED".into();
    let error = m40_cuda::CudaError::DeviceLost { call, code: 719, name };
    context.models.device_failed(error.into());
    StatusCode::NO_CONTENT
}
