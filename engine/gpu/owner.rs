//! The thread that has a model, and how sessions ask it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::{fmt, io};

use m40_gpu::executor::Chosen;

use super::batch::{Batcher, Job, Message, Next, Passes, Task};
use super::going::Going;
use crate::backend::{Output, PROMPT_ROWS};
use crate::generate::GenerateError;

/// Messages that wait for the thread before sessions wait to send more.
const MESSAGES: usize = 64;

/// A model and the thread that runs its passes. Dropping it ends the thread and frees the model.
pub(super) struct Owner<P: Passes> {
    /// None only while it is dropped.
    messages: Option<SyncSender<Message<P>>>,
    thread: Option<JoinHandle<()>>,
    /// Sessions that there have been.
    sessions: AtomicU64,
    ahead: u32,
}

/// A session's place with its model's owner.
pub(super) struct Seat<P: Passes> {
    session: u64,
    /// None if the owner ended while it had it.
    job: Option<Box<Job<P>>>,
    back: Receiver<Box<Job<P>>>,
    ahead: Ahead,
    /// How the card chooses tokens; none: the host does, from logits.
    going: Option<Box<Going>>,
    /// Whether the executor knows of that.
    told: bool,
    /// Whether the next token is the first after a prompt.
    first: bool,
}

/// What comes of work that the thread does besides passes.
pub(super) struct Lent<T>(Receiver<T>);

impl<T> Lent<Result<T, GenerateError>> {
    /// Waits until it is done.
    pub(super) fn wait(self) -> Result<T, GenerateError> {
        self.0.recv().map_err(|_| ended())?
    }
}

/// What the card has chosen beyond what it was asked for: a launch that feeds itself waits for nobody
/// between two tokens. Its keys and values are in the sequence already.
#[derive(Debug, Default)]
struct Ahead {
    /// Position of the first one's token.
    position: usize,
    /// Tokens that passes were over, and what was chosen after each.
    passes: VecDeque<(u32, Chosen)>,
}

impl Ahead {
    /// What a launch has chosen: the first after the token before `position`.
    fn fill(&mut self, position: usize, chosen: &[Chosen]) {
        let pairs = chosen.iter().zip(chosen.iter().skip(1));
        self.passes.clear();
        self.passes.extend(pairs.map(|(fed, chosen)| (fed.token, *chosen)));
        self.position = position;
    }

    /// What was chosen after this token, if it is the next.
    fn take(&mut self, position: usize, token: u32) -> Option<Chosen> {
        let next = self.passes.front().is_some_and(|(over, _)| *over == token);
        if !next || self.position != position {
            return None;
        }
        self.position += 1;
        self.passes.pop_front().map(|(_, chosen)| chosen)
    }
}

impl<P: Passes> Seat<P> {
    /// Forgets all tokens from position `len` on: a prompt follows.
    pub(super) fn truncate(&mut self, len: usize) {
        self.first = true;
        self.forget(len);
    }

    /// Has tokens of the answer to a prompt chosen so.
    pub(super) fn begin(&mut self, going: Option<Going>) {
        self.going = going.map(Box::new);
        self.told = false;
    }

    /// Keys and values, once there are any.
    pub(super) fn sequence(&self) -> Option<&P::Sequence> {
        self.job.as_ref()?.sequence.as_ref()
    }

    fn forget(&mut self, len: usize) {
        self.told &= self.ahead.passes.is_empty();
        self.ahead.passes.clear();
        let job = self.job.as_mut();
        if let Some(sequence) = job.and_then(|job| job.sequence.as_mut()) {
            P::truncate(sequence, len);
        }
    }
}

impl<P: Passes> fmt::Debug for Seat<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat").field("session", &self.session).finish_non_exhaustive()
    }
}

impl<P: Passes> Owner<P> {
    /// Gives a model to a thread. Launches have `ahead` passes at most.
    ///
    /// # Errors
    /// When the system has no thread.
    pub(super) fn start(passes: P, ahead: u32) -> io::Result<Self> {
        let (messages, inbox) = sync_channel(MESSAGES);
        let batcher = Batcher::new(passes, ahead);
        let thread = thread::Builder::new().name("m40-passes".into());
        let thread = thread.spawn(move || serve(batcher, &inbox))?;
        Ok(Self {
            messages: Some(messages),
            thread: Some(thread),
            sessions: AtomicU64::new(0),
            ahead,
        })
    }

    /// A place for one more session.
    pub(super) fn seat(&self) -> Seat<P> {
        let session = self.sessions.fetch_add(1, Ordering::Relaxed);
        // A session has one job, which is somewhere else while it is sent back.
        let (back, receiver) = sync_channel(1);
        let job = Some(Box::new(Job::new(session, back)));
        Seat {
            session,
            job,
            back: receiver,
            ahead: Ahead::default(),
            going: None,
            told: false,
            first: true,
        }
    }

    /// As [`Runner::pass`](crate::backend::Runner::pass).
    pub(super) fn pass<T>(
        &self,
        seat: &mut Seat<P>,
        base: usize,
        tokens: &[u32],
        take: impl FnOnce(Output<'_>) -> T,
    ) -> Result<(usize, T), GenerateError> {
        if let Some(going) = &mut seat.going {
            going.learn(base, tokens);
        }
        if let [token] = tokens
            && let Some(Chosen { token, probability, .. }) = seat.ahead.take(base, *token)
        {
            return Ok((1, take(Output::Chosen { token, probability })));
        }
        seat.forget(base);
        let job = seat.job.as_mut().ok_or_else(ended)?;
        job.position = base;
        job.tokens.clear();
        job.tokens.extend_from_slice(&tokens[..tokens.len().min(PROMPT_ROWS + 1)]);
        job.pending = tokens.len();
        job.wants_logits = seat.going.is_none();
        let to_tell = seat.going.as_ref().filter(|_| tokens.len() == 1 && !seat.told);
        job.tell = to_tell.map(|going| going.tell());
        // The first token after a prompt is wanted as soon as it can be had.
        job.ahead = if seat.first { 1 } else { self.ahead };
        let job = self.ask(seat)?;
        let computed = job.computed;
        if computed < tokens.len() {
            return Ok((computed, take(Output::Nothing)));
        }
        let Some(&Chosen { token, probability, .. }) = job.chosen.first() else {
            let output = Output::Logits(&mut job.logits);
            return Ok((computed, take(output)));
        };
        Ok((computed, take(Output::Chosen { token, probability })))
    }

    /// Has a session's job done.
    fn ask<'a>(&self, seat: &'a mut Seat<P>) -> Result<&'a mut Job<P>, GenerateError> {
        let job = seat.job.take().ok_or_else(ended)?;
        self.send(Message::Ask(job))?;
        // If the thread ends, so does the job, and with it the other end of this channel.
        let mut job = seat.back.recv().map_err(|_| ended())?;
        let failure = job.failure.take();
        seat.told = job.chosen.last().is_some_and(|chosen| chosen.end.is_none());
        if job.tokens.len() == job.computed {
            seat.first = false;
            seat.ahead.fill(job.position + 1, &job.chosen);
        }
        let job = seat.job.insert(job);
        failure.map_or(Ok(job), Err)
    }

    /// A session asks for nothing more for now.
    pub(super) fn rest(&self, seat: &mut Seat<P>) {
        seat.begin(None);
        // A thread that has ended waits for nobody.
        let _ = self.send(Message::Rest(seat.session));
    }

    /// Has the thread do something else with what computes passes, which wait meanwhile.
    pub(super) fn lend<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut P) -> T + Send + 'static,
    ) -> Result<Lent<T>, GenerateError> {
        let (sender, result) = sync_channel(1);
        let work = move |passes: &mut P| {
            // Whoever lent it may have lost interest.
            let _ = sender.send(work(passes));
        };
        self.send(Message::Do(Task(Box::new(work))))?;
        Ok(Lent(result))
    }

    fn send(&self, message: Message<P>) -> Result<(), GenerateError> {
        let messages = self.messages.as_ref().ok_or_else(ended)?;
        messages.send(message).map_err(|_| ended())
    }
}

impl<P: Passes> Drop for Owner<P> {
    fn drop(&mut self) {
        self.messages = None;
        if let Some(thread) = self.thread.take() {
            // It has said why it panicked, if it did.
            let _ = thread.join();
        }
    }
}

impl<P: Passes> fmt::Debug for Owner<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owner").field("sessions", &self.sessions).finish_non_exhaustive()
    }
}

/// What sessions are told when the thread panicked.
fn ended() -> GenerateError {
    GenerateError::Pass { reason: "the thread that runs the model has ended".into() }
}

/// Does what sessions ask for until there can be none any more.
fn serve<P: Passes>(mut batcher: Batcher<P>, inbox: &Receiver<Message<P>>) {
    loop {
        while let Ok(message) = inbox.try_recv() {
            batcher.take(message);
        }
        match batcher.next() {
            Next::Launch => batcher.launch(),
            Next::Slice => batcher.slice(),
            Next::Wait(time) => match inbox.recv_timeout(time) {
                Ok(message) => batcher.take(message),
                Err(_) => batcher.wait_no_more(),
            },
            Next::Nothing => match inbox.recv() {
                Ok(message) => batcher.take(message),
                Err(_) => return,
            },
        }
    }
}
