//! What happened to files since somebody last looked, in bounded memory.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, Event, EventKind, ModifyKind};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::warn;

/// Quiet for this long, files have settled: editors save in several steps.
const QUIET: Duration = Duration::from_millis(40);
/// They are looked at after this long, even where it never gets quiet.
const UNQUIET_MAX: Duration = Duration::from_millis(150);
/// Most files whose writers are known; those of more are not waited for.
const WRITTEN_MAX: usize = 4096;

/// Collects events of the file system from its own thread, for one task that waits for them.
#[derive(Debug, Default)]
pub(super) struct Events {
    state: Mutex<State>,
    happened: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// The folder in which every name matters.
    inside: Option<PathBuf>,
    /// Other names that matter.
    names: BTreeSet<PathBuf>,
    /// Files that were written to and not closed since.
    written: BTreeSet<PathBuf>,
}

impl Events {
    /// From now on these matter.
    pub(super) fn expect(&self, inside: Option<PathBuf>, names: BTreeSet<PathBuf>) {
        let mut state = self.lock();
        state.inside = inside;
        state.names = names;
        // Whose folder is not watched any more, whose end of writing will not be heard of.
        let written = std::mem::take(&mut state.written);
        state.written = written.into_iter().filter(|path| state.matters(path)).collect();
    }

    /// Takes one event; runs on the watcher's thread.
    pub(super) fn happened(&self, event: notify::Result<Event>) {
        let matters = match event {
            Ok(event) => self.lock().take(&event),
            // What was missed is not known.
            Err(error) => {
                warn!(%error, "following changes of manifests failed, rereading them");
                self.lock().written.clear();
                true
            }
        };
        if matters {
            self.happened.notify_one();
        }
    }

    /// Waits until something happened and files have settled since.
    pub(super) async fn settled(&self) {
        self.happened.notified().await;
        let latest = Instant::now() + UNQUIET_MAX;
        let quiet = async {
            // Ends when it has been quiet for as long.
            while timeout(QUIET, self.happened.notified()).await.is_ok() {}
        };
        // Too late is as good.
        let _ = timeout_at(latest, quiet).await;
    }

    /// Whether a file is open to somebody who has written to it.
    pub(super) fn is_written(&self, file: &Path) -> bool {
        let written = |path: PathBuf| self.lock().written.contains(&path);
        file.canonicalize().is_ok_and(written)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is one insert or remove, or replaces a whole set.
        self.state.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

impl State {
    /// Notes an event, and says whether something that matters may be different now.
    fn take(&mut self, event: &Event) -> bool {
        if event.need_rescan() {
            self.written.clear();
            return true;
        }
        let mut matters = false;
        for path in &event.paths {
            if !self.matters(path) {
                continue;
            }
            match event.kind {
                EventKind::Modify(ModifyKind::Data(_)) => {
                    if self.written.len() < WRITTEN_MAX {
                        self.written.insert(path.clone());
                    }
                }
                EventKind::Modify(ModifyKind::Metadata(_)) => {}
                EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                    self.written.remove(path);
                }
                // Reading is what a reload does itself.
                EventKind::Access(_) => continue,
                // Another file has the name.
                _ => {
                    self.written.remove(path);
                }
            }
            matters = true;
        }
        matters
    }

    fn matters(&self, path: &Path) -> bool {
        let inside = self.inside.as_deref();
        inside.is_some() && (path.parent() == inside || Some(path) == inside)
            || self.names.contains(path)
    }
}
