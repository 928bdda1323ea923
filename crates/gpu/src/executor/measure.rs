//! What benchmarks ask of a model's card beside passes.

use std::time::{Duration, Instant};

use m40_cuda::CudaError;

use super::{
    BARRIER_WORDS, Decode, DecodePlaces, Executor, PASS_WORDS, PassError, Row, Want, place_of,
};
use crate::batch::is_prompt;
use crate::call::{Arg, Call};
use crate::ops::{ANNOUNCE, AWAIT, OP_WORDS, Op, Place, SampleOp, decode_threads};
use crate::sequence::Sequence;

/// Bytes of a copy, at most: many times any cache.
const COPY_BYTES: u64 = 512 << 20;

/// Bytes of a copy, at least.
const COPY_BYTES_MIN: u64 = 64 << 20;

/// Ops of a launch that does nothing but wait.
const IDLE_OPS: usize = 1000;

/// The words of so many ops that do nothing in a pass of no rows, each of which awaits the one
/// before it, or not.
pub fn idle_ops(count: usize, awaits: bool) -> Vec<u32> {
    let nowhere = Place::NOWHERE;
    let op = Op::Sample(SampleOp {
        kind: Op::SAMPLE,
        flags: if awaits { AWAIT | ANNOUNCE } else { 0 },
        vocab: 0,
        logits: nowhere,
        stride: 0,
        maxima: nowhere,
        choices: nowhere,
        endings: nowhere,
        chosen: nowhere,
    });
    op.words().repeat(count)
}

/// What launches alike of a pass take.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelTime {
    /// The kernel.
    pub name: &'static str,
    /// Blocks of a launch.
    pub blocks: u32,
    /// Launches of a pass that are alike in all but memory.
    pub launches: usize,
    /// What they take one after another, the time between two of them included.
    pub time: Duration,
}

/// What launches that are alike have in common: all but memory.
fn numbers(call: &Call) -> (&'static str, [u32; 3], Vec<u32>) {
    let number = |arg: &Arg| match *arg {
        Arg::U32(number) => Some(number),
        _ => None,
    };
    let geometry = [call.grid, call.threads, call.shared];
    (call.kernel.signature().name, geometry, call.args.iter().filter_map(number).collect())
}

impl Executor {
    /// What each kind of launch of a wide pass over these rows takes, in the order of the first of
    /// each. The sequences hold their tokens afterwards, and have their states as they were; keys and
    /// values after those tokens are any.
    ///
    /// # Errors
    /// [`PassError`].
    pub fn kernel_times(
        &mut self,
        rows: &[Row],
        sequences: &mut [&mut Sequence],
    ) -> Result<Vec<KernelTime>, PassError> {
        if rows.len() > self.plan.prefill.wide_rows() || is_prompt(rows) {
            return Err(PassError::Rows { rows: rows.len() });
        }
        self.rest()?;
        self.prepare(rows, sequences, 1)?;
        let count = self.send_wide(rows, Want::Logits, sequences)?;
        let calls = self.wide_calls(count);
        let mut kinds: Vec<(_, Vec<Call>)> = vec![];
        for call in calls {
            let key = numbers(&call);
            match kinds.iter_mut().find(|(kind, _)| *kind == key) {
                Some((_, calls)) => calls.push(call),
                None => kinds.push((key, vec![call])),
            }
        }
        let mut times = vec![];
        for ((name, [blocks, ..], _), calls) in kinds {
            let time = self.time_calls(&calls)?;
            times.push(KernelTime { name, blocks, launches: calls.len(), time });
        }
        for row in rows {
            sequences[row.sequence].truncate(row.position);
        }
        Ok(times)
    }

    /// What launches take, the second time.
    fn time_calls(&mut self, calls: &[Call]) -> Result<Duration, CudaError> {
        let ran = self.plan.prefill.ran;
        let slice = self.buffers[ran.0].as_mut().expect("no launch is prepared");
        self.ring.stream().zero(slice.all_mut())?;
        let graph = self.record_calls(calls)?;
        let device = self.arena.device();
        let (mut begun, mut ended) = (device.event()?, device.event()?);
        let stream = self.ring.stream();
        graph.launch(stream)?;
        stream.record(&mut begun)?;
        graph.launch(stream)?;
        stream.record(&mut ended)?;
        stream.wait()?;
        ended.since(&begun)
    }

    /// Makes room for `tokens` more tokens and takes them for computed. Their keys and values are
    /// zeros or those of others before: enough to measure passes over long contexts, and nothing else.
    ///
    /// # Errors
    /// [`PassError`], if there is no such room, or the sequence may share its pages with others.
    pub fn pretend(&self, sequence: &mut Sequence, tokens: usize) -> Result<(), PassError> {
        let (end, context) = (sequence.len() + tokens, sequence.context());
        if !sequence.is_of(&self.pool) {
            return Err(PassError::Sequence { index: 0, count: 1 });
        }
        if !sequence.is_alone() {
            return Err(PassError::Shared { index: 0 });
        }
        if end > context {
            return Err(PassError::Context { position: end - 1, context });
        }
        self.pool.grow(&mut [&mut *sequence], &[end])?;
        Ok(sequence.computed(&vec![0; tokens])?)
    }

    /// Bytes a second that a copy on the card moves, each read and written, after a first one that
    /// does not count; `None` where too little memory is free.
    ///
    /// # Errors
    /// When the card fails.
    pub fn copy_rate(&mut self) -> Result<Option<f64>, PassError> {
        self.rest()?;
        let bytes = (self.arena.usage().largest / 4).min(COPY_BYTES);
        if bytes < COPY_BYTES_MIN {
            return Ok(None);
        }
        let from = self.arena.allocate::<u8>(bytes as usize)?;
        let mut to = match self.arena.allocate::<u8>(bytes as usize) {
            Err(CudaError::ArenaExhausted { .. }) => return Ok(None),
            taken => taken?,
        };
        let stream = self.ring.stream();
        let mut copy = || {
            let begun = Instant::now();
            stream.copy(from.all(), to.all_mut())?;
            stream.wait()?;
            Ok::<_, CudaError>(begun.elapsed())
        };
        copy()?;
        Ok(Some(2.0 * bytes as f64 / copy()?.as_secs_f64()))
    }

    /// What an op takes longer for awaiting the one before it: a barrier across all blocks; `None`
    /// where not all blocks of a launch run at once, as when something else holds a part of the card,
    /// or no memory is free.
    ///
    /// # Errors
    /// When the card fails.
    pub fn barrier_time(&mut self) -> Result<Option<Duration>, PassError> {
        self.rest()?;
        let blocks = self.plan.lowered.target.blocks;
        if self.kernels[0].resident_blocks(decode_threads(1), 0)? < blocks {
            return Ok(None);
        }
        let times = [true, false].map(|awaits| match self.idle_time(awaits) {
            Err(CudaError::ArenaExhausted { .. }) => Ok(None),
            measured => measured,
        });
        let [with, without] = times;
        let more = with?.zip(without?).map(|(with, without)| with.saturating_sub(without));
        Ok(more.map(|more| more / IDLE_OPS as u32))
    }

    /// How long a launch of ops takes that do nothing, the second time; `None` if its blocks have
    /// given up waiting for each other.
    fn idle_time(&mut self, awaits: bool) -> Result<Option<Duration>, CudaError> {
        let mut ops = self.arena.allocate::<u32>(IDLE_OPS * OP_WORDS)?;
        let mut pass = self.arena.allocate::<u32>(PASS_WORDS)?;
        let mut words = idle_ops(IDLE_OPS, awaits);
        words.chunks_exact_mut(OP_WORDS).for_each(|op| op[0] = self.sample_variant);
        self.ring.write(ops.all_mut(), &words)?;
        self.ring.write(pass.all_mut(), &[0; PASS_WORDS])?;
        let mut time = None;
        for _ in 0..2 {
            self.ring.write(self.barrier.all_mut(), &[0; BARRIER_WORDS])?;
            let begun = Instant::now();
            let decode = self.decode();
            let places =
                DecodePlaces { ops: place_of(&ops), pass: place_of(&pass), ..decode.places };
            let idle = Decode { places, ..decode };
            idle.launch(0, 0..IDLE_OPS, 1, 0, self.ring.stream())?;
            self.ring.stream().wait()?;
            let elapsed = begun.elapsed();
            let mut words = [0; BARRIER_WORDS];
            self.ring.read(self.barrier.all(), &mut words)?;
            time = (words[2] == 0).then_some(elapsed);
        }
        Ok(time)
    }
}
