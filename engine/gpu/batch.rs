//! Sessions of one model share passes, and prompts are computed in slices between them.
//!
//! A session asks for what follows its next tokens, [`Job`] by [`Job`], and waits. A job that lacks all
//! but its last token is a row of the next pass, with those of as many other sessions as the executor
//! takes at a time; of one that lacks more some are computed in a slice, and the session asks again for
//! the rest. So sessions join and leave between any two passes. Where the card chooses tokens it goes on
//! with them by itself, and a session has each as soon as it is chosen. That goes on until somebody asks
//! for something else: the launch then ends with the pass that runs.
//!
//! What a job lacks is what its sequence does not hold, whatever its session believes: less than that
//! where the cache holds what others have computed, more where a stronger sequence took its pages. Those
//! are computed again, slice by slice like a prompt, once there is room; until then the session waits.
//!
//! Here is which pass comes next; the thread and the waiting are in [`owner`](super::owner).

mod passes;
mod running;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender};
use std::time::{Duration, Instant};
use std::{fmt, mem, slice};

use m40_gpu::executor::{Chosen, PassError, Row};
use m40_gpu::ops::{PAGE_TOKENS, PASS_ROWS};
use m40_sched::Pace;
use m40_sched::pages::{PagesError, Rank};

pub(super) use self::passes::Passes;
use self::running::Running;
use super::GpuError;
use super::going::Tell;
use crate::backend::PROMPT_ROWS;
use crate::generate::{CancelToken, GenerateError};
use crate::passes::PassCounter;

/// Passes between two slices, at most.
const PASSES_BETWEEN: u32 = 64;

/// Passes of a launch while more sessions wait than it has rows, at most.
const PASSES_OF_TURN: u32 = 8;

/// How many times fewer passes are tried where the cache has no room for what they would append.
const FEWER: u32 = 8;

/// How often who waits for pages that others have is looked after, if nothing else happens.
const LOOK: Duration = Duration::from_millis(20);

/// What a session asks for and what came of it. It goes to the model's owner and back with the
/// sequence in it, and is used again for the session's next question.
#[derive(Debug)]
pub(super) struct Job<P: Passes> {
    pub(super) session: u64,
    /// Where it goes when it is done, and tokens before.
    pub(super) back: Sender<Answer<P>>,
    /// None before the first pass of an answer.
    pub(super) sequence: Option<P::Sequence>,
    /// How strong the sequence is.
    pub(super) rank: Rank,
    /// All tokens that are known.
    pub(super) text: Vec<u32>,
    /// How many of them the session counts as computed: not the last.
    pub(super) position: usize,
    /// Whether anybody wants it.
    pub(super) cancel: CancelToken,
    /// Whether the logits of the last token are wanted, not a token chosen after it.
    pub(super) wants_logits: bool,
    /// How tokens are to be chosen, unless the executor knows already.
    pub(super) tell: Option<Tell>,
    /// Of what the executor was told last; alive while it may be cancelled.
    canceller: Option<Arc<P::Canceller>>,
    /// Launches that the session had a row in, or would have had if it had been there before.
    turns: u64,
    /// How many tokens from `position` on were computed, or found.
    pub(super) computed: usize,
    /// Whether others had computed them.
    pub(super) found: bool,
    /// Tokens that were chosen, each after the one before.
    pub(super) chosen: u32,
    /// Whether the executor could choose the next one without being told anew.
    pub(super) goes_on: bool,
    /// Logits after the last token, if it was computed and nothing was chosen.
    pub(super) logits: Vec<f32>,
    /// Why nothing was computed.
    pub(super) failure: Option<GenerateError>,
}

impl<P: Passes> Job<P> {
    pub(super) fn new(session: u64, back: Sender<Answer<P>>) -> Self {
        Self {
            session,
            back,
            sequence: None,
            rank: Rank { priority: 0, arrival: 0 },
            text: vec![],
            position: 0,
            cancel: CancelToken::new(),
            wants_logits: false,
            tell: None,
            canceller: None,
            turns: 0,
            computed: 0,
            found: false,
            chosen: 0,
            goes_on: false,
            logits: vec![],
            failure: None,
        }
    }

    fn sequence(&mut self) -> &mut P::Sequence {
        self.sequence.as_mut().expect("it was begun when the job came")
    }

    /// Tokens that the sequence holds.
    fn held(&self) -> usize {
        self.sequence.as_ref().map_or(0, P::len)
    }

    /// As [`Passes::resume`].
    fn resume(&mut self) -> usize {
        let Self { sequence, text, .. } = self;
        sequence.as_mut().map_or(0, |sequence| P::resume(sequence, text))
    }

    /// Whether it lacks only its last token.
    fn is_row(&self) -> bool {
        self.held() + 1 == self.text.len()
    }

    /// Whether there is room for all of it.
    fn fits(&self) -> bool {
        self.sequence.as_ref().is_some_and(|sequence| P::fits(sequence, self.text.len()))
    }

    /// Whether there could be, if weaker ones gave theirs.
    fn has_room(&self) -> bool {
        self.sequence.as_ref().is_some_and(|sequence| P::has_room(sequence, self.text.len()))
    }

    fn answer(self: Box<Self>) {
        let back = self.back.clone();
        // Nobody waits only if the session's thread is gone.
        let _ = back.send(Answer::Done(self));
    }
}

/// What a session hears of its job.
#[derive(Debug)]
pub(super) enum Answer<P: Passes> {
    /// What was chosen after its token, or after what it heard before.
    Chosen(Chosen),
    /// There is no more to it.
    Done(Box<Job<P>>),
}

/// Waits so long for a message to the owner.
pub(super) type Hear<'a, P> = dyn FnMut(Duration) -> Result<Message<P>, RecvTimeoutError> + 'a;

/// What sessions say to their model's owner.
#[derive(Debug)]
pub(super) enum Message<P: Passes> {
    /// Something is to be computed.
    Ask(Box<Job<P>>),
    /// This session asks for nothing more for now.
    Rest(u64),
    /// Something is to be done between two passes.
    Do(Task<P>),
}

/// Something else than passes.
pub(super) struct Task<P>(pub(super) Box<dyn FnOnce(&mut P) + Send>);

impl<P> fmt::Debug for Task<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").finish_non_exhaustive()
    }
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing, until somebody asks.
    Nothing,
    /// Wait so long for sessions that should ask soon.
    Wait(Duration),
    /// [`Batcher::slice`].
    Slice,
    /// [`Batcher::launch`].
    Launch,
}

/// What sessions of one model have asked for and do not have yet.
#[derive(Debug)]
pub(super) struct Batcher<P: Passes> {
    passes: P,
    pace: Pace,
    /// Passes of a launch, at most.
    ahead: u32,
    /// Jobs that lack their last token, those that had fewest turns first: of more than a pass has room
    /// for, who comes back quickest would else be in every pass.
    rows: VecDeque<Box<Job<P>>>,
    /// Turns that the first row of the latest launch had had.
    turns: u64,
    /// Jobs that lack more, or room, in the order in which they came.
    prompts: VecDeque<Box<Job<P>>>,
    /// Sessions that had a row in the latest launch and have said nothing since, and until when
    /// they are waited for.
    awaited: Vec<u64>,
    patience: Instant,
    /// The session that had the latest slice, until it asks for the rest of its prompt.
    sliced: Option<u64>,
    /// Passes since the latest slice.
    since_slice: u32,
    /// What came while a launch ran.
    heard: Vec<Message<P>>,
    /// Whether the launch is as short as prompts that wait want it.
    short: bool,
    /// Those of decoding.
    counter: Arc<PassCounter>,
}

impl<P: Passes> Batcher<P> {
    /// Launches have `ahead` passes at most.
    pub(super) fn new(passes: P, ahead: u32) -> Self {
        let patience = passes.now();
        Self {
            passes,
            pace: Pace::new(PASSES_BETWEEN, PROMPT_ROWS),
            ahead,
            rows: VecDeque::new(),
            turns: 0,
            prompts: VecDeque::new(),
            awaited: vec![],
            patience,
            sliced: None,
            since_slice: PASSES_BETWEEN,
            heard: vec![],
            short: false,
            counter: Arc::default(),
        }
    }

    /// What counts its passes of decoding.
    pub(super) fn counter(&self) -> Arc<PassCounter> {
        Arc::clone(&self.counter)
    }

    pub(super) fn take(&mut self, message: Message<P>) {
        match message {
            Message::Ask(job) => {
                self.heard(job.session);
                self.enqueue(job);
            }
            Message::Rest(session) => self.heard(session),
            Message::Do(task) => (task.0)(&mut self.passes),
        }
    }

    /// Nothing waits for this session any more.
    fn heard(&mut self, session: u64) {
        self.awaited.retain(|awaited| *awaited != session);
        self.sliced = self.sliced.filter(|sliced| *sliced != session);
    }

    fn enqueue(&mut self, mut job: Box<Job<P>>) {
        job.logits.clear();
        (job.computed, job.found, job.chosen, job.goes_on) = (0, false, 0, false);
        if job.sequence.is_none() {
            match self.passes.begin(job.rank, &job.text) {
                Ok(sequence) => job.sequence = Some(sequence),
                Err(error) => {
                    job.failure = Some(GenerateError::TooManySessions { most: error.most });
                    return job.answer();
                }
            }
        }
        let (needed, pages) = (job.text.len().div_ceil(PAGE_TOKENS), self.passes.pages());
        if needed > pages.1 {
            job.failure = Some(cache_full(needed, pages));
            return job.answer();
        }
        let Some(job) = find(job) else { return };
        if job.is_row() { self.enqueue_row(job) } else { self.prompts.push_back(job) }
    }

    fn enqueue_row(&mut self, mut job: Box<Job<P>>) {
        job.turns = job.turns.max(self.turns);
        let place = self.rows.partition_point(|other| other.turns <= job.turns);
        self.rows.insert(place, job);
    }

    pub(super) fn next(&mut self) -> Next {
        self.dismiss();
        if self.rows.is_empty() && self.prompts.is_empty() {
            return Next::Nothing;
        }
        let due = self.since_slice >= self.pace.passes() || !self.streams_run();
        if due && self.next_prompt().is_some() {
            return Next::Slice;
        }
        let all = self.rows.len() + self.awaited.len();
        if !self.awaited.is_empty() && self.rows.len() < self.passes.rows_at_once(all) {
            return Next::Wait(self.patience.saturating_duration_since(self.passes.now()));
        }
        if self.rows.is_empty() { Next::Wait(LOOK) } else { Next::Launch }
    }

    /// Those who are awaited have taken too long: nothing waits for them any more.
    pub(super) fn wait_no_more(&mut self) {
        self.awaited.clear();
    }

    /// As [`Passes::idle`].
    pub(super) fn idle(&mut self) -> Option<Duration> {
        self.passes.idle()
    }

    /// As [`Passes::pause`].
    pub(super) fn pause(&mut self) -> Option<Duration> {
        self.passes.pause()
    }

    /// Answers those of which nobody wants more: they may have to wait for long.
    fn dismiss(&mut self) {
        let prompts = mem::take(&mut self.prompts);
        let (dismissed, rest): (VecDeque<_>, _) =
            prompts.into_iter().partition(|job| job.cancel.is_cancelled());
        self.prompts = rest;
        dismissed.into_iter().for_each(Job::answer);
    }

    /// The prompt of which a slice is next: the strongest if it has to take room from weaker ones, or
    /// those would keep it from ever having any; else the first that there is room for.
    fn next_prompt(&self) -> Option<usize> {
        let strongest = (0..self.prompts.len()).max_by_key(|i| self.prompts[*i].rank)?;
        let job = &self.prompts[strongest];
        if !job.fits() && job.has_room() {
            return Some(strongest);
        }
        self.prompts.iter().position(|job| job.fits())
    }

    fn streams_run(&self) -> bool {
        !self.rows.is_empty() || !self.awaited.is_empty()
    }

    /// Computes a slice of the prompt that has waited longest, but not its last token: that is a
    /// row like those of streams.
    pub(super) fn slice(&mut self) {
        let Some(job) = self.next_prompt().and_then(|i| self.prompts.remove(i)) else { return };
        // Others may have got on with the same text.
        let Some(mut job) = find(job) else { return };
        // All of it, so that no other prompt begins that does not fit beside it.
        let end = job.text.len();
        match P::reserve(job.sequence(), end) {
            Ok(false) => {}
            Ok(true) => self.displace(),
            Err(_) => return self.prompts.push_back(job),
        }
        if job.is_row() {
            return self.enqueue_row(job);
        }
        let held = job.held();
        let most = if self.streams_run() { self.pace.rows() } else { PROMPT_ROWS };
        let count = slice_rows(held, most).min(end - 1 - held);
        let row = |(position, &token)| Row { token, position, sequence: 0, logits: false };
        let rows: Vec<_> = (held..).zip(&job.text[held..held + count]).map(row).collect();
        let begun = self.passes.now();
        match self.passes.forward(&rows, &mut [job.sequence()]) {
            Ok(_) => {
                self.pace.sliced(count, self.passes.now() - begun);
                job.computed = (held + count).saturating_sub(job.position);
                self.sliced = Some(job.session);
            }
            Err(error) => job.failure = Some(failed(&error)),
        }
        self.since_slice = 0;
        job.answer();
    }

    /// Whose pages were taken begins again, with what is left of them, and waits with the prompts.
    fn displace(&mut self) {
        let rows = mem::take(&mut self.rows);
        let (rows, displaced): (_, VecDeque<_>) = rows.into_iter().partition(|job| job.is_row());
        self.rows = rows;
        self.prompts.extend(displaced);
        for job in &mut self.prompts {
            job.resume();
        }
    }

    /// Computes the rows whose turn it is, as many as a pass has. What others say meanwhile is heard,
    /// and done after.
    pub(super) fn launch(&mut self, hear: &mut Hear<'_, P>) {
        self.short = self.sliced.take().is_some() || self.next_prompt().is_some();
        let before_slice = self.pace.passes().saturating_sub(self.since_slice).max(1);
        let passes = if self.short { before_slice.min(self.ahead) } else { self.ahead };
        let count = self.count();
        let turn = if self.rows.len() > count { PASSES_OF_TURN } else { passes };
        let mut jobs: Vec<_> = self.rows.drain(..count).collect();
        self.turns = jobs.first().map_or(self.turns, |job| job.turns);
        jobs.iter_mut().for_each(|job| job.turns += 1);
        self.compute(&mut jobs, passes.min(turn), hear);
        let served = jobs.iter().filter(|job| job.failure.is_none());
        self.awaited.clear();
        self.awaited.extend(served.map(|job| job.session));
        self.patience = self.passes.now() + self.pace.patience();
        jobs.into_iter().for_each(Job::answer);
        mem::take(&mut self.heard).into_iter().for_each(|message| self.take(message));
    }

    /// Jobs of the next launch. Logits come from decode passes alone, and with them those of the others:
    /// they are to be few.
    fn count(&self) -> usize {
        let count = self.passes.rows_at_once(self.rows.len());
        let logits = self.rows.iter().take(count).any(|job| job.wants_logits);
        if logits { count.min(PASS_ROWS) } else { count }
    }

    /// Has each job computed, or its failure noted; those that find no room are not among them any more.
    fn compute(&mut self, jobs: &mut Vec<Box<Job<P>>>, passes: u32, hear: &mut Hear<'_, P>) {
        let mut passes = passes;
        let mut result = self.pass(jobs, passes, hear);
        while passes > 1 && matches!(result, Err(PassError::Pages(_))) {
            passes = passes.div_ceil(FEWER);
            result = self.pass(jobs, passes, hear);
        }
        if matches!(result, Err(PassError::Pages(_))) {
            self.make_room(jobs);
            result = self.pass(jobs, 1, hear);
        }
        match result {
            Ok(()) => {}
            // Nothing was computed, since one of them cannot be. Alone it hurts no others.
            Err(error) if jobs.len() > 1 && !is_of_card(&error) => {
                for job in jobs {
                    let alone = self.pass(slice::from_mut(job), 1, hear);
                    job.failure = alone.err().map(|error| failed(&error));
                }
            }
            Err(error) => {
                let failure = failed(&error);
                jobs.iter_mut().for_each(|job| job.failure = Some(failure.clone()));
            }
        }
    }

    /// Leaves those jobs for which there is room for a token, the strongest of them before all others.
    /// The rest waits for room.
    fn make_room(&mut self, jobs: &mut Vec<Box<Job<P>>>) {
        jobs.sort_by_key(|job| Reverse(job.rank));
        for mut job in mem::take(jobs) {
            // What was stronger may have taken its pages just now.
            let end = job.text.len();
            if job.is_row() && P::reserve(job.sequence(), end).is_ok() {
                jobs.push(job);
            } else {
                self.prompts.push_back(job);
            }
        }
        self.displace();
    }

    /// One launch, over a row of each job: `passes` passes, unless somebody asks for something else.
    fn pass(
        &mut self,
        jobs: &mut [Box<Job<P>>],
        passes: u32,
        hear: &mut Hear<'_, P>,
    ) -> Result<(), PassError> {
        if jobs.is_empty() {
            return Ok(());
        }
        let logits = jobs.iter().any(|job| job.wants_logits);
        let rows = jobs.iter().enumerate().map(|(sequence, job)| {
            let position = job.text.len() - 1;
            let token = job.text[position];
            Row { token, position, sequence, logits }
        });
        let rows: Vec<_> = rows.collect();
        let begun = self.passes.now();
        let ran = if logits {
            self.logits(&rows, jobs)?;
            1
        } else {
            self.tell(jobs)?;
            self.choose(&rows, jobs, passes, hear)?
        };
        self.counter.count(ran, rows.len());
        self.since_slice = self.since_slice.saturating_add(ran);
        self.pace.ran(ran, self.passes.now() - begun);
        jobs.iter_mut().for_each(|job| job.computed = 1);
        Ok(())
    }

    /// One pass whose logits all have, also those who need only a token: the host chooses it for
    /// them, and what the executor knows of them is no longer true.
    fn logits(&mut self, rows: &[Row], jobs: &mut [Box<Job<P>>]) -> Result<(), PassError> {
        let mut sequences: Vec<_> = jobs.iter_mut().map(|job| job.sequence()).collect();
        let logits = self.passes.forward(rows, &mut sequences)?;
        let vocab = logits.len() / rows.len();
        for (job, logits) in jobs.iter_mut().zip(logits.chunks_exact(vocab)) {
            job.logits.extend_from_slice(logits);
        }
        Ok(())
    }

    /// Tells the executor how those sequences go on of which it does not know.
    fn tell(&mut self, jobs: &mut [Box<Job<P>>]) -> Result<(), PassError> {
        for job in jobs {
            let Job { sequence: Some(sequence), tell: Some(tell), canceller, .. } = &mut **job
            else {
                continue;
            };
            let cancels = Arc::new(self.passes.continue_with(sequence, &tell.continuation)?);
            tell.cancel.cancels(&cancels);
            *canceller = Some(cancels);
        }
        Ok(())
    }

    /// Passes that feed themselves, and how many: fewer than asked for if all sequences have ended, or
    /// somebody asks for something else.
    fn choose(
        &mut self,
        rows: &[Row],
        jobs: &mut [Box<Job<P>>],
        passes: u32,
        hear: &mut Hear<'_, P>,
    ) -> Result<u32, PassError> {
        let taken = |job: &mut Box<Job<P>>| job.sequence.take().expect("begun when the job came");
        let mut sequences: Vec<_> = jobs.iter_mut().map(taken).collect();
        let mut running = Running {
            jobs: &mut *jobs,
            heard: &mut self.heard,
            hear,
            ran: 0,
            short: self.short,
            most: u32::MAX,
        };
        let mut borrowed: Vec<_> = sequences.iter_mut().collect();
        let chosen = self.passes.choose(rows, &mut borrowed, passes, &mut running);
        let ran = running.ran;
        for (job, sequence) in jobs.iter_mut().zip(sequences) {
            job.sequence = Some(sequence);
        }
        chosen.map(|()| ran)
    }
}

/// Takes over what others have computed of a job's text. Its session hears of it at once, if it did not
/// know.
fn find<P: Passes>(mut job: Box<Job<P>>) -> Option<Box<Job<P>>> {
    let found = job.resume().saturating_sub(job.position);
    if found == 0 {
        return Some(job);
    }
    (job.computed, job.found) = (found, true);
    job.answer();
    None
}

/// Rows of a slice that begins there, of so many at most: up to the end of a page, where there is one,
/// as others may go on from there; and of large slices up to where they end in all prompts, so that sums
/// are cut alike whatever was found.
fn slice_rows(begin: usize, most: usize) -> usize {
    let most = most.min(PROMPT_ROWS - begin % PROMPT_ROWS);
    let end = (begin + most) / PAGE_TOKENS * PAGE_TOKENS;
    if end > begin { end - begin } else { most }
}

/// Whether it is no sequence's fault.
fn is_of_card(error: &PassError) -> bool {
    matches!(error, PassError::Stuck | PassError::Corrupt | PassError::Cuda(_))
}

/// As sessions are told.
pub(crate) fn failed(error: &PassError) -> GenerateError {
    match error {
        PassError::Pages(PagesError::OutOfPages { needed, available, quota }) => {
            cache_full(*needed, (*available, *quota))
        }
        PassError::Stuck => GenerateError::Gpu(GpuError::Stuck),
        PassError::Cuda(error) => GenerateError::Gpu(error.clone().into()),
        // Sessions check what comes from users, and keep count of positions.
        error => GenerateError::Pass { reason: error.to_string() },
    }
}

fn cache_full(needed: usize, (free, capacity): (usize, usize)) -> GenerateError {
    let [needed, free, capacity] = [needed, free, capacity].map(|n| (n * PAGE_TOKENS) as u64);
    GenerateError::CacheFull { needed, free, capacity }
}
