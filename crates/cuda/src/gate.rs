//! Which driver calls may pass: all, or only those that a resident kernel cannot hold up; none on a
//! device that is lost.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use crate::driver::{Call, Class, Garbage};
use crate::error::CudaError;

/// The state behind all driver calls of the process.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// How many kernels are resident. An allocating call reads this as long as it lasts, so that
    /// no kernel becomes resident in the middle of one.
    resident: RwLock<u32>,
    lost: OnceLock<CudaError>,
    garbage: Mutex<Vec<Garbage>>,
    /// Calls that went to the driver, by [`Class`], and last those that were refused.
    calls: [AtomicU64; 5],
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
    /// Lets a call through while the result lives.
    pub(crate) fn pass(&self, call: Call) -> Result<Option<RwLockReadGuard<'_, u32>>, CudaError> {
        if let Some(lost) = self.lost.get() {
            return Err(lost.clone());
        }
        let class = call.class();
        let mut guard = None;
        if !class.allowed_beside_resident_kernel() {
            let resident = self.resident.read().unwrap_or_else(PoisonError::into_inner);
            if *resident > 0 {
                self.calls[4].fetch_add(1, Ordering::Relaxed);
                return Err(CudaError::Resident { call });
            }
            guard = Some(resident);
        }
        self.calls[index(class)].fetch_add(1, Ordering::Relaxed);
        Ok(guard)
    }

    /// Notes that the device is lost; the first such error is the one that every call gets.
    pub(crate) fn lose(&self, call: Call, code: u32, name: String) -> CudaError {
        self.lost.get_or_init(|| CudaError::DeviceLost { call, code, name }).clone()
    }

    /// The error that lost the device.
    pub(crate) fn lost(&self) -> Option<&CudaError> {
        self.lost.get()
    }

    /// Waits for allocating calls to end and refuses them from then on. Returns the calls so far.
    pub(crate) fn close(&self) -> Calls {
        let mut resident = self.resident.write().unwrap_or_else(PoisonError::into_inner);
        *resident += 1;
        self.calls()
    }

    /// Undoes one [`Self::close`].
    pub(crate) fn open(&self) {
        let mut resident = self.resident.write().unwrap_or_else(PoisonError::into_inner);
        *resident = resident.saturating_sub(1);
    }

    pub(crate) fn keep(&self, garbage: Garbage) {
        self.garbage().push(garbage);
    }

    /// The oldest thing to destroy, if now is a time to.
    pub(crate) fn next_garbage(&self) -> Option<Garbage> {
        let resident = self.resident.read().unwrap_or_else(PoisonError::into_inner);
        let mut garbage = self.garbage();
        (*resident == 0 && !garbage.is_empty()).then(|| garbage.remove(0))
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
