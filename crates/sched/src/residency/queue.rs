//! The requests that wait for one model: the most urgent first, of these the oldest.

use std::cmp::Reverse;
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

/// A request among others that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub request: RequestId,
    pub class: Class,
    pub since: Moment,
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
        heads.max_by_key(|head| (head.level, Reverse(head.request)))
    }

    /// All of them, in the order in which they would be next if nobody else came.
    pub(super) fn in_order(&self, rules: &Rules, now: Moment) -> Vec<Place> {
        let of_class = |class: Class| {
            let place = move |(&request, &since)| Place { request, class, since };
            self.0[class as usize].iter().map(place)
        };
        let mut all: Vec<_> = Class::ALL.into_iter().flat_map(of_class).collect();
        all.sort_by_key(|place| {
            (Reverse(rules.level(place.class, place.since, now)), place.request)
        });
        all
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
        let foretold: Vec<_> = queue.in_order(&rules, now).iter().map(|p| p.request.0).collect();
        let mut order = vec![];
        while let Some(head) = queue.head(&rules, now) {
            assert!(queue.remove(head.request, head.class));
            order.push(head.request.0);
        }
        assert!(queue.is_empty());
        assert_eq!(order, foretold);
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
