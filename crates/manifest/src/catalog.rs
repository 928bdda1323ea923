//! All manifests together: which models there are, and what a new state of the files makes of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use m40_control::{Change, ManifestProblem, ModelChange, Place};

use crate::Surroundings;
use crate::check::{self, Defined};
use crate::definition::Definition;
use crate::diff::changed_keys;
use crate::mistake::Mistake;

/// One manifest as it was found.
#[derive(Debug, Clone)]
pub struct Input {
    /// Its path.
    pub file: PathBuf,
    /// What is in it, or why it cannot be read.
    pub text: Result<String, String>,
}

/// The models that manifests define. Each name and alias means one model.
///
/// A catalog comes from the one before it and the files as they are now ([`Catalog::next`]). A file
/// counts as a whole: if anything in it is wrong, what it last said correctly goes on.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    /// What counts of each file.
    files: BTreeMap<PathBuf, Vec<Defined>>,
    models: BTreeMap<String, Model>,
    /// Whose alias a name is.
    aliases: BTreeMap<String, String>,
    problems: Vec<ManifestProblem>,
}

/// A model of a catalog.
#[derive(Debug, Clone)]
pub struct Model {
    /// What its manifest says.
    pub definition: Arc<Definition>,
    /// Its manifest.
    pub file: PathBuf,
}

impl Catalog {
    /// The catalog after this one when these are all the manifests there are.
    ///
    /// Where two files define one name, a file that still says what it said before wins over one
    /// that changed, and else the first by path.
    #[must_use]
    pub fn next(&self, inputs: &[Input], surroundings: &dyn Surroundings) -> Self {
        let candidate = |input: &Input| {
            let old = self.files.get(&input.file);
            (input.file.clone(), Candidate::of(input, old, surroundings))
        };
        let mut candidates: BTreeMap<PathBuf, Candidate<'_>> =
            inputs.iter().map(candidate).collect();
        // Each round turns files back to what they said before, so the rounds come to an end.
        loop {
            let losers = losers(&candidates);
            if losers.is_empty() {
                break;
            }
            for (file, mistake) in losers {
                candidates.entry(file).and_modify(|candidate| candidate.turn_back(mistake));
            }
        }
        let mut next = Self::default();
        for (file, candidate) in candidates {
            next.add(file, candidate);
        }
        next
    }

    /// This catalog with nothing else wrong than this: for when the files cannot be looked at.
    #[must_use]
    pub fn kept(&self, problem: ManifestProblem) -> Self {
        Self { problems: vec![problem], ..self.clone() }
    }

    /// This catalog with one more thing that is wrong.
    #[must_use]
    pub fn with(&self, problem: ManifestProblem) -> Self {
        let mut with = self.clone();
        with.problems.push(problem);
        with
    }

    fn add(&mut self, file: PathBuf, candidate: Candidate<'_>) {
        for defined in &candidate.models {
            let definition = Arc::clone(&defined.definition);
            let name = definition.name.clone();
            let aliases = definition.aliases.iter().map(|alias| (alias.clone(), name.clone()));
            self.aliases.extend(aliases);
            self.models.insert(name, Model { definition, file: file.clone() });
        }
        if let Some(Mistake { place, message }) = candidate.mistake {
            let serving_old = !candidate.models.is_empty();
            let file = file.clone();
            self.problems.push(ManifestProblem { file, place, message, serving_old });
        }
        self.files.insert(file, candidate.models);
    }

    /// The model that has this name, or this alias.
    pub fn find(&self, name: &str) -> Option<&Model> {
        self.models.get(self.aliases.get(name).map_or(name, String::as_str))
    }

    /// Whether there is no model.
    pub fn is_empty(&self) -> bool {
        self.models.is_empty()
    }

    /// All models, sorted by name.
    pub fn models(&self) -> impl Iterator<Item = &Model> {
        self.models.values()
    }

    /// What is wrong, by file.
    pub fn problems(&self) -> &[ManifestProblem] {
        &self.problems
    }

    /// What differs in a later catalog, sorted by name.
    pub fn changes(&self, later: &Self) -> Vec<ModelChange> {
        let mut changes = Vec::new();
        for (name, model) in &self.models {
            let change = match later.models.get(name) {
                None => Change::Removed,
                Some(now) => {
                    let keys = changed_keys(&model.definition, &now.definition);
                    if keys.is_empty() {
                        continue;
                    }
                    Change::Changed { keys }
                }
            };
            let file = later.models.get(name).map_or(&model.file, |now| &now.file);
            changes.push(ModelChange { model: name.clone(), file: file.clone(), change });
        }
        let added = later.models.iter().filter(|(name, _)| !self.models.contains_key(*name));
        changes.extend(added.map(|(name, model)| {
            let file = model.file.clone();
            ModelChange { model: name.clone(), file, change: Change::Added }
        }));
        changes.sort_by(|a, b| a.model.cmp(&b.model));
        changes
    }
}

/// What may count of a file.
struct Candidate<'a> {
    models: Vec<Defined>,
    /// What the file said before.
    old: Option<&'a Vec<Defined>>,
    /// Whether that is something else.
    is_new: bool,
    mistake: Option<Mistake>,
}

impl<'a> Candidate<'a> {
    fn of(input: &Input, old: Option<&'a Vec<Defined>>, surroundings: &dyn Surroundings) -> Self {
        let models = match &input.text {
            Ok(text) => check::models(&input.file, text, surroundings),
            Err(why) => Err(Mistake::whole(why)),
        };
        let definitions = |models: &[Defined]| -> Vec<Arc<Definition>> {
            models.iter().map(|model| Arc::clone(&model.definition)).collect()
        };
        match models {
            Ok(models) => {
                let is_new = old.is_none_or(|old| definitions(old) != definitions(&models));
                Self { models, old, is_new, mistake: None }
            }
            Err(mistake) => {
                let models = old.cloned().unwrap_or_default();
                Self { models, old, is_new: false, mistake: Some(mistake) }
            }
        }
    }

    fn turn_back(&mut self, mistake: Mistake) {
        // What counted before is free of conflicts; were it not, nothing would count.
        let old = self.old.filter(|_| self.is_new);
        self.models = old.cloned().unwrap_or_default();
        self.is_new = false;
        self.mistake = Some(mistake);
    }
}

/// The files that want a name which another has, and the mistake that is.
fn losers(candidates: &BTreeMap<PathBuf, Candidate<'_>>) -> Vec<(PathBuf, Mistake)> {
    let mut claims: BTreeMap<&str, (&Path, &Place)> = BTreeMap::new();
    let mut losers = Vec::new();
    let old = candidates.iter().filter(|(_, candidate)| !candidate.is_new);
    let new = candidates.iter().filter(|(_, candidate)| candidate.is_new);
    for (file, candidate) in old.chain(new) {
        let names = || candidate.models.iter().flat_map(Defined::names);
        let taken = names().find_map(|(name, place)| Some((name, place, claims.get(name)?)));
        match taken {
            None => claims.extend(names().map(|(name, place)| (name, (file.as_path(), place)))),
            Some((name, place, (other, at))) => {
                let (other, line, column) = (other.display(), at.line, at.column);
                let message = format!("the name {name:?} is taken by {other}:{line}:{column}");
                losers.push((file.clone(), Mistake::there(place, &message)));
            }
        }
    }
    losers
}
