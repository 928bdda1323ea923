//! One answer: from a question in any protocol to a job, and its events back.

mod call_ids;
mod meter;
mod question;
mod reading;
mod tools;

use std::fmt::Display;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use m40_control::{ApiError, ErrorCode, RunStats};
use m40_grammar::GrammarError;
use m40_manifest::Definition;
use m40_reply::{Piece, Reader};
use m40_sched::sampler::ParamError;
use m40_tokenizer::TemplateError;
use m40llm::{Chunk, Completion, FinishReason, GenerateError, TokenLogprob};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::models::{Cut, Job, JobError, JobEvent, Loaded, ModelError, Models, Run, Ticket, Turn};
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
    /// What is heard of a job, and the job.
    fn new(prepared: Prepared, cut: Arc<Cut>) -> (Self, Job) {
        let Prepared { prompt, reader, params } = prepared;
        let prompt: Arc<[u32]> = prompt.into();
        let (sender, events) = unbounded_channel();
        let job = Job { prompt: Arc::clone(&prompt), params, events: sender };
        (Self { prompt, events, reader, end: None, cut }, job)
    }

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

/// Waits for a request's turn, and begins to answer a question then.
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
    let (run, early) = match ticket.take_turn()? {
        Turn::Now(run) => (run, None),
        Turn::Later(ticket) => {
            let early = Early::of(&ticket, &question).await?;
            (ticket.turn().await?, early)
        }
    };
    begin(run, question, early).await
}

/// Begins to answer a question, on the thread that makes its prompt: from one to another takes as long as
/// a short prompt.
async fn begin(
    run: Run,
    question: Arc<Question>,
    early: Option<Early>,
) -> Result<Running, AskError> {
    let (teller, told) = oneshot::channel();
    let cut = Arc::clone(&run.cut);
    run.answer(move |loaded| {
        let prepared = match early {
            Some(early) if early.is_for(loaded) => Ok(early.prepared),
            // It was loaded meanwhile, perhaps from another file.
            _ => question.prepare(loaded),
        };
        let (begun, job) = match prepared.map(|prepared| Running::new(prepared, cut)) {
            Ok((running, job)) => (Ok(running), Some(job)),
            Err(error) => (Err(error), None),
        };
        // Who does not listen any more wants no answer.
        teller.send(begun).ok().and(job)
    });
    told.await.unwrap_or_else(panicked)
}

/// A prompt that was made before its request's turn, so that nobody waits for it then, and a wrong
/// question is told at once.
struct Early {
    model: Weak<Loaded>,
    prepared: Prepared,
}

impl Early {
    /// None where the model is not in memory.
    async fn of(ticket: &Ticket, question: &Arc<Question>) -> Result<Option<Self>, AskError> {
        let Some(loaded) = ticket.loaded() else { return Ok(None) };
        let (model, question) = (Arc::downgrade(&loaded), Arc::clone(question));
        let task = spawn_blocking(move || question.prepare(&loaded));
        let prepared = task.await.unwrap_or_else(panicked)?;
        Ok(Some(Self { model, prepared }))
    }

    fn is_for(&self, loaded: &Arc<Loaded>) -> bool {
        self.model.ptr_eq(&Arc::downgrade(loaded))
    }
}

fn panicked<T>(error: impl Display) -> Result<T, AskError> {
    tracing::error!(%error, "preparing a prompt panicked");
    Err(AskError::Internal)
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::mpsc;

    use futures_util::FutureExt;
    use m40_control::ModelRef;
    use m40_testkit::gguf::TinyModel;
    use m40llm::{EngineOptions, GenerateParams};
    use tokio::runtime;
    use tokio::sync::watch;

    use super::*;
    use crate::models::Urgency;
    use crate::net::Phase;

    /// More tokens than are generated while a test waits.
    const CONTEXT: u32 = 1 << 20;
    const WAIT: Duration = Duration::from_secs(20);

    /// A tiny model that can be asked for, and what keeps the daemon serving.
    fn tiny(dir: &Path) -> (Models, ModelRef, watch::Sender<Phase>) {
        let file = dir.join("tiny.gguf");
        std::fs::write(&file, TinyModel::new("llama").context(CONTEXT).build()).unwrap();
        let options = EngineOptions { threads: Some(1), ..EngineOptions::default() };
        let (serving, phase) = watch::channel(Phase::Serving);
        (Models::of_folder(dir, options, phase), ModelRef::File(file), serving)
    }

    fn question(prompt: &[u32]) -> Question {
        let params = GenerateParams { ignore_eos: true, ..GenerateParams::default() };
        Question { input: Input::Tokens(prompt.to_vec()), params, ..Question::default() }
    }

    async fn answer(models: &Models, model: &ModelRef, prompt: &[u32]) -> Answer {
        let ticket = models.ask_for(model, Urgency::default()).await.unwrap();
        Answer::new(models, ticket, question(prompt)).unwrap()
    }

    #[tokio::test]
    async fn the_turn_of_who_asks_for_a_model_in_memory_is_there_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (models, model, _serving) = tiny(dir.path());
        let turn = async || {
            let ticket = models.ask_for(&model, Urgency::default()).await.unwrap();
            ticket.take_turn().unwrap()
        };
        let Turn::Later(ticket) = turn().await else { panic!("it is not loaded yet") };
        assert!(Early::of(&ticket, &Arc::default()).await.unwrap().is_none());
        let first = ticket.turn().await.unwrap();
        let Turn::Now(second) = turn().await else { panic!("it is loaded") };
        assert!(Arc::ptr_eq(&first.loaded, &second.loaded));
    }

    #[tokio::test]
    async fn a_prompt_that_was_made_early_counts_for_that_load_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (models, model, _serving) = tiny(dir.path());
        let ask = async || models.ask_for(&model, Urgency::default()).await.unwrap();
        let first = ask().await.turn().await.unwrap();
        let early = Early::of(&ask().await, &question(&[7]).into()).await.unwrap().unwrap();
        assert!(early.is_for(&first.loaded));
        drop(first);
        models.unload("tiny", true).await.unwrap();
        assert!(!early.is_for(&ask().await.turn().await.unwrap().loaded));
    }

    #[test]
    fn who_leaves_before_the_prompt_is_made_is_not_answered() {
        let dir = tempfile::tempdir().unwrap();
        let mut runtime = runtime::Builder::new_current_thread();
        runtime.enable_all().max_blocking_threads(1).build().unwrap().block_on(async {
            let (models, model, _serving) = tiny(dir.path());
            models.load(&model).await.unwrap();
            let (free, until_free) = mpsc::channel::<()>();
            // The one thread that there is.
            drop(spawn_blocking(move || until_free.recv()));
            let mut left = answer(&models, &model, &[7]).await;
            assert!(left.started().now_or_never().is_none());
            drop(left);
            drop(free);
            timeout(WAIT, models.jobs().none()).await.expect("its place is free");
            let loaded = models.load(&model).await.unwrap().loaded.unwrap();
            assert_eq!(loaded.jobs_done, 0, "nobody listens");
        });
    }

    #[tokio::test]
    async fn a_wrong_question_is_told_before_anything_is_generated_and_gives_its_place_back() {
        let dir = tempfile::tempdir().unwrap();
        let (models, model, _serving) = tiny(dir.path());
        models.load(&model).await.unwrap();
        let mut wrong = answer(&models, &model, &[]).await;
        assert!(matches!(wrong.started().await, Err(AskError::EmptyPrompt)));
        timeout(WAIT, models.jobs().none()).await.expect("its place is free");
    }
}
