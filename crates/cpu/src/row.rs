//! What a pass computes: tokens and their places.

/// One token of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Id in the vocabulary.
    pub token: u32,
    /// Position in its sequence.
    pub position: usize,
    /// Index of its sequence's cache among those given with the pass.
    pub cache: usize,
    /// Which text of a pair it is of; 0 where there is one text.
    pub segment: u8,
    /// Whether its logits, or hidden state, are wanted.
    pub logits: bool,
}
