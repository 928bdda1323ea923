//! What a change of a definition means for the model.

use m40_control::{Effect, KeyChange};

use crate::definition::{Definition, Text};

/// A key's value, as far as it is compared and shown.
#[derive(Debug, PartialEq)]
enum Value {
    Unset,
    Shown(String),
    /// Compared as a whole, shown as its size: it may be long, and prompts are not logged.
    Text(Text),
}

impl Value {
    fn set<T: ToString>(value: Option<T>) -> Self {
        value.map_or(Self::Unset, |value| Self::Shown(value.to_string()))
    }

    fn list<T: ToString>(values: &[T]) -> Self {
        let shown: Vec<String> = values.iter().map(T::to_string).collect();
        if shown.is_empty() { Self::Unset } else { Self::Shown(shown.join(", ")) }
    }

    fn text(text: Option<&Text>) -> Self {
        text.map_or(Self::Unset, |text| Self::Text(text.clone()))
    }

    fn show(&self) -> Option<String> {
        match self {
            Self::Unset => None,
            Self::Shown(shown) => Some(shown.clone()),
            Self::Text(text) => Some(format!("a text of {} bytes", text.content.len())),
        }
    }
}

/// Every key of a definition but its name: what it is, when a change of it counts, its value.
fn keys(d: &Definition) -> Vec<(&'static str, Effect, Value)> {
    use Effect::{Live, NextLoad, Reload};
    let s = &d.sampling;
    // A text of a list may hold what joins them.
    let stop: Vec<String> = d.stop.iter().map(|stop| format!("{stop:?}")).collect();
    let capabilities = d.capabilities.as_ref().map(|capabilities| {
        let words: Vec<String> = capabilities.iter().map(ToString::to_string).collect();
        if words.is_empty() { "none".to_owned() } else { words.join(", ") }
    });
    let set = |flag: bool| Value::set(flag.then_some(true));
    // Without an override the file's own counts, which only a load finds.
    let template = if d.template.is_some() { Live } else { NextLoad };
    let mirrors: Vec<&str> = d.mirrors.iter().map(|mirror| mirror.url().as_str()).collect();
    vec![
        ("aliases", Live, Value::list(&d.aliases)),
        ("source", Reload, Value::set(Some(&d.source))),
        ("sha256", Reload, Value::set(d.sha256.as_ref())),
        ("size_bytes", Reload, Value::set(d.size_bytes)),
        ("mirrors", Live, Value::list(&mirrors)),
        ("context_tokens", NextLoad, Value::set(d.context_tokens)),
        ("sequences_max", Live, Value::set(d.sequences_max)),
        ("kv_type", NextLoad, Value::set(d.kv_type)),
        ("priority", Live, Value::set(Some(d.priority))),
        ("pin", Live, set(d.pin)),
        ("preload", Live, set(d.preload)),
        ("idle_unload_after", Live, Value::set(d.idle_unload)),
        ("template", template, Value::text(d.template.as_ref())),
        ("tokenizer", NextLoad, Value::set(d.tokenizer.as_ref().map(|path| path.display()))),
        ("system", Live, Value::text(d.system.as_ref())),
        ("sampling.temperature", Live, Value::set(s.temperature)),
        ("sampling.top_k", Live, Value::set(s.top_k)),
        ("sampling.top_p", Live, Value::set(s.top_p)),
        ("sampling.min_p", Live, Value::set(s.min_p)),
        ("sampling.typical_p", Live, Value::set(s.typical_p)),
        ("sampling.repeat_penalty", Live, Value::set(s.repeat_penalty)),
        ("sampling.repeat_last_n", Live, Value::set(s.repeat_last_n)),
        ("sampling.presence_penalty", Live, Value::set(s.presence_penalty)),
        ("sampling.frequency_penalty", Live, Value::set(s.frequency_penalty)),
        ("sampling.seed", Live, Value::set(s.seed)),
        ("stop", Live, Value::list(&stop)),
        ("capabilities", Live, Value::set(capabilities)),
    ]
}

/// The keys that a definition sets, with their values as they are shown, in the order in which they
/// are documented.
pub fn set_keys(definition: &Definition) -> Vec<(&'static str, String)> {
    let set = keys(definition).into_iter();
    set.filter_map(|(key, _, value)| Some((key, value.show()?))).collect()
}

/// The keys in which two definitions of a model differ, in the order in which they are documented.
pub fn changed_keys(old: &Definition, new: &Definition) -> Vec<KeyChange> {
    let pairs = keys(old).into_iter().zip(keys(new));
    let differing = pairs.filter(|((.., from), (.., to))| from != to);
    let change = |((key, _, from), (_, effect, to)): ((&str, _, Value), (_, Effect, Value))| {
        KeyChange { key: key.to_owned(), effect, from: from.show(), to: to.show() }
    };
    differing.map(change).collect()
}

#[cfg(test)]
mod tests {
    use m40_control::Effect;

    use super::changed_keys;
    use crate::tests::definition;

    #[test]
    fn each_changed_key_is_told_with_its_effect() {
        use Effect::{Live, NextLoad, Reload};
        let base = "source = \"/m.gguf\"\n";
        for (line, key, effect) in [
            ("aliases = [\"b\"]", "aliases", Live),
            ("sha256 = \"ab\"", "sha256", Reload),
            ("size_bytes = 7", "size_bytes", Reload),
            ("context_tokens = 7", "context_tokens", NextLoad),
            ("sequences_max = 7", "sequences_max", Live),
            ("kv_type = \"int8\"", "kv_type", NextLoad),
            ("priority = 7", "priority", Live),
            ("pin = true", "pin", Live),
            ("preload = true", "preload", Live),
            ("idle_unload_after = \"7m\"", "idle_unload_after", Live),
            ("template = \"x\"", "template", Live),
            ("tokenizer = { file = \"x\" }", "tokenizer", NextLoad),
            ("system = \"x\"", "system", Live),
            ("sampling.temperature = 0.5", "sampling.temperature", Live),
            ("sampling.top_k = 7", "sampling.top_k", Live),
            ("sampling.top_p = 0.5", "sampling.top_p", Live),
            ("sampling.min_p = 0.5", "sampling.min_p", Live),
            ("sampling.typical_p = 0.5", "sampling.typical_p", Live),
            ("sampling.repeat_penalty = 1.5", "sampling.repeat_penalty", Live),
            ("sampling.repeat_last_n = 7", "sampling.repeat_last_n", Live),
            ("sampling.presence_penalty = 0.5", "sampling.presence_penalty", Live),
            ("sampling.frequency_penalty = 0.5", "sampling.frequency_penalty", Live),
            ("sampling.seed = 7", "sampling.seed", Live),
            ("stop = [\"x\"]", "stop", Live),
            ("capabilities = []", "capabilities", Live),
        ] {
            let line = line.replace("\"ab\"", &format!("\"{}\"", "ab".repeat(32)));
            let (old, new) = (definition(base), definition(&format!("{base}{line}")));
            let changes = changed_keys(&old, &new);
            let found: Vec<_> = changes.iter().map(|c| (c.key.as_str(), c.effect)).collect();
            assert_eq!(found, [(key, effect)], "{line}");
            assert!(changed_keys(&new, &new).is_empty(), "{line}");
            assert_eq!(changed_keys(&new, &old).len(), 1, "{line}");
            assert_ne!(old, new, "{line}");
        }
        let of = |text: &str| definition(text);
        let other = of("source = \"/other.gguf\"");
        let source = &changed_keys(&of(base), &other)[0];
        assert_eq!((source.key.as_str(), source.effect), ("source", Reload));
        assert_eq!(source.to.as_deref(), Some("/other.gguf"));
    }

    #[test]
    fn a_template_that_goes_counts_at_the_next_load_and_no_text_is_shown() {
        let base = "source = \"/m.gguf\"\n";
        let with = definition(&format!("{base}template = \"secret\""));
        let gone = changed_keys(&with, &definition(base));
        assert_eq!(gone[0].effect, Effect::NextLoad);
        assert_eq!(gone[0].from.as_deref(), Some("a text of 6 bytes"));
    }
}
