//! What models can do: as their manifests say, or else as their files do.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use m40_control::ModelRef;
use m40_manifest::Capability;
use m40llm::{Abilities, LoadError};
use tokio::task::spawn_blocking;
use tracing::debug;

use super::Models;
use super::job::lock;
use super::source::Source;
use super::weigh::Stamp;

/// What files say, as long as they are as they were; by the model's name.
#[derive(Debug, Default)]
pub(super) struct Looks(Mutex<BTreeMap<String, Look>>);

/// What a file says, and what that depends on.
#[derive(Debug)]
struct Look {
    path: PathBuf,
    template: Option<Arc<str>>,
    stamp: Stamp,
    abilities: Abilities,
}

impl Looks {
    /// What a model's file says. Blocking; a matter of milliseconds, and less where it is as it was.
    fn of(&self, name: &str, source: &Source) -> Result<Abilities, LoadError> {
        let (path, stamp) = (&source.path, Stamp::of(&source.path));
        let template = source.definition().and_then(|definition| definition.template.as_ref());
        let template = template.map(|text| Arc::clone(&text.content));
        let is_as_it_was = |look: &&Look| {
            look.path == *path && look.template == template && Some(look.stamp) == stamp
        };
        if let Some(look) = lock(&self.0).get(name).filter(is_as_it_was) {
            return Ok(look.abilities);
        }
        let abilities = Abilities::of_file(path, template.as_deref())?;
        if let Some(stamp) = stamp {
            let look = Look { path: path.clone(), template, stamp, abilities };
            lock(&self.0).insert(name.to_owned(), look);
        }
        Ok(abilities)
    }

    /// Forgets those of models that are not among these.
    pub(super) fn keep_only(&self, is_known: impl Fn(&str) -> bool) {
        lock(&self.0).retain(|name, _| is_known(name));
    }
}

impl Models {
    /// What the model of this name or alias can do: as its manifest says, or else its file. `None` where
    /// neither is there to say it, or there is no such model.
    pub(crate) async fn capabilities(&self, name: &str) -> Option<BTreeSet<Capability>> {
        let defined = self.defined(name);
        if let Some(said) = defined.and_then(|model| model.definition.capabilities.clone()) {
            return Some(said.into_iter().collect());
        }
        let (models, name) = (self.clone(), self.own_name(name));
        let looked = spawn_blocking(move || {
            let source = models.source(&name, &ModelRef::Name(name.clone())).ok()??;
            let abilities = models.inner.looks.of(&name, &source);
            // Whoever loads it is told.
            abilities.inspect_err(|error| debug!(model = name, %error, "no capabilities")).ok()
        });
        looked.await.ok()?.map(capabilities)
    }
}

fn capabilities(abilities: Abilities) -> BTreeSet<Capability> {
    let Abilities { completion, tools, insert, embedding, thinking } = abilities;
    let all = [
        (completion, Capability::Completion),
        (tools, Capability::Tools),
        (insert, Capability::Insert),
        (embedding, Capability::Embedding),
        (thinking, Capability::Thinking),
    ];
    all.into_iter().filter_map(|(can, capability)| can.then_some(capability)).collect()
}
