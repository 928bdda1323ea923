//! What `generate` and `chat` have in common: a request on its way to an answer.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use axum::Json;
use axum::response::{IntoResponse, Response};
use m40_grammar::Grammar;
use m40_manifest::Capability;
use m40_sched::Refusal;
use m40_sched::residency::Stay;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::keep_alive::KeepAlive;
use super::options::Options;
use super::reply::{self, Kind, Reply};
use super::{HttpError, is_empty, names};
use crate::generation::{Answer, Form, Input, Question, Reasoning};
use crate::http::{Context, HEAD_WAIT};
use crate::models::{ModelError, Ticket, Urgency};

/// Most alternatives per token.
const TOP_LOGPROBS_MAX: u32 = 20;

/// The fields that both have.
#[derive(Debug, Deserialize)]
pub(super) struct Fields {
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    format: Value,
    #[serde(default)]
    options: Option<Map<String, Value>>,
    #[serde(default)]
    keep_alive: Option<KeepAlive>,
    #[serde(default)]
    think: Option<Think>,
    /// Whether the oldest messages are left out where not all fit; they are.
    #[serde(default)]
    truncate: Option<bool>,
    #[serde(default)]
    logprobs: Option<bool>,
    #[serde(default)]
    top_logprobs: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected true, false, or a text like \"high\"")]
enum Think {
    Switch(bool),
    Effort(String),
}

/// A request of which the model is known.
pub(super) struct Asked {
    /// As the client calls it, and is told again.
    asked: String,
    /// The model's own name.
    name: String,
    fields: Fields,
    kind: Kind,
    since: Instant,
}

impl Fields {
    /// Finds the model.
    pub(super) async fn find(self, context: &Context, kind: Kind) -> Result<Asked, HttpError> {
        let since = Instant::now();
        let asked = self.model.clone().unwrap_or_default();
        let name = names::find(&context.models, &asked).await?;
        Ok(Asked { asked, name, fields: self, kind, since })
    }

    fn form(&self) -> Result<Option<Form>, HttpError> {
        let form = |grammar| Ok(Some(Form { grammar, field: "format" }));
        match &self.format {
            nothing if is_empty(nothing) => Ok(None),
            Value::String(word) if word == "json" => form(Grammar::Json),
            schema @ Value::Object(_) => form(Grammar::JsonSchema(schema.clone())),
            other => {
                let expected = "expected \"json\" or a valid JSON Schema object";
                Err(HttpError::bad_request(format!("invalid format: {other}; {expected}")))
            }
        }
    }

    /// How many alternatives are reported with each token, if any is.
    fn logprobs(&self) -> Result<Option<u32>, HttpError> {
        let top = self.top_logprobs.unwrap_or(0);
        if top > TOP_LOGPROBS_MAX {
            let message = format!("top_logprobs must be between 0 and {TOP_LOGPROBS_MAX}");
            return Err(HttpError::bad_request(message));
        }
        Ok(self.logprobs.unwrap_or(false).then_some(top))
    }
}

impl Asked {
    /// How the model is to reason.
    pub(super) fn reasoning(&self) -> Reasoning {
        match &self.fields.think {
            None => Reasoning::Default,
            Some(Think::Switch(true)) => Reasoning::On,
            Some(Think::Switch(false)) => Reasoning::Off,
            Some(Think::Effort(effort)) => Reasoning::Effort(effort.clone()),
        }
    }

    /// Whether the oldest messages are left out where not all fit.
    pub(super) fn shortens(&self) -> bool {
        self.fields.truncate.unwrap_or(true)
    }

    /// Refuses what the model cannot do: to think, if it was told to, and what else is `wanted`.
    pub(super) async fn check(
        &self,
        context: &Context,
        wanted: &[Capability],
    ) -> Result<(), HttpError> {
        let thinks = matches!(self.reasoning(), Reasoning::On | Reasoning::Effort(_));
        let thinking = thinks.then_some(Capability::Thinking);
        let wanted: BTreeSet<Capability> = wanted.iter().copied().chain(thinking).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        // What its file says is not known where it is not here, which the load finds out.
        let Some(has) = context.models.capabilities(&self.name).await else { return Ok(()) };
        match wanted.difference(&has).next() {
            Some(lacks) => Err(self.does_not_support(&lacks.to_string())),
            None => Ok(()),
        }
    }

    /// In the words by which clients know it.
    pub(super) fn does_not_support(&self, what: &str) -> HttpError {
        HttpError::bad_request(format!("{:?} does not support {what}", self.asked))
    }

    /// Loads the model, or lets it go: what a request without a prompt is for.
    pub(super) async fn load(self, context: &Context) -> Result<Response, HttpError> {
        if self.fields.keep_alive.is_some_and(KeepAlive::is_none) {
            context.models.keep_for(&self.name, Stay::For(Duration::ZERO));
            return Ok(self.loaded("unload"));
        }
        let ticket = self.ticket(context).await?;
        drop(ticket.turn().await?);
        Ok(self.loaded("load"))
    }

    fn loaded(&self, reason: &str) -> Response {
        Json(reply::loaded(self.kind, &self.asked, reason)).into_response()
    }

    /// Answers.
    pub(super) async fn answer(
        self,
        context: &Context,
        input: Input,
        before: Vec<u32>,
    ) -> Result<Response, HttpError> {
        let definition = context.models.definition(Some(&self.name));
        let defaults = definition.map(|definition| definition.sampling.params());
        let options = self.fields.options.clone().unwrap_or_default();
        let options = Options::read(&options, defaults.unwrap_or_default())?;
        let context_max = options.context_max;
        let form = self.fields.form()?;
        let mut params = options.params();
        params.logprobs = self.fields.logprobs()?;
        // What was text as it is has no tokens to go on from for who sends no template either.
        let goes_on = self.kind == Kind::Generate && matches!(input, Input::Chat(_));
        let mut reply = Reply::new(self.kind, self.asked.clone(), self.since);
        reply.logprobs = params.logprobs.is_some();
        reply.goes_on = goes_on;
        let question = Question { input, before, params, context_max, form };
        let ticket = self.ticket(context).await?;
        let mut answer = Answer::new(&context.models, ticket, question)?;
        if self.fields.stream.unwrap_or(true) {
            answer.started_within(HEAD_WAIT).await?;
            Ok(reply.lines(answer))
        } else {
            Ok(Json(reply.whole(answer).await?).into_response())
        }
    }

    async fn ticket(&self, context: &Context) -> Result<Ticket, HttpError> {
        ticket(context, &self.name, self.fields.keep_alive).await.map_err(|error| match error {
            ModelError::Unknown { .. } => names::no_model(&self.asked),
            error => refused(error),
        })
    }
}

/// Asks for a model by its own name, and says how long it stays after that.
pub(super) async fn ticket(
    context: &Context,
    name: &str,
    keep_alive: Option<KeepAlive>,
) -> Result<Ticket, ModelError> {
    let ticket = context.models.ask(Some(name), Urgency::default()).await?;
    if let Some(KeepAlive(stay)) = keep_alive {
        ticket.stay_after(stay);
    }
    Ok(ticket)
}

/// That too many wait is known to clients by its words.
pub(super) fn refused(error: ModelError) -> HttpError {
    match &error {
        ModelError::Refused { refusal, .. } if matches!(**refusal, Refusal::QueueFull { .. }) => {
            HttpError::too_busy()
        }
        _ => error.into(),
    }
}
