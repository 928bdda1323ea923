//! Vectors of texts: what is asked, and what may be in the way.

use m40_program::Pooling;

use crate::generate::{CancelToken, GenerateError};
use crate::model::Model;

/// A text, or a pair of texts, of which a vector is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EmbedText {
    /// All tokens, those that mark beginning and end among them.
    pub tokens: Vec<u32>,
    /// Index of the first token of a pair's second text.
    pub second: Option<usize>,
}

/// Why there are no vectors.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EmbedError {
    /// There is nothing to make a vector of.
    #[error("text {index} has no tokens: give at least one")]
    Empty {
        /// Which of the texts, from 0.
        index: usize,
    },
    /// A text is computed as a whole.
    #[error(
        "text {index} has {tokens} tokens, the context holds {context}: shorten it, or let it be \
         truncated"
    )]
    TooLong {
        /// Which of the texts, from 0.
        index: usize,
        /// Its tokens.
        tokens: usize,
        /// Tokens of context.
        context: u32,
    },
    /// A token id that the vocabulary does not have.
    #[error("token {token} is outside the vocabulary of {vocab}")]
    UnknownToken {
        /// The id.
        token: u32,
        /// Size of the vocabulary.
        vocab: u32,
    },
    /// Only cross-encoders rank.
    #[error("the model has no classifier: it does not rank pairs of texts")]
    NoClassifier,
    /// The caller cancelled, or it took too long for the caller.
    #[error("the embeddings were cancelled")]
    Cancelled,
    /// The weights are damaged, or numbers became too large.
    #[error("what the model makes of text {index} is no number")]
    NotNumbers {
        /// Which of the texts, from 0.
        index: usize,
    },
    /// A pass failed.
    #[error(transparent)]
    Pass(GenerateError),
}

/// The mean of what has come of a text so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mean {
    sum: Vec<f64>,
    count: usize,
}

impl Mean {
    pub(crate) fn add(&mut self, state: &[f32]) {
        self.sum.resize(state.len(), 0.0);
        self.sum.iter_mut().zip(state).for_each(|(sum, x)| *sum += f64::from(*x));
        self.count += 1;
    }

    pub(crate) fn vector(&self) -> Vec<f32> {
        self.sum.iter().map(|sum| (sum / self.count as f64) as f32).collect()
    }
}

/// Whether a text's vector is made of what comes of this token, of so many.
pub(crate) fn is_wanted(pooling: Pooling, position: usize, tokens: usize) -> bool {
    match pooling {
        Pooling::Mean => true,
        Pooling::Cls | Pooling::Rank => position == 0,
        Pooling::Last => position + 1 == tokens,
    }
}

impl Model {
    /// How a text's vector is made if nobody says otherwise: as the file says, else of the mean, as
    /// a token of a model that generates says more of the next one than of the text.
    pub fn pooling(&self) -> Pooling {
        self.info().pooling.unwrap_or(Pooling::Mean)
    }

    /// Makes a vector of each text: [`ModelInfo::embedding`](crate::ModelInfo::embedding) floats, as
    /// they come from the model's last norm, so of any length; with [`Pooling::Rank`] what the
    /// classifier says, [`ModelInfo::classes`](crate::ModelInfo::classes) floats. Blocks until the end.
    /// A vector does not depend on the other texts, except for how its sums are rounded on a GPU.
    ///
    /// # Errors
    /// See [`EmbedError`]; what is wrong with the texts comes before anything is computed.
    pub fn embed(
        &self,
        texts: &[EmbedText],
        pooling: Option<Pooling>,
        cancel: &CancelToken,
    ) -> Result<Vec<Vec<f32>>, EmbedError> {
        let pooling = pooling.unwrap_or_else(|| self.pooling());
        if pooling == Pooling::Rank && self.info().classes == 0 {
            return Err(EmbedError::NoClassifier);
        }
        self.check_texts(texts)?;
        let _working = self.pulse().work();
        let vectors = self.runner().embed(texts, pooling, cancel)?;
        match vectors.iter().position(|vector| vector.iter().any(|x| !x.is_finite())) {
            Some(index) => Err(EmbedError::NotNumbers { index }),
            None => Ok(vectors),
        }
    }

    /// Whether [`Self::embed`] takes the texts.
    ///
    /// # Errors
    /// When one is empty, longer than the context, or has a token that there is not.
    pub fn check_texts(&self, texts: &[EmbedText]) -> Result<(), EmbedError> {
        texts.iter().enumerate().try_for_each(|(index, text)| self.check(index, &text.tokens))
    }

    fn check(&self, index: usize, tokens: &[u32]) -> Result<(), EmbedError> {
        let (context, vocab) = (self.info().context, self.info().vocab);
        if tokens.is_empty() {
            return Err(EmbedError::Empty { index });
        }
        if tokens.len() > context as usize {
            return Err(EmbedError::TooLong { index, tokens: tokens.len(), context });
        }
        match tokens.iter().find(|token| **token >= vocab) {
            Some(&token) => Err(EmbedError::UnknownToken { token, vocab }),
            None => Ok(()),
        }
    }
}
