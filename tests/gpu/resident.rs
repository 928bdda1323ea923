//! The decode kernel that stays: tokens while it runs, jobs one after another, and that it leaves.

use std::fs;
use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};

use m40_cuda::Mailbox;
use m40_gpu::Sequence;
use m40_gpu::executor::{Attend, Chosen, Executor, Launches, Row, Unattended};
use m40_gpu::resident::{IDLE_MICROS, pause};

use super::choosing::{Member, members, started, texts, tokens};
use super::models::{Model, arena, begin, forward, mixed, rows};
use super::{gpu, say};

const TOKENS: usize = 200;

/// Notes what it hears and when, and ends the launch after so many passes.
struct Notes {
    chosen: Vec<Vec<Chosen>>,
    times: Vec<Instant>,
    most: usize,
}

impl Notes {
    fn new(most: usize) -> Self {
        Self { chosen: vec![], times: vec![Instant::now()], most }
    }
}

impl Attend for Notes {
    fn chosen(&mut self, chosen: &[Chosen]) {
        self.chosen.push(chosen.to_vec());
        self.times.push(Instant::now());
    }

    fn pause(&mut self, time: Duration) -> ControlFlow<()> {
        pause(time);
        if self.chosen.len() < self.most {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    }
}

/// A sequence that goes on, and what it has said.
struct Stream {
    sequence: Sequence,
    text: Vec<u32>,
}

impl Stream {
    fn new(executor: &mut Executor, member: &Member) -> Self {
        Self { sequence: started(executor, member).0, text: vec![member.prompt[2]] }
    }

    /// Lets it go on, and hears what it says.
    fn go_on(&mut self, executor: &mut Executor, passes: usize, most: usize) -> Notes {
        let mut notes = Notes::new(most);
        let (token, position) = (self.text[self.text.len() - 1], self.sequence.len());
        let row = Row { token, position, sequence: 0, logits: false };
        let sequences = &mut [&mut self.sequence];
        let chosen = executor.choose_attended(&[row], sequences, passes as u32, &mut notes);
        let chosen = chosen.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(notes.chosen.concat(), chosen, "what was told is what was chosen");
        self.text.extend(tokens(&chosen));
        notes
    }

    #[track_caller]
    fn check(&self, expected: &[u32]) {
        assert_eq!(self.text[1..], expected[..self.text.len() - 1]);
    }
}

fn executor_and_text(arena: &m40_cuda::Arena, member: &Member) -> (Executor, Vec<u32>) {
    let mut executor = Model::new(&mixed("llama")).load(arena, Launches::Whole, 2000);
    let text = texts(&mut executor, std::slice::from_ref(member), &[TOKENS as u32]);
    (executor, tokens(&text[0]))
}

#[test]
fn jobs_follow_each_other_on_a_kernel_that_stays_without_a_call_that_allocates() {
    let Some(gpu) = gpu() else { return };
    let arena = arena(&gpu);
    let member = &members()[7];
    let (mut executor, expected) = executor_and_text(&arena, member);
    let mut stream = Stream::new(&mut executor, member);
    let residency = gpu.device.begin_residency();
    assert!(!executor.stays());
    for passes in [10, 1, 30, 70] {
        assert_eq!(stream.go_on(&mut executor, passes, usize::MAX).chosen.len(), passes);
        assert!(executor.stays());
    }
    let ran = stream.go_on(&mut executor, 80, 5).chosen.len();
    say(&format!("a job that was cut short after 5 passes had {ran}"));
    assert!((5..80).contains(&ran));
    let (calls, begun) = (residency.calls(), Instant::now());
    executor.rest().unwrap_or_else(|error| panic!("{error}"));
    say(&format!("the kernel left in {:?}; calls meanwhile: {calls:?}", begun.elapsed()));
    assert_eq!((calls.allocates, calls.refused), (0, 0));
    assert!(!executor.stays());
    stream.check(&expected);
}

#[test]
fn a_kernel_leaves_when_it_has_no_job_and_is_launched_again_for_the_next() {
    let Some(gpu) = gpu() else { return };
    let arena = arena(&gpu);
    let member = &members()[1];
    let (mut executor, expected) = executor_and_text(&arena, member);
    let mut stream = Stream::new(&mut executor, member);
    let idle = Duration::from_micros(IDLE_MICROS.into());
    // Around the time at which it leaves, so that some jobs come just then.
    for tenths in (0..40).map(|i| 9 + i % 4) {
        stream.go_on(&mut executor, 3, usize::MAX);
        let begun = Instant::now();
        while begun.elapsed() < idle * tenths / 10 {
            thread::yield_now();
        }
    }
    stream.check(&expected);
}

#[test]
fn a_kernel_that_stays_makes_room_for_prompts_for_other_models_and_for_who_allocates() {
    let Some(gpu) = gpu() else { return };
    let arena = arena(&gpu);
    let member = &members()[2];
    let (mut executor, expected) = executor_and_text(&arena, member);
    let (mut other, _) = executor_and_text(&arena, member);
    let prompt: Vec<u32> = (10..60).collect();
    let logits = |executor: &mut Executor| {
        let mut sequence = begin(executor);
        forward(executor, &rows(&prompt, 0, 0, true), &mut [&mut sequence])
    };
    let expected_logits = logits(&mut executor);
    let mut stream = Stream::new(&mut executor, member);
    let mut beside = Stream::new(&mut other, member);
    for _ in 0..10 {
        stream.go_on(&mut executor, 4, usize::MAX);
        assert_eq!(logits(&mut executor), expected_logits);
        stream.go_on(&mut executor, 4, usize::MAX);
        // Of its own accord the kernel leaves soon, and the other one waits so long for its blocks.
        beside.go_on(&mut other, 4, usize::MAX);
    }
    other.rest().unwrap_or_else(|error| panic!("{error}"));
    thread::scope(|scope| {
        let device = &gpu.device;
        let allocates = scope.spawn(move || {
            let begun = Instant::now();
            let made = (0..5).try_for_each(|_| Mailbox::new(device, 1).map(drop));
            made.map(|()| begun.elapsed())
        });
        stream.go_on(&mut executor, 100, usize::MAX);
        executor.rest().unwrap_or_else(|error| panic!("{error}"));
        let time = allocates.join().expect("no panic").unwrap_or_else(|error| panic!("{error}"));
        say(&format!("five allocations beside a kernel that stays: {time:?}"));
    });
    stream.check(&expected);
    beside.check(&expected);
    // Dropped while its kernel is there, which memory given to others must not meet.
    stream.go_on(&mut executor, 2, usize::MAX);
    assert!(executor.stays());
    drop((stream, executor, beside, other));
    let (_, again) = executor_and_text(&arena, member);
    assert_eq!(again, expected);
}

/// Nanoseconds for which a thread had a core.
fn busy() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").expect("Linux counts it");
    let first = text.split(' ').next().and_then(|first| first.parse().ok());
    first.expect("a number comes first")
}

#[test]
fn tokens_come_one_by_one_and_the_host_sleeps_meanwhile() {
    let Some(gpu) = gpu() else { return };
    let arena = arena(&gpu);
    let member = &members()[0];
    let (mut executor, expected) = executor_and_text(&arena, member);
    let mut stream = Stream::new(&mut executor, member);
    stream.go_on(&mut executor, 30, usize::MAX);
    let (before, begun) = (busy(), Instant::now());
    let notes = stream.go_on(&mut executor, 128, usize::MAX);
    let (time, busy) = (begun.elapsed(), busy() - before);
    let mut gaps: Vec<_> = notes.times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    gaps.sort();
    say(&format!(
        "128 tokens in {time:?}: gaps {:?} in the middle, {:?} for 9 of 10, {:?} at most; the host \
         had a core for {:?}",
        gaps[64],
        gaps[115],
        gaps[127],
        Duration::from_nanos(busy)
    ));
    stream.check(&expected);
    // Without anybody who attends it takes as long.
    let (token, position) = (stream.text[158], stream.sequence.len());
    let row = Row { token, position, sequence: 0, logits: false };
    let sequences = &mut [&mut stream.sequence];
    let rest = executor.choose_attended(&[row], sequences, 40, &mut Unattended);
    assert_eq!(tokens(&rest.unwrap_or_else(|error| panic!("{error}"))), expected[158..198]);
}
