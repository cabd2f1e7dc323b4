//! A set of offsets, stored as ranges.

use rangemap::RangeInclusiveSet;

/// Disjoint ranges with gaps between them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Intervals(RangeInclusiveSet<i64>);

impl Intervals {
    /// Adds the offsets `first..=last` to those already present.
    pub fn insert(&mut self, first: i64, last: i64) {
        self.0.insert(first..=last);
    }

    pub fn contains(&self, offset: i64) -> bool {
        self.0.contains(&offset)
    }

    /// Returns the offsets of `self` that are not in `other`.
    pub fn without(&self, other: &Intervals) -> Intervals {
        let mut left = self.0.clone();
        for run in other.0.iter() {
            left.remove(run.clone());
        }
        Intervals(left)
    }

    pub fn iter(&self) -> impl Iterator<Item = (i64, i64)> {
        self.0.iter().map(|run| (*run.start(), *run.end()))
    }

    /// Returns the first and the last offset.
    pub fn ends(&self) -> Option<(i64, i64)> {
        Some((*self.0.first()?.start(), *self.0.last()?.end()))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn count(&self) -> u64 {
        self.iter()
            .map(|(first, last)| (last - first) as u64 + 1)
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Few distinct offsets, so that ranges overlap and touch.
    fn runs() -> impl Strategy<Value = Vec<(i64, i64)>> {
        prop::collection::vec((0i64..40, 0i64..6).prop_map(|(a, n)| (a, a + n)), 0..12)
    }

    fn intervals(runs: &[(i64, i64)]) -> Intervals {
        let mut intervals = Intervals::default();
        for &(first, last) in runs {
            intervals.insert(first, last);
        }
        intervals
    }

    fn set(runs: &[(i64, i64)]) -> BTreeSet<i64> {
        runs.iter().flat_map(|&(a, b)| a..=b).collect()
    }

    fn members(intervals: &Intervals) -> BTreeSet<i64> {
        set(&intervals.iter().collect::<Vec<_>>())
    }

    proptest! {
        #[test]
        fn is_a_set_in_the_fewest_runs(a in runs()) {
            let (intervals, set) = (intervals(&a), set(&a));
            prop_assert_eq!(&members(&intervals), &set);
            prop_assert_eq!(intervals.count(), set.len() as u64);
            prop_assert_eq!(intervals.ends(), set.first().copied().zip(set.last().copied()));
            for offset in -1..50 {
                prop_assert_eq!(intervals.contains(offset), set.contains(&offset));
            }
            let ends: Vec<_> = intervals.iter().collect();
            prop_assert!(ends.windows(2).all(|w| w[0].1 + 1 < w[1].0), "{:?}", ends);
        }

        #[test]
        fn without_is_the_difference(a in runs(), b in runs()) {
            let left = intervals(&a).without(&intervals(&b));
            let expected: BTreeSet<i64> = set(&a).difference(&set(&b)).copied().collect();
            prop_assert_eq!(members(&left), expected);
        }
    }
}
