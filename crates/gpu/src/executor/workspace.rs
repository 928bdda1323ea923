//! What passes work on beside weights and kernels: ops, the KV cache, scratch memory, and how the host
//! talks with the card. It is made while weights travel, as it needs no more of them than their places.

use std::ops::Range;

use m40_cuda::{Arena, CudaError, DeviceSlice, Mailbox, Priority, StagingRing};
use m40_repack::Layout;

use super::resident::Stay;
use super::{BARRIER_WORDS, LoadError, PASS_WORDS, Plan, place, write_constants, write_scratch};
use crate::continuation::States;
use crate::desk::{self, Desk};
use crate::kv::KvPlan;
use crate::lower::Places;
use crate::ops::{OP_WORDS, Place};
use crate::prefill::Buffer;
use crate::resident::{IDLE_MICROS, MOST_SILENCE, Resident};
use crate::specialize::DecodeSource;
use crate::weights::Weights;

/// Bytes of a staging buffer.
const STAGING_BYTES: usize = 1 << 20;

/// Where weights are, or are going to be.
pub(super) struct WeightPlaces {
    matrices: Vec<(Layout, Place)>,
    vectors: Vec<Place>,
}

impl WeightPlaces {
    pub(super) fn of(weights: &Weights) -> Self {
        let matrices = weights.matrices().iter().map(|m| (*m.layout(), m.place()));
        Self { matrices: matrices.collect(), vectors: weights.vectors().to_vec() }
    }
}

/// The fields of an [`Executor`](super::Executor) that these are.
pub(super) struct Workspace {
    pub(super) ring: StagingRing,
    pub(super) cache: DeviceSlice<u8>,
    pub(super) layers: Vec<Range<usize>>,
    pub(super) scratch: DeviceSlice<u32>,
    pub(super) states: DeviceSlice<u8>,
    pub(super) ops: DeviceSlice<u32>,
    pub(super) sample_variant: u32,
    pub(super) buffers: Vec<Option<DeviceSlice<u32>>>,
    pub(super) pass: DeviceSlice<u32>,
    pub(super) barrier: DeviceSlice<u32>,
    pub(super) tables: DeviceSlice<u32>,
    pub(super) cancels: Mailbox,
    pub(super) desk: Mailbox,
    pub(super) stay: Stay,
}

impl Workspace {
    /// In the arena, as the first pass expects it.
    pub(super) fn new(
        plan: &Plan,
        source: &DecodeSource,
        kv: &KvPlan,
        weights: &WeightPlaces,
        arena: &Arena,
    ) -> Result<Self, LoadError> {
        let (device, lowered) = (arena.device(), &plan.lowered);
        let sequences = plan.options.sequences as usize;
        let mut cache = arena.allocate::<u8>(kv.bytes().max(1) as usize)?;
        let mut scratch = arena.allocate::<u32>(lowered.scratch_bytes().div_ceil(4) as usize)?;
        let states = arena.allocate::<u8>(States::bytes(sequences).max(1))?;
        let kept = States::new(sequences, place(&states)?);
        let caches = kv.caches(place(&cache)?);
        let words = {
            let places = Places {
                matrices: &weights.matrices,
                vectors: &weights.vectors,
                caches: &caches,
                scratch: place(&scratch)?,
                choices: kept.choices(),
                endings: kept.endings(),
            };
            let mut words = lowered.assemble(&plan.program, &places)?;
            source.number(&mut words);
            words
        };
        let mut ops = arena.allocate::<u32>(words.len())?;
        let mut ring = StagingRing::new(device, STAGING_BYTES)?;
        // What measurements take for computed has to be numbers, or their sequences end.
        ring.stream().zero(cache.all_mut())?;
        write_scratch(lowered, &mut ring, &mut scratch)?;
        // Waits for what is before it, so nothing is on its way into memory that an error gives back.
        ring.write(ops.all_mut(), &words)?;
        let starts: Vec<_> = caches.iter().map(|c| c.bytes() - cache.offset()).collect();
        let ends = starts.iter().skip(1).copied().chain([kv.bytes()]);
        let layers = starts.iter().zip(ends).map(|(start, end)| *start as usize..end as usize);
        let desk = Mailbox::new(device, desk::WORDS)?;
        let resident = Resident::new(Desk::new(desk.clone(), IDLE_MICROS), MOST_SILENCE);
        let stream = device.stream(Priority::High)?;
        let tables = arena.allocate(plan.table_words().max(1))?;
        place(&tables)?;
        let buffers = plan.prefill.buffers.iter().map(|buffer| made(buffer, arena, &mut ring));
        Ok(Self {
            buffers: buffers.collect::<Result<_, _>>()?,
            ring,
            layers: layers.collect(),
            cache,
            scratch,
            states,
            ops,
            sample_variant: words[words.len() - OP_WORDS],
            pass: arena.allocate(PASS_WORDS)?,
            barrier: arena.allocate(BARRIER_WORDS)?,
            tables,
            cancels: Mailbox::new(device, sequences)?,
            desk,
            stay: Stay { resident, stream, residency: None },
        })
    }
}

/// A buffer of the prefill, with what it begins with.
fn made(
    buffer: &Buffer,
    arena: &Arena,
    ring: &mut StagingRing,
) -> Result<Option<DeviceSlice<u32>>, CudaError> {
    let mut slice = arena.allocate::<u32>(buffer.words)?;
    write_constants(ring, &mut slice, 0, &buffer.contents)?;
    Ok(Some(slice))
}
