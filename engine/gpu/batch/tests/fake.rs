//! A card that has a token follow from all before it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use m40_gpu::TooManySequences;
use m40_gpu::executor::{Chosen, PassError, Row};
use m40_gpu::kv::OutOfPages;
use m40_gpu::ops::{PAGE_TOKENS, PASS_ROWS};

use super::super::Passes;

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
    panics: bool,
    /// Pages that nobody has, and all.
    pages: usize,
    capacity: usize,
    places: usize,
    most: usize,
    /// Tokens that a sequence may have.
    context: usize,
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
        let (capacity, most) = (1 << 20, 64);
        Self(Arc::new(Mutex::new(State {
            times,
            time: Duration::ZERO,
            ran: vec![],
            failures: VecDeque::new(),
            panics: false,
            pages: capacity,
            capacity,
            places: most,
            most,
            context: usize::MAX,
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
        (state.pages, state.capacity) = (pages, pages);
    }

    pub(super) fn free_pages(&self) -> usize {
        self.state().pages
    }

    pub(super) fn set_places(&self, places: usize) {
        let mut state = self.state();
        (state.places, state.most) = (places, places);
    }

    pub(super) fn free_places(&self) -> usize {
        self.state().places
    }

    pub(super) fn set_context(&self, context: usize) {
        self.state().context = context;
    }

    /// The next pass fails.
    pub(super) fn fail(&self, error: PassError) {
        self.state().failures.push_back(error);
    }

    /// The next pass panics.
    pub(super) fn panic(&self) {
        self.state().panics = true;
    }
}

/// Tokens that follow those of a sequence.
pub(super) fn answer(prompt: &[u32], tokens: usize) -> Vec<u32> {
    let mut all = prompt.to_vec();
    for _ in 0..tokens {
        all.push(follows(&all));
    }
    all.split_off(prompt.len())
}

pub(super) fn prompt(tokens: usize, seed: u32) -> Vec<u32> {
    (0..tokens as u32).map(|i| (i * 37 + seed * 11) % VOCAB).collect()
}

fn pages(tokens: usize) -> usize {
    tokens.div_ceil(PAGE_TOKENS)
}

fn follows(tokens: &[u32]) -> u32 {
    let hash = tokens.iter().fold(7u32, |hash, token| hash.wrapping_mul(31).wrapping_add(*token));
    (hash >> 8) % VOCAB
}

/// Tokens, and their pages and place.
#[derive(Debug)]
pub(super) struct FakeSequence {
    tokens: Vec<u32>,
    told: Told,
}

impl Drop for FakeSequence {
    fn drop(&mut self) {
        let mut state = self.told.state();
        state.pages += pages(self.tokens.len());
        state.places += 1;
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

    /// Appends rows in each of so many passes, or nothing; returns what follows each.
    fn run(
        &mut self,
        rows: &[Row],
        sequences: &mut [&mut FakeSequence],
        passes: u32,
    ) -> Result<Vec<u32>, PassError> {
        let mut state = self.told.state();
        assert!(!state.panics, "told to");
        if let Some(failure) = state.failures.pop_front() {
            return Err(failure);
        }
        for row in rows {
            let position = row.position + passes as usize - 1;
            let context = state.context;
            if position >= context {
                return Err(PassError::Context { position, context });
            }
        }
        let mut ends: Vec<_> = sequences.iter().map(|sequence| sequence.tokens.len()).collect();
        rows.iter().for_each(|row| ends[row.sequence] += passes as usize);
        let grown = sequences.iter().zip(ends);
        let needed: usize =
            grown.map(|(sequence, end)| pages(end) - pages(sequence.tokens.len())).sum();
        let free = state.pages;
        if needed > free {
            return Err(OutOfPages { needed, free, capacity: state.capacity }.into());
        }
        state.pages -= needed;
        drop(state);
        let mut rows = rows.to_vec();
        let mut followed = vec![];
        for _ in 0..passes {
            for row in &mut rows {
                let sequence = &mut sequences[row.sequence].tokens;
                assert_eq!(row.position, sequence.len(), "a row does not follow its sequence");
                sequence.push(row.token);
                row.position += 1;
                row.token = follows(sequence);
                followed.push(row.token);
            }
        }
        Ok(followed)
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

fn are_one_pass(rows: &[Row]) -> bool {
    let mut sequences: Vec<_> = rows.iter().map(|row| row.sequence).collect();
    sequences.sort_unstable();
    sequences.dedup();
    sequences.len() == rows.len() && rows.len() <= PASS_ROWS
}

impl Passes for Fake {
    type Sequence = FakeSequence;

    fn pages(&self) -> (usize, usize) {
        let state = self.told.state();
        (state.pages, state.capacity)
    }

    fn begin(&mut self) -> Result<FakeSequence, TooManySequences> {
        let mut state = self.told.state();
        let most = state.most;
        state.places = state.places.checked_sub(1).ok_or(TooManySequences { most })?;
        Ok(FakeSequence { tokens: vec![], told: self.told.clone() })
    }

    fn truncate(sequence: &mut FakeSequence, len: usize) {
        let before = pages(sequence.tokens.len());
        sequence.tokens.truncate(len);
        sequence.told.state().pages += before - pages(sequence.tokens.len());
    }

    fn forward(
        &mut self,
        rows: &[Row],
        sequences: &mut [&mut FakeSequence],
    ) -> Result<&mut [f32], PassError> {
        let followed = self.run(rows, sequences, 1)?;
        self.logits.clear();
        for (_, token) in rows.iter().zip(followed).filter(|(row, _)| row.logits) {
            let logits = (0..VOCAB).map(|id| if id == token { 1.0 } else { -1.0 });
            self.logits.extend(logits);
        }
        if self.logits.is_empty() {
            self.ran(Ran::Slice { rows: rows.len() });
        } else {
            assert!(are_one_pass(rows), "{rows:?}");
            self.ran(Ran::Launch { rows: rows.len(), passes: 1, logits: true });
        }
        Ok(&mut self.logits)
    }

    fn choose(
        &mut self,
        rows: &[Row],
        sequences: &mut [&mut FakeSequence],
        passes: u32,
    ) -> Result<Vec<Chosen>, PassError> {
        assert!(are_one_pass(rows) && passes > 0, "{passes} of {rows:?}");
        let followed = self.run(rows, sequences, passes)?;
        self.ran(Ran::Launch { rows: rows.len(), passes, logits: false });
        Ok(followed
            .into_iter()
            .map(|token| Chosen { token, probability: 0.5, end: None })
            .collect())
    }

    fn now(&self) -> Instant {
        self.begun + self.told.time()
    }
}
