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
    /// Whether its logits are wanted.
    pub logits: bool,
}
