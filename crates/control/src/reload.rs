//! What a reload of the manifests changes, and what is wrong with them.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Body of `POST /reload`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReloadRequest {
    /// Say what would change, and change nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// Answer to `POST /reload`. Its `Display` is for people: a line for each model that changes,
/// then what is wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reload {
    /// Whether nothing was changed, because that was asked.
    pub dry_run: bool,
    /// What changes, by the model's name. Models that stay as they are are not named.
    pub changes: Vec<ModelChange>,
    /// What is wrong with manifests, by file. Everything else is applied.
    pub problems: Vec<ManifestProblem>,
}

/// What happens to one model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelChange {
    /// Its name.
    pub model: String,
    /// The manifest that defines it; of a removed model, the one that did.
    pub file: PathBuf,
    /// What happens.
    #[serde(flatten)]
    pub change: Change,
}

/// How a model's definition changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum Change {
    /// It is new.
    Added,
    /// It is defined no more.
    Removed,
    /// It is defined in another way.
    Changed {
        /// The keys that differ.
        keys: Vec<KeyChange>,
    },
}

/// One key of a definition that changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyChange {
    /// The key, as a manifest has it; `sampling.top_k` for one of a table.
    pub key: String,
    /// When the change counts.
    pub effect: Effect,
    /// Its value before; absent when it was not set. Long texts are told by their size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Its value from now on; absent when it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// When a changed key counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// At once, also for a loaded model.
    Live,
    /// When the model is loaded the next time; a loaded one goes on as it is.
    NextLoad,
    /// A loaded model finishes its answers and leaves memory, so that the next request loads it anew.
    Reload,
}

impl Effect {
    /// The words for people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Live => "at once",
            Self::NextLoad => "at the next load",
            Self::Reload => "reloads the model",
        }
    }
}

/// What is wrong with a manifest, or with the configuration file. Its `Display` is one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestProblem {
    /// The manifest, or the folder of all, or the configuration file.
    pub file: PathBuf,
    /// Where in it, both counted from 1; absent when it is about the file as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// What is wrong, in one line.
    pub message: String,
    /// Whether an older state of the file still counts.
    pub serving_old: bool,
}

/// A place in a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The line, or the part of a long one that matters, without control characters.
    pub text: String,
    /// Characters of `text` before the place.
    pub caret: usize,
}

/// A path as text that stays in its line: a file's name may hold anything.
fn harmless(path: &Path) -> String {
    let shown = path.display().to_string();
    shown.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

impl fmt::Display for ManifestProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", harmless(&self.file))?;
        if let Some(Place { line, column, .. }) = self.place {
            write!(f, "{line}:{column}:")?;
        }
        write!(f, " {}", self.message)
    }
}

impl ManifestProblem {
    /// The offending line and a caret below it, for people; empty without a place.
    pub fn excerpt(&self) -> String {
        let Some(Place { line, text, caret, .. }) = &self.place else { return String::new() };
        let number = line.to_string();
        let (margin, gap) = (" ".repeat(number.len()), " ".repeat(*caret));
        format!("{number} | {text}\n{margin} | {gap}^\n")
    }

    /// What serves in its place, for people.
    pub fn consequence(&self) -> &'static str {
        match self.serving_old {
            true => "its old definitions go on serving",
            false => "its models are not served",
        }
    }
}

impl fmt::Display for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ModelChange { model, file, change } in &self.changes {
            let (sign, keys): (_, &[KeyChange]) = match change {
                Change::Added => ('+', &[]),
                Change::Removed => ('-', &[]),
                Change::Changed { keys } => ('~', keys),
            };
            writeln!(f, "{sign} {model}  ({})", harmless(file))?;
            for KeyChange { key, effect, from, to } in keys {
                let word = |value: &Option<String>| value.as_deref().unwrap_or("unset").to_owned();
                let (from, to, when) = (word(from), word(to), effect.words());
                writeln!(f, "    {key}: {from} -> {to}  [{when}]")?;
            }
        }
        for problem in &self.problems {
            writeln!(f, "! {problem}")?;
            for line in problem.excerpt().lines() {
                writeln!(f, "    {line}")?;
            }
            writeln!(f, "    {}", problem.consequence())?;
        }
        if self.changes.is_empty() {
            writeln!(f, "nothing changes")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(key: &str, effect: Effect, from: Option<&str>, to: Option<&str>) -> KeyChange {
        let [from, to] = [from, to].map(|value| value.map(str::to_owned));
        KeyChange { key: key.to_owned(), effect, from, to }
    }

    fn reload() -> Reload {
        let keys = vec![
            changed("aliases", Effect::Live, None, Some("a, b")),
            changed("context_tokens", Effect::NextLoad, Some("4096"), Some("8192")),
        ];
        let place = Place { line: 12, column: 3, text: "  contxt = 4".to_owned(), caret: 2 };
        Reload {
            dry_run: true,
            changes: vec![
                ModelChange { model: "m".into(), file: "m.toml".into(), change: Change::Added },
                ModelChange {
                    model: "n".into(),
                    file: "n.toml".into(),
                    change: Change::Changed { keys },
                },
            ],
            problems: vec![ManifestProblem {
                file: "bad.toml".into(),
                place: Some(place),
                message: "unknown key `contxt`".to_owned(),
                serving_old: true,
            }],
        }
    }

    #[test]
    fn people_see_every_change_and_every_problem_with_its_line() {
        let text = "\
+ m  (m.toml)
~ n  (n.toml)
    aliases: unset -> a, b  [at once]
    context_tokens: 4096 -> 8192  [at the next load]
! bad.toml:12:3: unknown key `contxt`
    12 |   contxt = 4
       |   ^
    its old definitions go on serving
";
        assert_eq!(reload().to_string(), text);
        assert_eq!(Reload::default().to_string(), "nothing changes\n");
    }

    #[test]
    fn a_file_name_leaves_no_line() {
        let [mut problem] = <[_; 1]>::try_from(reload().problems).unwrap();
        problem.file = "models.d/a\nREADY=1\x1b[2J.toml".into();
        let said = problem.to_string();
        assert!(said.starts_with("models.d/a\u{fffd}READY=1\u{fffd}[2J.toml:12:3: "), "{said:?}");
    }

    #[test]
    fn programs_see_the_same() {
        let json = serde_json::to_value(reload()).unwrap();
        assert_eq!(json["changes"][0]["change"], "added");
        assert_eq!(json["changes"][1]["keys"][1]["effect"], "next_load");
        assert_eq!(serde_json::from_value::<Reload>(json).unwrap(), reload());
    }
}
