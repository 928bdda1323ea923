//! A kernel that stays: jobs and tokens through a desk that two processes share, the emulation and the
//! host's own code.

use std::cell::Cell;
use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use m40_cuda::CudaError;
use m40_gpu::desk::{self, Desk, Told, Words};
use m40_gpu::ops::{End, NO_SLOT, Next, Place, Row};
use m40_gpu::resident::{Launcher, MOST_SILENCE, Resident, ResidentError, Watch};

use crate::choosing::{Member, TARGET, Text, members, model, texts, vocab};
use crate::model::{Model, Placed, Sequence, Way};
use crate::passes::emulation;

/// No kernel leaves by itself in a test that does not wait for it.
const LONG: u32 = 20_000_000;

/// A file that the emulation has mapped.
struct Shared {
    file: File,
    /// A word whose next value gets there wrong.
    fails: Cell<Option<usize>>,
}

impl Words for Shared {
    fn load(&self, word: usize) -> u32 {
        let mut bytes = [0; 4];
        self.file.read_exact_at(&mut bytes, 4 * word as u64).unwrap();
        u32::from_le_bytes(bytes)
    }

    fn store(&self, word: usize, value: u32) {
        let fails = self.fails.get() == Some(word);
        if fails {
            self.fails.set(None);
        }
        let value = if fails { value ^ 1 << 20 } else { value };
        self.file.write_all_at(&value.to_le_bytes(), 4 * word as u64).unwrap();
    }
}

/// The emulated card, which does nothing else while a kernel stays.
struct Emulated<'a> {
    placed: &'a mut Placed,
    words: File,
    /// Rows of the kernel.
    rows: usize,
    launches: usize,
}

impl Launcher for Emulated<'_> {
    fn launch(&mut self, _kernel: usize, taken: u32) -> Result<(), CudaError> {
        self.launches += 1;
        self.placed.launch_to_stay(self.rows, taken);
        Ok(())
    }

    fn is_done(&self) -> Result<bool, CudaError> {
        let mut left = [0; 4];
        self.words.read_exact_at(&mut left, 4 * desk::LEFT as u64).unwrap();
        Ok(left != [0; 4])
    }

    fn ended(&mut self) {}

    fn is_wanted(&self) -> bool {
        false
    }
}

/// Notes what it is told, and ends the job after so many passes.
struct Notes {
    passes: Vec<Vec<[u32; Next::WORDS]>>,
    most: usize,
}

impl Watch for Notes {
    fn told(&mut self, nexts: &[[u32; Next::WORDS]]) {
        self.passes.push(nexts.to_vec());
    }

    fn pause(&mut self, _time: Duration) -> ControlFlow<()> {
        thread::yield_now();
        if self.passes.len() < self.most {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    }
}

/// Sequences that are about to go on, their rows, and what they have said.
struct Bench<'a> {
    card: Emulated<'a>,
    resident: Resident<Shared>,
    sequences: Vec<Sequence>,
    rows: Vec<Row>,
    texts: Vec<Text>,
}

impl<'a> Bench<'a> {
    /// With a kernel for so many rows, and a file of this name.
    fn new(
        (model, placed): (&Model, &'a mut Placed),
        (members, rows): (&[Member], usize),
        name: &str,
        idle: u32,
    ) -> Self {
        let mut sequences: Vec<_> = members.iter().map(|_| placed.sequence()).collect();
        let mut first = vec![];
        for (sequence, member) in sequences.iter_mut().zip(members) {
            placed.continue_with(sequence, &member.continuation(vocab(model)), 1);
            let row = placed.reserve(sequence, 32);
            first.push(Row { token: member.first, ..row });
        }
        let path = path(name);
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.unwrap();
        file.set_len(4 * desk::WORDS as u64).unwrap();
        placed.open_desk(&path);
        let words = Shared { file: file.try_clone().unwrap(), fails: Cell::new(None) };
        let resident = Resident::new(Desk::new(words, idle), MOST_SILENCE);
        let card = Emulated { placed, words: file, rows, launches: 0 };
        Self { card, resident, sequences, texts: vec![vec![]; members.len()], rows: first }
    }

    /// A job of some of the sequences, which the host ends when it has seen `seen` passes.
    fn job(&mut self, of: &[usize], passes: usize, seen: usize) -> Result<usize, ResidentError> {
        let rows: Vec<_> = of.iter().map(|i| self.rows[*i]).collect();
        let mut notes = Notes { passes: vec![], most: seen };
        let ran = self.resident.run(&mut self.card, 0, (&rows, passes), &mut notes);
        self.note(of, &notes.passes);
        ran.map(|()| notes.passes.len())
    }

    fn note(&mut self, of: &[usize], passes: &[Vec<[u32; Next::WORDS]>]) {
        for pass in passes {
            assert_eq!(pass.len(), of.len());
            for (&i, next) in of.iter().zip(pass) {
                if next[2] != End::Before as u32 {
                    self.texts[i].push(*next);
                    (self.rows[i].token, self.rows[i].position) =
                        (next[0], self.rows[i].position + 1);
                }
            }
        }
    }

    /// Has the kernel leave; what was said.
    fn end(mut self) -> Vec<Text> {
        self.resident.leave(&mut self.card).unwrap();
        let placed = self.card.placed;
        self.sequences.into_iter().for_each(|sequence| placed.release(sequence));
        self.texts
    }
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("desk-{name}"))
}

#[test]
fn jobs_follow_each_other_and_sequences_join_and_leave_without_a_launch() {
    let Some(emulation) = emulation() else { return };
    let model = model();
    let mut placed = Placed::new(&emulation, &model, TARGET, 8);
    let members = &members()[2..5];
    let expected = texts(&model, &mut placed, Way::Resident, members, &[7]);
    let mut bench = Bench::new((&model, &mut placed), (members, 4), "jobs", LONG);
    for (of, passes) in [(&[0, 1][..], 2), (&[0, 2, 1], 3), (&[2], 4), (&[0], 2), (&[1], 2)] {
        assert_eq!(bench.job(of, passes, usize::MAX), Ok(passes));
    }
    assert_eq!(bench.card.launches, 1);
    assert_eq!(bench.end(), expected);
    placed.end();
}

#[test]
fn a_job_ends_after_the_pass_that_runs_when_the_host_says_so_and_with_its_last_sequence() {
    let Some(emulation) = emulation() else { return };
    let model = model();
    let mut placed = Placed::new(&emulation, &model, TARGET, 8);
    let mut members = members()[..2].to_vec();
    let expected = texts(&model, &mut placed, Way::Resident, &members, &[12]);
    members[1].most = 12;
    let mut bench = Bench::new((&model, &mut placed), (&members, 2), "yield", LONG);
    let ran = bench.job(&[0, 1], 60, 2).unwrap();
    assert!((2..=5).contains(&ran), "the host was heard after {ran} passes");
    // What it said then is nothing of the next job.
    assert_eq!(bench.job(&[0, 1], 3, usize::MAX), Ok(3));
    let left = 12 - ran - 3;
    assert_eq!(bench.job(&[1], 60, usize::MAX), Ok(left));
    assert_eq!(bench.job(&[0], left, usize::MAX), Ok(left));
    assert_eq!(bench.card.launches, 1);
    let mut found = bench.end();
    let end = &mut found[1].last_mut().unwrap()[2];
    assert_eq!(std::mem::take(end), End::LastToken as u32);
    assert_eq!(found, expected);
    placed.end();
}

#[test]
fn a_sequence_that_is_cancelled_ends_in_the_job_that_runs_and_others_go_on() {
    let Some(emulation) = emulation() else { return };
    let model = model();
    let mut placed = Placed::new(&emulation, &model, TARGET, 8);
    let members = &members()[..2];
    let mut expected = texts(&model, &mut placed, Way::Resident, members, &[6]);
    let mut bench = Bench::new((&model, &mut placed), (members, 2), "cancel", LONG);
    bench.card.placed.cancel_after(3, &bench.sequences[1], 1);
    assert_eq!(bench.job(&[0, 1], 6, usize::MAX), Ok(6));
    expected[1].truncate(4);
    expected[1][3][2] = End::Cancelled as u32;
    assert_eq!(bench.end(), expected);
    placed.end();
}

#[test]
fn a_kernel_without_a_job_leaves_and_is_launched_again_for_the_next() {
    let Some(emulation) = emulation() else { return };
    let model = model();
    let mut placed = Placed::new(&emulation, &model, TARGET, 8);
    let members = &members()[1..2];
    let expected = texts(&model, &mut placed, Way::Resident, members, &[4]);
    let mut bench = Bench::new((&model, &mut placed), (members, 1), "idle", 1000);
    bench.job(&[0], 2, usize::MAX).unwrap();
    while !bench.card.is_done().unwrap() {
        thread::yield_now();
    }
    bench.job(&[0], 2, usize::MAX).unwrap();
    assert!(bench.card.launches >= 2);
    assert_eq!(bench.end(), expected);
    placed.end();
}

#[test]
fn a_job_that_got_there_wrong_is_told_and_hurts_nothing() {
    let Some(emulation) = emulation() else { return };
    let model = model();
    let mut placed = Placed::new(&emulation, &model, TARGET, 8);
    let members = &members()[1..3];
    let expected = texts(&model, &mut placed, Way::Resident, members, &[3]);
    let mut bench = Bench::new((&model, &mut placed), (members, 2), "corrupt", LONG);
    assert_eq!(bench.job(&[0, 1], 1, usize::MAX), Ok(1));
    for word in [desk::JOB, desk::JOB + 1, desk::JOB + 4, desk::ROWS, desk::ROWS + 5] {
        bench.resident.desk().words().fails.set(Some(word));
        assert_eq!(bench.job(&[0, 1], 2, usize::MAX), Err(ResidentError::Corrupt), "{word}");
    }
    // What a host must not post, however well it got there.
    let none = Row { token: 0, position: 0, pages: Place(0), slot: NO_SLOT };
    for (rows, passes) in [(0, 1), (3, 1), (1, 0), (1, 65)] {
        let mut notes = Notes { passes: vec![], most: usize::MAX };
        let job = (&vec![none; rows][..], passes);
        let ran = bench.resident.run(&mut bench.card, 0, job, &mut notes);
        assert_eq!(ran, Err(ResidentError::Corrupt), "{rows} rows, {passes} passes");
    }
    assert_eq!(bench.job(&[0, 1], 2, usize::MAX), Ok(2));
    assert_eq!(bench.end(), expected);
    placed.end();
}

#[test]
fn a_host_that_does_not_listen_holds_up_nothing_and_misses_nothing() {
    let Some(emulation) = emulation() else { return };
    let model = model();
    let mut placed = Placed::new(&emulation, &model, TARGET, 8);
    let members = &members()[..1];
    let expected = texts(&model, &mut placed, Way::Resident, members, &[20]);
    let mut bench = Bench::new((&model, &mut placed), (members, 1), "late", LONG);
    let words = Shared { file: bench.card.words.try_clone().unwrap(), fails: Cell::new(None) };
    let mut desk = Desk::new(words, LONG);
    let taken = desk.open();
    desk.post(&bench.rows, 20);
    bench.card.launch(0, taken).unwrap();
    while desk.words().load(desk::ENDED) != 1 {
        thread::yield_now();
    }
    let mut passes = vec![];
    while let Some(Told::Pass(nexts)) = desk.hear() {
        passes.push(nexts);
    }
    assert!(!desk.has_job());
    bench.note(&[0], &passes);
    desk.leave();
    while !bench.card.is_done().unwrap() {
        thread::yield_now();
    }
    assert_eq!(bench.end(), expected);
    placed.end();
}
