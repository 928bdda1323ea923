//! Turns of those who want one thing, in the order in which they came.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::backend::lock;

/// What one may have at a time. A mutex would do, but whoever gives one back and wants it again at
/// once mostly gets it before those who wait.
#[derive(Debug, Default)]
pub(super) struct Turns {
    numbers: Mutex<Numbers>,
    called: Condvar,
}

#[derive(Debug, Default)]
struct Numbers {
    /// Given to who came.
    given: u64,
    /// Whose turn it is.
    called: u64,
}

/// Ends when dropped.
#[derive(Debug)]
pub(super) struct Turn(Arc<Turns>);

impl Turn {
    /// Whether others wait for theirs.
    pub(super) fn is_wanted(&self) -> bool {
        let numbers = lock(&self.0.numbers);
        numbers.given > numbers.called + 1
    }
}

impl Turns {
    /// Waits until all who came before have had their turn.
    pub(super) fn wait(self: &Arc<Self>) -> Turn {
        let mut numbers = lock(&self.numbers);
        let mine = numbers.given;
        numbers.given += 1;
        let others = |numbers: &mut Numbers| numbers.called != mine;
        let waited = self.called.wait_while(numbers, others);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        Turn(Arc::clone(self))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.0.numbers).called += 1;
        self.0.called.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn who_comes_again_comes_after_those_who_wait() {
        let turns = Arc::new(Turns::default());
        let order = Mutex::new(vec![]);
        let first = turns.wait();
        assert!(!first.is_wanted());
        thread::scope(|scope| {
            for number in 1..=4 {
                let (turns, order) = (&turns, &order);
                scope.spawn(move || {
                    let _turn = turns.wait();
                    lock(order).push(number);
                });
                while lock(&turns.numbers).given <= number {
                    thread::yield_now();
                }
            }
            assert!(first.is_wanted());
            drop(first);
            let _turn = turns.wait();
            assert_eq!(*lock(&order), [1, 2, 3, 4]);
        });
    }
}
