//! A card that has logits follow from all tokens before. Its memory says of each place of a page which
//! tokens were computed there, and whoever reads it finds its own.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use m40_gpu::continuation::Continuation;
use m40_gpu::executor::{Attend, Chosen, PassError, Row};
use m40_gpu::ops::{End, PAGE_TOKENS, PASS_ROWS};
use m40_gpu::{Choice, Pool, Sequence, TooManySequences};
use m40_sched::pages::{PagesError, Rank};
use m40_sched::{Sampler, SamplingParams};

use super::super::Passes;
use crate::generate::Cancel;

pub(super) const VOCAB: u32 = 97;

/// What it is told and has to tell. Clones are of the same card.
#[derive(Clone, Debug)]
pub(super) struct Told(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// What a pass, a slice and a slice's row take.
    times: [Duration; 3],
    time: Duration,
    ran: Vec<Ran>,
    failures: VecDeque<PassError>,
    /// What happens after so many passes of a launch.
    breaks: Option<(u32, PassError)>,
    panics: bool,
    /// How often the next pass has to wait.
    pauses: u32,
    pool: Arc<Pool>,
    /// Hashes of all tokens up to each place, by page.
    memory: HashMap<u32, [u32; PAGE_TOKENS]>,
    pages: usize,
    places: usize,
    begun: usize,
    /// Tokens that a sequence may have.
    context: usize,
    /// Rows of a pass, at most, if there are more than a decode pass has.
    wide_rows: usize,
}

/// What has run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ran {
    Launch { rows: usize, passes: u32, logits: bool },
    Slice { rows: usize },
}

impl Default for Told {
    fn default() -> Self {
        Self::with_times([4000, 2000, 200].map(Duration::from_micros))
    }
}

impl Told {
    pub(super) fn with_times(times: [Duration; 3]) -> Self {
        let (pages, places) = (1 << 16, 64);
        Self(Arc::new(Mutex::new(State {
            times,
            time: Duration::ZERO,
            ran: vec![],
            failures: VecDeque::new(),
            breaks: None,
            panics: false,
            pauses: 0,
            pool: Pool::new(pages, places, usize::MAX),
            memory: HashMap::new(),
            pages,
            places,
            begun: 0,
            context: usize::MAX,
            wide_rows: PASS_ROWS,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn ran(&self) -> Vec<Ran> {
        self.state().ran.clone()
    }

    pub(super) fn time(&self) -> Duration {
        self.state().time
    }

    pub(super) fn pass_time(&self, time: Duration) {
        self.state().time += time;
    }

    pub(super) fn set_pages(&self, pages: usize) {
        let mut state = self.state();
        (state.pages, state.pool) = (pages, Pool::new(pages, state.places, usize::MAX));
    }

    /// Pages that no sequence has.
    pub(super) fn free_pages(&self) -> usize {
        self.state().pool.pages().0
    }

    pub(super) fn set_places(&self, places: usize) {
        let mut state = self.state();
        (state.places, state.pool) = (places, Pool::new(state.pages, places, usize::MAX));
    }

    pub(super) fn free_places(&self) -> usize {
        let state = self.state();
        state.places - state.begun
    }

    /// The next pass has to wait so often.
    pub(super) fn set_pauses(&self, pauses: u32) {
        self.state().pauses = pauses;
    }

    pub(super) fn pauses(&self) -> u32 {
        self.state().pauses
    }

    pub(super) fn set_context(&self, context: usize) {
        self.state().context = context;
    }

    /// Passes have so many rows, at most.
    pub(super) fn set_wide_rows(&self, rows: usize) {
        self.state().wide_rows = rows;
    }

    /// The next pass fails.
    pub(super) fn fail(&self, error: PassError) {
        self.state().failures.push_back(error);
    }

    /// The launch that has run so many passes fails.
    pub(super) fn fail_after(&self, passes: u32, error: PassError) {
        self.state().breaks = Some((passes, error));
    }

    /// The next pass panics.
    pub(super) fn panic(&self) {
        self.state().panics = true;
    }
}

/// The likeliest tokens that follow those of a sequence.
pub(super) fn answer(prompt: &[u32], tokens: usize) -> Vec<u32> {
    sampled(&SamplingParams::greedy(), prompt, tokens)
}

/// Tokens that follow those of a sequence, as the host's sampler chooses them.
pub(super) fn sampled(params: &SamplingParams, prompt: &[u32], tokens: usize) -> Vec<u32> {
    let mut sampler = sampler(params, prompt);
    let mut all = prompt.to_vec();
    for _ in 0..tokens {
        all.push(choose(&mut sampler, &mut logits(&all)));
    }
    all.split_off(prompt.len())
}

/// The host's sampler after some tokens. Here parameters have the seed that they are used with.
pub(super) fn sampler(params: &SamplingParams, tokens: &[u32]) -> Sampler {
    let mut sampler = Sampler::new(params.clone(), seed(params), VOCAB as usize);
    tokens.iter().for_each(|token| sampler.accept(*token));
    sampler
}

pub(super) fn choose(sampler: &mut Sampler, logits: &mut [f32]) -> u32 {
    let token = sampler.sample(logits).id;
    sampler.accept(token);
    token
}

pub(super) fn seed(params: &SamplingParams) -> u64 {
    params.seed.unwrap_or(0)
}

pub(super) fn prompt(tokens: usize, seed: u32) -> Vec<u32> {
    (0..tokens as u32).map(|i| (i * 37 + seed * 11) % VOCAB).collect()
}

/// A hash of some tokens and one more, from that of those.
fn hash(before: u32, token: u32) -> u32 {
    before.wrapping_mul(31).wrapping_add(token)
}

/// Of each number of the first of some tokens.
fn hashes(tokens: &[u32]) -> Vec<u32> {
    let next = |before: &mut u32, token: &u32| {
        *before = hash(*before, *token);
        Some(*before)
    };
    tokens.iter().scan(7, next).collect()
}

fn logits(tokens: &[u32]) -> Vec<f32> {
    let likeliest = (hashes(tokens).last().copied().unwrap_or(7) >> 8) % VOCAB;
    (0..VOCAB).map(|id| if id == likeliest { 1.0 } else { -1.0 }).collect()
}

/// Tokens, and their pages and place.
#[derive(Debug)]
pub(super) struct FakeSequence {
    /// All that it is to hold, as it was told, and their hashes.
    tokens: Vec<u32>,
    hashes: Vec<u32>,
    cache: Sequence,
    follows: Option<Follows>,
    told: Told,
}

/// What a sequence goes on by.
#[derive(Debug)]
struct Follows {
    continuation: Continuation,
    /// Tokens accepted; 0 if it is not to be used any more.
    accepted: u64,
    left: u32,
    cancelled: Arc<AtomicBool>,
}

#[derive(Debug)]
pub(super) struct FakeCanceller(Arc<AtomicBool>);

impl Cancel for FakeCanceller {
    fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }
}

impl FakeSequence {
    /// Passes that it goes on for, of so many.
    fn passes(&self, passes: u32) -> u32 {
        self.follows.as_ref().map_or(passes, |follows| passes.min(follows.left.max(1)))
    }

    fn feed(&mut self, row: &Row) {
        let len = self.cache.len();
        assert_eq!(row.position, len, "a row does not follow its sequence");
        self.tokens.truncate(len);
        self.hashes.truncate(len);
        let hash = hash(self.hashes.last().copied().unwrap_or(7), row.token);
        self.tokens.push(row.token);
        self.hashes.push(hash);
        let page = self.cache.table()[len / PAGE_TOKENS];
        let mut state = self.told.state();
        state.memory.entry(page).or_insert([0; PAGE_TOKENS])[len % PAGE_TOKENS] = hash;
        drop(state);
        self.cache.computed(&[row.token]).expect("there is room");
    }

    /// What it holds was computed from its own tokens.
    fn check_memory(&self) {
        let (state, table) = (self.told.state(), self.cache.table());
        for (position, &hash) in self.hashes[..self.cache.len()].iter().enumerate() {
            let page = &state.memory[&table[position / PAGE_TOKENS]];
            assert_eq!(page[position % PAGE_TOKENS], hash, "position {position}");
        }
    }

    /// As the executor refuses what it does not know of. What it was told has to be of all tokens.
    fn check(&self, row: &Row) -> Result<(), PassError> {
        let Some(follows) = &self.follows else { return Ok(()) };
        let (accepted, position) = (follows.accepted, row.position);
        if accepted != position as u64 + 1 {
            return Err(PassError::Unknown { accepted, position });
        }
        let choice = follows.continuation.choice();
        if choice.position() == accepted {
            let mut expected = Choice::new(choice.params(), seed(choice.params()), VOCAB as usize);
            self.tokens.iter().chain([&row.token]).for_each(|token| expected.accept(*token));
            assert_eq!(*choice, expected);
        }
        Ok(())
    }

    /// What is chosen after all tokens.
    fn next(&mut self) -> Chosen {
        let mut logits = logits(&self.tokens);
        let chosen = |token, end| Chosen { token, probability: 0.5, end };
        let Some(follows) = &mut self.follows else {
            let token = choose(&mut sampler(&SamplingParams::greedy(), &[]), &mut logits);
            return chosen(token, None);
        };
        assert_eq!(follows.accepted, self.tokens.len() as u64);
        let params = follows.continuation.choice().params();
        let token = choose(&mut sampler(params, &self.tokens), &mut logits);
        follows.accepted += 1;
        follows.left = follows.left.saturating_sub(1);
        let end = if follows.continuation.stops().contains(&token) {
            Some(End::StopToken)
        } else if follows.left == 0 {
            Some(End::LastToken)
        } else {
            follows.cancelled.load(Ordering::Acquire).then_some(End::Cancelled)
        };
        chosen(token, end)
    }
}

impl Drop for FakeSequence {
    fn drop(&mut self) {
        self.told.state().begun -= 1;
    }
}

#[derive(Debug)]
pub(super) struct Fake {
    told: Told,
    begun: Instant,
    logits: Vec<f32>,
}

impl Fake {
    pub(super) fn new(told: &Told) -> Self {
        Self { told: told.clone(), begun: Instant::now(), logits: vec![] }
    }

    /// Whether there is room for rows and what follows them in so many passes.
    fn prepare(
        &self,
        rows: &[Row],
        sequences: &mut [&mut FakeSequence],
        passes: u32,
    ) -> Result<(), PassError> {
        sequences.iter().for_each(|sequence| sequence.check_memory());
        let mut state = self.told.state();
        assert!(!state.panics, "told to");
        if let Some(failure) = state.failures.pop_front() {
            return Err(failure);
        }
        let mut ends: Vec<_> = sequences.iter().map(|sequence| sequence.cache.len()).collect();
        for row in rows {
            let passes = sequences[row.sequence].passes(passes) as usize;
            let (position, context) = (row.position + passes - 1, state.context);
            if position >= context {
                return Err(PassError::Context { position, context });
            }
            ends[row.sequence] += passes;
        }
        let pool = Arc::clone(&state.pool);
        drop(state);
        let mut caches: Vec<_> = sequences.iter_mut().map(|sequence| &mut sequence.cache).collect();
        Ok(pool.grow(&mut caches, &ends)?)
    }

    fn ran(&self, ran: Ran) {
        let mut state = self.told.state();
        let [pass, slice, row] = state.times;
        state.time += match ran {
            Ran::Launch { passes, .. } => pass * passes,
            Ran::Slice { rows } => slice + row * rows as u32,
        };
        state.ran.push(ran);
    }
}

fn are_one_pass(rows: &[Row], most: usize) -> bool {
    let mut sequences: Vec<_> = rows.iter().map(|row| row.sequence).collect();
    sequences.sort_unstable();
    sequences.dedup();
    sequences.len() == rows.len() && rows.len() <= most
}

impl Passes for Fake {
    type Sequence = FakeSequence;
    type Canceller = FakeCanceller;

    fn pages(&self) -> (usize, usize) {
        self.told.state().pool.pages()
    }

    fn begin(&mut self, rank: Rank, text: &[u32]) -> Result<FakeSequence, TooManySequences> {
        let mut state = self.told.state();
        let cache = state.pool.begin_with(rank, text)?;
        state.begun += 1;
        let tokens = text[..cache.len()].to_vec();
        let (hashes, told) = (hashes(&tokens), self.told.clone());
        Ok(FakeSequence { tokens, hashes, cache, follows: None, told })
    }

    fn len(sequence: &FakeSequence) -> usize {
        sequence.cache.len()
    }

    fn truncate(sequence: &mut FakeSequence, len: usize) {
        sequence.cache.truncate(len);
        if let Some(follows) = &mut sequence.follows
            && follows.accepted > len as u64 + 1
        {
            follows.accepted = 0;
        }
    }

    fn resume(sequence: &mut FakeSequence, text: &[u32]) -> usize {
        let held = sequence.cache.resume(text);
        sequence.tokens = text[..held].to_vec();
        sequence.hashes = hashes(&sequence.tokens);
        held
    }

    fn reserve(sequence: &mut FakeSequence, end: usize) -> Result<bool, PagesError> {
        sequence.cache.reserve(end)
    }

    fn fits(sequence: &FakeSequence, end: usize) -> bool {
        sequence.cache.fits(end)
    }

    fn has_room(sequence: &FakeSequence, end: usize) -> bool {
        sequence.cache.has_room(end)
    }

    fn forward(
        &mut self,
        rows: &[Row],
        sequences: &mut [&mut FakeSequence],
    ) -> Result<&mut [f32], PassError> {
        self.prepare(rows, sequences, 1)?;
        self.logits.clear();
        for row in rows {
            let sequence = &mut *sequences[row.sequence];
            sequence.feed(row);
            if row.logits {
                self.logits.extend(logits(&sequence.tokens));
            }
        }
        if self.logits.is_empty() {
            self.ran(Ran::Slice { rows: rows.len() });
        } else {
            assert!(are_one_pass(rows, PASS_ROWS), "{rows:?}");
            self.ran(Ran::Launch { rows: rows.len(), passes: 1, logits: true });
        }
        Ok(&mut self.logits)
    }

    fn continue_with(
        &mut self,
        sequence: &mut FakeSequence,
        continuation: &Continuation,
    ) -> Result<FakeCanceller, PassError> {
        let (accepted, left) = (continuation.choice().position(), continuation.most());
        let (continuation, cancelled) = (continuation.clone(), Arc::<AtomicBool>::default());
        let canceller = FakeCanceller(Arc::clone(&cancelled));
        sequence.follows = Some(Follows { continuation, accepted, left, cancelled });
        Ok(canceller)
    }

    fn rows_at_once(&self, waiting: usize) -> usize {
        waiting.min(self.told.state().wide_rows)
    }

    fn choose(
        &mut self,
        rows: &[Row],
        sequences: &mut [&mut FakeSequence],
        passes: u32,
        attend: &mut dyn Attend,
    ) -> Result<(), PassError> {
        let most = self.rows_at_once(rows.len());
        assert!(are_one_pass(rows, most) && passes > 0, "{passes} of {rows:?}");
        rows.iter().try_for_each(|row| sequences[row.sequence].check(row))?;
        self.prepare(rows, sequences, passes)?;
        let mut going: Vec<_> = rows.iter().copied().map(Some).collect();
        let mut ran = 0;
        let mut cut = false;
        while ran < passes && !cut && going.iter().any(Option::is_some) {
            let mut all = vec![];
            for place in &mut going {
                let Some(row) = place else {
                    all.push(Chosen { token: 0, probability: 0.0, end: Some(End::Before) });
                    continue;
                };
                let sequence = &mut *sequences[row.sequence];
                sequence.feed(row);
                let chosen = sequence.next();
                (row.token, row.position) = (chosen.token, row.position + 1);
                *place = place.filter(|_| chosen.end.is_none());
                all.push(chosen);
            }
            // While a pass runs somebody may say something; then it ends.
            cut = attend.pause(Duration::ZERO).is_break();
            attend.chosen(&all);
            ran += 1;
            if let Some((_, error)) = self.told.state().breaks.take_if(|(after, _)| *after == ran) {
                return Err(error);
            }
        }
        self.ran(Ran::Launch { rows: rows.len(), passes: ran, logits: false });
        Ok(())
    }

    fn idle(&mut self) -> Option<Duration> {
        None
    }

    fn pause(&mut self) -> Option<Duration> {
        let pauses = &mut self.told.state().pauses;
        *pauses = pauses.checked_sub(1)?;
        Some(Duration::from_micros(1))
    }

    fn now(&self) -> Instant {
        self.begun + self.told.time()
    }
}
