//! A model on a GPU.

use std::sync::Arc;
use std::time::{Duration, Instant};

use m40_gpu::Sequence;
use m40_gpu::executor::{Executor, Row, Unattended};
use m40_gpu::ops::PAGE_TOKENS;
use m40_program::Program;

use super::{Subject, token};
use crate::generate::GenerateError;
use crate::gpu::failed;
use crate::pulse::Pulse;

/// Executor, and the sequences that are measured.
pub(crate) struct CardSubject<'a> {
    executor: &'a mut Executor,
    sequences: Vec<Sequence>,
    pulse: Arc<Pulse>,
}

impl<'a> CardSubject<'a> {
    /// Each measurement is a step of `pulse`.
    pub(crate) fn new(executor: &'a mut Executor, pulse: Arc<Pulse>) -> Self {
        Self { executor, sequences: vec![], pulse }
    }

    fn sequence(&self) -> Result<Sequence, GenerateError> {
        self.executor.begin().map_err(|error| GenerateError::TooManySessions { most: error.most })
    }
}

impl Subject for CardSubject<'_> {
    fn program(&self) -> &Program {
        self.executor.program()
    }

    fn context(&self) -> usize {
        self.executor.lowered().target.context as usize
    }

    fn room(&self) -> usize {
        let held: usize = self.sequences.iter().map(Sequence::pages).sum();
        (self.executor.pages().0 + held) * PAGE_TOKENS
    }

    fn page(&self) -> usize {
        PAGE_TOKENS
    }

    fn passes(&self, sequences: usize) -> usize {
        sequences.div_ceil(self.executor.rows_at_once(sequences).max(1))
    }

    fn prompt(&mut self, tokens: &[u32], depth: usize) -> Result<Duration, GenerateError> {
        self.pulse.step();
        self.sequences.clear();
        let mut sequence = self.sequence()?;
        self.executor.pretend(&mut sequence, depth).map_err(|error| failed(&error))?;
        let row = |(i, &token)| {
            let logits = i == tokens.len() - 1;
            Row { token, position: depth + i, sequence: 0, logits }
        };
        let rows: Vec<_> = tokens.iter().enumerate().map(row).collect();
        let begun = Instant::now();
        self.executor.forward(&rows, &mut [&mut sequence]).map_err(|error| failed(&error))?;
        Ok(begun.elapsed())
    }

    fn begin(&mut self, sequences: usize, depth: usize) -> Result<(), GenerateError> {
        self.pulse.step();
        self.sequences.clear();
        for _ in 0..sequences {
            let mut sequence = self.sequence()?;
            self.executor.pretend(&mut sequence, depth).map_err(|error| failed(&error))?;
            self.sequences.push(sequence);
        }
        Ok(())
    }

    /// More sequences than a pass has rows go through the card in groups, one after another.
    fn decode(&mut self, tokens: usize, depth: usize) -> Result<Duration, GenerateError> {
        self.pulse.step();
        let vocab = self.program().description.vocab;
        let begun = Instant::now();
        let rows = self.executor.rows_at_once(self.sequences.len()).max(1);
        for sequences in self.sequences.chunks_mut(rows) {
            let row = |sequence| {
                let token = token(sequence, vocab);
                Row { token, position: depth, sequence, logits: false }
            };
            let rows: Vec<_> = (0..sequences.len()).map(row).collect();
            let mut sequences: Vec<_> = sequences.iter_mut().collect();
            self.executor
                .choose_attended(&rows, &mut sequences, tokens as u32, &mut Unattended)
                .map_err(|error| failed(&error))?;
        }
        let time = begun.elapsed();
        for sequence in &mut self.sequences {
            // Full pages go as a whole.
            let lost = depth - sequence.truncate(depth);
            self.executor.pretend(sequence, lost).map_err(|error| failed(&error))?;
        }
        Ok(time)
    }

    fn copy_rate(&mut self) -> Result<Option<f64>, GenerateError> {
        self.executor.copy_rate().map_err(|error| failed(&error))
    }

    fn barrier(&mut self) -> Result<Option<Duration>, GenerateError> {
        self.executor.barrier_time().map_err(|error| failed(&error))
    }
}
