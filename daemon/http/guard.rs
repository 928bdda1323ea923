//! What stands between a connection and the routes: the name that the client calls this machine, the site
//! whose page asks, and the key.

mod host;
mod key;
mod origin;

use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};

use super::Context;
use super::error::HttpError;
use crate::caller::Caller;
use crate::config::{Http, MetricsFor};
use crate::keys::Keys;
use crate::net::Peer;
use host::Hosts;
use origin::Sites;

/// The rules of the listener.
#[derive(Debug, Clone)]
pub(crate) struct Guard {
    hosts: Hosts,
    sites: Sites,
    keys: Option<Keys>,
    metrics: MetricsFor,
}

impl Guard {
    pub(crate) fn new(config: &Http, keys: Option<Keys>) -> Self {
        Self {
            hosts: Hosts::new(config),
            sites: Sites::new(&config.cors_origins),
            keys,
            metrics: config.metrics,
        }
    }

    /// Puts itself around routes. What it refuses is an [`HttpError`].
    pub(super) fn around(self, routes: Router) -> Router {
        let routes = routes.layer(middleware::from_fn_with_state(self.clone(), ask_key));
        // Browsers ask without a key whether they may ask.
        let routes = match self.sites.layer() {
            Some(cors) => routes.layer(cors),
            None => routes,
        };
        routes.layer(middleware::from_fn_with_state(self, ask_where))
    }

    /// Whether what is asked for needs no key.
    fn is_open(&self, request: &Request, peer: &Peer) -> bool {
        match request.uri().path() {
            // Without a name, it says nothing of any model.
            "/health" | "/ready" => request.uri().query().is_none(),
            "/metrics" => match self.metrics {
                MetricsFor::ThisMachine => peer.is_here(),
                MetricsFor::Keys => false,
                MetricsFor::Anybody => true,
            },
            _ => false,
        }
    }
}

async fn ask_where(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let checked = guard.hosts.check(&request).and_then(|()| guard.sites.check(request.headers()));
    match checked {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

async fn ask_key(
    State(guard): State<Guard>,
    Extension(peer): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let Some(keys) = &guard.keys else { return next.run(request).await };
    if guard.is_open(&request, &peer) {
        return next.run(request).await;
    }
    match key::admitted(keys, request.headers()) {
        Ok(key) => {
            let caller = Caller::current().unwrap_or_default().with_key(key);
            caller.scope(next.run(request)).await
        }
        Err(error) => error.into_response(),
    }
}

/// For routes that add, change or remove models: refuses them unless that is allowed.
#[expect(dead_code, reason = "no route that is served yet changes models")]
pub(super) async fn manage(
    State(context): State<Context>,
    request: Request,
    next: Next,
) -> Response {
    let caller = Caller::current().unwrap_or_default();
    match caller.key() {
        _ if !context.allow_model_management => HttpError::management_off().into_response(),
        Some(key) if !key.manage_models => HttpError::may_not_manage(&key.name).into_response(),
        _ => next.run(request).await,
    }
}
