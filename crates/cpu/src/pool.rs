//! A fixed set of threads that run one closure together.
//!
//! Decoding one token is a few hundred parallel regions of some tens of microseconds each, so what
//! counts is the round trip of [`ThreadPool::run`]: workers spin for [`SPIN`] after each region
//! before they park, and the caller works too. An idle pool uses no CPU.
//!
//! A region does not wait for a worker that has not come when the work is done: on a machine that
//! others use too, the kernel may run a woken thread milliseconds later, and that must not be the
//! duration of a region. So regions share out their work dynamically, and any number of the
//! pool's threads does it.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::fmt;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a thread waits for work by spinning before it lets the kernel park it: longer than the
/// serial gaps between the regions of one token, far shorter than anything an owner would notice.
const SPIN: Duration = Duration::from_micros(100);

/// How much of that is spent without offering the CPU to others: the thread that is waited for may
/// be one of them.
const SPIN_ALONE: Duration = Duration::from_micros(5);

/// Reads of the awaited flag between two looks at the clock.
const SPINS_PER_CLOCK: u32 = 32;

/// CPUs this process may use: its affinity mask and its cgroup's quota, at least 1.
pub fn available_threads() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// The closure of one region, its lifetime erased.
type Job = *const (dyn Fn(usize) + Sync);

/// Set in [`Shared::region`] while workers may enter.
const OPEN: u64 = 1 << 31;
/// The part of [`Shared::region`] that counts the workers inside.
const INSIDE: u64 = OPEN - 1;
/// One region, in the upper half of [`Shared::region`], which counts them.
const NUMBER: u64 = 1 << 32;

/// What the caller and the workers share.
struct Shared {
    /// The running region's closure. Written by the caller before it opens the region, read by
    /// workers that have entered it, and not written again before all of those have left.
    job: UnsafeCell<Option<Job>>,
    /// The number of the last region, whether it is open, how many workers are inside.
    region: AtomicU64,
    stop: AtomicBool,
    /// One flag per worker: it is parked, or about to be.
    parked: Box<[AtomicBool]>,
    /// The caller waits on `left` instead of spinning.
    caller_waits: AtomicBool,
    left_lock: Mutex<()>,
    left: Condvar,
    /// The first panic of a worker in the current region.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is the only field that is not `Sync` by itself. A worker reads it only between
// entering a region (acquire, after the caller's write and release) and leaving it (release), and
// the caller writes it only when the last region is closed and all have left (acquire). The closure
// behind it is `Sync`.
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
            region: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            parked: (0..wanted).map(|_| AtomicBool::new(false)).collect(),
            caller_waits: AtomicBool::new(false),
            left_lock: Mutex::new(()),
            left: Condvar::new(),
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

    /// Runs `f(0)` on the calling thread and `f(i)`, `i` from 1 to `threads() - 1`, on every worker
    /// that is free before `f(0)` returns, each at most once; returns when all are done. `f` must
    /// hand out its work dynamically, and `f(0)` return only when none is left to begin. Callers on
    /// different threads take turns.
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
        self.open(f);
        let own = catch_unwind(AssertUnwindSafe(|| in_region(|| f(0))));
        self.shared.close();
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

    /// Lets the workers at `f`, and wakes those that sleep.
    fn open(&self, f: &(dyn Fn(usize) + Sync)) {
        // SAFETY: only the lifetime changes. `run` does not return before the region is closed and
        // every worker has left the closure, not even when the caller's part panics.
        let job = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), Job>(f) };
        // SAFETY: `run` holds `turn`, the last region is closed and everybody has left it: nobody
        // reads the cell.
        unsafe { *self.shared.job.get() = Some(job) };
        self.next_region(OPEN);
    }

    /// Starts the next region, `OPEN` or closed, and unparks sleeping workers.
    fn next_region(&self, open: u64) {
        let last = self.shared.region.load(Ordering::Relaxed);
        let next = (last & !(NUMBER - 1)).wrapping_add(NUMBER) | open;
        // Sequentially consistent with `parked`: either the worker sees the new region before it
        // parks, or its flag is seen here.
        self.shared.region.store(next, Ordering::SeqCst);
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
        self.next_region(0);
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
            seen = self.wait_for_region(index, seen);
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            if self.enter(seen) {
                self.take_part(index);
            }
        }
    }

    /// Waits for another region than `seen`; its number.
    fn wait_for_region(&self, index: usize, seen: u64) -> u64 {
        let number = |order| self.region.load(order) / NUMBER;
        if !spin_until(|| number(Ordering::Acquire) != seen) {
            let parked = &self.parked[index - 1];
            parked.store(true, Ordering::SeqCst);
            while number(Ordering::SeqCst) == seen {
                thread::park();
            }
            parked.store(false, Ordering::Relaxed);
        }
        number(Ordering::Acquire)
    }

    /// Counts this worker into region `number`, if that is open still.
    fn enter(&self, number: u64) -> bool {
        let count_in = |region| {
            let open = region / NUMBER == number && region & OPEN != 0;
            open.then_some(region + 1)
        };
        self.region.fetch_update(Ordering::Acquire, Ordering::Relaxed, count_in).is_ok()
    }

    /// Runs the closure of the region this worker has entered, and leaves.
    fn take_part(&self, index: usize) {
        // SAFETY: the caller wrote the cell before it opened the region, and does not write it
        // again before this worker has left.
        if let Some(job) = unsafe { *self.job.get() } {
            // SAFETY: `run` keeps the closure alive until this worker has left.
            let f = unsafe { &*job };
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| in_region(|| f(index)))) {
                lock(&self.panic).get_or_insert(payload);
            }
        }
        // The last one to leave a closed region wakes the caller; sequentially consistent with
        // `caller_waits`.
        let before = self.region.fetch_sub(1, Ordering::SeqCst);
        let last = before & (OPEN | INSIDE) == 1;
        if last && self.caller_waits.load(Ordering::SeqCst) {
            let guard = lock(&self.left_lock);
            self.left.notify_one();
            drop(guard);
        }
    }

    /// Lets no more workers in, and waits until those inside have left.
    fn close(&self) {
        self.region.fetch_and(!OPEN, Ordering::SeqCst);
        let empty = |order| self.region.load(order) & INSIDE == 0;
        if spin_until(|| empty(Ordering::Acquire)) {
            return;
        }
        self.caller_waits.store(true, Ordering::SeqCst);
        let mut guard = lock(&self.left_lock);
        while !empty(Ordering::SeqCst) {
            guard = self.left.wait(guard).unwrap_or_else(PoisonError::into_inner);
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
        let waited = since.get_or_insert_with(Instant::now).elapsed();
        if waited > SPIN {
            return false;
        }
        if waited > SPIN_ALONE {
            thread::yield_now();
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

    /// Waits for `ready`, with a deadline.
    fn until(what: &str, ready: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !ready() {
            assert!(Instant::now() < deadline, "{what}");
            thread::yield_now();
        }
    }

    /// A region that ends when every thread of the pool has come.
    fn run_on_all(pool: &ThreadPool, f: impl Fn(usize) + Sync) {
        let came = AtomicUsize::new(0);
        pool.run(&|i| {
            came.fetch_add(1, Ordering::SeqCst);
            until("a worker never came", || came.load(Ordering::SeqCst) == pool.threads());
            f(i);
        });
    }

    #[test]
    fn every_thread_comes_once_per_region() {
        for threads in [1, 2, 3, 8] {
            let pool = ThreadPool::new(threads);
            assert_eq!(pool.threads(), threads);
            for round in 1..50_u64 {
                let calls: Vec<AtomicU64> = (0..threads).map(|_| AtomicU64::new(0)).collect();
                run_on_all(&pool, |i| {
                    calls[i].fetch_add(round, Ordering::Relaxed);
                });
                assert!(calls.iter().all(|c| c.load(Ordering::Relaxed) == round));
            }
        }
    }

    #[test]
    fn no_worker_is_inside_after_a_region() {
        let pool = ThreadPool::new(4);
        for _ in 0..20_000 {
            let alive = AtomicBool::new(true);
            let next = AtomicUsize::new(0);
            pool.run(&|_| {
                while next.fetch_add(1, Ordering::Relaxed) < 8 {
                    assert!(alive.load(Ordering::SeqCst));
                }
            });
            alive.store(false, Ordering::SeqCst);
        }
    }

    #[test]
    fn workers_come_again_after_they_have_parked() {
        let pool = ThreadPool::new(3);
        for _ in 0..5 {
            until("workers never parked", || {
                pool.shared.parked.iter().all(|parked| parked.load(Ordering::SeqCst))
            });
            let sum = AtomicUsize::new(0);
            run_on_all(&pool, |i| {
                sum.fetch_add(i + 1, Ordering::Relaxed);
            });
            assert_eq!(sum.load(Ordering::Relaxed), 6);
        }
    }

    #[test]
    fn the_caller_parks_until_a_slow_worker_has_left() {
        let pool = ThreadPool::new(2);
        let came = AtomicBool::new(false);
        let finished = AtomicBool::new(false);
        pool.run(&|i| {
            if i == 0 {
                until("the worker never came", || came.load(Ordering::SeqCst));
            } else {
                came.store(true, Ordering::SeqCst);
                until("the caller never parked", || {
                    pool.shared.caller_waits.load(Ordering::SeqCst)
                });
                finished.store(true, Ordering::SeqCst);
            }
        });
        assert!(finished.load(Ordering::SeqCst));
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
                        run_on_all(&pool, |_| {
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
                run_on_all(&pool, |i| assert!(i != culprit, "thread {i} fails"));
            }))
            .unwrap_err();
            let text = payload.downcast_ref::<String>().unwrap();
            assert_eq!(*text, format!("thread {culprit} fails"));
            let calls = AtomicUsize::new(0);
            run_on_all(&pool, |_| {
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
