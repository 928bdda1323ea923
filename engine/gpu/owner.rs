//! The thread that has a model, and how sessions ask it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel};
use std::thread::{self, JoinHandle};
use std::{fmt, io};

use m40_gpu::executor::Chosen;
use m40_sched::pages::Rank;

use super::batch::{Answer, Batcher, Job, Message, Next, Passes, Task};
use super::going::Going;
use crate::backend::Output;
use crate::generate::{CancelToken, GenerateError};
use crate::passes::{DecodePasses, PassCounter};

/// Messages that wait for the thread before sessions wait to send more.
const MESSAGES: usize = 64;

/// A model and the thread that runs its passes. Dropping it ends the thread and frees the model.
pub(super) struct Owner<P: Passes> {
    /// None only while it is dropped.
    messages: Option<SyncSender<Message<P>>>,
    thread: Option<JoinHandle<()>>,
    /// Sessions that there have been.
    sessions: AtomicU64,
    /// Answers that were begun.
    answers: AtomicU64,
    counter: Arc<PassCounter>,
}

/// A session's place with its model's owner.
pub(super) struct Seat<P: Passes> {
    session: u64,
    /// None while the owner has it, or if the owner ended while it had it.
    job: Option<Box<Job<P>>>,
    back: Receiver<Answer<P>>,
    /// While the owner has the job and nothing but tokens is to come: the position and the token after
    /// which the next one is chosen.
    next: Option<(usize, u32)>,
    /// Tokens of the job that the session has.
    heard: u32,
    /// How the card chooses tokens; none: the host does, from logits.
    going: Option<Box<Going>>,
    /// Whether the executor knows of that.
    told: bool,
}

/// What comes of work that the thread does besides passes.
pub(super) struct Lent<T>(Receiver<T>);

impl<T> Lent<Result<T, GenerateError>> {
    /// Waits until it is done.
    pub(super) fn wait(self) -> Result<T, GenerateError> {
        self.0.recv().map_err(|_| ended())?
    }
}

impl<P: Passes> Seat<P> {
    /// Keys and values, while there is an answer to be computed.
    pub(super) fn sequence(&self) -> Option<&P::Sequence> {
        self.job.as_ref()?.sequence.as_ref()
    }

    /// Waits for the job, if the owner has it, and lets go by what is chosen until then.
    fn take_back(&mut self) {
        while self.next.is_some() {
            match self.back.recv() {
                Ok(Answer::Chosen(_)) => {}
                Ok(Answer::Done(job)) => {
                    self.settle(job);
                }
                // If the thread ends, so does the job.
                Err(_) => self.next = None,
            }
        }
    }

    /// The job is here again.
    fn settle(&mut self, job: Box<Job<P>>) -> &mut Job<P> {
        self.next = None;
        // What the session does not have it will not go on with.
        self.told = job.goes_on && job.chosen == self.heard;
        self.job.insert(job)
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
        let counter = batcher.counter();
        let thread = thread::Builder::new().name("m40-passes".into());
        let thread = thread.spawn(move || serve(batcher, &inbox))?;
        let (sessions, answers) = (AtomicU64::new(0), AtomicU64::new(0));
        let thread = Some(thread);
        Ok(Self { messages: Some(messages), thread, sessions, answers, counter })
    }

    /// Passes of decoding so far.
    pub(super) fn decode_passes(&self) -> DecodePasses {
        self.counter.read()
    }

    /// A place for one more session.
    pub(super) fn seat(&self) -> Seat<P> {
        let session = self.sessions.fetch_add(1, Ordering::Relaxed);
        // Nobody waits for a session to listen; a launch has a bounded number of passes.
        let (back, receiver) = channel();
        let job = Some(Box::new(Job::new(session, back)));
        Seat { session, job, back: receiver, next: None, heard: 0, going: None, told: false }
    }

    /// The answer to a prompt follows, of which nothing is held. Its tokens are chosen so; the pages that
    /// they need it takes from answers of less priority and, of the same, from those begun later.
    pub(super) fn begin(
        &self,
        seat: &mut Seat<P>,
        going: Option<Going>,
        priority: i64,
        cancel: &CancelToken,
    ) {
        seat.going = going.map(Box::new);
        seat.told = false;
        if let Some(job) = &mut seat.job {
            job.sequence = None;
            job.text.clear();
            job.rank = Rank { priority, arrival: self.answers.fetch_add(1, Ordering::Relaxed) };
            job.cancel = cancel.clone();
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
        if !matches!(tokens, [token] if seat.next == Some((base, *token))) {
            self.recall(seat)?;
        }
        loop {
            let asks = seat.next.is_none();
            if asks {
                self.ask(seat, base, tokens)?;
            }
            // If the thread ends, so does the job, and with it the other end of this channel.
            let answer = seat.back.recv().map_err(|_| {
                seat.next = None;
                ended()
            })?;
            let job = match answer {
                Answer::Chosen(Chosen { token, probability, .. }) => {
                    seat.heard += 1;
                    seat.next = Some((base + 1, token));
                    return Ok((1, take(Output::Chosen { token, probability })));
                }
                Answer::Done(job) => seat.settle(job),
            };
            if let Some(failure) = job.failure.take() {
                return Err(failure);
            }
            if !asks {
                // The launch has ended before this token.
                continue;
            }
            let computed = job.computed;
            if job.found {
                return Ok((computed, take(Output::Found)));
            }
            if computed < tokens.len() {
                return Ok((computed, take(Output::Nothing)));
            }
            return Ok((computed, take(Output::Logits(&mut job.logits))));
        }
    }

    /// Gives a session's job to the thread.
    fn ask(&self, seat: &mut Seat<P>, base: usize, tokens: &[u32]) -> Result<(), GenerateError> {
        let mut job = seat.job.take().ok_or_else(ended)?;
        if let Some(sequence) = &mut job.sequence {
            P::truncate(sequence, base);
        }
        job.position = base;
        job.text.truncate(base);
        job.text.extend_from_slice(tokens);
        job.wants_logits = seat.going.is_none();
        let to_tell = seat.going.as_ref().filter(|_| tokens.len() == 1 && !seat.told);
        job.tell = to_tell.map(|going| going.tell());
        self.send(Message::Ask(job))?;
        seat.heard = 0;
        seat.next = tokens.last().map(|token| (base, *token));
        Ok(())
    }

    /// Has the launch that the session has a row in end, and waits for its job.
    fn recall(&self, seat: &mut Seat<P>) -> Result<(), GenerateError> {
        if seat.next.is_some() {
            self.send(Message::Rest(seat.session))?;
            seat.take_back();
        }
        Ok(())
    }

    /// A session asks for nothing more for now. What it has computed is kept in the cache for whoever
    /// begins alike, as long as nobody needs the room.
    pub(super) fn rest(&self, seat: &mut Seat<P>) {
        // A thread that has ended waits for nobody.
        let _ = self.recall(seat);
        seat.going = None;
        if let Some(job) = &mut seat.job {
            job.sequence = None;
        }
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
        let next = batcher.next();
        if matches!(next, Next::Launch | Next::Slice)
            && let Some(time) = batcher.pause()
        {
            // A kernel that stays is to leave, and what is said meanwhile is heard.
            let time = batcher.idle().map_or(time, |look| look.min(time));
            match inbox.recv_timeout(time) {
                Ok(message) => batcher.take(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            continue;
        }
        let waits = match next {
            Next::Launch => {
                batcher.launch(&mut |time| inbox.recv_timeout(time));
                continue;
            }
            Next::Slice => {
                batcher.slice();
                continue;
            }
            Next::Wait(time) => Some(time),
            Next::Nothing => None,
        };
        // Meanwhile others may want the card.
        let held = batcher.idle();
        let Some(time) = waits.into_iter().chain(held).min() else {
            match inbox.recv() {
                Ok(message) => batcher.take(message),
                Err(_) => return,
            }
            continue;
        };
        match inbox.recv_timeout(time) {
            Ok(message) => batcher.take(message),
            Err(RecvTimeoutError::Timeout) if waits == Some(time) => batcher.wait_no_more(),
            Err(RecvTimeoutError::Timeout) => {}
            // What is left to do is for nobody, unless it was asked for before.
            Err(RecvTimeoutError::Disconnected) if waits.is_none() => return,
            Err(RecvTimeoutError::Disconnected) => batcher.wait_no_more(),
        }
    }
}
