//! One answer: from a question in any protocol to a job, and its events back.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use m40_control::{ApiError, ErrorCode, ModelRef, RunStats};
use m40_manifest::Text;
use m40_sched::sampler::ParamError;
use m40_tokenizer::{ChatTemplate, TemplateError, TemplateInput};
use m40llm::{CancelToken, Completion, FinishReason, GenerateError, GenerateParams};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::models::worker::{Event, Job, JobError, Reason, Refusal};
use crate::models::{Loaded, ModelError, Models};

/// What is asked.
#[derive(Debug)]
pub(crate) enum Input {
    /// Text to go on from, as it is.
    Text(String),
    /// A conversation for the model's chat template.
    Chat {
        /// An array of objects with `role` and `content`.
        messages: Value,
        /// More variables for the template.
        extra: Map<String, Value>,
    },
}

impl Input {
    /// Puts a system prompt before a conversation that has none of its own.
    fn begin_with(&mut self, system: Option<&Text>) {
        if let (Self::Chat { messages: Value::Array(messages), .. }, Some(system)) = (self, system)
            && !messages.iter().any(|message| message["role"] == "system")
        {
            messages.insert(0, json!({"role": "system", "content": &*system.content}));
        }
    }
}

/// What is asked, with all that a definition adds.
#[derive(Debug)]
struct Question {
    input: Input,
    /// The chat template of the definition, if it has one.
    template: Option<Text>,
    params: GenerateParams,
}

/// Why a question cannot be queued.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(
        "the prompt is {prompt_tokens} tokens long, the context of {model:?} is {context} tokens: shorten the prompt"
    )]
    PromptTooLong { model: String, prompt_tokens: usize, context: u32 },
    #[error("the prompt is empty")]
    EmptyPrompt,
    #[error("the model's chat template failed: {0}")]
    Template(#[from] TemplateError),
    #[error("logit_bias: there is no token {token}, the model has {vocab}")]
    NoSuchToken { token: u32, vocab: u32 },
    #[error(transparent)]
    Sampling(#[from] ParamError),
    #[error("preparing the prompt failed, see the log of m40d")]
    Internal,
}

/// An answer under way. Dropping it cancels the job.
#[derive(Debug)]
pub(crate) struct Answer {
    loaded: Arc<Loaded>,
    events: UnboundedReceiver<Event>,
    cancel: CancelToken,
    ended: bool,
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Answer {
    /// Queues a question for a model that is ready, or, where it leaves memory meanwhile, for the
    /// same one when it is loaded again.
    pub(crate) async fn start(
        models: &Models,
        mut loaded: Arc<Loaded>,
        mut input: Input,
        mut params: GenerateParams,
    ) -> Result<Self, AskError> {
        params.sampling.validate()?;
        let definition = models.definition(Some(&loaded.name));
        let mut template = None;
        if let Some(definition) = definition {
            params.stop.extend(definition.stop.iter().cloned());
            input.begin_with(definition.system.as_ref());
            template = definition.template.clone();
        }
        let question = Arc::new(Question { input, template, params });
        loop {
            let name = loaded.name.clone();
            if let Some(answer) = Self::submit(models, loaded, &question).await? {
                return Ok(answer);
            }
            loaded = match models.load(&ModelRef::Name(name.clone())).await {
                // It was a file used in place, which no name leads to.
                Err(ModelError::Unknown { .. }) => Err(ModelError::Unloading { name }),
                again => again,
            }?;
        }
    }

    /// Queues a question, unless the model takes no more.
    async fn submit(
        models: &Models,
        loaded: Arc<Loaded>,
        question: &Arc<Question>,
    ) -> Result<Option<Self>, AskError> {
        check_bias(&question.params, loaded.model.info().vocab)?;
        let prompt = encode(Arc::clone(&loaded), Arc::clone(question)).await?;
        let context = loaded.model.info().context;
        if prompt.is_empty() {
            return Err(AskError::EmptyPrompt);
        }
        // One token of room at least, or there would be nothing to answer with.
        if prompt.len() >= context as usize {
            let (model, prompt_tokens) = (loaded.name.clone(), prompt.len());
            return Err(AskError::PromptTooLong { model, prompt_tokens, context });
        }
        let cancel = CancelToken::default();
        let (sender, events) = unbounded_channel();
        let job = Job {
            prompt,
            params: question.params.clone(),
            cancel: cancel.clone(),
            events: sender,
            counted: models.jobs().count(),
        };
        match loaded.worker.submit(job) {
            Ok(()) => Ok(Some(Self { loaded, events, cancel, ended: false })),
            Err(Refusal::QueueFull { limit }) => {
                Err(ModelError::QueueFull { name: loaded.name.clone(), limit }.into())
            }
            Err(Refusal::Ending) => Ok(None),
        }
    }

    /// Name of the model that answers.
    pub(crate) fn model(&self) -> &str {
        &self.loaded.name
    }

    /// The next event; `None` after the last.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        let event = self.events.recv().await.unwrap_or(Event::Failed(JobError::Worker));
        self.ended = !matches!(event, Event::Chunk(_));
        Some(event)
    }
}

fn check_bias(params: &GenerateParams, vocab: u32) -> Result<(), AskError> {
    match params.sampling.logit_bias.iter().find(|(token, _)| *token >= vocab) {
        Some(&(token, _)) => Err(AskError::NoSuchToken { token, vocab }),
        None => Ok(()),
    }
}

// A long prompt takes a while to tokenise, which must not hold up other connections.
async fn encode(loaded: Arc<Loaded>, question: Arc<Question>) -> Result<Vec<u32>, AskError> {
    let task = tokio::task::spawn_blocking(move || match &question.input {
        Input::Text(text) => Ok(loaded.model.tokenizer().encode_prompt(text)),
        Input::Chat { messages, extra } => {
            let input = TemplateInput {
                messages,
                tools: None,
                add_generation_prompt: true,
                extra: Some(extra),
                now: Some(unix_s()),
            };
            let (own, tokenizer) = (loaded.model.chat_template(), loaded.model.tokenizer());
            let text = match &question.template {
                // A manifest changed it since the model was loaded.
                Some(newer) if *newer.content != *own.source() => {
                    ChatTemplate::for_tokenizer(&newer.content, tokenizer)?.render(&input)?
                }
                _ => own.render(&input)?,
            };
            Ok(tokenizer.encode_prompt(&text))
        }
    });
    task.await.unwrap_or_else(|error| {
        tracing::error!(%error, "preparing a prompt panicked");
        Err(AskError::Internal)
    })
}

// Templates that write the date get it in UTC: a daemon's own time zone says nothing about its
// clients'.
fn unix_s() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// The word for how an answer ended, in OpenAI's terms where there is one.
pub(crate) const fn finish_word(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "cancelled",
        FinishReason::Deadline => "deadline",
    }
}

/// The figures of a finished answer.
pub(crate) fn stats(completion: &Completion) -> RunStats {
    RunStats {
        finish_reason: finish_word(completion.finish).to_owned(),
        prompt_tokens: completion.prompt_tokens,
        cached_tokens: completion.cached_tokens,
        completion_tokens: completion.completion_tokens,
        prompt_ms: completion.prompt_time.as_secs_f64() * 1000.0,
        decode_ms: completion.decode_time.as_secs_f64() * 1000.0,
    }
}

impl AskError {
    /// The code that the control API has for it.
    pub(crate) fn code(&self) -> ErrorCode {
        match self {
            Self::Model(error) => error.code(),
            Self::Internal => ErrorCode::Internal,
            _ => ErrorCode::InvalidRequest,
        }
    }
}

impl JobError {
    /// The code that the control API has for it.
    pub(crate) fn code(&self) -> ErrorCode {
        match self {
            Self::CutShort(Reason::Stopping) => ErrorCode::Stopping,
            Self::CutShort(Reason::Unloaded) => ErrorCode::Aborted,
            Self::Generate(
                GenerateError::PromptTooLong { .. }
                | GenerateError::EmptyPrompt
                | GenerateError::Sampling(_),
            ) => ErrorCode::InvalidRequest,
            Self::Generate(
                GenerateError::CacheFull { .. } | GenerateError::TooManySessions { .. },
            ) => ErrorCode::Busy,
            _ => ErrorCode::Internal,
        }
    }
}

impl From<AskError> for ApiError {
    fn from(error: AskError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

impl From<JobError> for ApiError {
    fn from(error: JobError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}
