//! What a source says of how its model is used: the layers that an Ollama registry has beside the
//! weights. It counts where a manifest says nothing.

use std::path::Path;
use std::sync::Arc;

use m40_manifest::{Definition, STOP_BYTES_MAX, STOPS_MAX, Sampling, TEXT_BYTES_MAX, Text};
use m40_store::OllamaModel;
use m40_tokenizer::ChatTemplate;
use m40llm::has_chat_template;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How a model is used where nobody says otherwise. All of it is legal in a manifest.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Defaults {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    pub sampling: Sampling,
}

impl Defaults {
    /// What can be used of the layers beside these weights, and in words what cannot. Blocking.
    pub(crate) fn beside(model: &OllamaModel, weights: &Path) -> (Self, Vec<String>) {
        // One that cannot be read fails when it is loaded.
        Self::of(model, has_chat_template(weights).unwrap_or(false))
    }

    /// What can be used of the layers, and in words what cannot.
    fn of(model: &OllamaModel, has_template: bool) -> (Self, Vec<String>) {
        let mut left = model.left_out.clone();
        let mut text = |what: &str, text: &Option<String>, is_good: &dyn Fn(&str) -> bool| {
            let text = text.clone().filter(|text| !text.trim().is_empty())?;
            let is_good = text.len() <= TEXT_BYTES_MAX && is_good(&text);
            if !is_good {
                left.push(what.to_owned());
            }
            is_good.then_some(text)
        };
        // Most are in Go's language, written anew after the file's own, which is what the model was
        // trained with.
        let is_template = |text: &str| {
            let template = ChatTemplate::new(text, "", "");
            template.is_ok_and(|template| !has_template || !template.is_go())
        };
        let template = text("template", &model.template, &is_template);
        let system = text("system", &model.system, &|_| true);
        let mut defaults = Self { template, system, ..Self::default() };
        for (name, value) in &model.params {
            if !defaults.take(name, value) {
                left.push(format!("params.{name}"));
            }
        }
        (defaults, left)
    }

    /// Takes a parameter, if it is known and legal.
    fn take(&mut self, name: &str, value: &Value) -> bool {
        if name == "stop" {
            let stop = stops(value);
            self.stop = stop.clone().unwrap_or_default();
            return stop.is_some();
        }
        let mut sampling = self.sampling.clone();
        let is_known = set(&mut sampling, name, value);
        let is_legal = is_known && sampling.params().validate().is_ok();
        if is_legal {
            self.sampling = sampling;
        }
        is_legal
    }

    /// Whether it says nothing.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// A definition with these where it says nothing.
    pub(crate) fn complete(&self, definition: &Arc<Definition>) -> Arc<Definition> {
        if self.is_empty() {
            return Arc::clone(definition);
        }
        let mut whole = Definition::clone(definition);
        let text = |text: &String| Text { content: text.as_str().into(), file: None };
        whole.template = whole.template.or_else(|| self.template.as_ref().map(text));
        whole.system = whole.system.or_else(|| self.system.as_ref().map(text));
        if whole.stop.is_empty() {
            whole.stop.clone_from(&self.stop);
        }
        whole.sampling = whole.sampling.or(&self.sampling);
        Arc::new(whole)
    }
}

fn stops(value: &Value) -> Option<Vec<String>> {
    let texts = match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(texts) => {
            texts.iter().map(|text| text.as_str().map(str::to_owned)).collect::<Option<_>>()?
        }
        _ => return None,
    };
    let is_legal = |text: &String| (1..=STOP_BYTES_MAX).contains(&text.len());
    (texts.len() <= STOPS_MAX && texts.iter().all(is_legal)).then_some(texts)
}

/// Sets the parameter that Ollama calls so; false if there is none or the value is no number for it.
fn set(sampling: &mut Sampling, name: &str, value: &Value) -> bool {
    let real = value.as_f64().map(|value| value as f32);
    let count = value.as_u64().and_then(|value| u32::try_from(value).ok());
    match name {
        "temperature" => put(&mut sampling.temperature, real),
        "top_k" => put(&mut sampling.top_k, count),
        "top_p" => put(&mut sampling.top_p, real),
        "min_p" => put(&mut sampling.min_p, real),
        "typical_p" => put(&mut sampling.typical_p, real),
        "repeat_penalty" => put(&mut sampling.repeat_penalty, real),
        "repeat_last_n" => put(&mut sampling.repeat_last_n, count),
        "presence_penalty" => put(&mut sampling.presence_penalty, real),
        "frequency_penalty" => put(&mut sampling.frequency_penalty, real),
        "seed" => put(&mut sampling.seed, value.as_u64()),
        _ => false,
    }
}

fn put<T>(slot: &mut Option<T>, value: Option<T>) -> bool {
    let is_some = value.is_some();
    if is_some {
        *slot = value;
    }
    is_some
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn defaults(params: &Value, template: &str) -> (Defaults, Vec<String>) {
        let model = OllamaModel {
            template: Some(template.to_owned()),
            params: params.as_object().expect("an object").clone(),
            ..OllamaModel::default()
        };
        Defaults::of(&model, true)
    }

    #[test]
    fn a_template_in_gos_language_counts_where_the_file_has_none() {
        let of = |template: &str, has_template| {
            let template = Some(template.to_owned());
            let model = OllamaModel { template, ..OllamaModel::default() };
            let (found, left) = Defaults::of(&model, has_template);
            (found.template.is_some(), left.is_empty())
        };
        assert_eq!(of("{{ .Prompt }}", false), (true, true));
        assert_eq!(of("{{ .Prompt }}", true), (false, false));
        assert_eq!(of("{{ call .Prompt }}", false), (false, false), "what is not known is told");
        assert_eq!(of("{{ messages[0].content }}", true), (true, true));
    }

    #[test]
    fn what_is_legal_counts_and_the_rest_is_told() {
        let params = json!({"temperature": 0.5, "top_k": -1, "top_p": 7, "stop": ["<end>"],
            "num_ctx": 4096, "seed": "x", "min_p": 0.1});
        let (found, left) = defaults(&params, "{{ if .System }}{{ .System }}{{ end }}");
        assert_eq!(found.stop, ["<end>"]);
        let expected = Sampling { temperature: Some(0.5), min_p: Some(0.1), ..Sampling::default() };
        assert_eq!((found.sampling, found.template), (expected, None));
        let told = ["template", "params.top_k", "params.top_p", "params.num_ctx", "params.seed"];
        assert_eq!(left, told);
        let (found, left) = defaults(&json!({"stop": ""}), "{{ messages[0].content }}");
        assert_eq!(found.template.as_deref(), Some("{{ messages[0].content }}"));
        assert_eq!(left, ["params.stop"]);
    }

    #[test]
    fn a_manifest_comes_first_key_by_key() {
        let text = "[sampling]\ntemperature = 0.9\n";
        let sampling: Sampling = toml::from_str::<std::collections::BTreeMap<String, Sampling>>(
            text,
        )
        .unwrap()["sampling"]
            .clone();
        let name = "m";
        let mut said = Definition::plain(name, "/m.gguf".parse().unwrap()).unwrap();
        said.sampling = sampling;
        let params = json!({"temperature": 0.5, "top_k": 7, "stop": ["x"]});
        let (found, _) = defaults(&params, "");
        let whole = found.complete(&Arc::new(said));
        assert_eq!((whole.sampling.temperature, whole.sampling.top_k), (Some(0.9), Some(7)));
        assert_eq!((whole.stop.as_slice(), &whole.template), (["x".to_owned()].as_slice(), &None));
    }
}
