//! Vectors of texts on the card, by models that generate.
//!
//! Texts share passes, as many as make up a slice of a prompt. Their pages are theirs alone, taken
//! before their first pass and given back after their last: nobody takes them meanwhile, and sessions
//! find the prompts that they have in common where they were. Between two slices sessions have passes.

use std::time::{Duration, Instant};

use m40_gpu::Sequence;
use m40_gpu::executor::{Executor, PassError, Row};
use m40_gpu::resident::pause;
use m40_program::Pooling;

use super::batch::failed;
use super::card::CardModel;
use crate::backend::PROMPT_ROWS;
use crate::embed::{EmbedError, EmbedText, Mean, is_wanted};
use crate::generate::{CancelToken, GenerateError};

/// How often texts ask again for room while sessions have it.
const LOOK: Duration = Duration::from_millis(20);

impl CardModel {
    /// As [`Runner::embed`](crate::backend::Runner::embed).
    pub(crate) fn embed(
        &self,
        texts: &[EmbedText],
        pooling: Pooling,
        cancel: &CancelToken,
    ) -> Result<Vec<Vec<f32>>, EmbedError> {
        let mut vectors = Vec::with_capacity(texts.len());
        while vectors.len() < texts.len() {
            let waiting = &texts[vectors.len()..];
            let group = &waiting[..together(waiting)];
            vectors.extend(self.embed_group(group, pooling, cancel)?);
        }
        Ok(vectors)
    }

    /// Vectors of the first of `texts` for which there is room, at least one.
    fn embed_group(
        &self,
        texts: &[EmbedText],
        pooling: Pooling,
        cancel: &CancelToken,
    ) -> Result<Vec<Vec<f32>>, EmbedError> {
        let mut sequences = self.room(texts, cancel)?;
        let mut means = vec![Mean::default(); sequences.len()];
        let rows: Vec<Row> = texts[..sequences.len()]
            .iter()
            .enumerate()
            .flat_map(|(sequence, text)| rows(text, sequence, pooling))
            .collect();
        for rows in rows.chunks(PROMPT_ROWS) {
            let wanted = rows.iter().filter(|row| row.logits).map(|row| row.sequence);
            let wanted: Vec<usize> = wanted.collect();
            if !self.duty.wait(cancel) {
                return Err(EmbedError::Cancelled);
            }
            let states;
            (states, sequences) = self.hidden(rows.to_vec(), sequences)?;
            let width = states.len() / wanted.len().max(1);
            for (i, text) in wanted.into_iter().enumerate() {
                means[text].add(&states[i * width..][..width]);
            }
        }
        Ok(means.iter().map(Mean::vector).collect())
    }

    /// A sequence with all its pages for each of the first texts; waits until there is one.
    fn room(&self, texts: &[EmbedText], cancel: &CancelToken) -> Result<Vec<Sequence>, EmbedError> {
        loop {
            let lengths: Vec<_> = texts.iter().map(|text| text.tokens.len()).collect();
            let taken = self.lend(move |executor| Ok(take_room(executor, &lengths)))?;
            if !taken.is_empty() {
                return Ok(taken);
            }
            if cancel.is_cancelled() {
                return Err(EmbedError::Cancelled);
            }
            pause(LOOK);
        }
    }

    /// One slice: the hidden states of the rows that want theirs.
    fn hidden(
        &self,
        rows: Vec<Row>,
        mut sequences: Vec<Sequence>,
    ) -> Result<(Vec<f32>, Vec<Sequence>), EmbedError> {
        let duty = self.duty.clone();
        self.lend(move |executor| {
            let begun = Instant::now();
            let mut borrowed: Vec<_> = sequences.iter_mut().collect();
            let states = executor.hidden(&rows, &mut borrowed)?.to_vec();
            let ended = Instant::now();
            duty.ran(ended - begun, ended);
            Ok((states, sequences))
        })
    }

    /// Has the model's thread do something in the model's turn.
    fn lend<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Executor) -> Result<T, PassError> + Send + 'static,
    ) -> Result<T, EmbedError> {
        let work = move |executor: &mut Executor| work(executor).map_err(|error| failed(&error));
        let done: Result<T, GenerateError> = self.in_turn(work).and_then(|lent| lent.wait());
        self.pulse.step();
        done.map_err(EmbedError::Pass)
    }
}

/// How many of the first texts make up a pass, at least one.
fn together(texts: &[EmbedText]) -> usize {
    let mut room = PROMPT_ROWS;
    let fits = |text: &&EmbedText| {
        let left = room.checked_sub(text.tokens.len());
        room = left.unwrap_or(0);
        left.is_some()
    };
    texts.iter().take_while(fits).count().max(1)
}

/// Sequences of these lengths, as many of the first as there is room for without taking any from others.
fn take_room(executor: &Executor, lengths: &[usize]) -> Vec<Sequence> {
    let take = |&tokens: &usize| {
        let mut sequence = executor.begin().ok()?;
        (sequence.fits(tokens) && sequence.reserve(tokens).is_ok()).then_some(sequence)
    };
    lengths.iter().map_while(take).collect()
}

/// The rows of a text; those are wanted of which its vector is made.
fn rows(text: &EmbedText, sequence: usize, pooling: Pooling) -> impl Iterator<Item = Row> {
    let count = text.tokens.len();
    text.tokens.iter().enumerate().map(move |(position, &token)| {
        let logits = is_wanted(pooling, position, count);
        Row { token, position, sequence, logits }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_share_a_pass_as_long_as_all_fit_it_whole() {
        let texts = |lengths: &[usize]| -> Vec<EmbedText> {
            let text = |&count: &usize| EmbedText { tokens: vec![1; count], second: None };
            lengths.iter().map(text).collect()
        };
        assert_eq!(together(&texts(&[100, 400, 12, 1])), 3);
        assert_eq!(together(&texts(&[2000, 1])), 1);
        assert_eq!(together(&texts(&[1, 2000, 1])), 1);
    }
}
