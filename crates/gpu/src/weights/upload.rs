//! Threads that make planes and send them off.
//!
//! Each thread has buffers of its own and sends what it made by itself, so threads meet only where
//! they take the next slab. What it sends to are disjoint views of the card's memory, made before.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::{thread, vec};

use m40_cuda::{CudaError, StagingBuffer, Stream, ViewMut};
use m40_repack::{Layout, Role, repack};

use super::plan::{Part, Plan};
use super::{BUFFERS, Progress, WeightsError};

/// Rows that planes hold together.
const QUAD: usize = 4;

/// Memory that is written from staging buffers.
pub(super) trait Target: Sized + Send {
    /// The first `bytes` bytes, which are there, and the others.
    fn split_at(self, bytes: usize) -> (Self, Self);
}

impl Target for ViewMut<'_, u8> {
    fn split_at(self, bytes: usize) -> (Self, Self) {
        self.split_at(bytes).expect("targets have the plan's sizes")
    }
}

/// A buffer to fill and to send from.
pub(super) trait Staging<T>: Send {
    fn len(&self) -> usize;
    /// The memory, once nothing travels from it.
    fn room(&mut self) -> Result<&mut [u8], CudaError>;
    /// Sends parts of it: from which byte on, and where to.
    fn send(&mut self, parts: impl Iterator<Item = (usize, T)>) -> Result<(), CudaError>;
}

/// Pinned memory, sent from in a stream.
#[derive(Debug)]
pub(super) struct Pinned<'a> {
    pub(super) buffer: &'a mut StagingBuffer,
    pub(super) stream: &'a Stream,
}

impl<'a> Staging<ViewMut<'a, u8>> for Pinned<'_> {
    fn len(&self) -> usize {
        self.buffer.len()
    }

    fn room(&mut self) -> Result<&mut [u8], CudaError> {
        self.buffer.room()
    }

    fn send(
        &mut self,
        parts: impl Iterator<Item = (usize, ViewMut<'a, u8>)>,
    ) -> Result<(), CudaError> {
        self.buffer.send(parts, self.stream)
    }
}

/// What one buffer is filled with.
enum Slab<'a, T> {
    /// Some rows of a part, to be brought into planes.
    Rows { tensor: &'a str, blocks: &'a [u8], layout: Layout, planes: [Option<T>; Role::ALL.len()] },
    /// Numbers as they are.
    Floats { numbers: &'a [f32], to: T },
}

impl<T> Slab<'_, T> {
    /// Bytes that are read for it.
    fn bytes(&self) -> u64 {
        match self {
            Self::Rows { blocks, .. } => blocks.len() as u64,
            Self::Floats { numbers, .. } => size_of_val(*numbers) as u64,
        }
    }

    /// Where in memory they are read: the order in which a disk is read best.
    fn address(&self) -> usize {
        match self {
            Self::Rows { blocks, .. } => blocks.as_ptr().addr(),
            Self::Floats { .. } => 0,
        }
    }

    fn send(self, buffer: &mut impl Staging<T>) -> Result<(), WeightsError> {
        match self {
            Self::Rows { tensor, blocks, layout, planes } => {
                let room = &mut buffer.room()?[..layout.bytes()];
                repack(&layout, blocks, room)
                    .map_err(|source| WeightsError::Repack { tensor: tensor.to_owned(), source })?;
                let parts = Role::ALL.into_iter().zip(planes);
                let parts = parts.filter_map(|(role, to)| Some((layout.plane(role).offset, to?)));
                buffer.send(parts)?;
            }
            Self::Floats { numbers, to } => {
                let (room, _) = buffer.room()?.as_chunks_mut();
                for (room, number) in room.iter_mut().zip(numbers) {
                    *room = number.to_le_bytes();
                }
                buffer.send([(0, to)].into_iter())?;
            }
        }
        Ok(())
    }
}

/// Sends everything, with a thread for each of `workers`. `targets` are the memory of the plan's
/// matrices, `vector_target` that of its vectors. On return all is sent, or an error is.
pub(super) fn run<T: Target, S: Staging<T>>(
    plan: &Plan<'_>,
    targets: Vec<T>,
    vector_target: Option<T>,
    workers: Vec<[S; BUFFERS]>,
    progress: &mut (dyn FnMut(Progress) -> ControlFlow<()> + Send),
) -> Result<(), WeightsError> {
    let room = workers.iter().flatten().map(Staging::len).min().unwrap_or(0);
    let mut slabs = rows(plan, targets, room)?;
    slabs.extend(vector_target.into_iter().flat_map(|target| floats(&plan.vectors, target, room)));
    slabs.sort_by_key(Slab::address);
    let shared = Shared {
        slabs: Mutex::new(slabs.into_iter()),
        stopped: AtomicBool::new(false),
        reports: Mutex::new(Reports { done: 0, total: plan.total(), progress }),
    };
    thread::scope(|scope| {
        let spawn = |buffers| scope.spawn(|| shared.work(buffers));
        let running: Vec<_> = workers.into_iter().map(spawn).collect();
        let ends = running.into_iter().map(|thread| match thread.join() {
            Ok(end) => end,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        ends.collect()
    })
}

/// What threads share.
struct Shared<'a, T> {
    slabs: Mutex<vec::IntoIter<Slab<'a, T>>>,
    /// A thread failed: the others end.
    stopped: AtomicBool,
    reports: Mutex<Reports<'a>>,
}

struct Reports<'a> {
    done: u64,
    total: u64,
    progress: &'a mut (dyn FnMut(Progress) -> ControlFlow<()> + Send),
}

impl<T> Shared<'_, T> {
    fn work<S: Staging<T>>(&self, mut buffers: [S; BUFFERS]) -> Result<(), WeightsError> {
        for next in (0..BUFFERS).cycle() {
            if self.stopped.load(Ordering::Relaxed) {
                return Ok(());
            }
            let slab = self.slabs.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(slab) = slab else { break };
            let bytes = slab.bytes();
            let sent = slab.send(&mut buffers[next]).and_then(|()| self.report(bytes));
            if sent.is_err() {
                self.stopped.store(true, Ordering::Relaxed);
                return sent;
            }
        }
        Ok(())
    }

    fn report(&self, bytes: u64) -> Result<(), WeightsError> {
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        // Who wants no more is told no more.
        if self.stopped.load(Ordering::Relaxed) {
            return Ok(());
        }
        reports.done += bytes;
        let (done, total) = (reports.done, reports.total);
        match (reports.progress)(Progress { done, total }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => {
                self.stopped.store(true, Ordering::Relaxed);
                Err(WeightsError::Cancelled)
            }
        }
    }
}

/// The slabs of all matrices, none with more bytes of planes than `room`.
fn rows<'a, T: Target>(
    plan: &Plan<'a>,
    targets: Vec<T>,
    room: usize,
) -> Result<Vec<Slab<'a, T>>, WeightsError> {
    let targets = plan.layouts.iter().zip(targets);
    let mut planes: Vec<_> = targets.map(|(layout, target)| cut(layout, target)).collect();
    let mut slabs = Vec::new();
    for part in &plan.parts {
        let whole = &plan.layouts[part.matrix];
        let rows = rows_in(part, whole, room)?;
        let row_bytes = part.blocks.len() / part.rows;
        for (first, blocks) in (0..).step_by(rows).zip(part.blocks.chunks(rows * row_bytes)) {
            debug_assert!((part.first_row + first).is_multiple_of(QUAD));
            let layout = layout(part, whole, blocks.len() / row_bytes)?;
            let mut roles = Role::ALL.into_iter();
            let planes = planes[part.matrix].each_mut().map(|rest| {
                let bytes = layout.plane(roles.next()?).quad_bytes * layout.quads();
                let (slab, others) = rest.take()?.split_at(bytes);
                *rest = Some(others);
                Some(slab)
            });
            slabs.push(Slab::Rows { tensor: part.tensor, blocks, layout, planes });
        }
    }
    Ok(slabs)
}

/// The layout of `rows` rows of a part by themselves.
fn layout(part: &Part<'_>, whole: &Layout, rows: usize) -> Result<Layout, WeightsError> {
    Layout::of(whole.ty(), rows, whole.cols())
        .map_err(|source| WeightsError::Repack { tensor: part.tensor.to_owned(), source })
}

/// How many rows of a part, whole quads, fit in a buffer. At least half of that many are in every
/// slab but a matrix's only one.
fn rows_in(part: &Part<'_>, whole: &Layout, room: usize) -> Result<usize, WeightsError> {
    let quad: usize = Role::ALL.iter().map(|&role| whole.plane(role).quad_bytes).sum();
    // Between planes there may be gaps.
    let gaps = layout(part, whole, QUAD)?.bytes() - quad;
    let gaps = gaps.max(Role::ALL.len() * 128);
    if quad + gaps > room {
        let (tensor, needed) = (part.tensor.to_owned(), quad + gaps);
        return Err(WeightsError::TooWide { tensor, needed, room });
    }
    let quads = part.rows.div_ceil(QUAD);
    let slabs = quads.div_ceil((room - gaps) / quad);
    Ok(quads.div_ceil(slabs) * QUAD)
}

/// The planes of a matrix.
fn cut<T: Target>(layout: &Layout, target: T) -> [Option<T>; Role::ALL.len()] {
    let (mut rest, mut at) = (Some(target), 0);
    Role::ALL.map(|role| {
        let plane = layout.plane(role);
        if plane.quad_bytes == 0 {
            return None;
        }
        let bytes = plane.quad_bytes * layout.quads();
        let (_, planes) = rest.take()?.split_at(plane.offset - at);
        let (plane_target, others) = planes.split_at(bytes);
        (rest, at) = (Some(others), plane.offset + bytes);
        Some(plane_target)
    })
}

/// The slabs of all vectors.
fn floats<T: Target>(numbers: &[f32], target: T, room: usize) -> Vec<Slab<'_, T>> {
    let mut rest = Some(target);
    let chunks = numbers.chunks((room / size_of::<f32>()).max(1));
    let slabs = chunks.filter_map(|numbers| {
        let (to, others) = rest.take()?.split_at(size_of_val(numbers));
        rest = Some(others);
        Some(Slab::Floats { numbers, to })
    });
    slabs.collect()
}
