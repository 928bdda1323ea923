//! Wide passes: a row of each of more sequences than a decode pass has rows, by the calls of
//! [`Prefill`](crate::prefill::Prefill). They choose tokens and feed themselves as decode passes do.

use std::time::{Duration, Instant};

use m40_cuda::CudaError;

use super::choose::{Attend, Chosen, Texts};
use super::{Executor, Launches, PassError, Row, Want, place_of, upload};
use crate::batch::rows_at_once;
use crate::call::Call;
use crate::continuation::States;
use crate::ops::{self, NO_SLOT, Next, PASSES_AT_ONCE, Place};
use crate::prefill::Slots;
use crate::resident::Watch;
use crate::sequence::Sequence;

/// Numbers of rows are rounded up to a multiple of this, so that there are few kinds of passes to
/// record.
const ROWS_STEP: usize = 8;

/// Passes are enqueued together that take no longer than this, in seconds: nobody hears of what they
/// choose before all have ended.
const UNHEARD: f64 = 0.01;

impl Executor {
    /// How many of so many sequences that wait for a token [`choose`](Self::choose) best takes at a
    /// time; it takes no more.
    pub fn rows_at_once(&self, waiting: usize) -> usize {
        rows_at_once(waiting, self.plan.prefill.wide_rows())
    }

    /// What is chosen after each row, up to its end, in `passes` wide passes. Rows are checked, and
    /// there is room for them.
    pub(super) fn choose_wide(
        &mut self,
        rows: &[Row],
        sequences: &mut [&mut Sequence],
        passes: usize,
        attend: &mut dyn Attend,
    ) -> Result<Vec<Vec<Chosen>>, PassError> {
        self.rest()?;
        let count = self.send_wide(rows, Want::Tokens, sequences)?;
        // After this many all sequences have ended.
        let most = rows.iter().map(|row| sequences[row.sequence].passes(passes as u32)).max();
        let passes = most.map_or(passes, |most| most as usize);
        let mut texts = Texts::new(rows, attend);
        texts.begin();
        let mut at_once = 1;
        while texts.passes < passes && !texts.cut && !texts.all_ended() {
            let begun = Instant::now();
            let now = at_once.min(passes - texts.passes);
            for nexts in self.run_wide(count, now)?.chunks_exact(count) {
                if !texts.all_ended() {
                    texts.told(&nexts[..rows.len()]);
                }
            }
            let pass = begun.elapsed().as_secs_f64() / now as f64;
            at_once = ((UNHEARD / pass) as usize).clamp(1, PASSES_AT_ONCE);
            // Whoever attends may have heard something in the meantime.
            let _ = texts.pause(Duration::ZERO);
        }
        Ok(texts.texts)
    }

    /// Tells the card of the rows of a wide pass, and of some without a sequence: returns how many rows
    /// the pass has with those.
    pub(super) fn send_wide(
        &mut self,
        rows: &[Row],
        want: Want,
        sequences: &mut [&mut Sequence],
    ) -> Result<usize, CudaError> {
        let count = rows.len().next_multiple_of(ROWS_STEP).min(self.plan.prefill.wide_rows());
        let mut words = self.row_words(rows, sequences, want)?;
        let none = ops::Row { token: 0, position: 0, pages: Place::NOWHERE, slot: NO_SLOT };
        words.extend((rows.len()..count).flat_map(|_| none.words()));
        let tiles = (0..count as u32).flat_map(|row| [row, 1]).collect();
        let prefill = &self.plan.prefill;
        for (buffer, words) in [(prefill.rows, words), (prefill.tiles, tiles)] {
            let slice = self.buffers[buffer.0].as_mut().expect("no launch is prepared");
            upload(&mut self.ring, slice, 0..words.len(), &words)?;
        }
        Ok(count)
    }

    /// Some wide passes over rows that the card knows, and what they have chosen, `[passes][count]`.
    fn run_wide(
        &mut self,
        count: usize,
        passes: usize,
    ) -> Result<Vec<[u32; Next::WORDS]>, CudaError> {
        let (ran, nexts) = (self.plan.prefill.ran, self.plan.prefill.nexts);
        let slice = self.buffers[ran.0].as_mut().expect("no launch is prepared");
        self.ring.stream().zero(slice.all_mut())?;
        if self.plan.options.launches == Launches::OpByOp {
            let calls = self.wide_calls(count);
            (0..passes).try_for_each(|_| self.enqueue(&calls))?;
        } else {
            if !self.wide_graphs.contains_key(&count) {
                let graph = self.record_calls(&self.wide_calls(count))?;
                self.wide_graphs.insert(count, graph);
            }
            let graph = &self.wide_graphs[&count];
            (0..passes).try_for_each(|_| graph.launch(self.ring.stream()))?;
        }
        let words = passes * count * Next::WORDS;
        self.words.resize(words, 0);
        let slice = self.buffers[nexts.0].as_ref();
        let from = slice.and_then(|slice| slice.view(0..words));
        self.ring.read(from.expect("as long as was planned"), &mut self.words)?;
        Ok(self.words.as_chunks().0.to_vec())
    }

    pub(super) fn wide_calls(&self, rows: usize) -> Vec<Call> {
        let layouts = self.layouts();
        let (program, lowered) = (&self.plan.program, &self.plan.lowered);
        self.plan.prefill.wide_calls(program, lowered, &layouts, rows, self.slots())
    }

    /// Where sequences keep what they go on by.
    pub(super) fn slots(&self) -> Slots {
        let states = States::new(self.plan.options.sequences as usize, place_of(&self.states));
        Slots { choices: states.choices(), endings: states.endings() }
    }
}
