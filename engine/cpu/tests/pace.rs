//! Who is in which pass.

use super::super::batch::{Batch, Job, Next};
use super::*;
use crate::backend::PROMPT_ROWS;

/// Sessions and how many rows each has, in order.
fn rows(jobs: &[Job]) -> Vec<(u64, usize)> {
    jobs.iter().map(|job| (job.session, job.count)).collect()
}

/// Of a pass: of any, and of each row of a prompt.
#[derive(Clone, Copy)]
struct Times {
    pass: Duration,
    row: Duration,
}

impl Times {
    fn micros(pass: u64, row: u64) -> Self {
        let [pass, row] = [pass, row].map(Duration::from_micros);
        Self { pass, row }
    }
}

/// A batch on a clock of its own.
struct Clock {
    batch: Batch,
    now: Instant,
    times: Times,
}

impl Clock {
    fn new(times: Times) -> Self {
        let now = Instant::now();
        Self { batch: Batch::new(now), now, times }
    }

    /// Runs the pass that is due.
    #[track_caller]
    fn pass(&mut self) -> Vec<Job> {
        assert_eq!(self.batch.next(self.now), Next::Pass);
        let jobs = self.batch.pass();
        let prompts = jobs.iter().map(|job| job.count).filter(|count| *count > 1).sum::<usize>();
        let time = self.times.pass + self.times.row * prompts as u32;
        self.now += time;
        self.batch.ran(&jobs, time, self.now);
        jobs
    }

    fn ask(&mut self, jobs: impl IntoIterator<Item = Job>) {
        jobs.into_iter().for_each(|job| self.batch.ask(job));
    }
}

#[test]
fn all_who_ask_share_a_pass_and_a_prompt_joins_whole_if_nobody_streams() {
    let mut clock = Clock::new(Times::micros(4000, 500));
    let prompts = (0..8).map(|i| job(i, &prompt(20 + i as usize, 1)));
    clock.ask(prompts.chain([job(8, &[7])]));
    // The pace is not known yet, so it is the least.
    assert_eq!(rows(&clock.pass()), [(8, 1), (0, 16)]);
    clock.batch.heard(8);
    clock.batch.heard(0);
    let jobs = clock.pass();
    let expected: Vec<_> = (1..8).map(|i| (i, 20 + i as usize)).collect();
    assert_eq!(rows(&jobs), expected);
    assert!(jobs.iter().all(|job| job.wants_logits()));
}

#[test]
fn long_prompts_take_turns() {
    let mut clock = Clock::new(Times::micros(4000, 500));
    let long = prompt(2 * PROMPT_ROWS, 1);
    clock.ask([job(0, &long), job(1, &long[..PROMPT_ROWS]), job(2, &long[..100])]);
    let first = clock.pass();
    assert_eq!(rows(&first), [(0, PROMPT_ROWS)]);
    assert!(!first[0].wants_logits(), "more of it is to come");
    clock.ask(first);
    assert_eq!(rows(&clock.pass()), [(1, PROMPT_ROWS)]);
    clock.batch.heard(1);
    assert_eq!(rows(&clock.pass()), [(2, 100), (0, PROMPT_ROWS - 100)]);
}

#[test]
fn a_prompt_of_2048_tokens_stops_no_stream() {
    for (times, streams) in [
        (Times::micros(4300, 500), 1),
        (Times::micros(7000, 500), 8),
        (Times::micros(400_000, 90_000), 3),
    ] {
        let mut clock = Clock::new(times);
        clock.ask((0..streams).map(|i| job(i, &[7])));
        for _ in 0..4 {
            let jobs = clock.pass();
            clock.ask(jobs);
        }
        let long = prompt(2048, 1);
        let (mut held, mut passes, begun) = (0, 0, clock.now);
        clock.ask([job(99, &long)]);
        loop {
            let jobs = clock.pass();
            passes += 1;
            let of_streams = jobs.iter().filter(|job| job.session != 99);
            assert_eq!(of_streams.map(|job| job.count as u64).sum::<u64>(), streams);
            let (prompts, streams): (Vec<_>, Vec<_>) =
                jobs.into_iter().partition(|job| job.session == 99);
            clock.ask(streams);
            for mut job in prompts {
                held += job.count;
                assert_eq!(job.wants_logits(), held == long.len());
                if held < long.len() {
                    job.follow(held, &long[held..]);
                    clock.ask([job]);
                }
            }
            if held == long.len() {
                break;
            }
        }
        // As many passes as streams alone would have had in at least half the time.
        let time = clock.now - begun;
        assert!(times.pass * passes >= time.mul_f64(0.48), "{passes} passes took {time:?}");
        assert!(times.pass * passes <= time.mul_f64(0.8), "the prompt has what is left");
    }
}

#[test]
fn who_was_in_the_latest_pass_is_waited_for_until_it_asks_rests_or_is_late() {
    let mut clock = Clock::new(Times::micros(4000, 500));
    clock.ask((0..4).map(|i| job(i, &[7])));
    let jobs = clock.pass();
    assert_eq!(clock.batch.next(clock.now), Next::Nothing);
    let mut jobs = jobs.into_iter();
    clock.ask(jobs.by_ref().take(2));
    assert_eq!(clock.batch.next(clock.now), Next::Wait(Duration::from_micros(4000)));
    clock.ask(jobs.by_ref().take(1));
    assert!(matches!(clock.batch.next(clock.now), Next::Wait(_)));
    clock.batch.heard(3);
    assert_eq!(rows(&clock.pass()), [(0, 1), (1, 1), (2, 1)]);

    clock.ask([job(1, &[7])]);
    clock.now += Duration::from_micros(3999);
    assert_eq!(clock.batch.next(clock.now), Next::Wait(Duration::from_micros(1)));
    clock.now += Duration::from_micros(1);
    assert_eq!(rows(&clock.pass()), [(1, 1)]);
}

#[test]
fn a_stream_that_is_late_finds_no_long_pass_before_its_own() {
    let mut clock = Clock::new(Times::micros(4000, 500));
    let long = prompt(PROMPT_ROWS, 1);
    clock.ask([job(0, &[7])]);
    clock.pass();
    clock.ask([job(1, &long)]);
    clock.now += Duration::from_secs(1);
    let [(1, count)] = rows(&clock.pass())[..] else { panic!("nobody else asks") };
    assert!(count < 64, "{count} rows");
    // It has not come by now either, and the prompt has.
    clock.ask([job(1, &long)]);
    assert_eq!(rows(&clock.pass()), [(1, PROMPT_ROWS)]);
}

#[test]
fn who_withdraws_is_in_no_pass() {
    let mut clock = Clock::new(Times::micros(4000, 500));
    clock.ask([job(0, &[7]), job(1, &prompt(30, 1)), job(2, &[7])]);
    assert!(clock.batch.withdraw(5).is_none());
    for session in [0, 1] {
        let job = clock.batch.withdraw(session).unwrap();
        assert_eq!((job.session, job.count, job.wants_logits()), (session, 0, false));
    }
    assert_eq!(rows(&clock.pass()), [(2, 1)]);
}
