//! Passes that choose tokens and feed themselves with them.

use std::fmt;
use std::iter::once;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::time::Duration;

use m40_cuda::Mailbox;
use m40_sched::SamplingParams;

use super::{Executor, Launches, PassError, Row, Want, place_of, upload};
use crate::batch::is_prompt;
use crate::choice::samples;
use crate::continuation::{Continuation, States};
use crate::ops::{End, Next, PASS_ROWS, PASSES_AT_ONCE};
use crate::resident::{Watch, pause};
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

/// Attends to passes that feed themselves while they run.
pub trait Attend {
    /// What a pass has chosen after each row, as soon as it has; of rows that have ended in a pass
    /// before, that.
    fn chosen(&mut self, chosen: &[Chosen]);

    /// Waits so long, or less. No further pass begins after the one that runs if it breaks.
    fn pause(&mut self, time: Duration) -> ControlFlow<()>;
}

/// Waits until all is done.
#[derive(Clone, Copy, Debug)]
pub struct Unattended;

impl Attend for Unattended {
    fn chosen(&mut self, _chosen: &[Chosen]) {}

    fn pause(&mut self, time: Duration) -> ControlFlow<()> {
        pause(time);
        ControlFlow::Continue(())
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

    /// As [`choose_attended`](Self::choose_attended), with nobody to attend. No kernel stays.
    ///
    /// # Errors
    /// As there.
    pub fn choose(
        &mut self,
        rows: &[Row],
        sequences: &mut [&mut Sequence],
        passes: u32,
    ) -> Result<Vec<Chosen>, PassError> {
        let chosen = self.choose_attended(rows, sequences, passes, &mut Unattended)?;
        self.rest()?;
        Ok(chosen)
    }

    /// Runs the program over `rows`, of different sequences and at most as many as
    /// [`rows_at_once`](Self::rows_at_once) says, `passes` times, and each time after the first over
    /// what was chosen after each row, as
    /// [`continue_with`](Self::continue_with) has said. Returns what was chosen, `[passes][rows]`:
    /// fewer passes if all sequences have ended, or `attend` broke. A sequence holds the tokens that
    /// were fed to it, so not the last one chosen. Whether rows want their logits is not looked at.
    ///
    /// With [`Launches::Whole`] the kernel stays: whoever else needs the card has to wait until
    /// [`rest`](Self::rest), or until something else than this is asked of the executor.
    ///
    /// # Errors
    /// [`PassError`], before anything is computed unless the card fails.
    pub fn choose_attended(
        &mut self,
        rows: &[Row],
        sequences: &mut [&mut Sequence],
        passes: u32,
        attend: &mut dyn Attend,
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
            self.choose_wide(rows, sequences, passes as usize, attend)
        } else {
            self.choose_prepared(rows, sequences, passes as usize, attend)
        };
        for (i, row) in rows.iter().enumerate() {
            let sequence = &mut *sequences[row.sequence];
            match &chosen {
                Ok(chosen) => {
                    let tokens = chosen[i].iter().filter(|chosen| chosen.probability > 0.0);
                    sequence.accept(tokens.count() as u32);
                    let fed = once(row.token).chain(chosen[i].iter().map(|chosen| chosen.token));
                    sequence.computed(&fed.take(chosen[i].len()).collect::<Vec<_>>())?;
                    // The room for passes that did not run.
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
        attend: &mut dyn Attend,
    ) -> Result<Vec<Vec<Chosen>>, PassError> {
        let mut texts = Texts::new(rows, attend);
        while texts.passes < passes && !texts.cut {
            let rows = texts.begin();
            if rows.is_empty() {
                break;
            }
            if self.plan.options.launches == Launches::Whole {
                let most = PASSES_AT_ONCE.min(passes - texts.passes);
                self.run_job(&rows, sequences, most, &mut texts)?;
            } else {
                self.run(&rows, sequences, Want::Tokens)?;
                let words = self.read(self.plan.lowered.chosen, 0..Next::WORDS * rows.len())?;
                texts.told(words.as_chunks().0);
                // Whoever attends may have heard something in the meantime.
                let _ = texts.pause(Duration::ZERO);
            }
        }
        Ok(texts.texts)
    }
}

/// What rows have been given so far.
pub(super) struct Texts<'a> {
    pub(super) texts: Vec<Vec<Chosen>>,
    /// Where each row goes on; none: it has ended.
    going: Vec<Option<Row>>,
    /// Which of them have a row in the pass that runs.
    places: Vec<usize>,
    pub(super) passes: usize,
    attend: &'a mut dyn Attend,
    /// Whether no further pass is to begin.
    pub(super) cut: bool,
}

impl<'a> Texts<'a> {
    pub(super) fn new(rows: &[Row], attend: &'a mut dyn Attend) -> Self {
        let going = rows.iter().copied().map(Some).collect();
        let (texts, places) = (vec![vec![]; rows.len()], vec![]);
        Self { texts, going, places, passes: 0, attend, cut: false }
    }

    /// Whether no row goes on.
    pub(super) fn all_ended(&self) -> bool {
        self.going.iter().all(Option::is_none)
    }

    /// The rows of the next pass.
    pub(super) fn begin(&mut self) -> Vec<Row> {
        self.places = (0..self.going.len()).filter(|i| self.going[*i].is_some()).collect();
        self.going.iter().flatten().copied().collect()
    }
}

impl Watch for Texts<'_> {
    fn told(&mut self, nexts: &[[u32; Next::WORDS]]) {
        let mut chosen = vec![Chosen::BEFORE; self.going.len()];
        for (&i, next) in self.places.iter().zip(nexts) {
            let Some(row) = &mut self.going[i] else { continue };
            chosen[i] = Chosen::of(*next);
            (row.token, row.position) = (chosen[i].token, row.position + 1);
            self.texts[i].push(chosen[i]);
            if chosen[i].end.is_some() {
                self.going[i] = None;
            }
        }
        self.passes += 1;
        self.attend.chosen(&chosen);
    }

    fn pause(&mut self, time: Duration) -> ControlFlow<()> {
        let flow = self.attend.pause(time);
        self.cut |= flow.is_break();
        flow
    }
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

    /// Breaks at once.
    struct Hears(Vec<Vec<Chosen>>);

    impl Attend for Hears {
        fn chosen(&mut self, chosen: &[Chosen]) {
            self.0.push(chosen.to_vec());
        }

        fn pause(&mut self, _time: Duration) -> ControlFlow<()> {
            ControlFlow::Break(())
        }
    }

    #[test]
    fn a_row_has_what_was_chosen_until_its_end_and_goes_on_where_it_is() {
        let row = |sequence| Row { token: 9, position: 5, sequence, logits: false };
        let mut hears = Hears(vec![]);
        let mut texts = Texts::new(&[row(0), row(1), row(2)], &mut hears);
        let next = |token, end| [token, 1f32.to_bits(), end, 0];
        assert_eq!(texts.begin().len(), 3);
        texts.told(&[next(1, 0), next(2, 2), next(3, 0)]);
        // In the same job it stays among the rows.
        texts.told(&[next(4, 0), next(7, 5), next(6, 0)]);
        assert!(!texts.cut);
        assert_eq!(texts.pause(Duration::ZERO), ControlFlow::Break(()));
        assert!(texts.cut);
        let at = |token, sequence| Row { token, position: 7, ..row(sequence) };
        assert_eq!(texts.begin(), [at(4, 0), at(6, 2)]);
        // In the next it has none.
        texts.told(&[next(8, 0), next(9, 3)]);
        assert_eq!((texts.passes, texts.begin().len()), (3, 1));
        assert_eq!(texts.texts[0], [chosen(1, 0), chosen(4, 0), chosen(8, 0)]);
        assert_eq!(texts.texts[1], [chosen(2, 2)]);
        assert_eq!(texts.texts[1][0].end, Some(End::StopToken));
        let last = [chosen(8, 0), Chosen::BEFORE, chosen(9, 3)];
        assert_eq!((hears.0.len(), &hears.0[2][..]), (3, &last[..]));
    }

    #[test]
    fn rows_of_different_lengths_lie_side_by_side() {
        let rows = [vec![chosen(1, 2)], vec![chosen(2, 0), chosen(3, 3)]];
        let expected = [chosen(1, 2), chosen(2, 0), Chosen::BEFORE, chosen(3, 3)];
        assert_eq!(side_by_side(&rows), expected);
        assert_eq!(side_by_side(&[]), []);
    }
}
