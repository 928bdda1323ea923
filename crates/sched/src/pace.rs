//! How a device's time is shared between streams that run and prompts that wait.
//!
//! While both are there, passes of the streams and slices of a prompt take turns. A slice is sized so
//! that it takes nearly as long as the passes before it, from the times that both took lately: streams
//! then run at half their speed, and not below.

use std::time::Duration;

/// Rows of a slice, at least: all weights are read for fewer too, so fewer save no time.
pub const LEAST_ROWS: usize = 16;

/// How long streams may pause for a slice where their passes are shorter: a reader does not see it,
/// and larger slices get through a prompt with less work.
const PAUSE: f64 = 0.016;

/// Share of the time of the passes before it that a slice is to take: beside it there is what turns cost.
const SLICE: f64 = 0.9;

/// Share of the latest time in the time of a pass that is reckoned with. The number of rows changes
/// it, so it follows quickly.
const LATEST: f64 = 0.5;

/// Bounds of [`Pace::patience`], seconds.
const PATIENCE: (f64, f64) = (0.001, 0.02);

/// Times that passes and slices took lately, and what follows from them.
#[derive(Debug, Clone)]
pub struct Pace {
    most_passes: u32,
    most_rows: usize,
    /// Seconds of a pass, once one has run.
    pass: Option<f64>,
    /// Seconds of a prompt's row in a slice.
    row: f64,
    rows: usize,
}

impl Pace {
    /// For launches of at most `most_passes` passes and slices of at most `most_rows` rows.
    pub fn new(most_passes: u32, most_rows: usize) -> Self {
        let rows = LEAST_ROWS.min(most_rows);
        Self { most_passes, most_rows, pass: None, row: 0.0, rows }
    }

    /// A launch of `passes` passes took `time`.
    pub fn ran(&mut self, passes: u32, time: Duration) {
        let latest = time.as_secs_f64() / f64::from(passes.max(1));
        self.pass = Some(self.pass.map_or(latest, |pass| pass + LATEST * (latest - pass)));
    }

    /// A slice of `rows` rows took `time`.
    pub fn sliced(&mut self, rows: usize, time: Duration) {
        let Some(pass) = self.pass else { return };
        let time = time.as_secs_f64();
        let target = SLICE * f64::from(self.passes_of_a_pause(pass)) * pass;
        // The end of a prompt says little about whole slices, unless even it took too long.
        if rows == 0 || (rows < self.rows && time <= target) {
            return;
        }
        self.row = time / rows as f64;
        let fitting = (target / self.row.max(f64::MIN_POSITIVE)) as usize;
        let bounded = fitting.clamp(self.rows / 2, self.rows * 2);
        let whole = bounded / LEAST_ROWS * LEAST_ROWS;
        self.rows = whole.max(LEAST_ROWS).min(self.most_rows);
    }

    /// A pass of streams that had a slice of `rows` rows beside them took `time`.
    pub fn sliced_beside(&mut self, rows: usize, time: Duration) {
        let pass = Duration::from_secs_f64(self.pass.unwrap_or(0.0));
        self.sliced(rows, time.saturating_sub(pass));
    }

    /// Rows of the next slice, if streams run.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Passes of the next launch, if a prompt waits: as many as take the time of a slice.
    pub fn passes(&self) -> u32 {
        let Some(pass) = self.pass else { return 1 };
        let slice = self.row * self.rows as f64;
        let needed = (slice / SLICE / pass.max(f64::MIN_POSITIVE)).ceil() as u32;
        needed.max(self.passes_of_a_pause(pass)).min(self.most_passes)
    }

    /// How long to wait for a stream that had a row in the latest pass, so that it has one in the
    /// next: as long as a pass, which is what it would lose.
    pub fn patience(&self) -> Duration {
        let (least, most) = PATIENCE;
        Duration::from_secs_f64(self.pass.unwrap_or(least).clamp(least, most))
    }

    fn passes_of_a_pause(&self, pass: f64) -> u32 {
        ((PAUSE / pass.max(f64::MIN_POSITIVE)) as u32).clamp(1, self.most_passes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Times of a device, seconds.
    struct Times {
        pass: f64,
        /// Of any slice, and of each of its rows.
        slice: (f64, f64),
    }

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// Lets passes and slices take turns; returns rows of the last slice, passes before it, and how
    /// long both took.
    fn settle(pace: &mut Pace, times: &Times) -> (usize, u32, f64, f64) {
        let mut last = (0, 0, 0.0, 0.0);
        for _ in 0..20 {
            let passes = pace.passes();
            let ran = f64::from(passes) * times.pass;
            pace.ran(passes, seconds(ran));
            let rows = pace.rows();
            let sliced = times.slice.0 + times.slice.1 * rows as f64;
            pace.sliced(rows, seconds(sliced));
            last = (rows, passes, ran, sliced);
        }
        last
    }

    #[test]
    fn streams_keep_half_their_speed() {
        for times in [
            // A small model on a fast card, where a slice's launches cost most.
            Times { pass: 0.0007, slice: (0.0015, 1e-5) },
            // 8 GB of weights on a fast and on a slow card.
            Times { pass: 0.004, slice: (0.002, 2e-4) },
            Times { pass: 0.035, slice: (0.02, 2.5e-3) },
        ] {
            let mut pace = Pace::new(8, 512);
            let (rows, passes, ran, sliced) = settle(&mut pace, &times);
            assert!(sliced <= ran * 0.91, "{rows} rows took {sliced}, {passes} passes {ran}");
        }
    }

    #[test]
    fn short_passes_go_several_to_a_slice_and_long_ones_alone() {
        let mut pace = Pace::new(8, 512);
        let (rows, passes, ..) = settle(&mut pace, &Times { pass: 0.0007, slice: (0.0005, 1e-5) });
        assert_eq!((rows, passes), (448, 8), "all that 8 passes have time for");
        let (rows, passes, ..) = settle(&mut pace, &Times { pass: 0.04, slice: (0.001, 0.001) });
        assert_eq!((rows, passes), (32, 1));
    }

    #[test]
    fn a_slice_that_cannot_be_shorter_is_made_up_for_by_passes() {
        let mut pace = Pace::new(8, 512);
        let times = Times { pass: 0.02, slice: (0.05, 0.001) };
        let (rows, passes, ran, sliced) = settle(&mut pace, &times);
        assert_eq!((rows, passes), (LEAST_ROWS, 4));
        assert!(sliced <= ran);
    }

    #[test]
    fn a_slice_in_a_pass_of_streams_is_what_it_takes_longer() {
        let [mut apart, mut beside] = [8, 8].map(|passes| Pace::new(passes, 512));
        for _ in 0..20 {
            let rows = apart.rows();
            apart.ran(1, seconds(0.03));
            beside.ran(1, seconds(0.03));
            apart.sliced(rows, seconds(0.001 * rows as f64));
            beside.sliced_beside(rows, seconds(0.03 + 0.001 * rows as f64));
            assert_eq!((apart.rows(), apart.passes()), (beside.rows(), beside.passes()));
        }
        beside.sliced_beside(64, seconds(0.01));
        assert!(beside.rows() <= 2 * apart.rows(), "less than nothing is as nothing");
    }

    #[test]
    fn nothing_is_assumed_before_anything_ran() {
        let mut pace = Pace::new(8, 512);
        assert_eq!((pace.rows(), pace.passes()), (LEAST_ROWS, 1));
        assert_eq!(pace.patience(), seconds(PATIENCE.0));
        pace.sliced(512, seconds(1.0));
        assert_eq!((pace.rows(), pace.passes()), (LEAST_ROWS, 1));
        pace.ran(4, seconds(0.04));
        assert_eq!(pace.patience(), seconds(0.01));
    }

    #[test]
    fn the_end_of_a_prompt_changes_nothing_unless_it_took_long() {
        let mut pace = Pace::new(8, 512);
        settle(&mut pace, &Times { pass: 0.01, slice: (0.0, 1e-4) });
        let rows = pace.rows();
        pace.sliced(3, seconds(0.002));
        assert_eq!(pace.rows(), rows);
        pace.sliced(3, seconds(0.2));
        assert!(pace.rows() < rows);
    }

    #[test]
    fn times_of_any_kind_stay_within_bounds() {
        let mut pace = Pace::new(8, 100);
        for time in [0.0, 1e-9, 1e3, 0.0, 1e9, 1e-3] {
            for rows in [0, 1, 16, 100] {
                pace.ran(rows as u32, seconds(time));
                pace.sliced(rows, seconds(1e3 - time.min(1e3)));
                assert!((LEAST_ROWS..=100).contains(&pace.rows()));
                assert!((1..=8).contains(&pace.passes()));
            }
        }
        assert_eq!(Pace::new(1, 5).rows(), 5);
    }
}
