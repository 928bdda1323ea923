//! One answer: from a question in any protocol to a job, and its events back.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use m40_control::{ApiError, ErrorCode, RunStats};
use m40_manifest::{Definition, Text};
use m40_sched::sampler::ParamError;
use m40_tokenizer::{ChatTemplate, TemplateError, TemplateInput};
use m40llm::{Chunk, Completion, FinishReason, GenerateError, GenerateParams};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

use crate::models::{Cut, Job, JobError, JobEvent, Loaded, ModelError, Models, Ticket};

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

/// Why a question is not answered.
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

/// Why there is no answer, or no more of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AnswerError {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error(transparent)]
    Job(#[from] JobError),
}

/// What an answer has to say. After `Done` or `Failed` nothing follows.
#[derive(Debug)]
pub(crate) enum Event {
    Chunk(Chunk),
    Done(Completion),
    Failed(AnswerError),
}

/// An answer under way, or a request that waits for its turn. Dropping it cancels either.
pub(crate) struct Answer {
    model: String,
    stage: Stage,
}

enum Stage {
    Waits(Pin<Box<dyn Future<Output = Result<Running, AskError>> + Send>>),
    Runs(Running),
    Ended,
}

/// A job that runs. Dropping it cancels the job.
#[derive(Debug)]
struct Running {
    events: UnboundedReceiver<JobEvent>,
    cut: Arc<Cut>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.cut.abandon();
    }
}

impl Answer {
    /// Answers a question when the request has its turn.
    pub(crate) fn new(
        models: &Models,
        ticket: Ticket,
        input: Input,
        params: GenerateParams,
    ) -> Result<Self, AskError> {
        params.sampling.validate()?;
        let model = ticket.model().to_owned();
        let definition = models.definition(Some(&model));
        let waits = Box::pin(start(ticket, definition, input, params));
        Ok(Self { model, stage: Stage::Waits(waits) })
    }

    /// Name of the model that answers.
    pub(crate) fn model(&self) -> &str {
        &self.model
    }

    /// Returns when the request has its turn and the question is one that is answered.
    pub(crate) async fn started(&mut self) -> Result<(), AskError> {
        if let Stage::Waits(waits) = &mut self.stage {
            let started = waits.await;
            self.stage = Stage::Ended;
            self.stage = Stage::Runs(started?);
        }
        Ok(())
    }

    /// As [`Self::started`], but for no longer than so.
    pub(crate) async fn started_within(&mut self, time: Duration) -> Result<(), AskError> {
        timeout(time, self.started()).await.unwrap_or(Ok(()))
    }

    /// The next event; `None` after the last.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        if let Err(error) = self.started().await {
            return Some(Event::Failed(error.into()));
        }
        let Stage::Runs(running) = &mut self.stage else { return None };
        let event = match running.events.recv().await {
            Some(JobEvent::Chunk(chunk)) => return Some(Event::Chunk(chunk)),
            Some(JobEvent::Done(completion)) => Event::Done(completion),
            Some(JobEvent::Failed(error)) => Event::Failed(error.into()),
            None => Event::Failed(JobError::Panicked.into()),
        };
        self.stage = Stage::Ended;
        Some(event)
    }
}

/// Waits for a request's turn, and begins to answer a question then. Where the model is in memory the
/// prompt is made meanwhile, so that nobody waits for it, and a wrong one is told at once.
async fn start(
    ticket: Ticket,
    definition: Option<Arc<Definition>>,
    mut input: Input,
    mut params: GenerateParams,
) -> Result<Running, AskError> {
    let mut template = None;
    if let Some(definition) = definition {
        params.stop.extend(definition.stop.iter().cloned());
        input.begin_with(definition.system.as_ref());
        template = definition.template.clone();
    }
    params.priority = ticket.priority();
    let question = Arc::new(Question { input, template, params });
    let early = match ticket.loaded() {
        Some(loaded) => {
            let model = Arc::downgrade(&loaded);
            Some((model, prepare(loaded, Arc::clone(&question)).await?))
        }
        None => None,
    };
    let run = ticket.turn().await?;
    let prompt = match early {
        Some((model, prompt)) if model.ptr_eq(&Arc::downgrade(&run.loaded)) => prompt,
        // It was loaded meanwhile, perhaps from another file.
        _ => prepare(Arc::clone(&run.loaded), Arc::clone(&question)).await?,
    };
    let (sender, events) = unbounded_channel();
    let cut = Arc::clone(&run.cut);
    run.answer(Job { prompt, params: question.params.clone(), events: sender });
    Ok(Running { events, cut })
}

/// The prompt of a question, if it is one that the model can answer.
async fn prepare(loaded: Arc<Loaded>, question: Arc<Question>) -> Result<Vec<u32>, AskError> {
    let (context, vocab) = (loaded.model.info().context, loaded.model.info().vocab);
    let model = loaded.name.clone();
    check_bias(&question.params, vocab)?;
    let prompt = encode(loaded, question).await?;
    if prompt.is_empty() {
        return Err(AskError::EmptyPrompt);
    }
    // One token of room at least, or there would be nothing to answer with.
    if prompt.len() >= context as usize {
        let (model, prompt_tokens) = (model.to_string(), prompt.len());
        return Err(AskError::PromptTooLong { model, prompt_tokens, context });
    }
    Ok(prompt)
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
            Self::CutShort(reason) => reason.code(),
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

impl From<AnswerError> for ApiError {
    fn from(error: AnswerError) -> Self {
        match error {
            AnswerError::Ask(error) => error.into(),
            AnswerError::Job(error) => error.into(),
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
