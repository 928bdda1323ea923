//! Which driver calls may pass: all, or only those that a resident kernel cannot hold up; none on a
//! device that is lost.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use crate::driver::{Call, Class, Garbage};
use crate::error::CudaError;

/// How long an allocating call waits for kernels of other threads to leave.
const PATIENCE: Duration = Duration::from_secs(10);

/// The state behind all driver calls of the process.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    users: Mutex<Users>,
    changed: Condvar,
    lost: OnceLock<CudaError>,
    garbage: Mutex<Vec<Garbage>>,
    /// Calls that went to the driver, by [`Class`], and last those that were refused.
    calls: [AtomicU64; 5],
}

/// Who has the device in a way that others have to respect.
#[derive(Debug, Default)]
struct Users {
    /// The threads that keep a kernel resident.
    resident: Vec<ThreadId>,
    /// Allocating calls under way: no kernel becomes resident in the middle of one.
    allocating: u32,
    /// Allocating calls that wait for kernels to leave.
    waiting: u32,
}

/// An allocating call under way.
#[derive(Debug)]
pub(crate) struct Pass<'a>(&'a Gate);

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.users().allocating -= 1;
        self.0.changed.notify_all();
    }
}

/// Driver calls while a kernel was resident.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// Calls that only ask.
    pub queries: u64,
    /// Calls that only enqueue.
    pub enqueues: u64,
    /// Calls that wait for one stream or event.
    pub waits: u64,
    /// Calls that allocate or may wait for the whole device. 0 is what the gate is for.
    pub allocates: u64,
    /// Calls that were refused.
    pub refused: u64,
}

impl Gate {
    /// Lets a call through while the result lives. One that allocates waits for the kernels of other
    /// threads to leave, which they are asked to; beside one of its own thread it is refused.
    pub(crate) fn pass(&self, call: Call) -> Result<Option<Pass<'_>>, CudaError> {
        if let Some(lost) = self.lost.get() {
            return Err(lost.clone());
        }
        let class = call.class();
        let mut pass = None;
        if !class.allowed_beside_resident_kernel() {
            let Some(allowed) = self.allocate() else {
                self.calls[4].fetch_add(1, Ordering::Relaxed);
                return Err(CudaError::Resident { call });
            };
            pass = Some(allowed);
        }
        self.calls[index(class)].fetch_add(1, Ordering::Relaxed);
        Ok(pass)
    }

    fn allocate(&self) -> Option<Pass<'_>> {
        let mut users = self.users();
        if users.resident.contains(&thread::current().id()) {
            return None;
        }
        users.waiting += 1;
        let stays = |users: &mut Users| !users.resident.is_empty();
        let waited = self.changed.wait_timeout_while(users, PATIENCE, stays);
        users = waited.unwrap_or_else(PoisonError::into_inner).0;
        users.waiting -= 1;
        let allowed = users.resident.is_empty();
        users.allocating += u32::from(allowed);
        drop(users);
        self.changed.notify_all();
        allowed.then_some(Pass(self))
    }

    fn users(&self) -> MutexGuard<'_, Users> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the device is lost; the first such error is the one that every call gets.
    pub(crate) fn lose(&self, call: Call, code: u32, name: String) -> CudaError {
        self.lost.get_or_init(|| CudaError::DeviceLost { call, code, name }).clone()
    }

    /// The error that lost the device.
    pub(crate) fn lost(&self) -> Option<&CudaError> {
        self.lost.get()
    }

    /// Waits for allocating calls to end and holds up others from then on. Returns the calls so far.
    pub(crate) fn close(&self) -> Calls {
        let users = self.users();
        let busy = |users: &mut Users| users.allocating > 0 || users.waiting > 0;
        // Of kernels that stay one may be this thread's: those who wait for it are waited for in vain.
        let waited = if users.resident.is_empty() {
            self.changed.wait_while(users, busy)
        } else {
            Ok(users)
        };
        let mut users = waited.unwrap_or_else(PoisonError::into_inner);
        users.resident.push(thread::current().id());
        self.calls()
    }

    /// Undoes one [`Self::close`] of that thread.
    pub(crate) fn open(&self, thread: ThreadId) {
        let mut users = self.users();
        if let Some(place) = users.resident.iter().position(|other| *other == thread) {
            users.resident.swap_remove(place);
        }
        drop(users);
        self.changed.notify_all();
    }

    /// Whether allocating calls wait for kernels to leave.
    pub(crate) fn is_wanted(&self) -> bool {
        self.users().waiting > 0
    }

    pub(crate) fn keep(&self, garbage: Garbage) {
        self.garbage().push(garbage);
    }

    /// The oldest thing to destroy, if now is a time to.
    pub(crate) fn next_garbage(&self) -> Option<Garbage> {
        let users = self.users();
        let mut garbage = self.garbage();
        (users.resident.is_empty() && !garbage.is_empty()).then(|| garbage.remove(0))
    }

    fn garbage(&self) -> MutexGuard<'_, Vec<Garbage>> {
        self.garbage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn calls(&self) -> Calls {
        let [queries, enqueues, waits, allocates, refused] =
            array::from_fn(|class| self.calls[class].load(Ordering::Relaxed));
        Calls { queries, enqueues, waits, allocates, refused }
    }
}

fn index(class: Class) -> usize {
    match class {
        Class::Queries => 0,
        Class::Enqueues => 1,
        Class::Waits => 2,
        Class::Allocates => 3,
    }
}

impl std::ops::Sub for Calls {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            queries: self.queries - earlier.queries,
            enqueues: self.enqueues - earlier.enqueues,
            waits: self.waits - earlier.waits,
            allocates: self.allocates - earlier.allocates,
            refused: self.refused - earlier.refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allocating_call_has_kernels_of_other_threads_leave_and_waits_until_they_have() {
        let gate = Gate::default();
        gate.close();
        assert!(!gate.is_wanted());
        thread::scope(|scope| {
            let waits = scope.spawn(|| gate.pass(Call::cuMemHostAlloc).map(drop));
            while !gate.is_wanted() {
                thread::yield_now();
            }
            assert_eq!(gate.calls().allocates, 0);
            gate.open(thread::current().id());
            assert_eq!(waits.join().unwrap(), Ok(()));
        });
        assert!(!gate.is_wanted());
        assert_eq!((gate.calls().allocates, gate.calls().refused), (1, 0));
    }

    #[test]
    fn no_kernel_becomes_resident_in_the_middle_of_an_allocating_call() {
        let gate = Gate::default();
        let pass = gate.pass(Call::cuMemHostAlloc).unwrap();
        thread::scope(|scope| {
            let closes = scope.spawn(|| gate.close().allocates);
            // What only asks or enqueues goes on.
            gate.pass(Call::cuStreamQuery).unwrap();
            assert!(!closes.is_finished());
            drop(pass);
            assert_eq!(closes.join().unwrap(), 1);
        });
    }
}
