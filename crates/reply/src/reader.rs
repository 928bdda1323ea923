//! Takes one answer apart while it comes.

use crate::Piece;
use crate::harmony::Harmony;
use crate::pieces::Pieces;
use crate::tagged::Tagged;

/// Takes one answer apart.
///
/// All pieces together are the same however the answer is cut into texts, and a text without marks is
/// content as it is. What only looks like a call is content as it was written: a name that is no tool's,
/// arguments that are no object, a call that the end cuts off before its arguments. So the beginning of a
/// call is held back until its name and the first of its arguments are there. Arguments are told as they
/// come. Where they turn out to be no JSON, or the end cuts them off, they end without
/// [`Piece::CallEnd`]; where they are wrong, all that is left of the answer belongs to them.
#[derive(Debug)]
pub struct Reader(Kind);

#[derive(Debug)]
enum Kind {
    Tagged(Tagged),
    Harmony(Harmony),
}

impl Reader {
    pub(crate) fn tagged(tagged: Tagged) -> Self {
        Self(Kind::Tagged(tagged))
    }

    pub(crate) fn harmony(harmony: Harmony) -> Self {
        Self(Kind::Harmony(harmony))
    }

    /// What is sure after this text, which follows what came before.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        self.read(text, false)
    }

    /// What was held back, when nothing follows.
    pub fn finish(&mut self) -> Vec<Piece> {
        self.read("", true)
    }

    fn read(&mut self, text: &str, end: bool) -> Vec<Piece> {
        let mut pieces = Pieces::default();
        match &mut self.0 {
            Kind::Tagged(tagged) => tagged.read(text, end, &mut pieces),
            Kind::Harmony(harmony) => harmony.read(text, end, &mut pieces),
        }
        pieces.into_vec()
    }
}
