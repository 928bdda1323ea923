//! A model's decode kernels as ones that stay: [`Resident`] with a card.

use std::mem::ManuallyDrop;

use m40_cuda::{CudaError, DeviceSlice, Mailbox, Residency, Stream};

use super::{Decode, Executor, PassError, Row, kernel_for};
use crate::ops;
use crate::resident::{Launcher, Resident, ResidentError, Watch};
use crate::sequence::Sequence;

/// Where kernels stay.
#[derive(Debug)]
pub(super) struct Stay {
    pub(super) resident: Resident<Mailbox>,
    /// Nothing but kernels that stay runs in it: what waited behind one would wait for long.
    pub(super) stream: Stream,
    /// While one may be there.
    pub(super) residency: Option<Residency>,
}

impl Drop for Stay {
    fn drop(&mut self) {
        // A kernel that does not leave may still write: nothing of the device is destroyed then.
        if self.resident.is_there() {
            let _ = ManuallyDrop::new(self.residency.take());
        }
    }
}

/// Launches one for a model.
struct OnCard<'a> {
    decode: Decode<'a>,
    barrier: &'a mut DeviceSlice<u32>,
    stream: &'a Stream,
    residency: &'a mut Option<Residency>,
}

impl Launcher for OnCard<'_> {
    fn launch(&mut self, kernel: usize, taken: u32) -> Result<(), CudaError> {
        let device = self.stream.device();
        self.residency.get_or_insert_with(|| device.begin_residency());
        // Enqueued before the kernel: beside it this would wait for its end.
        let ops = self.decode.plan.lowered.ops.len();
        let launched = self
            .stream
            .zero(self.barrier.all_mut())
            .and_then(|()| self.decode.launch(kernel, 0..ops, 0, taken, self.stream));
        if launched.is_err() {
            *self.residency = None;
        }
        launched
    }

    fn is_done(&self) -> Result<bool, CudaError> {
        self.stream.is_done()
    }

    fn ended(&mut self) {
        *self.residency = None;
    }

    fn is_wanted(&self) -> bool {
        self.residency.as_ref().is_some_and(Residency::is_wanted)
    }
}

impl Executor {
    /// Whether a kernel of the model may be on the card, where it keeps others from running: until
    /// [`rest`](Self::rest), or it has had no job for a while.
    pub fn stays(&self) -> bool {
        self.stay.resident.is_there()
    }

    /// Whether a kernel stays and keeps something of this process waiting that needs the card.
    pub fn is_wanted(&self) -> bool {
        self.stay.residency.as_ref().is_some_and(Residency::is_wanted)
    }

    /// Has the kernel leave, if one stays, so that others can run.
    ///
    /// # Errors
    /// [`PassError::Stuck`] if it does not, or what the card says.
    pub fn rest(&mut self) -> Result<(), PassError> {
        let (resident, mut card) = self.stay();
        resident.leave(&mut card).map_err(|error| failed(&error))
    }

    /// Has the kernel that stays do passes over rows. They are checked, and there is room for them.
    pub(super) fn run_job(
        &mut self,
        rows: &[Row],
        sequences: &mut [&mut Sequence],
        passes: usize,
        watch: &mut dyn Watch,
    ) -> Result<(), PassError> {
        let kernel = kernel_for(rows.len());
        let rows = rows.iter().map(|row| self.chosen_row(row, sequences));
        let rows = rows.collect::<Result<Vec<ops::Row>, _>>()?;
        // A job waits for no stream. Here are copies alone: they go on beside a kernel.
        self.ring.stream().wait()?;
        let (resident, mut card) = self.stay();
        let done = resident.run(&mut card, kernel, (&rows, passes), watch);
        if matches!(done, Err(ResidentError::Stuck)) && !self.stays() {
            // Blocks that gave up may have left anything there.
            self.write_scratch()?;
        }
        done.map_err(|error| failed(&error))
    }

    fn stay(&mut self) -> (&mut Resident<Mailbox>, OnCard<'_>) {
        let places = self.decode_places();
        let Self { kernels, arena, plan, cancels, desk, barrier, stay, .. } = self;
        let Stay { resident, stream, residency } = stay;
        let decode = Decode { kernels, arena, plan, cancels, desk, places };
        (resident, OnCard { decode, barrier, stream, residency })
    }
}

fn failed(error: &ResidentError) -> PassError {
    match error {
        ResidentError::Corrupt => PassError::Corrupt,
        ResidentError::Stuck | ResidentError::Silent => PassError::Stuck,
        ResidentError::Cuda(error) => error.clone().into(),
    }
}
