//! A compiled grammar, and how far one answer is in it.

use std::fmt;
use std::sync::Arc;

use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;

use crate::error::shown;
use crate::{GrammarError, Vocabulary};

/// Tokens of one word of a mask.
const WORD: usize = 32;

/// A compiled grammar, for answers in the tokens of one [`Vocabulary`]. Clones are handles to the
/// same; what one answer has found out of the grammar the others need not find again. Those that came of
/// one compilation are equal.
#[derive(Clone)]
pub struct Constraint(Arc<Inner>);

struct Inner {
    start: Matcher,
    vocabulary: Vocabulary,
    /// One for each compilation.
    origin: Arc<()>,
}

impl Constraint {
    pub(crate) fn new(start: Matcher, vocabulary: Vocabulary) -> Self {
        Self(Arc::new(Inner { start, vocabulary, origin: Arc::default() }))
    }

    /// The same, whose answers find out for themselves: they share none of the work that is allowed, nor
    /// what it came to.
    pub(crate) fn apart(&self) -> Self {
        let Inner { start, vocabulary, origin } = &*self.0;
        let (vocabulary, origin) = (vocabulary.clone(), Arc::clone(origin));
        Self(Arc::new(Inner { start: start.deep_clone(), vocabulary, origin }))
    }

    /// An answer's state at its start.
    pub fn start(&self) -> Progress {
        Progress { matcher: self.0.start.clone() }
    }

    /// Whether answers in the tokens of `vocabulary` can be held to it.
    pub fn is_for(&self, vocabulary: &Vocabulary) -> bool {
        self.0.vocabulary.is(vocabulary)
    }
}

impl PartialEq for Constraint {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0.origin, &other.0.origin)
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint").field("vocabulary", &self.0.vocabulary).finish_non_exhaustive()
    }
}

/// How far one answer is in its grammar.
pub struct Progress {
    matcher: Matcher,
}

impl Progress {
    /// Bans the tokens that may not come next: their `logits`, of all tokens, become -inf. The end of
    /// the generation is left where the grammar may end, and alone where it must.
    ///
    /// # Errors
    /// [`GrammarError::Stuck`], if no token may come or finding out takes more work than is allowed.
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<(), GrammarError> {
        let mask = self.matcher.compute_mask_or_eos().map_err(stuck)?;
        ban(&mask, logits);
        Ok(())
    }

    /// Goes on with a token that [`Self::mask`] left.
    ///
    /// # Errors
    /// [`GrammarError::Stuck`], if the grammar does not go on with it.
    pub fn accept(&mut self, token: u32) -> Result<(), GrammarError> {
        self.matcher.consume_token(token).map_err(stuck)
    }

    /// Whether nothing but the end of the generation may come.
    pub fn is_over(&self) -> bool {
        self.matcher.is_stopped()
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress").field("is_over", &self.is_over()).finish_non_exhaustive()
    }
}

fn stuck(error: impl fmt::Display) -> GrammarError {
    GrammarError::Stuck { reason: shown(error) }
}

fn ban(allowed: &SimpleVob, logits: &mut [f32]) {
    let words = allowed.as_slice().iter().copied().chain(std::iter::repeat(0));
    for (logits, word) in logits.chunks_mut(WORD).zip(words) {
        match word {
            0 => logits.fill(f32::NEG_INFINITY),
            u32::MAX => {}
            _ => {
                for (bit, logit) in logits.iter_mut().enumerate() {
                    if word >> bit & 1 == 0 {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
}
