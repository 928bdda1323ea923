//! The parts of an answer as they are found, and marks as they are looked for.

use crate::Piece;

/// Parts in their order; neighbours of one kind are one.
#[derive(Debug, Default)]
pub(crate) struct Pieces(Vec<Piece>);

impl Pieces {
    pub(crate) fn into_vec(self) -> Vec<Piece> {
        self.0
    }

    pub(crate) fn content(&mut self, text: &str) {
        match self.0.last_mut() {
            _ if text.is_empty() => {}
            Some(Piece::Content(last)) => last.push_str(text),
            _ => self.0.push(Piece::Content(text.to_owned())),
        }
    }

    pub(crate) fn reasoning(&mut self, text: &str) {
        match self.0.last_mut() {
            _ if text.is_empty() => {}
            Some(Piece::Reasoning(last)) => last.push_str(text),
            _ => self.0.push(Piece::Reasoning(text.to_owned())),
        }
    }

    pub(crate) fn arguments(&mut self, text: &str) {
        match self.0.last_mut() {
            _ if text.is_empty() => {}
            Some(Piece::Arguments(last)) => last.push_str(text),
            _ => self.0.push(Piece::Arguments(text.to_owned())),
        }
    }

    pub(crate) fn call(&mut self, name: String) {
        self.0.push(Piece::Call { name });
    }

    pub(crate) fn call_end(&mut self) {
        self.0.push(Piece::CallEnd);
    }
}

/// Takes so many bytes from the start of a text.
pub(crate) fn drain(text: &mut String, bytes: usize) -> String {
    let rest = text.split_off(bytes);
    std::mem::replace(text, rest)
}

/// Where the first of some marks begins, and true; else where the end of the text may be the beginning of
/// one, unless nothing follows; else the end of the text.
pub(crate) fn find(text: &str, marks: &[&str], last: bool) -> (usize, bool) {
    for (at, _) in text.char_indices() {
        let rest = &text[at..];
        for mark in marks {
            if rest.starts_with(mark) {
                return (at, true);
            }
            if !last && mark.starts_with(rest) {
                return (at, false);
            }
        }
    }
    (text.len(), false)
}
