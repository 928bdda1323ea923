//! A card in emulation: an arena, and kernels that run on it (kernels/emulate/arena.h).

use std::io::{BufWriter, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use m40_gpu::ops::Place;

/// Bytes between allocations that kernels must not touch.
const GUARD: usize = 256;

/// The process that runs the kernels.
pub(crate) struct Card {
    child: Child,
    input: BufWriter<ChildStdin>,
    output: ChildStdout,
    /// Bytes of the arena that are given out.
    end: usize,
}

/// One launch of a decode kernel.
#[derive(Clone, Copy)]
pub(crate) struct Launch {
    /// Rows of activations that the kernel is made for.
    pub(crate) rows: usize,
    pub(crate) blocks: u32,
    pub(crate) ops: Place,
    /// Ops of the list that run, more than one in a resident launch.
    pub(crate) first: usize,
    pub(crate) last: usize,
    pub(crate) pass: Place,
    /// How often they run, each time with the tokens that the time before has chosen.
    pub(crate) passes: u32,
    /// `{u32 counter, u32 target}`.
    pub(crate) barrier: Place,
    pub(crate) chosen: Place,
    /// `[slots] u32`.
    pub(crate) cancels: Place,
    /// The job taken last, of a kernel that stays: one with no passes.
    pub(crate) taken: u32,
}

impl Card {
    /// Starts it with an arena of so many bytes, guards included.
    pub(crate) fn start(program: &Path, arena: usize) -> Self {
        let mut child =
            Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let input = BufWriter::new(child.stdin.take().unwrap());
        let output = child.stdout.take().unwrap();
        let mut card = Self { child, input, output, end: 0 };
        writeln!(card.input, "arena {arena}").unwrap();
        card
    }

    /// Bytes that `bytes` bytes take of the arena.
    pub(crate) fn taken(bytes: usize) -> usize {
        bytes.next_multiple_of(GUARD) + GUARD
    }

    /// So many bytes, full of NaNs, which begin at a multiple of 256. What follows them is not to be
    /// touched.
    pub(crate) fn allocate(&mut self, bytes: usize) -> Place {
        let place = Place::of_bytes(self.end as u64).unwrap();
        // The sanitizer guards bytes from multiples of 8 on.
        let guarded = (self.end + bytes).next_multiple_of(8);
        self.end += Self::taken(bytes);
        self.guard(guarded, self.end - guarded);
        place
    }

    /// Nobody may touch these bytes of the arena any more.
    pub(crate) fn guard(&mut self, from: usize, bytes: usize) {
        writeln!(self.input, "guard {from} {bytes}").unwrap();
    }

    pub(crate) fn write(&mut self, place: Place, bytes: &[u8]) {
        writeln!(self.input, "write {} {}", place.bytes(), bytes.len()).unwrap();
        self.input.write_all(bytes).unwrap();
    }

    pub(crate) fn write_words(&mut self, place: Place, words: &[u32]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.write(place, &bytes);
    }

    pub(crate) fn read_words(&mut self, place: Place, count: usize) -> Vec<u32> {
        writeln!(self.input, "read {} {}", place.bytes(), 4 * count).unwrap();
        self.input.flush().unwrap();
        let mut bytes = vec![0; 4 * count];
        self.output.read_exact(&mut bytes).expect("the emulation has said what is wrong");
        bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
    }

    pub(crate) fn read_floats(&mut self, place: Place, count: usize) -> Vec<f32> {
        self.read_words(place, count).into_iter().map(f32::from_bits).collect()
    }

    pub(crate) fn run(&mut self, launch: &Launch) {
        let Launch { rows, blocks, ops, first, last, pass, passes, .. } = *launch;
        let Launch { barrier, chosen, cancels, taken, .. } = *launch;
        let [ops, pass, barrier, chosen, cancels] =
            [ops, pass, barrier, chosen, cancels].map(|place| place.0);
        writeln!(
            self.input,
            "run {rows} {blocks} {ops} {first} {last} {pass} {passes} {barrier} {chosen} \
             {cancels} {taken}"
        )
        .unwrap();
    }

    /// Has it do what it was told, however long that takes.
    pub(crate) fn begin(&mut self) {
        self.input.flush().unwrap();
    }

    /// Kernels have this file for a desk.
    pub(crate) fn open_desk(&mut self, file: &Path) {
        writeln!(self.input, "desk {}", file.display()).unwrap();
    }

    /// Has the host write a word of the arena once kernels have polled it `polls` times.
    pub(crate) fn cancel(&mut self, from: u64, polls: u32, value: u32) {
        writeln!(self.input, "cancel {from} {polls} {value}").unwrap();
    }

    /// A launch of any kernel, its arguments as kernels/emulate/prefill.cpp takes them.
    pub(crate) fn call(&mut self, kernel: &str, geometry: [u32; 3], arguments: &[u64]) {
        let [grid, threads, shared] = geometry;
        write!(self.input, "call {kernel} {grid} {threads} {shared}").unwrap();
        arguments.iter().try_for_each(|argument| write!(self.input, " {argument}")).unwrap();
        writeln!(self.input).unwrap();
    }

    /// Ends it, which it does only if nothing went wrong.
    pub(crate) fn end(mut self) {
        drop(self.input);
        let status = self.child.wait().unwrap();
        assert!(status.success(), "the emulation failed: {status}");
    }
}
