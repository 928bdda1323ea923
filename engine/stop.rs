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
    /// After `text` came the stop text of this number.
    Stop { text: String, stop: usize },
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
        let stops = self.stops.iter().enumerate().filter(|(_, text)| !text.is_empty());
        let found = stops.filter_map(|(stop, text)| Some((self.held.find(text)?, stop)));
        if let Some((at, stop)) = found.min() {
            self.held.truncate(at);
            return Matched::Stop { text: std::mem::take(&mut self.held), stop };
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
    fn check(stops: &[&str], pieces: &[&str], shown: &str, stopped: Option<usize>) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut matcher = StopMatcher::new(&stops);
        let mut text = String::new();
        for piece in pieces {
            match matcher.push(piece) {
                Matched::Text(t) => text.push_str(&t),
                Matched::Stop { text: t, stop } => {
                    text.push_str(&t);
                    assert_eq!((text.as_str(), Some(stop)), (shown, stopped));
                    return;
                }
            }
        }
        text.push_str(&matcher.finish());
        assert_eq!((text.as_str(), None), (shown, stopped));
    }

    #[test]
    fn finds_stop_texts_across_pieces() {
        check(&["END"], &["a E", "N", "D b"], "a ", Some(0));
        check(&["\n\n", "END"], &["one\n", "two\n", "\nthree"], "one\ntwo", Some(0));
        check(&["aab"], &["a", "a", "a", "b"], "a", Some(0));
        check(&["é!"], &["caf", "é", "!"], "caf", Some(0));
    }

    #[test]
    fn shows_everything_when_no_stop_text_comes() {
        check(&["END"], &["E", "N", "N", "E", "N"], "ENNEN", None);
        check(&[], &["x", "y"], "xy", None);
        check(&[""], &["x"], "x", None);
    }

    #[test]
    fn the_earliest_stop_text_wins() {
        check(&["later", "soon"], &["it comes soon, not later"], "it comes ", Some(1));
    }
}
