//! A fixed set of threads that run one closure together.
//!
//! Decoding one token is a few hundred parallel regions of some tens of microseconds each, so what
//! counts is the round trip of [`ThreadPool::run`]: workers spin for [`SPIN`] after each region
//! before they park, and the caller works too. An idle pool uses no CPU.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::fmt;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a thread waits for work by spinning before it lets the kernel park it: longer than the
/// serial gaps between the regions of one token, far shorter than anything an owner would notice.
const SPIN: Duration = Duration::from_micros(100);

/// Reads of the awaited flag between two looks at the clock.
const SPINS_PER_CLOCK: u32 = 32;

/// CPUs this process may use: its affinity mask and its cgroup's quota, at least 1.
pub fn available_threads() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// The closure of one region, its lifetime erased.
type Job = *const (dyn Fn(usize) + Sync);

/// What the caller and the workers share.
struct Shared {
    /// The running region's closure. Written by the caller before it bumps `epoch`, read by workers
    /// after they saw the bump, and not written again before `running` is back at zero.
    job: UnsafeCell<Option<Job>>,
    /// Number of regions started; a change is what workers wait for.
    epoch: AtomicUsize,
    /// Workers that have not finished the current region.
    running: AtomicUsize,
    stop: AtomicBool,
    /// One flag per worker: it is parked, or about to be.
    parked: Box<[AtomicBool]>,
    /// The caller waits on `done` instead of spinning.
    caller_waits: AtomicBool,
    done_lock: Mutex<()>,
    done: Condvar,
    /// The first panic of a worker in the current region.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is the only field that is not `Sync` by itself. Its writes and reads are ordered by
// `epoch` (release by the caller, acquire by a worker) and by `running` (the caller waits for zero
// before the next write), and the closure behind it is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is to a `Sync` closure, and is only followed while `run` keeps that
// closure alive.
unsafe impl Send for Shared {}

thread_local! {
    /// This thread is inside a region, of whichever pool.
    static IN_REGION: Cell<bool> = const { Cell::new(false) };
}

/// Threads that run one closure together. Dropping the pool stops and joins them.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Regions of different callers run one after another.
    turn: Mutex<()>,
}

impl ThreadPool {
    /// A pool of `threads` threads (at least 1), the caller of [`run`](Self::run) being one of them.
    ///
    /// When the system refuses to start a thread, the pool has those it could start.
    pub fn new(threads: usize) -> Self {
        let wanted = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            job: UnsafeCell::new(None),
            epoch: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            parked: (0..wanted).map(|_| AtomicBool::new(false)).collect(),
            caller_waits: AtomicBool::new(false),
            done_lock: Mutex::new(()),
            done: Condvar::new(),
            panic: Mutex::new(None),
        });
        let workers = (1..=wanted)
            .map_while(|index| {
                let shared = Arc::clone(&shared);
                let builder = thread::Builder::new().name(format!("m40-cpu-{index}"));
                builder.spawn(move || shared.work(index)).ok()
            })
            .collect();
        Self { shared, workers, turn: Mutex::new(()) }
    }

    /// Number of threads that run a region, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `f(i)` on every thread of the pool, `i` from 0 (the caller) to `threads() - 1`, and
    /// returns when all are done. Callers on different threads take turns.
    ///
    /// # Panics
    /// When `f` panicked on any thread (with its payload, after all are done), or when called from
    /// inside a region.
    pub fn run(&self, f: &(dyn Fn(usize) + Sync)) {
        assert!(!IN_REGION.get(), "a region of a thread pool started inside another one");
        if self.workers.is_empty() {
            return in_region(|| f(0));
        }
        let turn = lock(&self.turn);
        self.start(f);
        let own = catch_unwind(AssertUnwindSafe(|| in_region(|| f(0))));
        self.shared.wait_for_workers();
        let theirs = lock(&self.shared.panic).take();
        drop(turn);
        if let Some(payload) = own.err().or(theirs) {
            resume_unwind(payload);
        }
    }

    /// Calls `f(i, chunk)` for every `len` long chunk of `items` (the last may be shorter), spread
    /// over the threads as they become free.
    ///
    /// # Panics
    /// As [`run`](Self::run), and when `len` is 0.
    pub fn for_each_chunk<T: Send>(
        &self,
        items: &mut [T],
        len: usize,
        f: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let total = items.len();
        let chunks = total.div_ceil(len);
        if chunks <= 1 || self.workers.is_empty() {
            return items.chunks_mut(len).enumerate().for_each(|(i, chunk)| f(i, chunk));
        }
        let start = SendPtr(items.as_mut_ptr());
        let next = AtomicUsize::new(0);
        self.run(&|_| {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= chunks {
                    break;
                }
                let first = index * len;
                let count = len.min(total - first);
                // SAFETY: `first < total`, the length of the slice `start` points to.
                let pointer = unsafe { start.get().add(first) };
                // SAFETY: every index is handed out once, so the chunks of different threads do not
                // overlap; `items` stays mutably borrowed until `run` has returned.
                let chunk = unsafe { std::slice::from_raw_parts_mut(pointer, count) };
                f(index, chunk);
            }
        });
    }

    /// Publishes `f` to the workers and wakes those that sleep.
    fn start(&self, f: &(dyn Fn(usize) + Sync)) {
        // SAFETY: only the lifetime changes. `run` does not return before `running` is zero, that
        // is, before every worker has left the closure, not even when the caller's part panics.
        let job = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), Job>(f) };
        // SAFETY: the caller holds `turn` and `running` is zero, so nobody reads the cell.
        unsafe { *self.shared.job.get() = Some(job) };
        self.shared.running.store(self.workers.len(), Ordering::Relaxed);
        self.wake();
    }

    /// Bumps the epoch (or lets `stop` be seen) and unparks sleeping workers.
    fn wake(&self) {
        // Sequentially consistent with `parked`: either the worker sees the new epoch before it
        // parks, or the flag is seen here.
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        for (parked, worker) in self.shared.parked.iter().zip(&self.workers) {
            if parked.load(Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.wake();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of what it runs, so it cannot have died of one.
            let _ = worker.join();
        }
    }
}

impl fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadPool").field("threads", &self.threads()).finish_non_exhaustive()
    }
}

impl Shared {
    /// The life of worker `index`.
    fn work(&self, index: usize) {
        let mut seen = 0;
        loop {
            self.wait_for_epoch(index, seen);
            seen += 1;
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            // SAFETY: the caller wrote the cell before the epoch that was just seen, and does not
            // write again before `running` is zero.
            if let Some(job) = unsafe { *self.job.get() } {
                self.take_part(job, index);
            }
        }
    }

    fn take_part(&self, job: Job, index: usize) {
        // SAFETY: `run` keeps the closure alive until this worker has decremented `running`.
        let f = unsafe { &*job };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| in_region(|| f(index)))) {
            lock(&self.panic).get_or_insert(payload);
        }
        // The last one wakes the caller; sequentially consistent with `caller_waits`.
        if self.running.fetch_sub(1, Ordering::SeqCst) == 1
            && self.caller_waits.load(Ordering::SeqCst)
        {
            let guard = lock(&self.done_lock);
            self.done.notify_one();
            drop(guard);
        }
    }

    fn wait_for_epoch(&self, index: usize, seen: usize) {
        if spin_until(|| self.epoch.load(Ordering::Acquire) != seen) {
            return;
        }
        let parked = &self.parked[index - 1];
        parked.store(true, Ordering::SeqCst);
        while self.epoch.load(Ordering::SeqCst) == seen {
            thread::park();
        }
        parked.store(false, Ordering::Relaxed);
    }

    fn wait_for_workers(&self) {
        if spin_until(|| self.running.load(Ordering::Acquire) == 0) {
            return;
        }
        self.caller_waits.store(true, Ordering::SeqCst);
        let mut guard = lock(&self.done_lock);
        while self.running.load(Ordering::SeqCst) != 0 {
            guard = self.done.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.caller_waits.store(false, Ordering::Relaxed);
    }
}

/// Spins until `ready` or for [`SPIN`]; whether it became ready.
fn spin_until(ready: impl Fn() -> bool) -> bool {
    let mut since = None;
    loop {
        for _ in 0..SPINS_PER_CLOCK {
            if ready() {
                return true;
            }
            std::hint::spin_loop();
        }
        if since.get_or_insert_with(Instant::now).elapsed() > SPIN {
            return false;
        }
    }
}

/// Runs `f` with this thread marked as being inside a region, also when it unwinds.
fn in_region(f: impl FnOnce()) {
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            IN_REGION.set(false);
        }
    }
    IN_REGION.set(true);
    let _leave = Leave;
    f();
}

/// Locks a mutex whose data are valid whatever the thread that panicked was doing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pointer that may be used from other threads; what makes that sound is said where it is used.
struct SendPtr<T>(*mut T);

// SAFETY: a pointer is only a number; the dereference in `for_each_chunk` argues for itself, and
// `T: Send` there lets the items be changed from another thread.
unsafe impl<T: Send> Sync for SendPtr<T> {}

impl<T> SendPtr<T> {
    /// By method, so that closures capture the wrapper and not the bare pointer.
    fn get(&self) -> *mut T {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn every_thread_runs_once_per_region() {
        for threads in [1, 2, 3, 8] {
            let pool = ThreadPool::new(threads);
            assert_eq!(pool.threads(), threads);
            for round in 1..200_u64 {
                let calls: Vec<AtomicU64> = (0..threads).map(|_| AtomicU64::new(0)).collect();
                pool.run(&|i| {
                    calls[i].fetch_add(round, Ordering::Relaxed);
                });
                assert!(calls.iter().all(|c| c.load(Ordering::Relaxed) == round));
            }
        }
    }

    #[test]
    fn regions_work_after_the_workers_have_parked() {
        let pool = ThreadPool::new(3);
        for _ in 0..5 {
            let deadline = Instant::now() + Duration::from_secs(10);
            while !pool.shared.parked.iter().all(|p| p.load(Ordering::SeqCst)) {
                assert!(Instant::now() < deadline, "workers never parked");
                thread::yield_now();
            }
            let sum = AtomicUsize::new(0);
            pool.run(&|i| {
                sum.fetch_add(i + 1, Ordering::Relaxed);
            });
            assert_eq!(sum.load(Ordering::Relaxed), 6);
        }
    }

    #[test]
    fn callers_on_different_threads_take_turns() {
        let pool = ThreadPool::new(2);
        let inside = AtomicUsize::new(0);
        let total = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        pool.run(&|_| {
                            assert!(inside.fetch_add(1, Ordering::SeqCst) < 2);
                            total.fetch_add(1, Ordering::Relaxed);
                            inside.fetch_sub(1, Ordering::SeqCst);
                        });
                    }
                });
            }
        });
        assert_eq!(total.load(Ordering::Relaxed), 800);
    }

    #[test]
    fn a_panic_on_any_thread_reaches_the_caller_and_the_pool_survives() {
        let pool = ThreadPool::new(3);
        for culprit in 0..3 {
            let payload = catch_unwind(AssertUnwindSafe(|| {
                pool.run(&|i| assert!(i != culprit, "thread {i} fails"));
            }))
            .unwrap_err();
            let text = payload.downcast_ref::<String>().unwrap();
            assert_eq!(*text, format!("thread {culprit} fails"));
            let calls = AtomicUsize::new(0);
            pool.run(&|_| {
                calls.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(calls.load(Ordering::Relaxed), 3);
        }
    }

    #[test]
    fn refuses_a_region_inside_a_region() {
        let pool = ThreadPool::new(2);
        let nested = catch_unwind(AssertUnwindSafe(|| pool.run(&|_| pool.run(&|_| {}))));
        assert!(nested.is_err());
        pool.run(&|_| {});
    }

    #[test]
    fn chunks_are_visited_once_each_with_the_right_index() {
        for threads in [1, 2, 4] {
            let pool = ThreadPool::new(threads);
            for (total, len) in [(0, 3), (1, 3), (3, 3), (10, 3), (1000, 7)] {
                let mut items = vec![0_usize; total];
                pool.for_each_chunk(&mut items, len, |index, chunk| {
                    for item in chunk {
                        *item += index + 1;
                    }
                });
                assert!(items.iter().enumerate().all(|(i, &item)| item == i / len + 1));
            }
        }
    }

    #[test]
    fn at_least_one_cpu_is_available() {
        assert!(available_threads() >= 1);
    }
}
