//! A model on the CPU, whose sessions share passes.
//!
//! No thread owns the executor: of the sessions that wait one computes the next pass for all who are in
//! it, on its own thread, so a session that is alone hands nothing to anybody. Which rows a pass has is
//! decided in [`batch`].

mod batch;
mod embed;
mod prefixes;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use m40_cpu::kv::PAGE_TOKENS;
use m40_cpu::{Executor, KvCache};
use m40_program::KvLayer;
use memmap2::Mmap;

use crate::backend::{Output, lock};
use crate::bench::{BenchOptions, CpuSubject, OnLine, bench};
use crate::duty::Duty;
use crate::generate::{CancelToken, GenerateError};
use crate::passes::{DecodePasses, PassCounter};
use batch::{Batch, Job, Next, compute};
use prefixes::Prefixes;

/// Conversations that gain by going on at a time. All of a pass share the reading and unpacking of
/// weights; beyond that many there is little left to share.
pub(crate) const SIDE_BY_SIDE: usize = 16;

/// A loaded model.
pub(crate) struct CpuModel {
    executor: Mutex<Executor<Mmap>>,
    layers: Vec<KvLayer>,
    /// Tokens that a conversation may have.
    context: usize,
    /// Whether no token sees those after it.
    is_causal: bool,
    duty: Duty,
    /// Sessions that there have been.
    sessions: AtomicU64,
    prefixes: Arc<Mutex<Prefixes>>,
    shared: Mutex<Shared>,
    passes: PassCounter,
    /// A pass has ended, or might be due.
    changed: Condvar,
}

/// What sessions have asked for.
struct Shared {
    batch: Batch,
    /// Whether one of them computes a pass.
    running: bool,
    /// What was computed, until its session takes it.
    done: Vec<Job>,
}

/// Keys and values of one conversation.
#[derive(Debug)]
pub(crate) struct CpuCache {
    session: u64,
    /// None only while the session waits for a pass.
    job: Option<Job>,
    /// Those that the cache holds.
    tokens: Vec<u32>,
    /// Ends what the session does now.
    cancel: CancelToken,
    prefixes: Arc<Mutex<Prefixes>>,
}

impl Drop for CpuCache {
    fn drop(&mut self) {
        // Its pages go first.
        self.job = None;
        lock(&self.prefixes).close(self.session);
    }
}

impl CpuCache {
    /// Forgets all tokens from position `len` on.
    pub(crate) fn truncate(&mut self, len: usize) {
        if let Some(job) = &mut self.job {
            job.cache.truncate(len);
        }
        self.tokens.truncate(len);
    }

    /// Bytes in use.
    pub(crate) fn bytes(&self) -> usize {
        self.job.as_ref().map_or(0, |job| job.cache.bytes())
    }
}

impl CpuModel {
    /// For conversations of at most `context` tokens.
    pub(crate) fn new(executor: Executor<Mmap>, context: usize, duty: Duty) -> Self {
        let batch = Batch::new(Instant::now());
        Self {
            layers: executor.program().kv.clone(),
            is_causal: executor.program().is_causal(),
            prefixes: Arc::new(Mutex::new(Prefixes::new(context))),
            executor: Mutex::new(executor),
            context,
            duty,
            sessions: AtomicU64::new(0),
            shared: Mutex::new(Shared { batch, running: false, done: vec![] }),
            passes: PassCounter::default(),
            changed: Condvar::new(),
        }
    }

    /// An empty cache.
    pub(crate) fn cache(&self) -> CpuCache {
        let session = self.sessions.fetch_add(1, Ordering::Relaxed);
        let job = Job::new(session, KvCache::new(&self.layers, self.context));
        lock(&self.prefixes).open(session);
        CpuCache {
            session,
            job: Some(job),
            tokens: vec![],
            cancel: CancelToken::new(),
            prefixes: Arc::clone(&self.prefixes),
        }
    }

    /// As [`Runner::begin`](crate::backend::Runner::begin). Whoever is cancelled waits for no pass.
    pub(crate) fn begin(&self, cache: &mut CpuCache, cancel: &CancelToken) {
        cache.cancel = cancel.clone();
    }

    /// As [`Runner::pass`](crate::backend::Runner::pass).
    pub(crate) fn pass<T>(
        &self,
        cache: &mut CpuCache,
        base: usize,
        tokens: &[u32],
        take: impl FnOnce(Output<'_>) -> T,
    ) -> Result<(usize, T), GenerateError> {
        cache.truncate(base);
        let mut job = cache.job.take().expect("a session has its job back after each pass");
        // Pages that end in `tokens`, and not with the last, may have been computed by now.
        if (base + tokens.len() - 1) / PAGE_TOKENS > base / PAGE_TOKENS {
            cache.tokens.extend_from_slice(tokens);
            let mut prefixes = lock(&self.prefixes);
            let held = prefixes.find(cache.session, &mut job.cache, base, &cache.tokens);
            drop(prefixes);
            cache.tokens.truncate(held);
            if held > base {
                cache.job = Some(job);
                return Ok((held - base, take(Output::Found)));
            }
        }
        job.follow(base, tokens);
        let positions = job.positions();
        if job.cache.lacking(positions.clone()) > 0 {
            lock(&self.prefixes).reserve(cache.session, &mut job.cache, positions);
        }
        let job = cache.job.insert(self.computed(job, &cache.cancel));
        if let Some(failure) = job.failure.take() {
            return Err(failure);
        }
        cache.tokens.extend_from_slice(&tokens[..job.count]);
        if cache.tokens.len() / PAGE_TOKENS > base / PAGE_TOKENS {
            lock(&self.prefixes).keep(&job.cache, &cache.tokens);
        }
        let logits = job.wants_logits();
        let output = if logits { Output::Logits(&mut job.logits) } else { Output::Nothing };
        Ok((job.count, take(output)))
    }

    /// Waits until a pass has had a part of the job, or its session was cancelled, in which case none
    /// of it is computed.
    fn computed(&self, job: Job, cancel: &CancelToken) -> Job {
        let session = job.session;
        let mut shared = lock(&self.shared);
        shared.batch.ask(job);
        loop {
            if let Some(at) = shared.done.iter().position(|job| job.session == session) {
                return shared.done.swap_remove(at);
            }
            if cancel.is_cancelled()
                && let Some(job) = shared.batch.withdraw(session)
            {
                return job;
            }
            let now = Instant::now();
            shared = match shared.batch.next(now) {
                Next::Pass if !shared.running => match self.duty.pause(now) {
                    Some(time) => self.wait(shared, time),
                    None => self.run(shared),
                },
                Next::Wait(time) if !shared.running => self.wait(shared, time),
                _ => self.changed.wait(shared).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn wait<'a>(
        &'a self,
        shared: MutexGuard<'a, Shared>,
        time: Duration,
    ) -> MutexGuard<'a, Shared> {
        self.changed.wait_timeout(shared, time).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Computes the next pass, for all who have rows in it.
    fn run<'a>(&'a self, mut shared: MutexGuard<'a, Shared>) -> MutexGuard<'a, Shared> {
        shared.running = true;
        let mut jobs = shared.batch.pass();
        drop(shared);
        let mut executor = lock(&self.executor);
        let begun = Instant::now();
        compute(&mut executor, &mut jobs);
        let ended = Instant::now();
        self.duty.ran(ended - begun, ended);
        drop(executor);
        let streams = jobs.iter().filter(|job| job.is_stream() && job.failure.is_none()).count();
        if streams > 0 {
            self.passes.count(1, streams);
        }
        let mut shared = lock(&self.shared);
        shared.running = false;
        shared.batch.ran(&jobs, ended - begun, ended);
        shared.done.extend(jobs);
        self.changed.notify_all();
        shared
    }

    /// As [`Runner::rest`](crate::backend::Runner::rest).
    pub(crate) fn rest(&self, cache: &CpuCache) {
        lock(&self.shared).batch.heard(cache.session);
        // Others may have waited for nobody else.
        self.changed.notify_all();
    }

    /// As [`Runner::decode_passes`](crate::backend::Runner::decode_passes).
    pub(crate) fn decode_passes(&self) -> DecodePasses {
        self.passes.read()
    }

    /// As [`Runner::bench`](crate::backend::Runner::bench).
    pub(crate) fn bench(
        &self,
        cache: &mut CpuCache,
        options: &BenchOptions,
        on_line: &mut OnLine<'_>,
    ) -> Result<(), GenerateError> {
        cache.truncate(0);
        lock(&self.prefixes).lend(cache.session);
        let mut executor = lock(&self.executor);
        let mut subject = CpuSubject::new(&mut executor, self.context, options.kv_bytes);
        let done = bench(&mut subject, options, on_line);
        drop(subject);
        lock(&self.prefixes).open(cache.session);
        done
    }

    /// As [`Runner::bench_bytes`](crate::backend::Runner::bench_bytes).
    pub(crate) fn bench_bytes(&self, options: &BenchOptions) -> u64 {
        let token_bytes = lock(&self.executor).program().kv_bytes_per_token() as u64;
        let tokens = options.kv_tokens(self.context, PAGE_TOKENS) as u64;
        let own = self.context.next_multiple_of(PAGE_TOKENS) as u64;
        tokens.saturating_sub(own).saturating_mul(token_bytes)
    }

    /// Whether a pass is computed.
    #[cfg(test)]
    pub(crate) fn is_busy(&self) -> bool {
        lock(&self.shared).running
    }
}

impl fmt::Debug for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CpuModel").field("executor", &self.executor).finish_non_exhaustive()
    }
}
