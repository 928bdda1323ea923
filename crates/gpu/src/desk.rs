//! The desk: words that the host shares with a kernel that stays, by which jobs come to it and what it
//! has chosen comes back (`kernels/desk.cuh`). Only the order of reads and writes is here; who waits, and
//! for how long, is in [`resident`](crate::resident).

use std::sync::atomic::Ordering;

use m40_cuda::Mailbox;

use crate::ops::{Next, PASS_ROWS, PASSES_AT_ONCE, Row};

/// Number of the job posted last.
pub const POSTED: usize = 0;
/// The job of this number ends with the pass that runs.
pub const YIELD: usize = 1;
/// Not 0: the kernel leaves when it has no job.
pub const LEAVE: usize = 2;
/// Microseconds without a job after which the kernel leaves by itself.
pub const IDLE: usize = 3;
/// The job: rows, passes, sequence, number, check.
pub const JOB: usize = 32;
/// Its rows, [`PASS_ROWS`] [`Row`]s.
pub const ROWS: usize = 64;
/// Another number whenever the kernel shows that it is there.
pub const BEAT: usize = 96;
/// Number of the job that ended last.
pub const ENDED: usize = 97;
/// Of that job.
pub const OUTCOME: usize = 98;
/// Passes of it that ran.
pub const RAN: usize = 99;
/// Number of the job taken last, once the kernel has left.
pub const TAKEN: usize = 100;
/// Not 0: the kernel has left.
pub const LEFT: usize = 101;
/// What passes have chosen, `[PASSES_AT_ONCE][PASS_ROWS]` [`Next`], each with the pass's sequence as its
/// last word.
pub const RING: usize = 128;
/// All words.
pub const WORDS: usize = RING + PASSES_AT_ONCE * PASS_ROWS * Next::WORDS;

/// [`OUTCOME`] of a job that is none that a host posts.
pub const CORRUPT: u32 = 1;
/// [`OUTCOME`] of a job whose blocks waited in vain for each other.
pub const STUCK: u32 = 2;

/// Words that a kernel sees as well. What was stored before a word is there for whoever has loaded it.
pub trait Words {
    /// A word.
    fn load(&self, word: usize) -> u32;
    /// Changes a word.
    fn store(&self, word: usize, value: u32);
}

impl Words for Mailbox {
    fn load(&self, word: usize) -> u32 {
        self.word(word).load(Ordering::Acquire)
    }

    fn store(&self, word: usize, value: u32) {
        self.word(word).store(value, Ordering::Release);
    }
}

impl<W: Words> Words for &W {
    fn load(&self, word: usize) -> u32 {
        (*self).load(word)
    }

    fn store(&self, word: usize, value: u32) {
        (*self).store(word, value);
    }
}

/// What a kernel has told of its job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// What a pass has chosen for each row.
    Pass(Vec<[u32; Next::WORDS]>),
    /// All of its passes have been told; there is no job any more.
    Ended,
    /// The job was not what the host had written; there is none any more.
    Corrupt,
    /// Its blocks waited in vain for each other; there is none any more, and the kernel leaves.
    Stuck,
    /// The kernel has left without taking the job: it waits for the next launch.
    Left,
}

/// The host's side of a desk.
#[derive(Debug)]
pub struct Desk<W> {
    words: W,
    /// Number of the latest job.
    posted: u32,
    /// Number of the latest job that has ended; 0: none.
    ended: u32,
    /// Of the next pass that is asked for.
    sequence: u32,
    job: Option<Job>,
}

/// A job that has not ended.
#[derive(Debug)]
struct Job {
    rows: usize,
    passes: usize,
    /// Of its first pass.
    sequence: u32,
    /// Passes that the host knows of.
    told: usize,
}

impl<W: Words> Desk<W> {
    /// A desk of these [`WORDS`] words, all 0, from which a kernel leaves after so many microseconds
    /// without a job.
    pub fn new(words: W, idle: u32) -> Self {
        words.store(IDLE, idle);
        Self { words, posted: 0, ended: 0, sequence: 1, job: None }
    }

    /// The words.
    pub fn words(&self) -> &W {
        &self.words
    }

    /// Before a launch, while no kernel is there: the number of the job taken last.
    pub fn open(&mut self) -> u32 {
        self.words.store(LEAVE, 0);
        self.words.store(LEFT, 0);
        self.ended
    }

    /// Posts a job: so many passes over these rows, at most [`PASSES_AT_ONCE`] and [`PASS_ROWS`].
    ///
    /// # Panics
    /// While there is another.
    pub fn post(&mut self, rows: &[Row], passes: usize) {
        assert!(self.job.is_none(), "the job before has not ended");
        self.posted = self.posted.checked_add(1).unwrap_or(1);
        let job = job_words(rows, passes as u32, self.sequence, self.posted);
        let (head, rows_words) = job.split_at(HEAD);
        head.iter().enumerate().for_each(|(i, word)| self.words.store(JOB + i, *word));
        rows_words.iter().enumerate().for_each(|(i, word)| self.words.store(ROWS + i, *word));
        self.words.store(POSTED, self.posted);
        self.job = Some(Job { rows: rows.len(), passes, sequence: self.sequence, told: 0 });
        // Of passes that do not run nobody reads, and no number comes twice.
        self.sequence = self.sequence.wrapping_add(passes as u32);
    }

    /// Whether a job has not ended.
    pub fn has_job(&self) -> bool {
        self.job.is_some()
    }

    /// The next thing that the kernel has told of its job, if there is one.
    pub fn hear(&mut self) -> Option<Told> {
        let job = self.job.as_mut()?;
        // It has left after all that it told: what is looked for now is not still to come.
        let left = self.words.load(LEFT) != 0;
        let ended = self.words.load(ENDED) == self.posted;
        if job.told < job.passes {
            let sequence = job.sequence.wrapping_add(job.told as u32);
            let row = |row| RING + (job.told * PASS_ROWS + row) * Next::WORDS;
            let there = |start: usize| self.words.load(start + Next::WORDS - 1) == sequence;
            if (0..job.rows).map(row).all(there) {
                job.told += 1;
                let next = |start: usize| {
                    [
                        self.words.load(start),
                        self.words.load(start + 1),
                        self.words.load(start + 2),
                        0,
                    ]
                };
                let row = |row| RING + ((job.told - 1) * PASS_ROWS + row) * Next::WORDS;
                return Some(Told::Pass((0..job.rows).map(row).map(next).collect()));
            }
        }
        let told = match (ended, self.words.load(OUTCOME)) {
            (true, CORRUPT) => Told::Corrupt,
            (true, STUCK) => Told::Stuck,
            // Else its last pass is on its way.
            (true, _) if self.words.load(RAN) as usize <= job.told => Told::Ended,
            (false, _) if left && self.words.load(TAKEN) == self.posted => Told::Stuck,
            (false, _) if left => return Some(Told::Left),
            _ => return None,
        };
        self.forget_job();
        Some(told)
    }

    /// The job ends with the pass that runs.
    pub fn end_job(&self) {
        self.words.store(YIELD, self.posted);
    }

    /// Nobody will hear of the job any more.
    pub fn forget_job(&mut self) {
        self.job = None;
        self.ended = self.posted;
    }

    /// The kernel is to leave when it has no job.
    pub fn leave(&self) {
        self.words.store(LEAVE, 1);
    }

    /// Another number whenever the kernel has shown that it is there.
    pub fn beat(&self) -> u32 {
        self.words.load(BEAT)
    }
}

/// Words of a job before its rows: those that it shares with a pass, and the check.
const HEAD: usize = 5;

/// A job as kernels read it: its head, then [`PASS_ROWS`] rows.
fn job_words(rows: &[Row], passes: u32, sequence: u32, number: u32) -> Vec<u32> {
    let mut words = vec![rows.len() as u32, passes, sequence, number];
    rows.iter().for_each(|row| words.extend(row.words()));
    words.resize(HEAD - 1 + PASS_ROWS * Row::WORDS, 0);
    let check = (0..).zip(&words).map(|(i, word)| check_of(*word, i)).fold(0, u32::wrapping_add);
    words.insert(HEAD - 1, check);
    words
}

fn check_of(word: u32, index: u32) -> u32 {
    word.wrapping_mul(0x9E37_79B1).rotate_left(index % 32)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::ops::{NO_SLOT, Place};

    /// Words that one thread has to itself.
    pub(crate) struct Plain(Vec<Cell<u32>>);

    impl Plain {
        pub(crate) fn new() -> Self {
            Self(vec![Cell::new(0); WORDS])
        }
    }

    impl Words for Plain {
        fn load(&self, word: usize) -> u32 {
            self.0[word].get()
        }

        fn store(&self, word: usize, value: u32) {
            self.0[word].set(value);
        }
    }

    pub(crate) fn rows(count: u32) -> Vec<Row> {
        (0..count).map(|i| Row { token: i, position: 9, pages: Place(7), slot: NO_SLOT }).collect()
    }

    /// What the kernel does at the end of a pass, as far as the words go.
    pub(crate) fn tell<W: Words>(words: &W, pass: usize, rows: usize, token: u32) {
        let sequence = words.load(JOB + 2).wrapping_add(pass as u32);
        for row in 0..rows {
            let start = RING + (pass * PASS_ROWS + row) * Next::WORDS;
            words.store(start, token + row as u32);
            words.store(start + 3, sequence);
        }
    }

    pub(crate) fn end<W: Words>(words: &W, outcome: u32, ran: u32) {
        words.store(OUTCOME, outcome);
        words.store(RAN, ran);
        words.store(ENDED, words.load(JOB + 3));
    }

    fn desk() -> Desk<Plain> {
        Desk::new(Plain::new(), 2000)
    }

    #[test]
    fn each_pass_is_told_once_and_in_order_and_then_that_the_job_has_ended() {
        let mut desk = desk();
        for first in [100, 200] {
            desk.post(&rows(2), 3);
            assert_eq!(desk.hear(), None);
            for pass in 0..3 {
                tell(desk.words(), pass, 2, first + pass as u32);
            }
            end(desk.words(), 0, 3);
            for pass in 0..3 {
                let token = first + pass;
                let nexts = vec![[token, 0, 0, 0], [token + 1, 0, 0, 0]];
                assert_eq!(desk.hear(), Some(Told::Pass(nexts)));
            }
            assert_eq!(
                (desk.hear(), desk.hear(), desk.has_job()),
                (Some(Told::Ended), None, false)
            );
        }
    }

    #[test]
    fn a_pass_is_there_with_its_last_row_and_an_end_waits_for_its_passes() {
        let mut desk = desk();
        desk.post(&rows(2), 8);
        tell(desk.words(), 0, 1, 5);
        end(desk.words(), 0, 1);
        assert_eq!(desk.hear(), None);
        tell(desk.words(), 0, 2, 5);
        assert!(matches!(desk.hear(), Some(Told::Pass(_))));
        assert_eq!(desk.hear(), Some(Told::Ended));
        // What the ring still has of it is nothing of the next job.
        desk.post(&rows(2), 8);
        assert_eq!(desk.hear(), None);
    }

    #[test]
    fn a_host_that_reads_late_finds_every_pass() {
        let mut desk = desk();
        desk.post(&rows(8), PASSES_AT_ONCE);
        (0..PASSES_AT_ONCE).for_each(|pass| tell(desk.words(), pass, 8, pass as u32));
        end(desk.words(), 0, PASSES_AT_ONCE as u32);
        for pass in 0..PASSES_AT_ONCE as u32 {
            let Some(Told::Pass(nexts)) = desk.hear() else { panic!("pass {pass}") };
            assert_eq!((nexts.len(), nexts[7][0]), (8, pass + 7));
        }
        assert_eq!(desk.hear(), Some(Told::Ended));
    }

    #[test]
    fn a_job_posted_as_the_kernel_leaves_is_not_lost() {
        let mut desk = desk();
        assert_eq!(desk.open(), 0);
        desk.post(&rows(1), 1);
        desk.words().store(LEFT, 1);
        assert_eq!(desk.hear(), Some(Told::Left));
        assert!(desk.has_job());
        assert_eq!((desk.open(), desk.words().load(POSTED)), (0, 1));
        tell(desk.words(), 0, 1, 5);
        end(desk.words(), 0, 1);
        assert!(matches!(desk.hear(), Some(Told::Pass(_))));
        assert_eq!((desk.hear(), desk.open()), (Some(Told::Ended), 1));
        // One that it took and left without a word is not done again.
        desk.post(&rows(1), 1);
        desk.words().store(TAKEN, 2);
        desk.words().store(LEFT, 1);
        assert_eq!((desk.hear(), desk.has_job()), (Some(Told::Stuck), false));
    }

    #[test]
    fn what_ends_badly_is_told_as_what_it_is() {
        let mut desk = desk();
        for (outcome, told) in [(CORRUPT, Told::Corrupt), (STUCK, Told::Stuck)] {
            desk.post(&rows(1), 4);
            end(desk.words(), outcome, 0);
            assert_eq!((desk.hear(), desk.has_job()), (Some(told), false));
        }
    }

    #[test]
    fn any_word_of_a_job_that_changes_changes_its_check() {
        let words = job_words(&rows(3), 5, 77, 9);
        let check = |words: &[u32]| {
            let others = words[..HEAD - 1].iter().chain(&words[HEAD..]);
            (0..).zip(others).map(|(i, word)| check_of(*word, i)).fold(0, u32::wrapping_add)
        };
        assert_eq!(check(&words), words[HEAD - 1]);
        for i in (0..words.len()).filter(|i| *i != HEAD - 1) {
            let mut changed = words.clone();
            changed[i] ^= 1 << (i % 32);
            assert_ne!(check(&changed), words[HEAD - 1], "word {i}");
        }
    }
}
