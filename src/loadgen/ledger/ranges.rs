//! Sets of whole numbers as ranges: what a ledger remembers costs memory by hole, not by message.

/// A set of numbers. Empty sets and sets without holes need no allocation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::loadgen) struct Ranges {
    /// The first range, both ends inside; `(1, 0)` stands for none.
    first: Option<(u64, u64)>,
    /// The others, rising, never touching each other or the first.
    rest: Option<Box<Vec<(u64, u64)>>>,
}

impl Ranges {
    /// Adds a number; returns false when it was there already.
    pub(in crate::loadgen) fn insert(&mut self, n: u64) -> bool {
        let Some(first) = &mut self.first else {
            self.first = Some((n, n));
            return true;
        };
        if self.rest.is_none() {
            if n == first.1 + 1 {
                first.1 = n;
                return true;
            }
            if (first.0..=first.1).contains(&n) {
                return false;
            }
        }
        let mut all = self.to_vec();
        let at = all.partition_point(|r| r.1 < n);
        if all.get(at).is_some_and(|r| r.0 <= n) {
            return false;
        }
        let joins_before = at > 0 && all[at - 1].1 + 1 == n;
        let joins_after = all.get(at).is_some_and(|r| n + 1 == r.0);
        match (joins_before, joins_after) {
            (true, true) => {
                all[at - 1].1 = all[at].1;
                all.remove(at);
            }
            (true, false) => all[at - 1].1 = n,
            (false, true) => all[at].0 = n,
            (false, false) => all.insert(at, (n, n)),
        }
        self.first = Some(all.remove(0));
        self.rest = (!all.is_empty()).then(|| Box::new(all));
        true
    }

    /// Whether a number is in the set.
    #[must_use]
    pub(in crate::loadgen) fn contains(&self, n: u64) -> bool {
        let Some(first) = self.first else { return false };
        if (first.0..=first.1).contains(&n) {
            return true;
        }
        let rest = self.rest.as_ref().map_or(&[][..], |r| r.as_slice());
        let at = rest.partition_point(|r| r.1 < n);
        rest.get(at).is_some_and(|r| r.0 <= n)
    }

    /// The greatest number, 0 when there is none.
    #[must_use]
    pub(in crate::loadgen) fn max(&self) -> u64 {
        let last = self.rest.as_ref().and_then(|r| r.last().copied()).or(self.first);
        last.map_or(0, |r| r.1)
    }

    /// The numbers, rising.
    pub(in crate::loadgen) fn iter(&self) -> impl Iterator<Item = u64> {
        self.to_vec().into_iter().flat_map(|r| r.0..=r.1)
    }

    fn to_vec(&self) -> Vec<(u64, u64)> {
        let rest = self.rest.as_ref().map_or(&[][..], |r| r.as_slice());
        self.first.iter().chain(rest).copied().collect()
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
                prop_assert_eq!(ranges.iter().count(), set.len());
            }
            prop_assert_eq!(ranges.iter().collect::<Vec<_>>(), set.iter().copied().collect::<Vec<_>>());
            prop_assert!((0..60).all(|n| ranges.contains(n) == set.contains(&n)));
            prop_assert_eq!(ranges.max(), set.last().copied().unwrap_or(0));
        }
    }

    #[test]
    fn a_set_without_holes_takes_no_allocation() {
        let mut ranges = Ranges::default();
        (1..=100_000).for_each(|n| assert!(ranges.insert(n)));
        assert!(ranges.rest.is_none());
        assert_eq!(ranges.iter().count(), 100_000);
    }
}
