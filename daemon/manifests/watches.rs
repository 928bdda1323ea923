//! What has to be watched so that no change of the manifests is missed.
//!
//! A manifest can be a link, the folder can be one, and either can be swapped, removed and made
//! again. So a folder is watched for each name on the way: that of the manifests itself, its
//! parent, those that links lead through, and for what is missing the nearest one that is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tracing::warn;

use super::events::Events;

/// Most names that are followed: links may lead in circles.
const NAMES_MAX: usize = 16_384;

/// The watches of a folder of manifests.
#[derive(Debug)]
pub(super) struct Watches {
    /// Absent where the system has no way to watch.
    watcher: Option<(RecommendedWatcher, Arc<Events>)>,
    dirs: BTreeSet<PathBuf>,
    has_failed: bool,
}

impl Watches {
    /// Watches nothing yet; what happens will be told to `events`.
    pub(super) fn new(events: &Arc<Events>) -> notify::Result<Self> {
        let to = Arc::clone(events);
        let watcher = notify::recommended_watcher(move |event| to.happened(event))?;
        let watcher = Some((watcher, Arc::clone(events)));
        Ok(Self { watcher, ..Self::none() })
    }

    /// Never watches anything.
    pub(super) fn none() -> Self {
        Self { watcher: None, dirs: BTreeSet::new(), has_failed: false }
    }

    /// Watches what matters for a folder and these files, and nothing else. Says whether that is
    /// more than before.
    pub(super) fn set(&mut self, dir: &Path, files: impl Iterator<Item = PathBuf>) -> bool {
        let Some((watcher, events)) = &mut self.watcher else { return false };
        let way = Way::to(dir, files);
        let grown = !way.dirs.is_subset(&self.dirs);
        events.expect(way.inside, way.names);
        for gone in self.dirs.difference(&way.dirs) {
            // It may be gone from the disk, and its watch with it.
            let _ = watcher.unwatch(gone);
        }
        for dir in &way.dirs {
            // Also where it is watched already: it may be another folder of the same name.
            let watched = watcher.watch(dir, RecursiveMode::NonRecursive);
            // One that went meanwhile is told of by its parent.
            if let Err(error) = watched
                && dir.exists()
                && !std::mem::replace(&mut self.has_failed, true)
            {
                warn!(%error, "cannot follow changes of manifests: `m40ctl reload` rereads them");
            }
        }
        self.dirs = way.dirs;
        grown
    }
}

/// The names on the way to some files.
#[derive(Debug, Default)]
struct Way {
    /// The folder of manifests itself, in which every name matters.
    inside: Option<PathBuf>,
    /// Names that matter, in folders without links.
    names: BTreeSet<PathBuf>,
    /// These folders.
    dirs: BTreeSet<PathBuf>,
    followed: BTreeSet<PathBuf>,
}

impl Way {
    fn to(dir: &Path, files: impl Iterator<Item = PathBuf>) -> Self {
        let mut way = Self::default();
        way.follow(dir.to_path_buf());
        way.inside = dir.canonicalize().ok().filter(|dir| dir.is_dir());
        way.dirs.extend(way.inside.clone());
        for file in files {
            // An ordinary manifest lies in the folder, which is watched.
            let ordinary = file.parent() == Some(dir) && !file.is_symlink();
            if !ordinary {
                way.follow(file);
            }
        }
        way
    }

    fn follow(&mut self, path: PathBuf) {
        let mut waiting = vec![path];
        while let Some(path) = waiting.pop() {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { continue };
            if self.followed.len() == NAMES_MAX || !self.followed.insert(path.clone()) {
                continue;
            }
            // The parent is not there: it matters when it comes.
            let Ok(real) = parent.canonicalize() else {
                waiting.push(parent.to_path_buf());
                continue;
            };
            // There is a link on the way to it.
            if real != parent {
                waiting.push(parent.to_path_buf());
            }
            let entry = real.join(name);
            if let Ok(target) = fs::read_link(&entry) {
                waiting.push(real.join(target));
            }
            self.dirs.insert(real);
            self.names.insert(entry);
        }
    }
}
