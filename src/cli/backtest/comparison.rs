//! Compares the scores of two bundles on the same records.

use serde::Serialize;

use crate::evaluation::spearman;
use crate::record::Place;

use crate::cli::shared::scoring::Highest;

pub struct Comparison {
    scores: [Vec<f32>; 2],
    /// Number of records flagged by neither bundle, only the second, only the first, and both.
    flagged: [u64; 4],
    /// Number of records that only one bundle scored.
    by_one: u64,
    different: Highest<Pair>,
}

/// One record as two bundles score it: each score divided by its threshold.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pair {
    #[serde(flatten)]
    pub place: Place,
    pub grades: [f32; 2],
}

#[derive(Serialize)]
pub struct Compared<'a> {
    /// Records that both bundles scored.
    pub records: u64,
    pub flagged_by_both: u64,
    pub only_by_bundle: u64,
    pub only_by_against: u64,
    pub by_neither: u64,
    pub scored_by_one_only: u64,
    /// Spearman's rank correlation of the scores. 1 means the same order.
    pub spearman: Option<f64>,
    /// The records whose grades differ most.
    pub most_different: Vec<&'a Pair>,
}

impl Comparison {
    pub fn new(top: usize) -> Comparison {
        Comparison {
            scores: [Vec::new(), Vec::new()],
            flagged: [0; 4],
            by_one: 0,
            different: Highest::new(top),
        }
    }

    /// Adds a record. A score of NaN means that the bundle did not score it.
    pub fn take(&mut self, place: Place, scores: [f32; 2], thresholds: [f32; 2]) {
        let [first, second] = scores;
        if first.is_nan() || second.is_nan() {
            self.by_one += u64::from(first.is_nan() != second.is_nan());
            return;
        }
        self.scores[0].push(first);
        self.scores[1].push(second);
        let flagged = [first > thresholds[0], second > thresholds[1]].map(usize::from);
        self.flagged[2 * flagged[0] + flagged[1]] += 1;
        let grades = [first / thresholds[0], second / thresholds[1]];
        let difference = (grades[0] - grades[1]).abs();
        if difference > 0.0 && self.different.takes(difference) {
            let pair = Pair { place, grades };
            self.different.insert(difference, pair);
        }
    }

    pub fn compared(&self) -> Compared<'_> {
        let [by_neither, only_by_against, only_by_bundle, flagged_by_both] = self.flagged;
        Compared {
            records: self.scores[0].len() as u64,
            flagged_by_both,
            only_by_bundle,
            only_by_against,
            by_neither,
            scored_by_one_only: self.by_one,
            spearman: spearman(&self.scores[0], &self.scores[1]),
            most_different: self.different.iter().map(|(_, pair)| pair).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_record_is_counted_where_it_belongs() {
        let mut comparison = Comparison::new(2);
        let scores = [
            [1.0, 1.0],
            [3.0, 1.0],
            [1.0, 30.0],
            [5.0, 40.0],
            [f32::NAN, 1.0],
            [f32::NAN, f32::NAN],
        ];
        for (offset, scores) in scores.into_iter().enumerate() {
            let place = Place {
                partition: 0,
                offset: offset as i64,
                index: None,
            };
            comparison.take(place, scores, [2.0, 20.0]);
        }
        let compared = comparison.compared();
        assert_eq!((compared.records, compared.scored_by_one_only), (4, 1));
        let counts = [
            compared.by_neither,
            compared.only_by_bundle,
            compared.only_by_against,
            compared.flagged_by_both,
        ];
        assert_eq!(counts, [1, 1, 1, 1]);
        let different: Vec<i64> = compared
            .most_different
            .iter()
            .map(|p| p.place.offset)
            .collect();
        assert_eq!(different, [1, 2]);
    }
}
