//! A model's weights on the card: matrices in planes, vectors as floats.
//!
//! Matrices come from the file as blocks. Threads turn slabs of rows into planes in pinned memory,
//! from where the card fetches one slab while the next is made. Matrices that kernels read together
//! are *fused*: placed one below the other as one matrix. The order of everything is a function of
//! the program and the fusion, so the same model lies the same way each time.

mod plan;
#[cfg(test)]
mod tests;
mod upload;

use std::ops::ControlFlow;

use m40_cuda::{Arena, CudaError, Device, DeviceSlice, Priority, StagingBuffer, Stream};
use m40_gguf::{DequantizeError, Gguf, TensorType};
use m40_program::{MatrixId, Program, VectorId};
use m40_repack::{Layout, RepackError};

use self::plan::Plan;
pub(crate) use self::plan::layouts;
use crate::ops::Place;

/// Bytes of a staging buffer: large enough for the bus, small enough that a slab is still in a
/// cache when the card fetches it.
const BUFFER_BYTES: usize = 4 << 20;

/// Staging buffers of a thread: it fills one while the other travels.
const BUFFERS: usize = 2;

/// Why weights did not get onto the card.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The program names a tensor that the file does not have.
    #[error("the file has no tensor {tensor}: it is not the one that the program was made of")]
    Missing {
        /// Its name.
        tensor: String,
    },
    /// A tensor differs from what the program says of it.
    #[error(
        "tensor {tensor} holds {found}, the program expects {expected}: it was made of another file"
    )]
    Mismatch {
        /// Its name.
        tensor: String,
        /// What the file says.
        found: String,
        /// What the program says.
        expected: String,
    },
    /// The kernels have no planes for a matrix.
    #[error("tensor {tensor}: {source}")]
    Repack {
        /// Its name.
        tensor: String,
        /// What is wrong.
        source: RepackError,
    },
    /// A vector cannot be turned into floats.
    #[error("tensor {tensor}: {source}")]
    Dequantize {
        /// Its name.
        tensor: String,
        /// What is wrong.
        source: DequantizeError,
    },
    /// Matrices were to be fused that cannot be.
    #[error("matrix {position} of fused matrix {index} ({tensor}) cannot be there: {why}")]
    Fusion {
        /// Which of the fused matrices.
        index: usize,
        /// Which of its parts.
        position: usize,
        /// The part's tensor; empty if there is none.
        tensor: String,
        /// What is in the way.
        why: String,
    },
    /// Four rows do not fit in a staging buffer.
    #[error("four rows of tensor {tensor} are {needed} bytes, staging buffers have {room}")]
    TooWide {
        /// Its name.
        tensor: String,
        /// Bytes of four rows.
        needed: usize,
        /// Bytes of a buffer.
        room: usize,
    },
    /// Something lies farther from the arena's start than kernels count.
    #[error("weights lie {offset} bytes from the arena's start; kernels reach 64 GiB")]
    TooFar {
        /// Bytes from the start.
        offset: u64,
    },
    /// The caller did not want to go on.
    #[error("loading was cancelled")]
    Cancelled,
    /// The card.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

/// How far loading is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the file that are on their way to the card.
    pub done: u64,
    /// All bytes that go there.
    pub total: u64,
}

/// Pinned memory for some threads. Making it takes the driver a while, so one that loads often
/// keeps it.
#[derive(Debug)]
pub struct Loader {
    buffers: Vec<[StagingBuffer; BUFFERS]>,
    stream: Stream,
}

impl Loader {
    /// For `threads` threads, at least one. More than the processor has only help while weights
    /// have to be read from a disk.
    pub fn new(device: &Device, threads: usize) -> Result<Self, CudaError> {
        Self::with_buffers(device, threads, BUFFER_BYTES)
    }

    /// As [`Self::new`], with two buffers of so many bytes for each thread.
    pub fn with_buffers(device: &Device, threads: usize, bytes: usize) -> Result<Self, CudaError> {
        let buffer = || StagingBuffer::new(device, bytes);
        let buffers = (0..threads.max(1)).map(|_| Ok([buffer()?, buffer()?]));
        let buffers = buffers.collect::<Result<_, CudaError>>()?;
        Ok(Self { buffers, stream: device.stream(Priority::Low)? })
    }
}

/// A matrix in planes on the card.
#[derive(Debug)]
pub struct PlacedMatrix {
    memory: DeviceSlice<u8>,
    place: Place,
    layout: Layout,
}

impl PlacedMatrix {
    /// Where its first plane begins.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Its type, size and planes; offsets count from [`Self::place`].
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The memory it lies in, `layout().bytes()` bytes.
    pub fn memory(&self) -> &DeviceSlice<u8> {
        &self.memory
    }
}

/// All weights of a program, in an arena. They go back to it when dropped.
#[derive(Debug)]
pub struct Weights {
    matrices: Vec<PlacedMatrix>,
    /// All vectors, each at a multiple of 16 bytes; present unless there are none.
    vector_memory: Option<DeviceSlice<u8>>,
    vectors: Vec<Place>,
}

impl Weights {
    /// Bytes of an arena that [`Self::load`] takes: known before anything is read.
    pub fn bytes(program: &Program, fused: &[Vec<MatrixId>]) -> Result<u64, WeightsError> {
        let whole = |bytes: usize| (bytes as u64).next_multiple_of(m40_cuda::ALIGNMENT);
        let layouts = plan::layouts(program, fused)?;
        let matrices: u64 = layouts.iter().map(|layout| whole(layout.bytes())).sum();
        Ok(matrices + whole(plan::vector_offsets(program).1))
    }

    /// Brings the weights of a program onto the card: [`Self::place`] and [`Placed::fill`].
    ///
    /// # Errors
    /// [`WeightsError`]; what was taken of the arena has gone back to it.
    pub fn load<B: AsRef<[u8]>>(
        program: &Program,
        gguf: &Gguf<B>,
        fused: &[Vec<MatrixId>],
        arena: &Arena,
        loader: &mut Loader,
        progress: &mut (dyn FnMut(Progress) -> ControlFlow<()> + Send),
    ) -> Result<Self, WeightsError> {
        Self::place(program, gguf, fused, arena)?.fill(loader, progress)
    }

    /// Takes memory for the weights of a program: one matrix for each list of `fused`, whose parts
    /// lie in it one below the other, and all vectors.
    ///
    /// # Errors
    /// [`WeightsError`].
    pub fn place<'a, B: AsRef<[u8]>>(
        program: &'a Program,
        gguf: &'a Gguf<B>,
        fused: &[Vec<MatrixId>],
        arena: &Arena,
    ) -> Result<Placed<'a>, WeightsError> {
        let plan = Plan::new(program, gguf, fused)?;
        let mut matrices = Vec::with_capacity(plan.layouts.len());
        for &layout in &plan.layouts {
            let memory = arena.allocate(layout.bytes())?;
            matrices.push(PlacedMatrix { place: place(memory.offset())?, memory, layout });
        }
        let bytes = plan.vectors.len() * size_of::<f32>();
        let vector_memory = (bytes > 0).then(|| arena.allocate::<u8>(bytes)).transpose()?;
        let start = vector_memory.as_ref().map_or(0, DeviceSlice::offset);
        let offsets = plan.vector_offsets.iter();
        let vectors =
            offsets.map(|&offset| place(start + offset as u64)).collect::<Result<_, _>>()?;
        Ok(Placed { plan, weights: Self { matrices, vector_memory, vectors } })
    }

    /// The matrices, in the order of the lists they were fused of.
    pub fn matrices(&self) -> &[PlacedMatrix] {
        &self.matrices
    }

    /// Where a vector of the program begins: its `len` floats.
    ///
    /// # Panics
    /// If the program has no such vector.
    pub fn vector(&self, id: VectorId) -> Place {
        self.vectors[id.0 as usize]
    }

    /// Where all vectors begin, in the program's order.
    pub fn vectors(&self) -> &[Place] {
        &self.vectors
    }

    /// The memory of all vectors, if there are any.
    pub fn vector_memory(&self) -> Option<&DeviceSlice<u8>> {
        self.vector_memory.as_ref()
    }

    /// Bytes of the arena in use.
    pub fn device_bytes(&self) -> u64 {
        let matrices = self.matrices.iter().map(|matrix| matrix.memory.len() as u64);
        matrices.sum::<u64>() + self.vector_memory.as_ref().map_or(0, |memory| memory.len() as u64)
    }
}

/// Weights that have their places, and are not there yet.
#[derive(Debug)]
pub struct Placed<'a> {
    plan: Plan<'a>,
    weights: Weights,
}

impl Placed<'_> {
    /// Where everything is going to be.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Brings them onto the card. On return everything is there.
    ///
    /// `progress` is called by any thread, one at a time, whenever a part is on its way, and may
    /// stop the loading.
    ///
    /// # Errors
    /// [`WeightsError`].
    pub fn fill(
        self,
        loader: &mut Loader,
        progress: &mut (dyn FnMut(Progress) -> ControlFlow<()> + Send),
    ) -> Result<Weights, WeightsError> {
        let Self { plan, mut weights } = self;
        let targets = weights.matrices.iter_mut().map(|matrix| matrix.memory.all_mut()).collect();
        let vector_target = weights.vector_memory.as_mut().map(DeviceSlice::all_mut);
        let Loader { buffers, stream } = loader;
        let workers = buffers
            .iter_mut()
            .map(|pair| pair.each_mut().map(|buffer| upload::Pinned { buffer, stream: &*stream }));
        let sent = upload::run(&plan, targets, vector_target, workers.collect(), progress);
        // In any case nothing travels any more when memory goes back to the arena.
        stream.wait()?;
        sent?;
        Ok(weights)
    }
}

fn place(offset: u64) -> Result<Place, WeightsError> {
    Place::of_bytes(offset).ok_or(WeightsError::TooFar { offset })
}

/// How errors put what a tensor holds.
fn shape(ty: TensorType, rows: usize, cols: usize) -> String {
    format!("{rows} rows of {cols} {ty} weights")
}
