//! A set of indexes, kept as ranges: the items of a job that are stored already. No I/O.

use std::collections::BTreeMap;

/// Ranges that do not touch: first index -> one past the last.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct IndexRanges(BTreeMap<u64, u64>);

impl IndexRanges {
    /// Adds `from..to`.
    pub(super) fn add(&mut self, mut from: u64, mut to: u64) {
        if from >= to {
            return;
        }
        if let Some((&start, &end)) = self.0.range(..=from).next_back()
            && end >= from
        {
            (from, to) = (start, to.max(end));
        }
        while let Some((&start, &end)) = self.0.range(from..=to).next() {
            self.0.remove(&start);
            to = to.max(end);
        }
        self.0.insert(from, to);
    }

    /// Whether this index is in the set.
    pub(super) fn contains(&self, index: u64) -> bool {
        self.0.range(..=index).next_back().is_some_and(|(_, &end)| index < end)
    }

    /// The highest index.
    pub(super) fn last(&self) -> Option<u64> {
        self.0.last_key_value().map(|(_, end)| end - 1)
    }

    /// Removes all indexes below `index`.
    pub(super) fn forget_below(&mut self, index: u64) {
        while let Some((&start, &end)) = self.0.first_key_value().filter(|(start, _)| **start < index) {
            self.0.remove(&start);
            if end > index {
                self.0.insert(index, end);
            }
        }
    }

    /// How many indexes are in the set.
    pub(super) fn len(&self) -> u64 {
        self.0.iter().map(|(from, to)| to - from).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(added: &[(u64, u64)], expected: &[(u64, u64)]) {
        let mut ranges = IndexRanges::default();
        added.iter().for_each(|(from, to)| ranges.add(*from, *to));
        assert_eq!(ranges.0.into_iter().collect::<Vec<_>>(), expected, "{added:?}");
    }

    #[test]
    fn ranges_grow_together() {
        check(&[(0, 3), (5, 6)], &[(0, 3), (5, 6)]);
        check(&[(0, 3), (3, 5)], &[(0, 5)]);
        check(&[(3, 5), (0, 3)], &[(0, 5)]);
        check(&[(0, 2), (4, 6), (1, 5)], &[(0, 6)]);
        check(&[(0, 9), (3, 4), (7, 7)], &[(0, 9)]);
    }

    proptest! {
        #[test]
        fn ranges_behave_like_a_set(added in proptest::collection::vec((0u64..40, 0u64..8), 0..12), floor in 0u64..50) {
            let (mut ranges, mut set) = (IndexRanges::default(), std::collections::BTreeSet::new());
            for (from, len) in added {
                ranges.add(from, from + len);
                set.extend(from..from + len);
            }
            prop_assert_eq!(ranges.len(), set.len() as u64);
            ranges.forget_below(floor);
            set.retain(|i| *i >= floor);
            for index in 0..60 {
                prop_assert_eq!(ranges.contains(index), set.contains(&index), "{}", index);
            }
        }
    }
}
