//! A kernel that stays: when it is launched, what the host waits for and how long, and when it leaves.
//!
//! A launch of the device waits for work before it in its stream, and many calls of the driver for all of
//! the device; so while a kernel stays nothing else may run there. [`Resident`] is the one that knows
//! whether it does. It launches the kernel for a job, keeps it for the next one, and has it leave when
//! another kernel is needed, or somebody else needs the card. By itself the kernel leaves soon after its
//! last job: a spinning card is a hot card.

use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};

use m40_cuda::CudaError;

use crate::desk::{Desk, Told, Words};
use crate::ops::{Next, Row};

/// How long a kernel stays without a job, microseconds: long enough for those who had the last tokens to
/// ask for the next ones.
pub const IDLE_MICROS: u32 = 2000;

/// How long a kernel may give no sign before it counts as dead: longer than any pass, and longer than
/// blocks wait for each other.
pub const MOST_SILENCE: Duration = Duration::from_secs(10);

/// How long a kernel gives no sign before the driver is asked whether it still runs.
const DOUBTFUL_SILENCE: Duration = Duration::from_millis(200);

/// The longest pause between two looks: how long others wait to be seen.
const LONGEST_PAUSE: Duration = Duration::from_millis(2);

/// The shortest.
const SHORTEST_PAUSE: Duration = Duration::from_micros(20);

/// Waits for a kernel, which wakes nobody: its words change.
#[expect(clippy::disallowed_methods, reason = "no event of the host tells of it")]
pub fn pause(time: Duration) {
    if !time.is_zero() {
        thread::sleep(time);
    }
}

/// Launches kernels that stay.
pub trait Launcher {
    /// Launches the kernel of this number, which has taken the job `taken` last.
    ///
    /// # Errors
    /// [`CudaError`], and it was not launched.
    fn launch(&mut self, kernel: usize, taken: u32) -> Result<(), CudaError>;

    /// Whether what was launched has ended.
    ///
    /// # Errors
    /// When the card is lost.
    fn is_done(&self) -> Result<bool, CudaError>;

    /// The kernel has ended: others may have the card.
    fn ended(&mut self);

    /// Whether others wait for the card.
    fn is_wanted(&self) -> bool;
}

/// Watches a job while it runs.
pub trait Watch {
    /// What a pass has chosen for each row.
    fn told(&mut self, nexts: &[[u32; Next::WORDS]]);

    /// Waits so long, or less. The job is to end with the pass that runs if it breaks.
    fn pause(&mut self, time: Duration) -> ControlFlow<()>;
}

/// Why a job was not done, or not to its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResidentError {
    /// The kernel has read another job than the host has posted.
    #[error("the job that the kernel read is not the one that was posted")]
    Corrupt,
    /// Its blocks waited in vain for each other; it has left.
    #[error("the blocks of the kernel waited in vain for each other")]
    Stuck,
    /// It gives no sign of life, and does not leave.
    #[error("the kernel gives no sign of life")]
    Silent,
    /// The card.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

/// The kernel that stays, if one does, and its desk.
#[derive(Debug)]
pub struct Resident<W> {
    desk: Desk<W>,
    /// The kernel that was launched and was not seen to have ended.
    running: Option<usize>,
    most_silence: Duration,
    pulse: Pulse,
    /// What passes took lately.
    pass: Duration,
}

/// When the kernel was last seen to live.
#[derive(Clone, Copy, Debug)]
struct Pulse {
    beat: u32,
    seen: Instant,
}

impl<W: Words> Resident<W> {
    /// None yet, with this desk; it counts as dead after `most_silence`.
    pub fn new(desk: Desk<W>, most_silence: Duration) -> Self {
        let pulse = Pulse { beat: 0, seen: Instant::now() };
        Self { desk, running: None, most_silence, pulse, pass: Duration::ZERO }
    }

    /// The desk.
    pub fn desk(&self) -> &Desk<W> {
        &self.desk
    }

    /// Whether a kernel may be there.
    pub fn is_there(&self) -> bool {
        self.running.is_some()
    }

    /// Has a kernel do `passes` passes over `rows`, fewer if all their sequences end or `watch` breaks,
    /// and says what each has chosen as soon as it has. The kernel stays, unless others want the card.
    ///
    /// # Errors
    /// [`ResidentError`]; no kernel is there then, unless it is silent.
    pub fn run(
        &mut self,
        launcher: &mut dyn Launcher,
        kernel: usize,
        (rows, passes): (&[Row], usize),
        watch: &mut dyn Watch,
    ) -> Result<(), ResidentError> {
        if self.running.is_some_and(|running| running != kernel) || launcher.is_wanted() {
            self.leave(launcher)?;
        }
        self.desk.post(rows, passes);
        let done = self.watch(launcher, kernel, watch);
        if done.is_err() {
            self.desk.end_job();
            self.desk.forget_job();
            self.desk.leave();
        }
        match done {
            // It has been waited for.
            Err(ResidentError::Silent) => done,
            Ok(()) if !launcher.is_wanted() => done,
            Ok(()) => self.leave(launcher),
            // What has failed first is what is told.
            Err(_) => {
                let _ = self.leave(launcher);
                done
            }
        }
    }

    fn watch(
        &mut self,
        launcher: &mut dyn Launcher,
        kernel: usize,
        watch: &mut dyn Watch,
    ) -> Result<(), ResidentError> {
        if self.running.is_none() {
            self.launch(launcher, kernel)?;
        }
        self.pulse.seen = Instant::now();
        let mut begun = self.pulse.seen;
        let mut again = false;
        loop {
            match self.desk.hear() {
                Some(Told::Pass(nexts)) => {
                    let now = Instant::now();
                    self.pass = (self.pass + (now - begun)) / 2;
                    (begun, self.pulse.seen) = (now, now);
                    watch.told(&nexts);
                }
                Some(Told::Ended) => return Ok(()),
                Some(Told::Corrupt) => return Err(ResidentError::Corrupt),
                Some(Told::Stuck) => return Err(ResidentError::Stuck),
                // A kernel that begins looks for a job before anything else.
                Some(Told::Left) if again => return Err(ResidentError::Corrupt),
                Some(Told::Left) => {
                    again = true;
                    self.await_end(launcher)?;
                    self.launch(launcher, kernel)?;
                }
                None => {
                    self.check_pulse(launcher)?;
                    let wanted = launcher.is_wanted();
                    if watch.pause(self.pause(begun)).is_break() || wanted {
                        self.desk.end_job();
                    }
                }
            }
        }
    }

    fn launch(&mut self, launcher: &mut dyn Launcher, kernel: usize) -> Result<(), ResidentError> {
        let taken = self.desk.open();
        launcher.launch(kernel, taken)?;
        self.running = Some(kernel);
        self.pulse.seen = Instant::now();
        Ok(())
    }

    /// How long to wait for the pass that began then: most of its time at once, the rest in small
    /// pieces.
    fn pause(&self, begun: Instant) -> Duration {
        let rest = (self.pass * 7 / 8).saturating_sub(begun.elapsed());
        rest.clamp((self.pass / 32).clamp(SHORTEST_PAUSE, LONGEST_PAUSE), LONGEST_PAUSE)
    }

    /// That the kernel lives, as far as can be known.
    fn check_pulse(&mut self, launcher: &mut dyn Launcher) -> Result<(), ResidentError> {
        let (beat, silence) = (self.desk.beat(), self.pulse.seen.elapsed());
        if beat != self.pulse.beat {
            self.pulse = Pulse { beat, seen: Instant::now() };
        } else if silence > self.most_silence {
            return Err(ResidentError::Silent);
        } else if silence > DOUBTFUL_SILENCE.min(self.most_silence / 2) && launcher.is_done()? {
            // It ended without a word, unless that came just now.
            self.running = None;
            launcher.ended();
            if self.desk.words().load(crate::desk::LEFT) == 0 {
                return Err(ResidentError::Stuck);
            }
        }
        Ok(())
    }

    /// Has the kernel leave, and waits until it has ended: then others may have the card.
    ///
    /// # Errors
    /// [`ResidentError::Silent`] if it does not leave, or what the card says.
    pub fn leave(&mut self, launcher: &mut dyn Launcher) -> Result<(), ResidentError> {
        if self.running.is_none() {
            return Ok(());
        }
        self.desk.leave();
        self.await_end(launcher)
    }

    /// Waits until the kernel, which leaves, has ended.
    fn await_end(&mut self, launcher: &mut dyn Launcher) -> Result<(), ResidentError> {
        let begun = Instant::now();
        while self.running.is_some() && !launcher.is_done()? {
            if begun.elapsed() > self.most_silence {
                return Err(ResidentError::Silent);
            }
            pause(SHORTEST_PAUSE);
        }
        if self.running.take().is_some() {
            launcher.ended();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use m40_cuda::Call;

    use super::*;
    use crate::desk::tests::{Plain, end, rows, tell};
    use crate::desk::{BEAT, ENDED, JOB, LEAVE, LEFT, POSTED, STUCK, YIELD};

    /// What becomes of a kernel.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Fate {
        Lives,
        /// It leaves before it has seen a job.
        Leaves,
        /// So does every other.
        Ignores,
        /// It says nothing, and does not leave.
        Hangs,
        /// It ends without a word after a pass.
        Dies,
        /// Its blocks wait for each other in vain after a pass.
        Sticks,
        /// The card is gone after a pass.
        Lost,
    }

    /// A card whose kernel runs a pass while the host pauses.
    struct Card<'a> {
        words: &'a Plain,
        fate: Cell<Fate>,
        launched: Cell<usize>,
        there: Cell<bool>,
        /// The job that runs, and passes of it that have.
        ran: Cell<(u32, usize)>,
        wanted: Cell<bool>,
    }

    impl<'a> Card<'a> {
        fn new(words: &'a Plain, fate: Fate) -> Self {
            let (fate, launched, ran) = (Cell::new(fate), Cell::new(0), Cell::new((0, 0)));
            let (there, wanted) = (Cell::new(false), Cell::new(false));
            Self { words, fate, launched, there, ran, wanted }
        }

        fn leave(&self) {
            self.words.store(LEFT, 1);
            self.there.set(false);
        }

        fn step(&self) {
            let (job, ran) = self.ran.get();
            let posted = self.words.load(POSTED);
            match (self.there.get(), self.fate.get(), ran) {
                (false, ..) | (_, Fate::Hangs, _) => return,
                (_, Fate::Leaves, _) => {
                    self.fate.set(Fate::Lives);
                    return self.leave();
                }
                (_, Fate::Ignores, _) => return self.leave(),
                (_, Fate::Dies, 1) => return self.there.set(false),
                (_, Fate::Sticks, 1) => {
                    end(self.words, STUCK, 1);
                    return self.leave();
                }
                (_, Fate::Lost, 1) => return,
                _ => {}
            }
            if job != posted {
                self.ran.set((posted, 0));
                return;
            }
            if self.words.load(ENDED) != job {
                tell(self.words, ran, self.words.load(JOB) as usize, ran as u32);
                self.ran.set((job, ran + 1));
                self.words.store(BEAT, self.words.load(BEAT) + 1);
                let yields = self.words.load(YIELD) == job;
                if yields || ran + 1 == self.words.load(JOB + 1) as usize {
                    end(self.words, 0, ran as u32 + 1);
                }
            }
        }
    }

    impl Launcher for &Card<'_> {
        fn launch(&mut self, _kernel: usize, taken: u32) -> Result<(), CudaError> {
            assert!(!self.there.replace(true), "one is there already");
            assert_eq!((self.words.load(LEAVE), self.words.load(LEFT)), (0, 0));
            assert_ne!(taken, self.words.load(POSTED));
            self.launched.set(self.launched.get() + 1);
            Ok(())
        }

        fn is_done(&self) -> Result<bool, CudaError> {
            if self.fate.get() == Fate::Lost {
                return Err(lost());
            }
            if self.fate.get() != Fate::Hangs && self.words.load(LEAVE) != 0 {
                self.leave();
            }
            Ok(!self.there.get())
        }

        fn ended(&mut self) {
            assert!(!self.there.get());
        }

        fn is_wanted(&self) -> bool {
            self.wanted.get()
        }
    }

    fn lost() -> CudaError {
        let call = Call::cuStreamQuery;
        CudaError::DeviceLost { call, code: 719, name: "LAUNCH_FAILED".into() }
    }

    /// Counts passes, and ends the job once it has seen so many.
    struct Notes<'a> {
        card: &'a Card<'a>,
        passes: usize,
        most: usize,
    }

    impl Watch for Notes<'_> {
        fn told(&mut self, _nexts: &[[u32; Next::WORDS]]) {
            self.passes += 1;
        }

        fn pause(&mut self, _time: Duration) -> ControlFlow<()> {
            self.card.step();
            let enough = self.passes >= self.most;
            if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
    }

    fn resident(words: &Plain) -> Resident<&Plain> {
        Resident::new(Desk::new(words, 0), Duration::from_millis(20))
    }

    fn run(
        resident: &mut Resident<&Plain>,
        card: &Card<'_>,
        (kernel, passes, most): (usize, usize, usize),
    ) -> (usize, Result<(), ResidentError>) {
        let mut notes = Notes { card, passes: 0, most };
        let done = resident.run(&mut &*card, kernel, (&rows(2), passes), &mut notes);
        (notes.passes, done)
    }

    #[test]
    fn a_kernel_stays_for_jobs_and_leaves_for_another_one_or_for_others() {
        let words = Plain::new();
        let (card, mut resident) = (Card::new(&words, Fate::Lives), resident(&words));
        assert_eq!(run(&mut resident, &card, (1, 3, 99)), (3, Ok(())));
        assert_eq!(run(&mut resident, &card, (1, 64, 99)), (64, Ok(())));
        assert!(resident.is_there());
        assert_eq!(card.launched.get(), 1);
        // A larger one.
        assert_eq!(run(&mut resident, &card, (2, 5, 99)), (5, Ok(())));
        assert_eq!(card.launched.get(), 2);
        // Others want the card: the job ends soon, and the kernel leaves.
        card.wanted.set(true);
        let (passes, done) = run(&mut resident, &card, (2, 64, 99));
        assert!(passes <= 2 && done.is_ok(), "{passes}, {done:?}");
        assert!(!resident.is_there());
        card.wanted.set(false);
        assert_eq!(run(&mut resident, &card, (2, 5, 99)), (5, Ok(())));
        resident.leave(&mut &card).unwrap();
        assert!(!resident.is_there() && !card.there.get());
    }

    #[test]
    fn a_job_ends_with_the_pass_that_runs_when_it_is_cut_short() {
        let words = Plain::new();
        let (card, mut resident) = (Card::new(&words, Fate::Lives), resident(&words));
        // It says so during the fourth pass, and is heard in the fifth.
        assert_eq!(run(&mut resident, &card, (0, 64, 3)), (5, Ok(())));
        assert_eq!(run(&mut resident, &card, (0, 6, 99)), (6, Ok(())));
    }

    #[test]
    fn a_job_for_a_kernel_that_leaves_is_done_by_the_next_one() {
        let words = Plain::new();
        let (card, mut resident) = (Card::new(&words, Fate::Leaves), resident(&words));
        assert_eq!(run(&mut resident, &card, (0, 3, 99)), (3, Ok(())));
        assert_eq!(card.launched.get(), 2);
    }

    #[test]
    fn a_kernel_that_does_not_beat_is_noticed_and_so_is_one_that_has_died() {
        let fates = [
            (Fate::Hangs, 0, ResidentError::Silent),
            (Fate::Ignores, 0, ResidentError::Corrupt),
            (Fate::Dies, 1, ResidentError::Stuck),
            (Fate::Sticks, 1, ResidentError::Stuck),
            (Fate::Lost, 1, lost().into()),
        ];
        for (fate, passes, error) in fates {
            let words = Plain::new();
            let (card, mut resident) = (Card::new(&words, fate), resident(&words));
            assert_eq!(run(&mut resident, &card, (0, 9, 99)), (passes, Err(error)), "{fate:?}");
            assert_eq!(resident.is_there(), matches!(fate, Fate::Hangs | Fate::Lost), "{fate:?}");
            // It was told to leave in any case.
            assert!(fate == Fate::Dies || words.load(LEAVE) == 1 || words.load(LEFT) == 1);
            if !resident.is_there() {
                card.fate.set(Fate::Lives);
                assert_eq!(run(&mut resident, &card, (0, 9, 99)), (9, Ok(())), "{fate:?}");
            }
        }
    }

    #[test]
    fn waiting_for_a_kernel_that_does_not_leave_ends() {
        let words = Plain::new();
        let (card, mut resident) = (Card::new(&words, Fate::Lives), resident(&words));
        run(&mut resident, &card, (0, 3, 99)).1.unwrap();
        card.fate.set(Fate::Hangs);
        assert_eq!(resident.leave(&mut &card), Err(ResidentError::Silent));
        assert!(resident.is_there());
        card.fate.set(Fate::Lives);
        assert_eq!(resident.leave(&mut &card), Ok(()));
    }
}
