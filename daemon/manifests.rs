//! The manifests: reads the folder, follows its changes, and hands out the catalog that counts.
//!
//! ```text
//!  notify ──▶ events ──quiet──▶ reload: watch, scan, check ──▶ catalog (a watch channel)
//!  SIGHUP, m40ctl reload ────▶    │                                │
//!                                 └─ only told, for --dry-run      └─▶ models, STATUS=
//! ```
//!
//! A reload reads every manifest and checks all before anything counts; then one swap makes all of
//! it count. What counts is never worse than before: see [`m40_manifest::Catalog`].

mod events;
mod scan;
mod watches;

use std::path::{Path, PathBuf, absolute};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use m40_control::{Change, ManifestProblem, Reload};
use m40_manifest::Catalog;
use tokio::sync::watch;
use tokio::task::JoinError;
use tracing::{info, warn};

use events::Events;
use scan::Disk;
use watches::Watches;

/// How often a reload looks again because what has to be watched changed while it looked.
const LOOKS_MAX: usize = 4;

/// Who is asked whether a catalog can count as a whole, and told when it does.
pub(crate) trait Judge: std::fmt::Debug + Send + Sync {
    /// Why it cannot, in one line. Changes nothing.
    ///
    /// # Errors
    /// Such a line.
    fn check(&self, catalog: &Catalog) -> Result<(), String>;

    /// It counts from now on.
    fn adopt(&self, catalog: &Catalog);
}

/// The manifests of one folder. A cheap handle.
#[derive(Debug, Clone)]
pub(crate) struct Manifests {
    inner: Arc<Inner>,
}

/// What a reload reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// All files, as they are.
    Everything,
    /// All but those that are being written: half of one might make sense.
    Settled,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    catalog: watch::Sender<Arc<Catalog>>,
    events: Arc<Events>,
    judge: OnceLock<Box<dyn Judge>>,
    // Held for a whole reload, so that they count in the order in which they looked.
    watches: Mutex<Watches>,
}

/// The names of the models that the manifests of a folder define, which need not be there, and all that is
/// wrong. Blocking.
pub(crate) fn check(dir: &Path) -> (Vec<String>, Vec<ManifestProblem>) {
    let (catalog, _) = read(dir, What::Everything, &Catalog::default(), &Events::default());
    let names = catalog.models().map(|model| model.definition.name.clone()).collect();
    (names, catalog.problems().to_vec())
}

impl Manifests {
    /// Reads the manifests of a folder, which need not be there yet. Blocking.
    pub(crate) fn open(dir: &Path) -> Self {
        let events = Arc::new(Events::default());
        let watches = Watches::new(&events).unwrap_or_else(|error| {
            warn!(%error, "cannot follow changes of manifests: `m40ctl reload` rereads them");
            Watches::none()
        });
        // So that its parent can be watched, and mistakes name files that can be found.
        let dir = absolute(dir).unwrap_or_else(|_| dir.to_path_buf());
        let inner = Inner {
            dir,
            catalog: watch::Sender::new(Arc::default()),
            events,
            judge: OnceLock::new(),
            watches: Mutex::new(watches),
        };
        inner.reload(What::Everything, false);
        Self { inner: Arc::new(inner) }
    }

    /// Has a judge adopt the catalog that counts, and each later one that it lets pass. One that it
    /// does not leaves the old one in place, but for the first, before which there is none: that counts
    /// as far as it can. Blocking.
    pub(crate) fn judged_by(&self, judge: impl Judge + 'static) {
        let _held = self.inner.watches();
        let first = self.current();
        if let Err(message) = judge.check(&first) {
            let problem = self.inner.problem(message, false);
            log(&[], std::iter::once(&problem));
            self.inner.catalog.send_replace(Arc::new(first.with(problem)));
        }
        judge.adopt(&first);
        // There is one daemon, which says who judges once.
        let _ = self.inner.judge.set(Box::new(judge));
    }

    /// Has the judge adopt the catalog that counts again, as a file of a model has come or gone. Blocking.
    pub(crate) fn judge_again(&self) {
        let _held = self.inner.watches();
        if let Some(judge) = self.inner.judge.get() {
            judge.adopt(&self.current());
        }
    }

    /// Their folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// The catalog that counts.
    pub(crate) fn current(&self) -> Arc<Catalog> {
        Arc::clone(&self.inner.catalog.borrow())
    }

    /// The catalog that counts, and every later one.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Catalog>> {
        self.inner.catalog.subscribe()
    }

    /// Rereads everything, also what is being written, or says what that would change.
    ///
    /// # Errors
    /// That it panicked.
    pub(crate) async fn reload(&self, dry_run: bool) -> Result<Reload, JoinError> {
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || inner.reload(What::Everything, dry_run)).await
    }

    /// Rereads the manifests whenever they change. Never returns.
    pub(crate) async fn follow(self) {
        loop {
            self.inner.events.settled().await;
            let inner = Arc::clone(&self.inner);
            // A panic is logged by its hook; the next change tries again.
            let _ = tokio::task::spawn_blocking(move || inner.reload(What::Settled, false)).await;
        }
    }
}

impl Inner {
    /// While this is held nothing else looks at the files.
    fn watches(&self) -> MutexGuard<'_, Watches> {
        // Nothing is kept between reloads that a panic could leave half done.
        self.watches.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    fn reload(&self, what: What, dry_run: bool) -> Reload {
        let mut watches = self.watches();
        let old = Arc::clone(&self.catalog.borrow());
        let (mut new, mut grown) = self.look(what, &old, &mut watches);
        // What was found to be watched has to be watched before it is read.
        for _ in 1..LOOKS_MAX {
            if !grown {
                break;
            }
            (new, grown) = self.look(what, &old, &mut watches);
        }
        if let Some(judge) = self.judge.get()
            && let Err(message) = judge.check(&new)
        {
            new = old.kept(self.problem(message, true));
        }
        let changes = old.changes(&new);
        let problems = new.problems().to_vec();
        if !dry_run {
            log(&changes, new_problems(old.problems(), &problems));
            // Places in files may differ where nothing else does, which nobody waits for.
            let differs = !changes.is_empty() || old.problems() != problems;
            let new = Arc::new(new);
            self.catalog.send_if_modified(|catalog| {
                *catalog = Arc::clone(&new);
                differs
            });
            if let Some(judge) = self.judge.get() {
                judge.adopt(&new);
            }
        }
        Reload { dry_run, changes, problems }
    }

    /// Something that is wrong with all manifests together.
    fn problem(&self, message: String, serving_old: bool) -> ManifestProblem {
        ManifestProblem { file: self.dir.clone(), place: None, message, serving_old }
    }

    /// The catalog of what is there now, and whether more has to be watched than was.
    fn look(&self, what: What, old: &Catalog, watches: &mut Watches) -> (Catalog, bool) {
        let (catalog, paths) = read(&self.dir, what, old, &self.events);
        (catalog, watches.set(&self.dir, paths.into_iter()))
    }
}

/// The catalog of what is in a folder now, and the paths that were read for it.
fn read(dir: &Path, what: What, old: &Catalog, events: &Events) -> (Catalog, Vec<PathBuf>) {
    let mut inputs = match scan::read_all(dir) {
        Ok(inputs) => inputs,
        Err(error) if error.is_absence() && old.is_empty() => return Default::default(),
        Err(error) => {
            let problem = ManifestProblem {
                file: dir.to_path_buf(),
                place: None,
                message: error.to_string(),
                serving_old: true,
            };
            return (old.kept(problem), Vec::new());
        }
    };
    if what == What::Settled {
        // Asked after reading, so that who began to write meanwhile is known.
        for input in inputs.iter_mut().filter(|input| events.is_written(&input.file)) {
            input.text = Err("is being written: it counts when that ends".to_owned());
        }
    }
    let disk = Disk::default();
    let catalog = old.next(&inputs, &disk);
    let files = inputs.into_iter().map(|input| input.file);
    (catalog, files.chain(disk.into_paths()).collect())
}

/// Those that were not there before, so that each is logged once.
fn new_problems<'a>(
    old: &[ManifestProblem],
    new: &'a [ManifestProblem],
) -> impl Iterator<Item = &'a ManifestProblem> {
    new.iter().filter(|problem| !old.contains(problem))
}

fn log<'a>(
    changes: &[m40_control::ModelChange],
    problems: impl Iterator<Item = &'a ManifestProblem>,
) {
    for change in changes {
        let (model, file) = (&change.model, change.file.display());
        match &change.change {
            Change::Added => info!(model, %file, "defined"),
            Change::Removed => info!(model, %file, "defined no more"),
            Change::Changed { keys } => {
                let keys: Vec<String> =
                    keys.iter().map(|key| format!("{} {}", key.key, key.effect.words())).collect();
                info!(model, %file, keys = keys.join(", "), "definition changed");
            }
        }
    }
    for problem in problems {
        warn!("{problem}; {}", problem.consequence());
    }
}

#[cfg(test)]
mod tests;
