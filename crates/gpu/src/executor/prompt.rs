//! Passes over prompts: the calls of [`Prefill`](crate::prefill::Prefill), launched.

use m40_cuda::{CudaError, DeviceSlice};

use super::{Executor, Plan, Row, upload};
use crate::batch::Ordered;
use crate::call::{Arg, BufferId, Call, Words};
use crate::prefill::{LOGIT_ROWS, Shape};
use crate::sequence::Sequence;

impl Executor {
    /// One pass over many rows. They are checked, and there is room for them.
    pub(super) fn run_prompt(
        &mut self,
        rows: &[Row],
        sequences: &mut [&mut Sequence],
        logits: &mut Vec<f32>,
    ) -> Result<(), CudaError> {
        let Ordered { order, counts, wanted } = Ordered::new(rows);
        let mut words = Vec::with_capacity(4 * rows.len());
        for i in order {
            words.extend(self.row(&rows[i], sequences)?.words());
        }
        let prefill = &self.plan.prefill;
        let tiles = prefill.tiles(&counts);
        let shape = Shape {
            rows: rows.len(),
            wanted: wanted.len(),
            tiles: tiles.len(),
            tallest: tiles.iter().map(|tile| tile[1] as usize).max().unwrap_or(0),
        };
        let uploads =
            [(prefill.rows, words), (prefill.tiles, tiles.concat()), (prefill.index, wanted)];
        let layouts: Vec<_> = self.weights.matrices().iter().map(|m| *m.layout()).collect();
        let calls = prefill.calls(&self.plan.program, &self.plan.lowered, &layouts, shape);
        for (buffer, words) in uploads {
            let slice = self.buffers[buffer.0].as_mut().expect("no launch is prepared");
            upload(&mut self.ring, slice, 0..words.len(), &words)?;
        }
        calls.iter().try_for_each(|call| self.enqueue(call))?;
        let view = self.plan.lowered.logits;
        let stride = self.plan.lowered.region(view.region).stride;
        if shape.wanted == 0 {
            // So that what is enqueued stays little.
            return self.ring.stream().wait();
        }
        self.words.resize(shape.wanted * stride, 0);
        let slice = self.buffers[self.plan.prefill.logits.0].as_ref();
        let from = slice.and_then(|slice| slice.view(0..shape.wanted * stride));
        self.ring.read(from.expect("as long as was planned"), &mut self.words)?;
        for row in self.words.chunks_exact(stride) {
            logits.extend(row[view.columns()].iter().map(|word| f32::from_bits(*word)));
        }
        Ok(())
    }

    /// Looks up the kernels that passes of every shape may call.
    pub(super) fn find_kernels(&mut self) -> Result<(), CudaError> {
        let Plan { program, lowered, prefill, .. } = &self.plan;
        let layouts: Vec<_> = self.weights.matrices().iter().map(|m| *m.layout()).collect();
        for rows in (1..=prefill.max_rows().div_ceil(8)).map(|n| prefill.max_rows().min(8 * n)) {
            let shape = Shape { rows, wanted: rows.min(LOGIT_ROWS), tiles: 1, tallest: 1 };
            for call in prefill.calls(program, lowered, &layouts, shape) {
                let signature = call.kernel.signature();
                if !self.rows_kernels.contains_key(signature.name) {
                    let kernel = self.arena.device().kernel(signature)?;
                    self.rows_kernels.insert(signature.name, kernel);
                }
            }
        }
        Ok(())
    }

    /// Enqueues a launch.
    fn enqueue(&mut self, call: &Call) -> Result<(), CudaError> {
        let written = |arg: &Arg| match arg {
            Arg::Write(buffer, _) => Some(*buffer),
            _ => None,
        };
        // Buffers to be written leave the list, so that the others can be read beside them.
        let taken: Vec<_> = call.args.iter().filter_map(written).collect();
        let mut taken: Vec<_> =
            taken.into_iter().map(|buffer| (buffer, self.buffers[buffer.0].take())).collect();
        let launched = self.launch_call(call, &mut taken);
        for (buffer, slice) in taken {
            self.buffers[buffer.0] = slice;
        }
        launched
    }

    fn launch_call(
        &mut self,
        call: &Call,
        taken: &mut [(BufferId, Option<DeviceSlice<u32>>)],
    ) -> Result<(), CudaError> {
        let kernel = &self.rows_kernels[call.kernel.signature().name];
        let geometry = ([call.grid, 1, 1], [call.threads, 1, 1]);
        let mut launch = kernel.launch(geometry.0, geometry.1).shared(call.shared);
        let range = |words: Words| words.first..words.first + words.len;
        let mut written = taken.iter_mut();
        let stores = call.args.iter().any(|arg| matches!(arg, Arg::CacheMut(_)));
        let (cache, mut cache_mut) =
            if stores { (None, Some(&mut self.cache)) } else { (Some(&self.cache), None) };
        for arg in &call.args {
            launch = match *arg {
                Arg::Arena => launch.arena(&self.arena),
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
                Arg::U32(number) => launch.scalar(number),
                Arg::U64(number) => launch.scalar(number),
                Arg::F32(number) => launch.scalar(number),
            };
        }
        launch.on(self.ring.stream())
    }
}
