//! A request, from when it is asked until it has ended: its place goes when it is dropped.

use std::sync::Arc;
use std::time::Duration;

use m40_sched::residency::Stay;
use m40_sched::{Class, ModelName, RequestId};
use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::task::spawn_blocking;
use tracing::error;

use super::desk::{Started, Told};
use super::job::{CountedJob, Cut, Job, Reason};
use super::loaded::{Failed, Loaded};
use super::{ModelError, Models};
use crate::metrics::Metrics;

/// How a request is to be treated beside others.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Urgency {
    pub class: Class,
    /// After how long it is to be over, whether it waits or runs.
    pub time: Option<Duration>,
}

/// A place among those that wait or run. Dropping it frees it.
#[derive(Debug)]
pub(super) struct Place {
    models: Models,
    id: RequestId,
    // Last, so that no request is counted means that none has a place.
    _counted: CountedJob,
}

impl Place {
    /// The model is in no state to go on with.
    fn panicked(&self, name: &ModelName) {
        error!(model = name.as_str(), "the model panicked; it loads again on use");
        self.models.end_now(name);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.models.with_desk(|desk, outside| desk.leave(self.id, outside));
    }
}

/// A request that waits.
#[derive(Debug)]
pub(crate) struct Ticket {
    model: String,
    class: Class,
    told: oneshot::Receiver<Told>,
    place: Place,
}

impl Ticket {
    pub(super) fn new(
        models: Models,
        model: String,
        class: Class,
        id: RequestId,
        told: oneshot::Receiver<Told>,
        counted: CountedJob,
    ) -> Self {
        Self { model, class, told, place: Place { models, id, _counted: counted } }
    }

    /// Name of the model that is asked for.
    pub(crate) fn model(&self) -> &str {
        &self.model
    }

    /// Where what comes of it is counted.
    pub(crate) fn metrics(&self) -> Metrics {
        self.place.models.metrics().clone()
    }

    /// Has the model stay in memory for so long after this request, if it runs and nobody says otherwise
    /// later.
    pub(crate) fn stay_after(&self, stay: Stay) {
        self.place.models.with_desk(|desk, _| desk.stay_after(self.place.id, stay));
    }

    /// Whose pages its answer may take where there are not enough for all: those of a lower number.
    pub(crate) fn priority(&self) -> i64 {
        self.class as i64
    }

    /// The model as it is in memory; it may be another one by the request's turn. Holding it keeps it
    /// there.
    pub(crate) fn loaded(&self) -> Option<Arc<Loaded>> {
        self.place.models.with_desk(|desk, _| desk.loaded_of(&self.model).cloned())
    }

    /// Waits for its turn.
    pub(crate) async fn turn(self) -> Result<Run, ModelError> {
        let Self { told, place, .. } = self;
        Run::new(told.await.ok(), place)
    }

    /// Its turn, if that is there already.
    pub(crate) fn take_turn(mut self) -> Result<Turn, ModelError> {
        match self.told.try_recv() {
            Err(TryRecvError::Empty) => Ok(Turn::Later(self)),
            told => Run::new(told.ok(), self.place).map(Turn::Now),
        }
    }
}

/// Whether a request has its turn.
#[derive(Debug)]
pub(crate) enum Turn {
    Now(Run),
    Later(Ticket),
}

/// A request that runs on a model, which stays in memory meanwhile.
#[derive(Debug)]
pub(crate) struct Run {
    pub loaded: Arc<Loaded>,
    pub cut: Arc<Cut>,
    place: Place,
}

impl Run {
    /// What comes of a request's wait; of one that nobody ended, the daemon's end did.
    fn new(told: Option<Told>, place: Place) -> Result<Self, ModelError> {
        let Started { loaded, cut } = told.unwrap_or(Err(ModelError::Ended(Reason::Stopping)))?;
        Ok(Self { loaded, cut, place })
    }

    /// Has up to `bytes` of memory beyond those of a session until it is dropped; returns how many.
    pub(crate) fn lend(&self, bytes: u64) -> u64 {
        let place = &self.place;
        place.models.with_desk(|desk, _| desk.lend(place.id, bytes))
    }

    /// Those that it runs among.
    pub(crate) fn models(&self) -> Models {
        self.place.models.clone()
    }

    /// Makes a job and answers it, if there is one, on a thread of its own, and ends with it.
    pub(crate) fn answer(self, job: impl FnOnce(&Arc<Loaded>) -> Option<Job> + Send + 'static) {
        spawn_blocking(move || {
            let Self { loaded, cut, place } = self;
            let name = loaded.name.clone();
            let answered = job(&loaded).map_or(Ok(()), |job| loaded.answer(&job, &cut));
            drop(loaded);
            match answered {
                Ok(()) => {}
                Err(Failed::DeviceLost(error)) => place.models.device_failed(error),
                Err(Failed::Panicked) => place.panicked(&name),
            }
        });
    }

    /// Does something else with the model on a thread of its own, and ends with it; `None` if that
    /// panicked. It goes on when nobody waits for it, until it is cut short.
    pub(crate) async fn compute<T: Send + 'static>(
        self,
        work: impl FnOnce(&Loaded, &Cut) -> T + Send + 'static,
    ) -> Option<T> {
        let task = spawn_blocking(move || {
            let Self { loaded, cut, place } = self;
            let name = loaded.name.clone();
            let computed = loaded.compute(&cut, work);
            drop(loaded);
            if computed.is_none() {
                place.panicked(&name);
            }
            computed
        });
        task.await.ok().flatten()
    }
}
