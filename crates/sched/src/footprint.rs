//! What a model takes of a memory, known before it is there.

use std::borrow::Borrow;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

/// Bytes of the largest budget that can be accounted for, more than any machine has. Sums of what a
/// file claims may saturate; being larger than this they fit nowhere.
pub(crate) const BUDGET_MOST: u64 = 1 << 60;

/// A model's name. Clones are cheap.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelName(Arc<str>);

impl ModelName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for ModelName {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl Borrow<str> for ModelName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Bytes of memory, by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Weights as the device keeps them.
    pub weights: u64,
    /// KV cache: the pages there are, in use or not.
    pub kv: u64,
    /// Everything else.
    pub scratch: u64,
}

impl Parts {
    /// All of them, bytes; `u64::MAX` if there is no such number.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.kv).saturating_add(self.scratch)
    }
}

/// What a model will take once it is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Bytes of weights.
    pub weights: u64,
    /// Bytes of everything that depends neither on weights nor on context.
    pub scratch: u64,
    /// Bytes of a page of KV cache, all layers together.
    pub page_bytes: u64,
    /// Tokens of a page.
    pub page_tokens: NonZeroU32,
    /// Tokens that the KV cache is to hold from the start.
    pub context: u32,
}

impl Footprint {
    /// What it is made of.
    pub fn parts(&self) -> Parts {
        let pages = u64::from(self.context.div_ceil(self.page_tokens.get()));
        let kv = pages.saturating_mul(self.page_bytes);
        Parts { weights: self.weights, kv, scratch: self.scratch }
    }

    /// All of it, bytes.
    pub fn total(&self) -> u64 {
        self.parts().total()
    }

    /// Tokens of the largest context with which it would fit in `bytes`, in whole pages but no more
    /// than it has; `None` if even one page is too many.
    pub fn context_in(&self, bytes: u64) -> Option<u32> {
        let room = bytes.checked_sub(self.weights.checked_add(self.scratch)?)?;
        let pages = room.checked_div(self.page_bytes).unwrap_or(u64::MAX);
        let tokens = pages.saturating_mul(self.page_tokens.get().into()).min(self.context.into());
        u32::try_from(tokens).ok().filter(|&tokens| tokens > 0)
    }

    /// # Errors
    /// [`NeverFits`] if it is larger than `ceiling` bytes, of which others hold none.
    pub fn check(&self, model: &ModelName, ceiling: u64) -> Result<(), NeverFits> {
        if self.total() <= ceiling.min(BUDGET_MOST) {
            return Ok(());
        }
        let context_that_fits = self.context_in(ceiling.min(BUDGET_MOST));
        let (parts, context) = (self.parts(), self.context);
        Err(NeverFits { model: model.clone(), parts, context, ceiling, context_that_fits })
    }
}

/// A model is larger than all the memory that it could ever have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeverFits {
    /// The model.
    pub model: ModelName,
    /// What it takes, bytes.
    pub parts: Parts,
    /// Tokens of context that were asked for.
    pub context: u32,
    /// Bytes that it could have.
    pub ceiling: u64,
    /// The largest context with which it would fit, tokens.
    pub context_that_fits: Option<u32>,
}

/// Whole MiB, rounded so that what does not fit never looks as if it did.
pub(crate) fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

impl fmt::Display for NeverFits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parts { weights, kv, scratch } = self.parts;
        write!(
            f,
            "the model {:?} never fits: {} MiB of weights, {} MiB of KV cache for {} tokens and {} \
             MiB of working memory are {} MiB, and there are {}: ",
            self.model.as_str(),
            mib(weights),
            mib(kv),
            self.context,
            mib(scratch),
            mib(weights).saturating_add(mib(kv)).saturating_add(mib(scratch)),
            self.ceiling >> 20,
        )?;
        match self.context_that_fits {
            Some(tokens) => write!(f, "a context of {tokens} tokens would fit"),
            None => f.write_str("no context would fit"),
        }
    }
}

impl std::error::Error for NeverFits {}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn footprint(weights: u64, context: u32) -> Footprint {
        let page_tokens = NonZeroU32::new(32).unwrap();
        Footprint { weights, scratch: MIB, page_bytes: MIB, page_tokens, context }
    }

    #[test]
    fn a_model_that_never_fits_is_told_what_it_takes_and_which_context_would_fit() {
        let name = ModelName::from("big");
        let error = footprint(10 * MIB, 100).check(&name, 14 * MIB).unwrap_err();
        assert_eq!(error.context_that_fits, Some(96));
        assert_eq!(
            error.to_string(),
            "the model \"big\" never fits: 10 MiB of weights, 4 MiB of KV cache for 100 tokens and \
             1 MiB of working memory are 15 MiB, and there are 14: a context of 96 tokens would fit"
        );
        let error = footprint(14 * MIB, 100).check(&name, 14 * MIB).unwrap_err();
        assert!(error.to_string().ends_with("no context would fit"), "{error}");
        assert_eq!(footprint(10 * MIB, 100).check(&name, 15 * MIB), Ok(()));
    }

    #[test]
    fn sizes_that_no_number_holds_fit_nowhere() {
        let name = ModelName::from("liar");
        let mut lies = footprint(u64::MAX, u32::MAX);
        lies.page_bytes = u64::MAX;
        assert_eq!(lies.check(&name, u64::MAX).unwrap_err().context_that_fits, None);
        let mut free_pages = footprint(MIB, 100);
        free_pages.page_bytes = 0;
        assert_eq!(free_pages.context_in(2 * MIB), Some(100));
    }
}
