//! From a text to definitions: what a key's value must be, and where it is when it is not.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use m40_control::{Place, check_model_name};
use m40_sched::sampler::ParamError;
use m40_source::{Source, WebUrl};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::Surroundings;
use crate::definition::{Definition, IdleUnload, Text};
use crate::duration;
use crate::mistake::{Mistake, place};
use crate::raw::{OneOrMany, RawFile, RawFileName, RawModel, RawText};

/// Longest manifest, in bytes.
pub const FILE_BYTES_MAX: usize = 1 << 20;
/// Most models of one manifest.
pub const MODELS_MAX: usize = 256;
/// Most aliases of a model.
pub const ALIASES_MAX: usize = 32;
/// Most mirrors of a model.
pub const MIRRORS_MAX: usize = 16;
/// Longest template or system prompt, in bytes.
pub const TEXT_BYTES_MAX: usize = 256 << 10;
/// Most stop strings of a model.
pub const STOPS_MAX: usize = 16;
/// Longest stop string, in bytes.
pub const STOP_BYTES_MAX: usize = 1024;
/// Longest path, in bytes.
const PATH_BYTES_MAX: usize = 4096;
/// Most capabilities of a model; there are not as many.
const CAPABILITIES_MAX: usize = 16;
/// Most days until an idle model leaves.
const IDLE_DAYS_MAX: u64 = 365;

/// A definition, and the places in the file that other files' mistakes point at.
#[derive(Debug, Clone)]
pub(crate) struct Defined {
    pub definition: Arc<Definition>,
    /// Of the name, then of each alias.
    places: Vec<Place>,
}

/// Reads a manifest. `file` is its path: its stem names a model that has no name of its own, and
/// its folder is where paths in it begin.
pub(crate) fn models(
    file: &Path,
    text: &str,
    surroundings: &dyn Surroundings,
) -> Result<Vec<Defined>, Mistake> {
    if text.len() > FILE_BYTES_MAX {
        let len = text.len();
        let message = format!("the file has {len} bytes, the most is {FILE_BYTES_MAX}");
        return Err(Mistake::whole(&message));
    }
    // What an interrupted save leaves; a file of comments alone is meant.
    if text.trim().is_empty() {
        return Err(Mistake::whole("the file is empty: remove it to remove its models"));
    }
    let wrong = |error: toml::de::Error| Mistake::of(text, &error);
    let table = DeTable::parse(text).map_err(wrong)?;
    let table = table.get_ref();
    if table.is_empty() {
        return Ok(Vec::new());
    }
    let checker = |table, start, default_name| Checker {
        text,
        table,
        start,
        default_name,
        dir: file.parent().unwrap_or_else(|| Path::new("")),
        surroundings,
    };
    let models = match has_several(table) {
        true => several(text, table, |table, start| checker(table, start, None))?,
        false => {
            let raw = toml::from_str::<RawModel>(text).map_err(wrong)?;
            let stem = file.file_stem().and_then(|stem| stem.to_str());
            vec![checker(table, 0, stem).model(raw)?]
        }
    };
    check_distinct(&models).map(|()| models)
}

/// The models of a file that has a table for each.
fn several<'a>(
    text: &'a str,
    table: &'a DeTable<'a>,
    checker: impl Fn(&'a DeTable<'a>, usize) -> Checker<'a>,
) -> Result<Vec<Defined>, Mistake> {
    let raw = toml::from_str::<RawFile>(text).map_err(|error| Mistake::of(text, &error))?.model;
    let tables = table.get("model").and_then(|model| model.get_ref().as_array());
    let tables = tables.map_or(&[][..], |tables| &tables[..]);
    if raw.len() > MODELS_MAX {
        let at = tables.get(MODELS_MAX).map_or(0, |table| table.span().start);
        let message = format!("the file has {} models, the most is {MODELS_MAX}", raw.len());
        return Err(Mistake::at(text, at, &message));
    }
    let model = |(raw, table): (RawModel, &'a Spanned<DeValue<'a>>)| {
        let start = table.span().start;
        let table = table.get_ref().as_table();
        let table = table.ok_or_else(|| Mistake::at(text, start, "[[model]] must be a table"))?;
        checker(table, start).model(raw)
    };
    raw.into_iter().zip(tables).map(model).collect()
}

/// Whether a file holds tables of models rather than the keys of one: no key of a model is a list
/// of tables, so that a mistyped `[[model]]` is known for what it is.
fn has_several(table: &DeTable<'_>) -> bool {
    let is_list_of_tables = |value: &DeValue<'_>| {
        let items = value.as_array().filter(|items| !items.is_empty());
        items.is_some_and(|items| items.iter().all(|item| item.get_ref().is_table()))
    };
    table.contains_key("model") || table.values().any(|value| is_list_of_tables(value.get_ref()))
}

fn check_distinct(models: &[Defined]) -> Result<(), Mistake> {
    let mut seen: BTreeMap<&str, &Place> = BTreeMap::new();
    for (name, place) in models.iter().flat_map(Defined::names) {
        if let Some(first) = seen.insert(name, place) {
            let message = format!("the name {name:?} is taken in line {}", first.line);
            return Err(Mistake::there(place, &message));
        }
    }
    Ok(())
}

impl Defined {
    /// The name and the aliases, each with its place.
    pub(crate) fn names(&self) -> impl Iterator<Item = (&str, &Place)> {
        let names = std::iter::once(&self.definition.name).chain(&self.definition.aliases);
        names.map(String::as_str).zip(&self.places)
    }
}

/// What is needed to check one model.
struct Checker<'a> {
    text: &'a str,
    /// Its keys, which know their places.
    table: &'a DeTable<'a>,
    /// Byte at which it begins.
    start: usize,
    default_name: Option<&'a str>,
    dir: &'a Path,
    surroundings: &'a dyn Surroundings,
}

impl Checker<'_> {
    fn model(&self, raw: RawModel) -> Result<Defined, Mistake> {
        let name = self.name(raw.name)?;
        self.count("aliases", raw.aliases.len(), ALIASES_MAX)?;
        for (index, alias) in raw.aliases.iter().enumerate() {
            check_model_name(alias).map_err(|error| self.wrong_item("aliases", index, error))?;
        }
        let source = self.source(&raw.source)?;
        let definition = Definition {
            name,
            source,
            sha256: self.parsed("sha256", raw.sha256.as_deref())?,
            size_bytes: self.within("size_bytes", raw.size_bytes, 1..=i64::MAX)?,
            mirrors: self.mirrors(&raw.mirrors)?,
            context_tokens: self.within("context_tokens", raw.context_tokens, 1..=16_777_216)?,
            sequences_max: self.within("sequences_max", raw.sequences_max, 1..=1024)?,
            kv_type: raw.kv_type,
            priority: self.within("priority", raw.priority, -100..=100)?.unwrap_or(0),
            pin: raw.pin,
            preload: raw.preload,
            idle_unload: self.idle_unload(raw.idle_unload_after.as_deref())?,
            template: self.template(raw.template)?,
            tokenizer: raw.tokenizer.map(|name| self.path("tokenizer", &name)).transpose()?,
            system: raw.system.map(|text| self.text_of("system", text)).transpose()?,
            sampling: raw.sampling,
            stop: self.stop(raw.stop)?,
            capabilities: raw.capabilities,
            aliases: raw.aliases,
        };
        self.sampling(&definition)?;
        self.mirrors_fit(&definition)?;
        let capabilities = definition.capabilities.as_ref().map_or(0, Vec::len);
        self.count("capabilities", capabilities, CAPABILITIES_MAX)?;
        let aliases = (0..definition.aliases.len()).map(|index| ("aliases", Some(index)));
        let names = std::iter::once(("name", None)).chain(aliases);
        let places = names.map(|(key, index)| place(self.text, self.place(key, index))).collect();
        let definition = Arc::new(definition);
        Ok(Defined { definition, places })
    }

    fn name(&self, name: Option<String>) -> Result<String, Mistake> {
        let Some(name) = name else {
            let Some(stem) = self.default_name else {
                return Err(
                    self.wrong("name", "the key `name` is missing: several are in the file")
                );
            };
            return check_model_name(stem).map(|()| stem.to_owned()).map_err(|error| {
                self.wrong("name", format!("the file's name is not a model's: {error}; set `name`"))
            });
        };
        check_model_name(&name).map_err(|error| self.wrong("name", error))?;
        Ok(name)
    }

    fn source(&self, raw: &OneOrMany) -> Result<Source, Mistake> {
        let source = match raw {
            OneOrMany::One(one) => one.parse(),
            OneOrMany::Many(parts) => {
                // One by one first, so that the part at fault is pointed at.
                for (index, part) in parts.iter().enumerate() {
                    let part = Source::from_parts([part]);
                    part.map_err(|error| self.wrong_item("source", index, error))?;
                }
                Source::from_parts(parts)
            }
        };
        source.map_err(|error| self.wrong("source", error))
    }

    fn mirrors(&self, raw: &[String]) -> Result<Vec<WebUrl>, Mistake> {
        self.count("mirrors", raw.len(), MIRRORS_MAX)?;
        let mirror = |(index, text): (usize, &String)| match text.parse() {
            Ok(Source::Web(url)) => Ok(url),
            Ok(_) => {
                Err(self.wrong_item("mirrors", index, "a mirror must be an HTTP or HTTPS URL"))
            }
            Err(error) => Err(self.wrong_item("mirrors", index, error)),
        };
        raw.iter().enumerate().map(mirror).collect()
    }

    // What a mirror has is compared with the one hash of a file; parts have several.
    fn mirrors_fit(&self, definition: &Definition) -> Result<(), Mistake> {
        match definition.source {
            Source::Parts(_) | Source::File(_) if !definition.mirrors.is_empty() => {
                Err(self
                    .wrong("mirrors", "only a source that is one file of a network has mirrors"))
            }
            _ => Ok(()),
        }
    }

    fn idle_unload(&self, raw: Option<&str>) -> Result<Option<IdleUnload>, Mistake> {
        let Some(raw) = raw else { return Ok(None) };
        if raw == "never" {
            return Ok(Some(IdleUnload::Never));
        }
        match duration::parse(raw) {
            Some(time) if time.as_secs() <= IDLE_DAYS_MAX * 86_400 => {
                Ok(Some(IdleUnload::After(time)))
            }
            _ => {
                let message = "a time such as \"90s\", \"10m\", \"1h30m\" or \"2d\", at most";
                let message = format!("must be {message} {IDLE_DAYS_MAX}d, or \"never\"");
                Err(self.wrong("idle_unload_after", message))
            }
        }
    }

    fn template(&self, raw: Option<RawText>) -> Result<Option<Text>, Mistake> {
        let Some(raw) = raw else { return Ok(None) };
        let text = self.text_of("template", raw)?;
        let checked = self.surroundings.check_template(&text.content);
        checked.map_err(|why| self.wrong("template", format!("the template is wrong: {why}")))?;
        Ok(Some(text))
    }

    fn text_of(&self, key: &str, raw: RawText) -> Result<Text, Mistake> {
        let (content, file) = match raw {
            RawText::Inline(content) => (content, None),
            RawText::File(name) => {
                let path = self.path(key, &name)?;
                let read = self.surroundings.read(&path, TEXT_BYTES_MAX);
                (read.map_err(|why| self.wrong(key, why))?, Some(path))
            }
        };
        self.count_of(key, content.len(), TEXT_BYTES_MAX, "bytes")?;
        Ok(Text { content: content.into(), file })
    }

    fn path(&self, key: &str, name: &RawFileName) -> Result<PathBuf, Mistake> {
        let legal = !name.file.is_empty() && !name.file.chars().any(char::is_control);
        if !legal || name.file.len() > PATH_BYTES_MAX {
            let message = format!("`file` must be a path of 1 to {PATH_BYTES_MAX} bytes");
            return Err(self.wrong(key, message));
        }
        Ok(self.dir.join(&name.file))
    }

    fn stop(&self, stop: Vec<String>) -> Result<Vec<String>, Mistake> {
        self.count("stop", stop.len(), STOPS_MAX)?;
        match stop.iter().position(|text| !(1..=STOP_BYTES_MAX).contains(&text.len())) {
            Some(index) => {
                let message = format!("must have 1 to {STOP_BYTES_MAX} bytes");
                Err(self.wrong_item("stop", index, message))
            }
            None => Ok(stop),
        }
    }

    fn sampling(&self, definition: &Definition) -> Result<(), Mistake> {
        definition.sampling.params().validate().map_err(|error| {
            let key = match &error {
                ParamError::OutOfRange { field, .. } => format!("sampling.{field}"),
                _ => "sampling".to_owned(),
            };
            self.wrong(&key, error)
        })
    }

    fn parsed<T: FromStr>(&self, key: &str, text: Option<&str>) -> Result<Option<T>, Mistake>
    where
        T::Err: std::fmt::Display,
    {
        text.map(str::parse).transpose().map_err(|error| self.wrong(key, error))
    }

    fn within<T: TryFrom<i64>>(
        &self,
        key: &str,
        value: Option<i64>,
        legal: RangeInclusive<i64>,
    ) -> Result<Option<T>, Mistake> {
        let Some(value) = value else { return Ok(None) };
        let fits = if legal.contains(&value) { T::try_from(value).ok() } else { None };
        match fits {
            Some(value) => Ok(Some(value)),
            None => {
                let (low, high) = (legal.start(), legal.end());
                let message =
                    format!("is {value}, but must be a whole number from {low} to {high}");
                Err(self.wrong(key, message))
            }
        }
    }

    fn count(&self, key: &str, count: usize, most: usize) -> Result<(), Mistake> {
        self.count_of(key, count, most, "items")
    }

    fn count_of(&self, key: &str, count: usize, most: usize, of: &str) -> Result<(), Mistake> {
        if count <= most {
            return Ok(());
        }
        Err(self.wrong(key, format!("has {count} {of}, the most is {most}")))
    }

    fn wrong(&self, key: &str, what: impl ToString) -> Mistake {
        self.wrong_at(key, self.place(key, None), &what.to_string())
    }

    fn wrong_item(&self, key: &str, index: usize, what: impl ToString) -> Mistake {
        self.wrong_at(key, self.place(key, Some(index)), &what.to_string())
    }

    fn wrong_at(&self, key: &str, at: usize, what: &str) -> Mistake {
        Mistake::at(self.text, at, &format!("{key}: {what}"))
    }

    /// Byte at which a key's value begins, or an item of it; of a key that is not there, the model.
    fn place(&self, key: &str, index: Option<usize>) -> usize {
        let (table, key) = match key.split_once('.') {
            Some((outer, inner)) => {
                let table = self.table.get(outer).and_then(|table| table.get_ref().as_table());
                (table.unwrap_or(self.table), inner)
            }
            None => (self.table, key),
        };
        let Some(value) = table.get(key) else { return self.start };
        let item = index.and_then(|index| value.get_ref().as_array()?.get(index));
        item.unwrap_or(value).span().start
    }
}
