//! A model on the CPU.

use std::time::{Duration, Instant};

use m40_cpu::{Executor, KvCache, Row};
use m40_program::Program;
use memmap2::Mmap;

use super::{Subject, token};
use crate::cpu::SIDE_BY_SIDE;
use crate::generate::GenerateError;

/// Executor, and the sequences that are measured.
pub(crate) struct CpuSubject<'a> {
    executor: &'a mut Executor<Mmap>,
    context: usize,
    kv_bytes: u64,
    caches: Vec<KvCache>,
}

impl<'a> CpuSubject<'a> {
    /// With memory for one sequence of `context` tokens, and so many bytes more.
    pub(crate) fn new(executor: &'a mut Executor<Mmap>, context: usize, kv_bytes: u64) -> Self {
        Self { executor, context, kv_bytes, caches: vec![] }
    }
}

impl Subject for CpuSubject<'_> {
    fn program(&self) -> &Program {
        self.executor.program()
    }

    fn context(&self) -> usize {
        self.context
    }

    fn room(&self) -> usize {
        let bytes = self.program().kv_bytes_per_token() as u64;
        let more = self.kv_bytes.checked_div(bytes).unwrap_or(u64::MAX);
        let more = usize::try_from(more).unwrap_or(usize::MAX);
        self.context.next_multiple_of(self.page()).saturating_add(more)
    }

    fn page(&self) -> usize {
        m40_cpu::kv::PAGE_TOKENS
    }

    fn passes(&self, sequences: usize) -> usize {
        sequences.div_ceil(SIDE_BY_SIDE)
    }

    fn prompt(&mut self, tokens: &[u32], depth: usize) -> Result<Duration, GenerateError> {
        self.caches.clear();
        let mut cache = self.executor.cache(depth + tokens.len());
        let row = |position, token| Row {
            token,
            position,
            cache: 0,
            segment: 0,
            logits: position + 1 == depth + tokens.len(),
        };
        // The first pass makes the pages of all positions before its own, which is no part of a prompt.
        if let Some(last) = depth.checked_sub(1) {
            self.executor.forward(&[row(last, 0)], &mut [&mut cache]);
        }
        let begun = Instant::now();
        let rows: Vec<_> = (depth..).zip(tokens).map(|(at, &token)| row(at, token)).collect();
        for rows in rows.chunks(crate::backend::PROMPT_ROWS) {
            self.executor.forward(rows, &mut [&mut cache]);
        }
        Ok(begun.elapsed())
    }

    fn begin(&mut self, sequences: usize, _depth: usize) -> Result<(), GenerateError> {
        self.caches.clear();
        // The first pass makes the pages of all positions before its own, full of zeros.
        self.caches.extend((0..sequences).map(|_| self.executor.cache(self.context)));
        Ok(())
    }

    fn decode(&mut self, tokens: usize, depth: usize) -> Result<Duration, GenerateError> {
        let vocab = self.program().description.vocab;
        let mut caches: Vec<_> = self.caches.iter_mut().collect();
        let begun = Instant::now();
        for position in depth..depth + tokens {
            let row = |cache| {
                let token = token(position + cache, vocab);
                Row { token, position, cache, segment: 0, logits: true }
            };
            // As sessions would, for which the model has its working memory.
            for caches in caches.chunks_mut(SIDE_BY_SIDE) {
                let rows: Vec<_> = (0..caches.len()).map(row).collect();
                self.executor.forward(&rows, caches);
            }
        }
        let time = begun.elapsed();
        self.caches.iter_mut().for_each(|cache| cache.truncate(depth));
        Ok(time)
    }

    fn copy_rate(&mut self) -> Result<Option<f64>, GenerateError> {
        Ok(None)
    }

    fn barrier(&mut self) -> Result<Option<Duration>, GenerateError> {
        Ok(None)
    }
}
