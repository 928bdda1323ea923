//! Pulls that a restart has cut short go on by themselves.

use m40_store::Request;
use tracing::{info, warn};

use super::Context;
use super::pull::{Named, settle};
use crate::pulls::State;
use crate::store::pending::Pending;

/// Goes on with what `m40ctl pull` was getting when the daemon ended. Within a runtime.
pub(crate) fn resume(context: &Context) {
    for pending in context.store.pending().list() {
        tokio::spawn(go_on(context.clone(), pending));
    }
}

/// Waits for a model, also through what fails in passing, until nobody wants it any more.
async fn go_on(context: Context, pending: Pending) {
    let Pending { name, source, replace } = pending;
    info!(model = name, source = source.shown(), "goes on with a pull");
    let mut watching = context.store.pulls().watch_patiently(Request::new(source));
    let failed = loop {
        match watching.state() {
            State::Here(record) => {
                let model = Named::Stored { name: name.clone(), replace };
                break settle(&context, &record, model).await.err().map(|error| error.message);
            }
            State::Failed(failure) if failure.again.is_none() => break Some(failure.to_string()),
            // Somebody has asked for it since, and left.
            _ if !context.store.pending().has(&name) => return,
            State::Coming(_) | State::Failed(_) => watching.changed().await,
        }
    };
    if let Some(error) = failed {
        warn!(model = name, error, "the pull that was cut short has failed");
    }
    forget(&context, name).await;
}

/// A pull is over.
pub(super) async fn forget(context: &Context, name: String) {
    let pending = context.store.pending();
    let forgotten = tokio::task::spawn_blocking(move || pending.forget(&name)).await;
    if let Ok(Err(error)) = forgotten {
        warn!(%error, "a pull that is over will be tried again after a restart");
    }
}
