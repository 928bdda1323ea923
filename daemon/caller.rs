//! Who asks: what all that is done for a request over HTTP knows of it.
//!
//! It goes with the task of the request, as its span does in the log, so no route can forget to pass it
//! on. What `m40ctl` asks for has none, and no limits. A task that a route spawns has none either: it asks
//! for models before.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use m40_sched::Class;

use crate::keys::Key;

tokio::task_local! {
    static CURRENT: Caller;
}

/// The client behind a request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Caller {
    key: Option<Arc<Key>>,
    record: Arc<Mutex<Record>>,
}

/// What came of a request, for the log.
#[derive(Debug, Clone, Default)]
pub(crate) struct Record {
    /// Name of the client's key.
    pub key: Option<String>,
    pub model: Option<String>,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    /// From the question to the first piece of its answer.
    pub first_token: Option<Duration>,
    /// The word for how the last answer ended.
    pub finish: Option<&'static str>,
}

impl Caller {
    /// Whose request the current task answers.
    pub(crate) fn current() -> Option<Self> {
        CURRENT.try_with(Self::clone).ok()
    }

    /// Does something for this caller.
    pub(crate) async fn scope<T>(self, work: impl Future<Output = T>) -> T {
        CURRENT.scope(self, work).await
    }

    pub(crate) fn with_key(self, key: Arc<Key>) -> Self {
        self.note(|record| record.key = Some(key.name.clone()));
        Self { key: Some(key), ..self }
    }

    pub(crate) fn key(&self) -> Option<&Arc<Key>> {
        self.key.as_ref()
    }

    /// How urgent a request is that says so of itself.
    pub(crate) fn cap(&self, class: Class) -> Class {
        self.key.as_ref().map_or(class, |key| class.min(key.priority))
    }

    /// Counts tokens that were computed for it.
    pub(crate) fn charge(&self, tokens: u64) {
        if let Some(key) = &self.key {
            key.charge(tokens, Instant::now());
        }
    }

    /// Notes something of what came of the request.
    pub(crate) fn note(&self, note: impl FnOnce(&mut Record)) {
        note(&mut self.record.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// What came of it so far.
    pub(crate) fn record(&self) -> Record {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
