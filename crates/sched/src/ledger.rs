//! The account of one memory: who holds how many of its bytes, and for what.
//!
//! Every change is one of five transactions. Each is checked first and then done whole, so that at
//! every moment what is held is the sum of all parts, and no more than the budget.
//!
//! ```text
//!            reserve               settle             grow_kv, shrink_kv
//!   (none) ───────────▶ Reserved ───────────▶ Loaded ◀──┐
//!      ▲                    │                   │ └─────┘
//!      └──────── close ─────┴───────────────────┘
//! ```

use std::collections::BTreeMap;

use thiserror::Error;

use crate::footprint::{BUDGET_MOST, ModelName, Parts, mib};

/// Who holds which bytes of one memory.
#[derive(Clone, Debug)]
pub struct Ledger {
    budget: u64,
    held: u64,
    accounts: BTreeMap<ModelName, Account>,
}

/// What one model holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Account {
    /// It is being loaded, and these bytes are nobody else's.
    Reserved(Parts),
    /// It is in memory.
    Loaded(Parts),
}

impl Account {
    /// What is held, bytes.
    pub fn parts(&self) -> &Parts {
        let (Self::Reserved(parts) | Self::Loaded(parts)) = self;
        parts
    }
}

/// A transaction that was not done. The ledger is as before.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LedgerError {
    /// More was asked for than is free.
    #[error(
        "{} MiB were asked for the model {:?}, and {} of {} MiB are free",
        mib(*asked), model.as_str(), free >> 20, budget >> 20
    )]
    Overdraft {
        /// Who asked.
        model: ModelName,
        /// Bytes asked for.
        asked: u64,
        /// Bytes that nobody holds.
        free: u64,
        /// All bytes.
        budget: u64,
    },
    /// More was to be given back than is held.
    #[error("the model {:?} gives back {returned} bytes of KV cache and has {held}", model.as_str())]
    Underdraft {
        /// Who gave back.
        model: ModelName,
        /// Bytes to be given back.
        returned: u64,
        /// Bytes of KV cache that it has.
        held: u64,
    },
    /// There is an account already.
    #[error("the model {:?} holds memory already", .0.as_str())]
    Open(ModelName),
    /// There is no account, or it is in another state.
    #[error("the model {:?} holds no memory for this", .0.as_str())]
    NoAccount(ModelName),
}

impl Ledger {
    /// Of a memory of `budget` bytes that nobody holds any of.
    pub fn new(budget: u64) -> Self {
        Self { budget: budget.min(BUDGET_MOST), held: 0, accounts: BTreeMap::new() }
    }

    /// All bytes.
    pub fn budget(&self) -> u64 {
        self.budget
    }

    /// Bytes that somebody holds.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// Bytes that nobody holds.
    pub fn free(&self) -> u64 {
        self.budget - self.held
    }

    /// What this model holds.
    pub fn account(&self, model: &ModelName) -> Option<&Account> {
        self.accounts.get(model)
    }

    /// Bytes that this model holds.
    pub fn held_by(&self, model: &ModelName) -> u64 {
        self.accounts.get(model).map_or(0, |account| account.parts().total())
    }

    /// All accounts, by name.
    pub fn accounts(&self) -> impl Iterator<Item = (&ModelName, &Account)> {
        self.accounts.iter()
    }

    /// The bytes of all accounts, part by part: their total is [`held`](Self::held).
    pub fn sum(&self) -> Parts {
        let add = |sum: Parts, account: &Account| {
            let Parts { weights, kv, scratch } = *account.parts();
            Parts {
                weights: sum.weights + weights,
                kv: sum.kv + kv,
                scratch: sum.scratch + scratch,
            }
        };
        self.accounts.values().fold(Parts::default(), add)
    }

    /// Takes memory for a load that begins.
    ///
    /// # Errors
    /// [`LedgerError::Open`], [`LedgerError::Overdraft`].
    pub fn reserve(&mut self, model: &ModelName, parts: Parts) -> Result<(), LedgerError> {
        if self.accounts.contains_key(model) {
            return Err(LedgerError::Open(model.clone()));
        }
        self.take(model, parts.total())?;
        self.accounts.insert(model.clone(), Account::Reserved(parts));
        Ok(())
    }

    /// A load is done and holds `parts`, whatever was reserved for it.
    ///
    /// # Errors
    /// [`LedgerError::NoAccount`] without a reservation, [`LedgerError::Overdraft`] if that is more
    /// than was reserved and is free.
    pub fn settle(&mut self, model: &ModelName, parts: Parts) -> Result<(), LedgerError> {
        let Some(Account::Reserved(reserved)) = self.accounts.get(model) else {
            return Err(LedgerError::NoAccount(model.clone()));
        };
        let (before, after) = (reserved.total(), parts.total());
        self.take(model, after.saturating_sub(before))?;
        self.held -= before.saturating_sub(after);
        self.accounts.insert(model.clone(), Account::Loaded(parts));
        Ok(())
    }

    /// Takes memory for more pages of a loaded model.
    ///
    /// # Errors
    /// [`LedgerError::NoAccount`], [`LedgerError::Overdraft`].
    pub fn grow_kv(&mut self, model: &ModelName, bytes: u64) -> Result<(), LedgerError> {
        let mut parts = self.loaded(model)?;
        self.take(model, bytes)?;
        parts.kv += bytes;
        self.accounts.insert(model.clone(), Account::Loaded(parts));
        Ok(())
    }

    /// Takes pages of a loaded model back.
    ///
    /// # Errors
    /// [`LedgerError::NoAccount`], [`LedgerError::Underdraft`].
    pub fn shrink_kv(&mut self, model: &ModelName, bytes: u64) -> Result<(), LedgerError> {
        let mut parts = self.loaded(model)?;
        let (returned, held) = (bytes, parts.kv);
        let underdraft = || LedgerError::Underdraft { model: model.clone(), returned, held };
        parts.kv = held.checked_sub(bytes).ok_or_else(underdraft)?;
        self.held -= bytes;
        self.accounts.insert(model.clone(), Account::Loaded(parts));
        Ok(())
    }

    /// Takes everything of a model back, and says what that was.
    ///
    /// # Errors
    /// [`LedgerError::NoAccount`].
    pub fn close(&mut self, model: &ModelName) -> Result<Parts, LedgerError> {
        let account = self.accounts.remove(model);
        let account = account.ok_or_else(|| LedgerError::NoAccount(model.clone()))?;
        self.held -= account.parts().total();
        Ok(*account.parts())
    }

    fn loaded(&self, model: &ModelName) -> Result<Parts, LedgerError> {
        match self.accounts.get(model) {
            Some(Account::Loaded(parts)) => Ok(*parts),
            _ => Err(LedgerError::NoAccount(model.clone())),
        }
    }

    fn take(&mut self, model: &ModelName, asked: u64) -> Result<(), LedgerError> {
        let (free, budget) = (self.free(), self.budget);
        if asked > free {
            return Err(LedgerError::Overdraft { model: model.clone(), asked, free, budget });
        }
        self.held += asked;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parts(weights: u64, kv: u64, scratch: u64) -> Parts {
        Parts { weights, kv, scratch }
    }

    #[test]
    fn a_load_settles_for_what_it_took() {
        let mut ledger = Ledger::new(100);
        let a = ModelName::from("a");
        ledger.reserve(&a, parts(50, 20, 10)).unwrap();
        assert_eq!((ledger.free(), ledger.account(&a).unwrap().parts().kv), (20, 20));
        assert_eq!(ledger.grow_kv(&a, 1), Err(LedgerError::NoAccount(a.clone())));
        ledger.settle(&a, parts(50, 20, 5)).unwrap();
        assert_eq!((ledger.free(), ledger.held_by(&a)), (25, 75));
        ledger.grow_kv(&a, 25).unwrap();
        assert_eq!(ledger.close(&a).unwrap(), parts(50, 45, 5));
        assert_eq!((ledger.free(), ledger.held()), (100, 0));
    }

    #[test]
    fn what_is_not_there_can_neither_be_taken_nor_given_back() {
        let mut ledger = Ledger::new(100 << 20);
        let [a, b] = ["a", "b"].map(ModelName::from);
        ledger.reserve(&a, parts(60 << 20, 0, 0)).unwrap();
        let error = ledger.reserve(&b, parts(40 << 20, 1, 0)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "41 MiB were asked for the model \"b\", and 40 of 100 MiB are free"
        );
        assert_eq!(ledger.reserve(&a, parts(1, 0, 0)), Err(LedgerError::Open(a.clone())));
        ledger.settle(&a, parts(60 << 20, 3, 0)).unwrap();
        assert!(matches!(ledger.shrink_kv(&a, 4), Err(LedgerError::Underdraft { held: 3, .. })));
        assert!(ledger.reserve(&b, parts(u64::MAX, u64::MAX, 0)).is_err());
        assert_eq!(Ledger::new(u64::MAX).budget(), BUDGET_MOST);
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Reserve(Parts),
        Settle(Parts),
        Grow(u64),
        Shrink(u64),
        Close,
    }

    fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
        let parts = || (0u64..60, 0u64..60, 0u64..60).prop_map(|(w, k, s)| parts(w, k, s));
        let step = prop_oneof![
            parts().prop_map(Step::Reserve),
            parts().prop_map(Step::Settle),
            (0u64..80).prop_map(Step::Grow),
            (0u64..80).prop_map(Step::Shrink),
            Just(Step::Close),
        ];
        prop::collection::vec((0usize..4, step), 1..200)
    }

    proptest! {
        #[test]
        fn what_is_held_is_the_sum_of_all_parts_and_within_the_budget(steps in steps()) {
            let names = ["a", "b", "c", "d"].map(ModelName::from);
            let mut ledger = Ledger::new(200);
            for (at, step) in steps {
                let (name, before) = (&names[at], ledger.clone());
                let done = match step {
                    Step::Reserve(parts) => ledger.reserve(name, parts),
                    Step::Settle(parts) => ledger.settle(name, parts),
                    Step::Grow(bytes) => ledger.grow_kv(name, bytes),
                    Step::Shrink(bytes) => ledger.shrink_kv(name, bytes),
                    Step::Close => ledger.close(name).map(|_| ()),
                };
                prop_assert!(ledger.held() <= ledger.budget());
                prop_assert_eq!(ledger.sum().total(), ledger.held());
                prop_assert_eq!(ledger.held() + ledger.free(), 200);
                if done.is_err() {
                    prop_assert_eq!(&ledger.accounts, &before.accounts);
                }
            }
        }
    }
}
