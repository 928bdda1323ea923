//! Calls of kernels for many rows, enqueued.

use std::collections::HashMap;
use std::ops::Range;

use m40_cuda::{Arena, CudaError, DeviceSlice, Graph, Kernel, Mailbox, Stream};

use super::{Executor, Plan};
use crate::call::{Arg, BufferId, Call, Words};
use crate::weights::Weights;

/// All that calls address.
struct Memory<'a> {
    plan: &'a Plan,
    kernels: &'a HashMap<&'static str, Kernel>,
    arena: &'a Arena,
    weights: &'a Weights,
    layers: &'a [Range<usize>],
    cancels: &'a Mailbox,
    cache: &'a mut DeviceSlice<u8>,
    buffers: &'a mut [Option<DeviceSlice<u32>>],
}

impl Executor {
    /// Enqueues launches.
    pub(super) fn enqueue(&mut self, calls: &[Call]) -> Result<(), CudaError> {
        let (mut memory, stream) = self.memory();
        calls.iter().try_for_each(|call| memory.enqueue(call, stream))
    }

    /// Records launches.
    pub(super) fn record_calls(&mut self, calls: &[Call]) -> Result<Graph, CudaError> {
        let (mut memory, stream) = self.memory();
        stream.capture(|| calls.iter().try_for_each(|call| memory.enqueue(call, stream)))
    }

    fn memory(&mut self) -> (Memory<'_>, &Stream) {
        let memory = Memory {
            plan: &self.plan,
            kernels: &self.rows_kernels,
            arena: &self.arena,
            weights: &self.weights,
            layers: &self.layers,
            cancels: &self.cancels,
            cache: &mut self.cache,
            buffers: &mut self.buffers,
        };
        (memory, self.ring.stream())
    }
}

impl Memory<'_> {
    fn enqueue(&mut self, call: &Call, stream: &Stream) -> Result<(), CudaError> {
        let written = |arg: &Arg| match arg {
            Arg::Write(buffer, _) => Some(*buffer),
            _ => None,
        };
        // Buffers to be written leave the list, so that the others can be read beside them.
        let taken: Vec<_> = call.args.iter().filter_map(written).collect();
        let mut taken: Vec<_> =
            taken.into_iter().map(|buffer| (buffer, self.buffers[buffer.0].take())).collect();
        let launched = self.launch(call, &mut taken, stream);
        for (buffer, slice) in taken {
            self.buffers[buffer.0] = slice;
        }
        launched
    }

    fn launch(
        &mut self,
        call: &Call,
        taken: &mut [(BufferId, Option<DeviceSlice<u32>>)],
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let kernel = &self.kernels[call.kernel.signature().name];
        let geometry = ([call.grid, 1, 1], [call.threads, 1, 1]);
        let mut launch = kernel.launch(geometry.0, geometry.1).shared(call.shared);
        let range = |words: Words| words.first..words.first + words.len;
        let mut written = taken.iter_mut();
        let stores = call.args.iter().any(|arg| matches!(arg, Arg::CacheMut(_)));
        let (cache, mut cache_mut) =
            if stores { (None, Some(&mut *self.cache)) } else { (Some(&*self.cache), None) };
        for arg in &call.args {
            launch = match *arg {
                Arg::Arena => launch.arena(self.arena),
                Arg::Read(buffer, words) => {
                    let slice = self.buffers[buffer.0].as_ref();
                    let view = slice.and_then(|slice| slice.view(range(words)));
                    launch.read(view.expect("read and not written, and in bounds"), words.len)
                }
                Arg::Write(_, words) => {
                    let slice = written.next().and_then(|(_, slice)| slice.as_mut());
                    let view = slice.and_then(|slice| slice.view_mut(range(words)));
                    launch.write(view.expect("written once, and in bounds"), words.len)
                }
                Arg::Matrix(id) => {
                    let memory = self.weights.matrices()[id.0].memory();
                    launch.read(memory.all(), memory.len())
                }
                Arg::Vector(id) => {
                    let memory = self.weights.vector_memory().expect("it has a vector");
                    let start = (self.weights.vector(id).bytes() - memory.offset()) as usize;
                    let bytes = 4 * self.plan.program.vector(id).len;
                    let view = memory.view(start..start + bytes).expect("it lies there");
                    launch.read(view, bytes)
                }
                Arg::Cache(layer) => {
                    let range = self.layers[usize::from(layer)].clone();
                    let bytes = range.len();
                    let view = cache.and_then(|cache| cache.view(range));
                    launch.read(view.expect("read and not written, and in bounds"), bytes)
                }
                Arg::CacheMut(layer) => {
                    let range = self.layers[usize::from(layer)].clone();
                    let bytes = range.len();
                    let view = cache_mut.take().and_then(|cache| cache.view_mut(range));
                    launch.write(view.expect("written once, and in bounds"), bytes)
                }
                Arg::Cancels => launch.mailbox(self.cancels, self.plan.options.sequences as usize),
                Arg::U32(number) => launch.scalar(number),
                Arg::U64(number) => launch.scalar(number),
                Arg::F32(number) => launch.scalar(number),
            };
        }
        launch.on(stream)
    }
}
