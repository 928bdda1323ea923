//! Stop texts in a stream of pieces: text that may be the start of one is held back.

/// Finds the first stop text in streamed output.
#[derive(Debug)]
pub(crate) struct StopMatcher<'a> {
    stops: &'a [String],
    held: String,
}

/// What a piece led to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Matched {
    /// No stop text yet; this much text is safe to show.
    Text(String),
    /// A stop text came after this text.
    Stop(String),
}

impl<'a> StopMatcher<'a> {
    pub(crate) fn new(stops: &'a [String]) -> Self {
        Self { stops, held: String::new() }
    }

    /// Takes the next piece.
    pub(crate) fn push(&mut self, piece: &str) -> Matched {
        if self.stops.is_empty() {
            return Matched::Text(piece.to_owned());
        }
        self.held.push_str(piece);
        let found = self.stops.iter().filter(|s| !s.is_empty()).filter_map(|s| self.held.find(s));
        if let Some(at) = found.min() {
            self.held.truncate(at);
            return Matched::Stop(std::mem::take(&mut self.held));
        }
        let keep = self.possible_start();
        let rest = self.held.split_off(keep);
        Matched::Text(std::mem::replace(&mut self.held, rest))
    }

    /// What is still held back when the output ends.
    pub(crate) fn finish(self) -> String {
        self.held
    }

    /// Where the longest ending of the held text that begins some stop text starts.
    fn possible_start(&self) -> usize {
        let starts = self.held.char_indices().map(|(at, _)| at);
        starts
            .filter(|&at| self.stops.iter().any(|s| s.starts_with(&self.held[at..])))
            .min()
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(stops: &[&str], pieces: &[&str], shown: &str, stopped: bool) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut matcher = StopMatcher::new(&stops);
        let mut text = String::new();
        for piece in pieces {
            match matcher.push(piece) {
                Matched::Text(t) => text.push_str(&t),
                Matched::Stop(t) => {
                    text.push_str(&t);
                    assert!(stopped, "stopped after {text:?}");
                    assert_eq!(text, shown);
                    return;
                }
            }
        }
        text.push_str(&matcher.finish());
        assert!(!stopped, "did not stop");
        assert_eq!(text, shown);
    }

    #[test]
    fn finds_stop_texts_across_pieces() {
        check(&["END"], &["a E", "N", "D b"], "a ", true);
        check(&["\n\n", "END"], &["one\n", "two\n", "\nthree"], "one\ntwo", true);
        check(&["aab"], &["a", "a", "a", "b"], "a", true);
        check(&["é!"], &["caf", "é", "!"], "caf", true);
    }

    #[test]
    fn shows_everything_when_no_stop_text_comes() {
        check(&["END"], &["E", "N", "N", "E", "N"], "ENNEN", false);
        check(&[], &["x", "y"], "xy", false);
        check(&[""], &["x"], "x", false);
    }

    #[test]
    fn the_earliest_stop_text_wins() {
        check(&["later", "soon"], &["it comes soon, not later"], "it comes ", true);
    }
}
