//! The requests that wait for one model: the most urgent first, of these the oldest.

use std::collections::BTreeMap;

use super::definition::{Class, RequestId, Rules};
use crate::moment::Moment;

/// Requests by class. Numbers are given out in order, so in a class they are by age, and only the
/// first of each class can be the next.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue([BTreeMap<RequestId, Moment>; Class::ALL.len()]);

/// The request whose turn is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub request: RequestId,
    pub class: Class,
    /// See [`Rules::level`].
    pub level: u64,
}

impl Queue {
    pub(super) fn push(&mut self, request: RequestId, class: Class, since: Moment) {
        self.0[class as usize].insert(request, since);
    }

    pub(super) fn remove(&mut self, request: RequestId, class: Class) -> bool {
        self.0[class as usize].remove(&request).is_some()
    }

    pub(super) fn len(&self) -> usize {
        self.0.iter().map(BTreeMap::len).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(BTreeMap::is_empty)
    }

    /// Since when the oldest waits.
    pub(super) fn oldest(&self) -> Option<Moment> {
        self.0.iter().filter_map(|class| class.values().next().copied()).min()
    }

    pub(super) fn head(&self, rules: &Rules, now: Moment) -> Option<Head> {
        let first = |class: Class| {
            let (&request, &since) = self.0[class as usize].first_key_value()?;
            let level = rules.level(class, since, now);
            Some(Head { request, class, level })
        };
        let heads = Class::ALL.into_iter().filter_map(first);
        heads.max_by_key(|head| (head.level, std::cmp::Reverse(head.request)))
    }

    /// All of them, in the order in which they came.
    pub(super) fn requests(&self) -> Vec<RequestId> {
        let mut all: Vec<_> = self.0.iter().flat_map(BTreeMap::keys).copied().collect();
        all.sort_unstable();
        all
    }

    /// Requests that would be next before this one of `class` if nobody else came.
    pub(super) fn ahead_of(
        &self,
        request: RequestId,
        class: Class,
        rules: &Rules,
        now: Moment,
    ) -> Option<usize> {
        let since = *self.0[class as usize].get(&request)?;
        let place =
            |request, class, since| (std::cmp::Reverse(rules.level(class, since, now)), request);
        let own = place(request, class, since);
        let of_class = |class: Class| {
            let all = self.0[class as usize].iter();
            all.filter(|&(&request, &since)| place(request, class, since) < own).count()
        };
        Some(Class::ALL.into_iter().map(of_class).sum())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::after_start(Duration::from_secs(seconds))
    }

    fn order(mut queue: Queue, now: Moment) -> Vec<u64> {
        let rules = Rules { aging: Duration::from_secs(10), ..Rules::default() };
        let mut order = vec![];
        while let Some(head) = queue.head(&rules, now) {
            let ahead = queue.ahead_of(head.request, head.class, &rules, now);
            assert_eq!(ahead, Some(0));
            assert!(queue.remove(head.request, head.class));
            order.push(head.request.0);
        }
        assert!(queue.is_empty());
        order
    }

    #[test]
    fn the_most_urgent_are_next_and_of_these_the_oldest() {
        let mut queue = Queue::default();
        let classes = [Class::Batch, Class::Interactive, Class::Agent, Class::Interactive];
        for (number, class) in (0..).zip(classes) {
            queue.push(RequestId(number), class, at(number));
        }
        assert_eq!((queue.len(), queue.oldest()), (4, Some(at(0))));
        assert_eq!(order(queue, at(4)), [1, 3, 2, 0]);
    }

    #[test]
    fn who_has_waited_long_goes_before_more_urgent_ones_that_came_later() {
        let mut queue = Queue::default();
        queue.push(RequestId(0), Class::Batch, at(0));
        queue.push(RequestId(1), Class::Interactive, at(25));
        queue.push(RequestId(2), Class::Agent, at(25));
        assert_eq!(order(queue.clone(), at(19)), [1, 0, 2], "one class more, and older than 2");
        assert_eq!(order(queue, at(29)), [0, 1, 2], "two classes more, and older than 1");
    }
}
