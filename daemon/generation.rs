//! One answer: from a question in any protocol to a job, and its events back.

mod call_ids;
mod meter;
mod question;
mod reading;
mod tools;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use m40_control::{ApiError, ErrorCode, RunStats};
use m40_grammar::GrammarError;
use m40_manifest::Definition;
use m40_reply::{Piece, Reader};
use m40_sched::sampler::ParamError;
use m40_tokenizer::TemplateError;
use m40llm::{Chunk, Completion, FinishReason, GenerateError, TokenLogprob};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

use crate::models::{Cut, Job, JobError, JobEvent, Loaded, ModelError, Models, Ticket};
use meter::Meter;
use question::Prepared;
pub(crate) use question::{Chat, Form, Input, Question, Reasoning, ToolShape};
pub(crate) use reading::{prompt, read};

/// Why a question is not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(
        "the prompt is {prompt_tokens} tokens long, the context of {model:?} is {context} tokens: shorten the prompt"
    )]
    PromptTooLong { model: String, prompt_tokens: usize, context: u32 },
    #[error(
        "the model {model:?} is an encoder, which makes embeddings and generates no text: ask \
         /v1/embeddings, or another model"
    )]
    Encoder { model: String },
    #[error("the prompt is empty")]
    EmptyPrompt,
    #[error(
        "the model {model:?} has no tokens for filling in between two texts: leave out the text after"
    )]
    NoFillIn { model: String },
    #[error("the model's chat template failed: {0}")]
    Template(#[from] TemplateError),
    #[error("{field}: there is no token {token}, the model has {vocab}")]
    NoSuchToken { field: &'static str, token: u32, vocab: u32 },
    #[error(transparent)]
    Sampling(#[from] ParamError),
    #[error("tool_choice: there is no tool {name:?} among the tools")]
    NoSuchTool { name: String },
    #[error("{field}: {error}")]
    Grammar { field: String, error: GrammarError },
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
    Delta(Delta),
    Done(Completion),
    Failed(AnswerError),
}

/// More of an answer.
#[derive(Debug, Default)]
pub(crate) struct Delta {
    pub pieces: Vec<Piece>,
    /// Of the tokens since the last delta, if they were asked for. They may come with a later delta
    /// than their text, or an earlier one.
    pub logprobs: Vec<TokenLogprob>,
    /// Tokens that were generated since the last delta.
    pub tokens: u32,
}

impl Delta {
    /// Its tokens if they are reasoning. Those of which nothing is told, such as marks around it, are
    /// not counted.
    pub(crate) fn reasoning_tokens(&self) -> u32 {
        let reasons = self.pieces.iter().any(|piece| matches!(piece, Piece::Reasoning(_)));
        if reasons { self.tokens } else { 0 }
    }
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Whole {
    pub content: String,
    pub reasoning: String,
    pub calls: Vec<Call>,
    pub logprobs: Vec<TokenLogprob>,
    pub reasoning_tokens: u32,
    pub completion: Completion,
}

/// A call of a tool.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Call {
    pub name: String,
    /// A JSON object.
    pub arguments: String,
}

/// An answer under way, or a request that waits for its turn. Dropping it cancels either.
pub(crate) struct Answer {
    model: String,
    /// What the question became, once it runs.
    prompt: Arc<[u32]>,
    // Before the stage: an answer is paid for when its place is free.
    meter: Meter,
    stage: Stage,
}

enum Stage {
    Waits(Pin<Box<dyn Future<Output = Result<Running, AskError>> + Send>>),
    Runs(Box<Running>),
    Ended,
}

/// A job that runs. Dropping it cancels the job.
#[derive(Debug)]
struct Running {
    prompt: Arc<[u32]>,
    events: UnboundedReceiver<JobEvent>,
    /// What takes the text apart; all is content where there is none.
    reader: Option<Reader>,
    /// The end, when something is to be said before it.
    end: Option<Completion>,
    cut: Arc<Cut>,
}

impl Running {
    async fn next(&mut self, meter: &mut Meter) -> Event {
        if let Some(completion) = self.end.take() {
            return Event::Done(completion);
        }
        match self.events.recv().await {
            Some(JobEvent::Chunk(chunk)) => {
                meter.chunk(&chunk);
                Event::Delta(self.read(chunk))
            }
            Some(JobEvent::Done(completion)) => {
                meter.done(&completion);
                self.end(completion)
            }
            Some(JobEvent::Failed(error)) => Event::Failed(error.into()),
            None => Event::Failed(JobError::Panicked.into()),
        }
    }

    fn read(&mut self, chunk: Chunk) -> Delta {
        let pieces = match &mut self.reader {
            Some(reader) => reader.push(&chunk.text),
            None => vec![Piece::Content(chunk.text)],
        };
        Delta { pieces, logprobs: chunk.logprobs, tokens: chunk.tokens }
    }

    fn end(&mut self, completion: Completion) -> Event {
        let pieces = self.reader.take().map(|mut reader| reader.finish()).unwrap_or_default();
        if pieces.is_empty() {
            return Event::Done(completion);
        }
        self.end = Some(completion);
        Event::Delta(Delta { pieces, ..Delta::default() })
    }
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
        question: Question,
    ) -> Result<Self, AskError> {
        question.params.sampling.validate()?;
        let model = ticket.model().to_owned();
        let definition = models.definition(Some(&model));
        let waits = Box::pin(start(ticket, definition, question));
        let meter = Meter::new(models.metrics(), &model);
        Ok(Self { model, prompt: Arc::default(), stage: Stage::Waits(waits), meter })
    }

    /// Name of the model that answers.
    pub(crate) fn model(&self) -> &str {
        &self.model
    }

    /// The tokens that the model was given; none before the request has its turn.
    pub(crate) fn prompt(&self) -> &[u32] {
        &self.prompt
    }

    /// Returns when the request has its turn and the question is one that is answered.
    pub(crate) async fn started(&mut self) -> Result<(), AskError> {
        if let Stage::Waits(waits) = &mut self.stage {
            let started = waits.await;
            self.stage = Stage::Ended;
            let running = started.inspect_err(|_| self.meter.failed())?;
            self.prompt = Arc::clone(&running.prompt);
            self.stage = Stage::Runs(Box::new(running));
            self.meter.began();
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
        let event = running.next(&mut self.meter).await;
        if matches!(event, Event::Failed(_)) {
            self.meter.failed();
        }
        if !matches!(event, Event::Delta(_)) {
            self.stage = Stage::Ended;
        }
        Some(event)
    }

    /// All that is left of it.
    pub(crate) async fn whole(mut self) -> Result<Whole, AnswerError> {
        let (mut content, mut reasoning) = (String::new(), String::new());
        let (mut calls, mut logprobs, mut reasoning_tokens) = (vec![], vec![], 0);
        loop {
            match self.next().await {
                Some(Event::Delta(delta)) => {
                    reasoning_tokens += delta.reasoning_tokens();
                    logprobs.extend(delta.logprobs);
                    for piece in delta.pieces {
                        match piece {
                            Piece::Content(text) => content.push_str(&text),
                            Piece::Reasoning(text) => reasoning.push_str(&text),
                            Piece::Call { name } => calls.push(Call { name, ..Call::default() }),
                            Piece::Arguments(text) => {
                                calls.last_mut().into_iter().for_each(|c| c.arguments += &text);
                            }
                            Piece::CallEnd => {}
                        }
                    }
                }
                Some(Event::Done(completion)) => {
                    let whole =
                        Whole { content, reasoning, calls, logprobs, reasoning_tokens, completion };
                    return Ok(whole);
                }
                Some(Event::Failed(error)) => return Err(error),
                None => return Err(AskError::Internal.into()),
            }
        }
    }
}

/// Waits for a request's turn, and begins to answer a question then. Where the model is in memory the
/// prompt is made meanwhile, so that nobody waits for it, and a wrong one is told at once.
async fn start(
    ticket: Ticket,
    definition: Option<Arc<Definition>>,
    mut question: Question,
) -> Result<Running, AskError> {
    if let Some(definition) = definition {
        question.complete(&definition);
    }
    question.params.priority = ticket.priority();
    let question = Arc::new(question);
    let early = match ticket.loaded() {
        Some(loaded) => {
            let model = Arc::downgrade(&loaded);
            Some((model, prepare(loaded, Arc::clone(&question)).await?))
        }
        None => None,
    };
    let run = ticket.turn().await?;
    let prepared = match early {
        Some((model, prepared)) if model.ptr_eq(&Arc::downgrade(&run.loaded)) => prepared,
        // It was loaded meanwhile, perhaps from another file.
        _ => prepare(Arc::clone(&run.loaded), question).await?,
    };
    let Prepared { prompt, reader, params } = prepared;
    let prompt: Arc<[u32]> = prompt.into();
    let (sender, events) = unbounded_channel();
    let cut = Arc::clone(&run.cut);
    run.answer(Job { prompt: Arc::clone(&prompt), params, events: sender });
    Ok(Running { prompt, events, reader, end: None, cut })
}

// A long prompt takes a while to tokenise, which must not hold up other connections.
async fn prepare(loaded: Arc<Loaded>, question: Arc<Question>) -> Result<Prepared, AskError> {
    let task = tokio::task::spawn_blocking(move || question.prepare(&loaded));
    task.await.unwrap_or_else(|error| {
        tracing::error!(%error, "preparing a prompt panicked");
        Err(AskError::Internal)
    })
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
            Self::Internal | Self::Grammar { error: GrammarError::NoThread { .. }, .. } => {
                ErrorCode::Internal
            }
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
                | GenerateError::Grammar(_)
                | GenerateError::Encoder
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
