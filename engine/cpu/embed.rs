//! Vectors of texts on the CPU.
//!
//! Texts share a pass as long as the pages of their keys and values are no more than one context has,
//! which is what the model was given memory for; they are gone after it. A causal model's texts are
//! computed in slices, so that streams beside them never wait for long.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;
use std::time::Instant;

use m40_cpu::kv::PAGE_TOKENS;
use m40_cpu::{Executor, KvCache, Row};
use m40_program::Pooling;
use memmap2::Mmap;

use super::CpuModel;
use super::batch::Next;
use crate::backend::{PROMPT_ROWS, lock};
use crate::embed::{EmbedError, EmbedText, Mean, is_wanted};
use crate::generate::{CancelToken, GenerateError};

/// Rows of a slice. Half of a prompt's: where all rows go on to the end, as for a mean, their buffers
/// take no more than those of a prompt.
const SLICE_ROWS: usize = PROMPT_ROWS / 2;

impl CpuModel {
    /// As [`Runner::embed`](crate::backend::Runner::embed).
    pub(crate) fn embed(
        &self,
        texts: &[EmbedText],
        pooling: Pooling,
        cancel: &CancelToken,
    ) -> Result<Vec<Vec<f32>>, EmbedError> {
        // What a session may have is taken by the texts' caches, so nothing is kept there meanwhile.
        let place = self.cache();
        lock(&self.prefixes).lend(place.session);
        let mut vectors = Vec::with_capacity(texts.len());
        while vectors.len() < texts.len() {
            let waiting = &texts[vectors.len()..];
            let group = &waiting[..self.fitting(waiting)];
            vectors.extend(self.embed_group(group, pooling, cancel)?);
        }
        Ok(vectors)
    }

    /// How many of the first texts have room in a context, at least one.
    fn fitting(&self, texts: &[EmbedText]) -> usize {
        let mut room = self.context.div_ceil(PAGE_TOKENS);
        let fits = |text: &&EmbedText| {
            let left = room.checked_sub(text.tokens.len().div_ceil(PAGE_TOKENS));
            room = left.unwrap_or(room);
            left.is_some()
        };
        texts.iter().take_while(fits).count().max(1)
    }

    fn embed_group(
        &self,
        texts: &[EmbedText],
        pooling: Pooling,
        cancel: &CancelToken,
    ) -> Result<Vec<Vec<f32>>, EmbedError> {
        let rows: Vec<Row> =
            texts.iter().enumerate().flat_map(|(cache, text)| rows(text, cache, pooling)).collect();
        let mut caches: Vec<KvCache> =
            texts.iter().map(|_| KvCache::new(&self.layers, self.context)).collect();
        let mut means = vec![Mean::default(); texts.len()];
        let slice = if self.is_causal { SLICE_ROWS } else { rows.len() };
        for rows in rows.chunks(slice) {
            if cancel.is_cancelled() {
                return Err(EmbedError::Cancelled);
            }
            let wanted: Vec<&Row> = rows.iter().filter(|row| row.logits).collect();
            let mut caches: Vec<&mut KvCache> = caches.iter_mut().collect();
            self.alone(|executor| {
                let states = match pooling {
                    Pooling::Rank => executor.forward(rows, &mut caches),
                    Pooling::Mean | Pooling::Cls | Pooling::Last => {
                        executor.hidden(rows, &mut caches)
                    }
                };
                let width = states.len() / wanted.len().max(1);
                for (i, row) in wanted.iter().enumerate() {
                    means[row.cache].add(&states[i * width..][..width]);
                }
            })?;
        }
        Ok(means.iter().map(Mean::vector).collect())
    }

    /// Has the executor for a pass. A pass that sessions wait for comes first, so they have every
    /// second one at least.
    fn alone(&self, compute: impl FnOnce(&mut Executor<Mmap>)) -> Result<(), EmbedError> {
        let mut shared = lock(&self.shared);
        let mut let_go_first = false;
        loop {
            let now = Instant::now();
            if shared.running {
                shared = self.changed.wait(shared).unwrap_or_else(PoisonError::into_inner);
            } else if let Some(time) = self.duty.pause(now) {
                shared = self.wait(shared, time);
            } else if !let_go_first && shared.batch.next(now) == Next::Pass {
                shared = self.run(shared);
                let_go_first = true;
            } else {
                break;
            }
        }
        shared.running = true;
        drop(shared);
        let mut executor = lock(&self.executor);
        // What a pass leaves behind is scratch, which the next one overwrites.
        let begun = Instant::now();
        let computed = catch_unwind(AssertUnwindSafe(|| compute(&mut executor)));
        let ended = Instant::now();
        self.duty.ran(ended - begun, ended);
        drop(executor);
        lock(&self.shared).running = false;
        self.changed.notify_all();
        let reason = "a pass of the model panicked, see the log";
        computed.map_err(|_| EmbedError::Pass(GenerateError::Pass { reason: reason.into() }))
    }
}

/// The rows of a text; those are wanted of which its vector is made.
fn rows(text: &EmbedText, cache: usize, pooling: Pooling) -> impl Iterator<Item = Row> {
    let count = text.tokens.len();
    let second = text.second.unwrap_or(count);
    text.tokens.iter().enumerate().map(move |(position, &token)| {
        let (segment, logits) = (u8::from(position >= second), is_wanted(pooling, position, count));
        Row { token, position, cache, segment, logits }
    })
}
