//! Sets of whole numbers as ranges: what a ledger remembers costs memory by hole, not by message.

/// What a set is made of.
pub(in crate::loadgen) trait Whole: Copy + Ord {
    /// A range with nothing in it: it ends before it begins.
    const EMPTY: (Self, Self);
    /// The next number; the greatest has itself.
    fn next(self) -> Self;
    /// The number as one of 64 bits.
    fn wide(self) -> u64;
}

impl Whole for u32 {
    const EMPTY: (Self, Self) = (1, 0);
    fn next(self) -> Self {
        self.saturating_add(1)
    }
    fn wide(self) -> u64 {
        self.into()
    }
}

impl Whole for u64 {
    const EMPTY: (Self, Self) = (1, 0);
    fn next(self) -> Self {
        self.saturating_add(1)
    }
    fn wide(self) -> u64 {
        self
    }
}

/// A set of numbers. Empty sets and sets without holes need no allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::loadgen) struct Ranges<N> {
    /// The first range, both ends inside; [`Whole::EMPTY`] when the set is empty.
    first: (N, N),
    /// The others, rising, never touching each other or the first.
    rest: Option<Box<Vec<(N, N)>>>,
}

impl<N: Whole> Default for Ranges<N> {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl<N: Whole> Ranges<N> {
    /// The set of nothing.
    pub(in crate::loadgen) const EMPTY: Self = Self { first: N::EMPTY, rest: None };

    fn is_empty(&self) -> bool {
        self.first.1 < self.first.0
    }

    /// Adds a number; returns false when it was there already.
    pub(in crate::loadgen) fn insert(&mut self, n: N) -> bool {
        if self.is_empty() {
            self.first = (n, n);
            return true;
        }
        if self.rest.is_none() && n > self.first.1 && n == self.first.1.next() {
            self.first.1 = n;
            return true;
        }
        if n < self.first.0 {
            if n.next() == self.first.0 {
                self.first.0 = n;
            } else {
                let second = std::mem::replace(&mut self.first, (n, n));
                self.rest.get_or_insert_default().insert(0, second);
            }
            return true;
        }
        if n <= self.first.1 {
            return false;
        }
        self.insert_behind_first(n)
    }

    /// Adds a number above the first range. What comes in order costs no search, however many holes there are.
    fn insert_behind_first(&mut self, n: N) -> bool {
        let rest = self.rest.get_or_insert_default();
        let at = match rest.last() {
            Some(last) if last.1 < n => rest.len(),
            _ => rest.partition_point(|r| r.1 < n),
        };
        if rest.get(at).is_some_and(|r| r.0 <= n) {
            return false;
        }
        let before = if at == 0 { &mut self.first } else { &mut rest[at - 1] };
        let joins_before = before.1.next() == n;
        if joins_before {
            before.1 = n;
        }
        match rest.get(at).copied() {
            Some((from, to)) if n.next() == from => {
                if joins_before {
                    let before = if at == 0 { &mut self.first } else { &mut rest[at - 1] };
                    before.1 = to;
                    rest.remove(at);
                } else {
                    rest[at].0 = n;
                }
            }
            _ if joins_before => {}
            _ => rest.insert(at, (n, n)),
        }
        if rest.is_empty() {
            self.rest = None;
        }
        true
    }

    /// Whether a number is in the set.
    #[must_use]
    pub(in crate::loadgen) fn contains(&self, n: N) -> bool {
        if (self.first.0..=self.first.1).contains(&n) {
            return true;
        }
        let rest = self.rest.as_ref().map_or(&[][..], |r| r.as_slice());
        let at = rest.partition_point(|r| r.1 < n);
        rest.get(at).is_some_and(|r| r.0 <= n)
    }

    /// How many numbers are in the set.
    #[must_use]
    pub(in crate::loadgen) fn len(&self) -> u64 {
        self.ranges().map(|(from, to)| to.wide() - from.wide() + 1).sum()
    }

    /// The greatest number, if there is one.
    #[must_use]
    pub(in crate::loadgen) fn max(&self) -> Option<N> {
        let last = self.rest.as_ref().and_then(|r| r.last().copied()).unwrap_or(self.first);
        (!self.is_empty()).then_some(last.1)
    }

    /// The numbers, rising.
    pub(in crate::loadgen) fn iter(&self) -> impl Iterator<Item = N> {
        self.ranges().flat_map(|(from, to)| std::iter::successors(Some(from), move |n| (*n < to).then(|| n.next())))
    }

    fn ranges(&self) -> impl Iterator<Item = (N, N)> {
        let rest = self.rest.as_ref().map_or(&[][..], |r| r.as_slice());
        (!self.is_empty()).then_some(self.first).into_iter().chain(rest.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn behaves_like_a_set(numbers in prop::collection::vec(0_u64..60, 0..120)) {
            let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
            for n in numbers {
                prop_assert_eq!(ranges.insert(n), set.insert(n));
                prop_assert_eq!((ranges.iter().count(), ranges.len()), (set.len(), set.len() as u64));
            }
            prop_assert_eq!(ranges.iter().collect::<Vec<_>>(), set.iter().copied().collect::<Vec<_>>());
            prop_assert!((0..60).all(|n| ranges.contains(n) == set.contains(&n)));
            prop_assert_eq!(ranges.max(), set.last().copied());
        }
    }

    #[test]
    fn the_greatest_number_is_one_like_others() {
        let mut ranges = Ranges::default();
        for n in [u64::MAX, 5, u64::MAX - 1] {
            assert!(ranges.insert(n) && !ranges.insert(n), "{n}");
        }
        assert_eq!((ranges.len(), ranges.max()), (3, Some(u64::MAX)));
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [5, u64::MAX - 1, u64::MAX]);
    }

    #[test]
    fn a_set_without_holes_takes_no_allocation() {
        let mut ranges = Ranges::default();
        (1_u32..=100_000).for_each(|n| assert!(ranges.insert(n)));
        assert!(ranges.rest.is_none());
        assert_eq!(ranges.iter().count(), 100_000);
    }
}
