//! Passes that choose tokens and feed themselves with them.

use std::fmt;
use std::sync::atomic::Ordering;

use m40_cuda::{CudaError, Mailbox};
use m40_sched::SamplingParams;

use super::{Executor, Launches, PassError, Row, Want, place_of, upload};
use crate::batch::is_prompt;
use crate::choice::samples;
use crate::continuation::{Continuation, States};
use crate::ops::{End, Next, PASS_ROWS, PASSES_AT_ONCE};
use crate::sequence::Sequence;

/// What was chosen after a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chosen {
    /// Id in the vocabulary.
    pub token: u32,
    /// Of the token; 0 if there was none to choose, and the token is 0 then.
    pub probability: f32,
    /// Why the sequence goes no further, if it does not.
    pub end: Option<End>,
}

impl Chosen {
    /// Of a sequence that has ended in a pass before.
    const BEFORE: Self = Self { token: 0, probability: 0.0, end: Some(End::Before) };

    pub(super) fn of([token, probability, end, _]: [u32; Next::WORDS]) -> Self {
        Self { token, probability: f32::from_bits(probability), end: End::of(end) }
    }
}

/// Ends what a sequence goes on by, from any thread and while a launch runs: with the next token that
/// it chooses. Does nothing once the sequence is told to go on otherwise, or is gone.
#[derive(Clone)]
pub struct Canceller {
    words: Mailbox,
    slot: usize,
    ticket: u32,
}

impl Canceller {
    /// Ends it.
    pub fn cancel(&self) {
        // Tickets of a slot grow, so an old one takes nothing back.
        self.words.word(self.slot).fetch_max(self.ticket, Ordering::Release);
    }
}

impl fmt::Debug for Canceller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Canceller");
        out.field("slot", &self.slot).field("ticket", &self.ticket).finish_non_exhaustive()
    }
}

impl Executor {
    /// Whether the card chooses tokens as these parameters say. Otherwise the host does, from the
    /// logits of [`forward`](Self::forward); as where log-probabilities or grammars need them.
    pub fn samples(&self, params: &SamplingParams) -> bool {
        samples(params, self.plan.program.description.vocab)
    }

    /// Has a sequence go on so from now on; [`choose`](Self::choose) takes the likeliest tokens of
    /// one that was never told. To be told anew where tokens were appended or forgotten otherwise
    /// than by [`choose`](Self::choose), or it failed.
    ///
    /// # Errors
    /// [`PassError::Sequence`] for one of another model, [`PassError::Unsampled`] unless
    /// [`samples`](Self::samples), and the sequence goes on as before; or what the card says.
    pub fn continue_with(
        &mut self,
        sequence: &mut Sequence,
        continuation: &Continuation,
    ) -> Result<Canceller, PassError> {
        if !sequence.is_of(&self.pool) {
            return Err(PassError::Sequence { index: 0, count: 1 });
        }
        if !self.samples(continuation.choice().params()) {
            return Err(PassError::Unsampled);
        }
        let slot = sequence.slot();
        self.ticket = self.ticket.checked_add(1).unwrap_or(1);
        self.cancels.word(slot as usize).store(0, Ordering::Release);
        sequence.lose();
        let states = States::new(self.plan.options.sequences as usize, place_of(&self.states));
        for (at, bytes) in states.contents(slot, continuation, self.ticket) {
            upload(&mut self.ring, &mut self.states, at..at + bytes.len(), &bytes)?;
        }
        sequence.follow(continuation.choice().position(), continuation.most());
        Ok(Canceller { words: self.cancels.clone(), slot: slot as usize, ticket: self.ticket })
    }

    /// Runs the program over `rows`, of different sequences and at most as many as
    /// [`rows_at_once`](Self::rows_at_once) says, `passes` times, and each time after the first over
    /// what was chosen after each row, as [`continue_with`](Self::continue_with) has said. Returns what
    /// was chosen, `[passes][rows]`: fewer passes if all sequences have ended. A sequence holds the tokens that were fed to it, so
    /// not the last one chosen. Whether rows want their logits is not looked at.
    ///
    /// # Errors
    /// [`PassError`], before anything is computed unless the card fails.
    pub fn choose(
        &mut self,
        rows: &[Row],
        sequences: &mut [&mut Sequence],
        passes: u32,
    ) -> Result<Vec<Chosen>, PassError> {
        if rows.is_empty() || rows.len() > self.rows_at_once(rows.len()) || is_prompt(rows) {
            return Err(PassError::Rows { rows: rows.len() });
        }
        for row in rows {
            let known = sequences.get(row.sequence).and_then(|sequence| sequence.accepted());
            if let Some(accepted) = known
                && accepted != row.position as u64 + 1
            {
                return Err(PassError::Unknown { accepted, position: row.position });
            }
        }
        self.prepare(rows, sequences, passes)?;
        let chosen = if rows.len() > PASS_ROWS {
            self.choose_wide(rows, sequences, passes as usize)
        } else {
            self.choose_prepared(rows, sequences, passes as usize)
        };
        for (i, row) in rows.iter().enumerate() {
            let sequence = &mut *sequences[row.sequence];
            match &chosen {
                Ok(chosen) => {
                    let tokens = chosen[i].iter().filter(|chosen| chosen.probability > 0.0);
                    sequence.accept(tokens.count() as u32);
                    sequence.truncate(row.position + chosen[i].len());
                }
                Err(_) => sequence.lose(),
            }
        }
        Ok(side_by_side(&chosen?))
    }

    /// What is chosen after each row, up to its end. Rows are checked, and there is room for them.
    fn choose_prepared(
        &mut self,
        rows: &[Row],
        sequences: &mut [&mut Sequence],
        passes: usize,
    ) -> Result<Vec<Vec<Chosen>>, PassError> {
        // A launch of all ops goes on with what it has chosen; the host does it otherwise.
        let at_once = match self.plan.options.launches {
            Launches::OpByOp | Launches::Recorded => 1,
            Launches::Whole => PASSES_AT_ONCE,
        };
        let mut chosen = vec![vec![]; rows.len()];
        let mut going: Vec<_> = (0..).zip(rows.iter().copied()).collect();
        let mut run = 0;
        while run < passes && !going.is_empty() {
            let now = at_once.min(passes - run);
            let rows: Vec<_> = going.iter().map(|(_, row)| *row).collect();
            self.run(&rows, sequences, Want::Tokens { passes: now as u32 })?;
            let nexts = self.read_chosen(now)?;
            let mut place = 0;
            going.retain_mut(|(i, row)| {
                let text = until_end(&nexts, PASS_ROWS, place);
                place += 1;
                let last = text.last().expect("a launch has a pass");
                (row.token, row.position) = (last.token, row.position + text.len());
                let goes_on = last.end.is_none();
                chosen[*i].extend(text);
                goes_on
            });
            run += now;
        }
        Ok(chosen)
    }

    /// What the passes of a launch have chosen, `[passes][PASS_ROWS]`.
    fn read_chosen(&mut self, passes: usize) -> Result<Vec<Chosen>, CudaError> {
        let words = self.read(self.plan.lowered.chosen, 0..Next::WORDS * PASS_ROWS * passes)?;
        Ok(words.as_chunks().0.iter().map(|next| Chosen::of(*next)).collect())
    }
}

/// What was chosen for the row at this place of a launch: passes after its end, which may not have
/// run, left out. nexts: `[passes][rows]`
pub(super) fn until_end(nexts: &[Chosen], rows: usize, place: usize) -> Vec<Chosen> {
    let of_row = nexts.chunks_exact(rows).map(|pass| pass[place]);
    let mut ended = false;
    of_row.take_while(|next| !std::mem::replace(&mut ended, next.end.is_some())).collect()
}

/// `[rows][passes of each]` as `[passes][rows]`.
fn side_by_side(rows: &[Vec<Chosen>]) -> Vec<Chosen> {
    let passes = rows.iter().map(Vec::len).max().unwrap_or(0);
    let of_pass = |pass| rows.iter().map(move |row| *row.get(pass).unwrap_or(&Chosen::BEFORE));
    (0..passes).flat_map(of_pass).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(token: u32, end: u32) -> Chosen {
        Chosen::of([token, 1f32.to_bits(), end, 0])
    }

    #[test]
    fn a_row_has_what_was_chosen_until_its_end() {
        let mut nexts = vec![Chosen::BEFORE; 3 * PASS_ROWS];
        for pass in 0..3u32 {
            nexts[pass as usize * PASS_ROWS] = chosen(pass, 0);
            nexts[pass as usize * PASS_ROWS + 1] = chosen(10 + pass, 2 * u32::from(pass == 1));
        }
        assert_eq!(until_end(&nexts, PASS_ROWS, 0), [chosen(0, 0), chosen(1, 0), chosen(2, 0)]);
        assert_eq!(until_end(&nexts, PASS_ROWS, 1), [chosen(10, 0), chosen(11, 2)]);
        assert_eq!(until_end(&nexts, PASS_ROWS, 1)[1].end, Some(End::StopToken));
    }

    #[test]
    fn rows_of_different_lengths_lie_side_by_side() {
        let rows = [vec![chosen(1, 2)], vec![chosen(2, 0), chosen(3, 3)]];
        let expected = [chosen(1, 2), chosen(2, 0), Chosen::BEFORE, chosen(3, 3)];
        assert_eq!(side_by_side(&rows), expected);
        assert_eq!(side_by_side(&[]), []);
    }
}
