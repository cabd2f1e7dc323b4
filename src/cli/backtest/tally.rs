//! Counts the results of a bundle over a range of records.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::Serialize;

use crate::decode::RowError;
use crate::verdict::Verdict;

use crate::cli::shared::refusals::Refusals;
use crate::cli::shared::scoring::Highest;

const DAY_MS: f64 = 86_400_000.0;
/// One record in this many, at each end of the time range, may have a wrong clock.
const SUSPECT: usize = 1000;

/// Lower bounds of the histogram's bins, in multiples of the threshold.
const EDGES: [f32; 9] = [0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0];
/// Levels of the quantiles that are reported.
const LEVELS: [f64; 6] = [0.5, 0.9, 0.99, 0.999, 0.9999, 1.0];

/// Counts the records that were read, whether or not they were scored.
#[derive(Default)]
pub struct Covered {
    pub records: u64,
    pub tombstones: u64,
    /// Number of deletions and other changes without a state, and of messages with an empty list.
    pub nothing: u64,
    /// Timestamps of the records, in milliseconds since the epoch.
    times: Vec<i64>,
}

/// The time range that the records cover.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Covers {
    /// Timestamp of the oldest record, in milliseconds since the epoch.
    pub first: i64,
    /// Timestamp of the newest record.
    pub last: i64,
    /// Number of records left out of the range because their timestamps are far from all others.
    pub strays: usize,
}

impl Covered {
    pub fn take(&mut self, timestamp_ms: Option<i64>) {
        self.records += 1;
        self.times.extend(timestamp_ms);
    }

    /// Returns the time range of the records. Up to one record in a thousand at each end, and at least one, may have a wrong
    /// clock. Such a record is left out if it is further from the others than a day and further than the others' whole range.
    pub fn covers(&mut self) -> Option<Covers> {
        self.times.sort_unstable();
        let times = &self.times;
        let (oldest, youngest) = (*times.first()?, *times.last()?);
        let suspects = (times.len() / SUSPECT).max(1);
        let Some(trusted) = times
            .get(suspects..times.len() - suspects)
            .filter(|s| s.len() > 1)
        else {
            return Some(Covers {
                first: oldest,
                last: youngest,
                strays: 0,
            });
        };
        let (first, last) = (trusted[0], trusted[trusted.len() - 1]);
        let margin = last.saturating_sub(first).max(DAY_MS as i64);
        let (from, to) = (first.saturating_sub(margin), last.saturating_add(margin));
        let within = times.partition_point(|at| *at < from)..times.partition_point(|at| *at <= to);
        Some(Covers {
            first: times[within.start],
            last: times[within.end - 1],
            strays: times.len() - within.len(),
        })
    }
}

impl Covers {
    /// Returns the length of the range in days. `None` if it is empty.
    pub fn days(&self) -> Option<f64> {
        let (first, last) = (self.first, self.last);
        (last > first).then(|| (last as f64 - first as f64) / DAY_MS)
    }
}

/// The results of one bundle.
pub struct Tally {
    pub scores: Vec<f32>,
    /// Each score divided by its threshold.
    grades: Vec<f32>,
    pub alerts: u64,
    pub rejected: Refusals,
    /// Number of scored records and of alerts per day, in UTC.
    pub days: BTreeMap<Date, (u64, u64)>,
    /// For each feature, how often it was the first reason, and the sum of its shares of the residual.
    features: BTreeMap<String, (u64, f64)>,
    /// The most anomalous records, ranked by grade.
    pub highest: Highest<High>,
}

/// One of the most anomalous records.
pub struct High {
    /// The record's topic, partition and offset.
    pub record: String,
    pub score: f32,
    pub why: String,
}

/// The contribution of a feature to the flagged records.
#[derive(Debug, PartialEq, Serialize)]
pub struct Feature {
    pub feature: String,
    /// Number of flagged records whose first reason is this feature.
    pub first: u64,
    /// The feature's mean share of the residual in flagged records.
    pub share: f64,
}

/// A bin of the histogram: the number of records that score above `from` and at most at the next bin's `from`, in multiples of
/// the threshold.
#[derive(Debug, PartialEq, Serialize)]
pub struct Bin {
    pub from: f32,
    pub records: u64,
}

/// A quantile of the scores, and of the scores divided by their thresholds (grade).
#[derive(Debug, PartialEq, Serialize)]
pub struct Quantile {
    pub level: f64,
    pub score: f32,
    pub grade: f32,
}

impl Tally {
    pub fn new(top: usize) -> Tally {
        Tally {
            scores: Vec::new(),
            grades: Vec::new(),
            alerts: 0,
            rejected: Refusals::default(),
            days: BTreeMap::new(),
            features: BTreeMap::new(),
            highest: Highest::new(top),
        }
    }

    pub fn reject(&mut self, error: &RowError) {
        self.rejected.add(error.reason.as_str(), &error.detail);
    }

    pub fn score(&mut self, score: f32, threshold: f32, timestamp_ms: Option<i64>) {
        let flagged = score > threshold;
        self.scores.push(score);
        self.grades.push(score / threshold);
        self.alerts += u64::from(flagged);
        let at = timestamp_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok());
        if let Some(at) = at {
            let day = self.days.entry(at.to_zoned(TimeZone::UTC).date());
            let (records, alerts) = day.or_default();
            *records += 1;
            *alerts += u64::from(flagged);
        }
    }

    /// Counts the reasons of a flagged record. The verdict must contain all features.
    pub fn explain(&mut self, verdict: &Verdict<'_>) {
        for (rank, reason) in verdict.attributions().iter().enumerate() {
            if !self.features.contains_key(reason.feature) {
                self.features.insert(reason.feature.to_owned(), (0, 0.0));
            }
            let (first, share) = self
                .features
                .get_mut(reason.feature)
                .expect("inserted above");
            *first += u64::from(rank == 0);
            *share += f64::from(reason.share);
        }
    }

    /// Returns the `most` features that contributed most to the flagged records.
    pub fn features(&self, most: usize) -> Vec<Feature> {
        let features = self
            .features
            .iter()
            .map(|(feature, &(first, share))| Feature {
                feature: feature.clone(),
                first,
                share: share / self.alerts as f64,
            });
        let mut features: Vec<Feature> = features.collect();
        features.sort_by(|a, b| b.share.total_cmp(&a.share));
        features.truncate(most);
        features
    }

    /// Returns quantiles by the nearest-rank method. Empty if there are no scores.
    pub fn quantiles(&self) -> Vec<Quantile> {
        let sorted = |numbers: &[f32]| {
            let mut sorted = numbers.to_vec();
            sorted.sort_unstable_by(f32::total_cmp);
            sorted
        };
        let (scores, grades) = (sorted(&self.scores), sorted(&self.grades));
        let at = |level: f64| {
            let rank = (level * scores.len() as f64).ceil() as usize;
            let index = rank.max(1) - 1;
            Some(Quantile {
                level,
                score: *scores.get(index)?,
                grade: grades[index],
            })
        };
        LEVELS.iter().filter_map(|&level| at(level)).collect()
    }

    pub fn histogram(&self) -> Vec<Bin> {
        let bin = |&from| Bin { from, records: 0 };
        let mut bins: Vec<Bin> = EDGES.iter().map(bin).collect();
        for &grade in &self.grades {
            // A score equal to an edge belongs to the bin below, just as a score equal to the threshold is not flagged.
            let above = EDGES.iter().filter(|&&edge| grade > edge).count();
            bins[above.max(1) - 1].records += 1;
        }
        bins
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400_000;

    #[test]
    fn days_are_those_of_the_records() {
        let mut covered = Covered::default();
        assert_eq!(covered.covers(), None);
        for at in [Some(5 * DAY), Some(3 * DAY), None, Some(5 * DAY + DAY / 2)] {
            covered.take(at);
        }
        let days = covered.covers().unwrap().days();
        assert_eq!((covered.records, days), (4, Some(2.5)));
        let mut tally = Tally::new(0);
        tally.score(0.1, 0.2, Some(DAY - 1));
        tally.score(0.3, 0.2, Some(DAY));
        tally.score(0.3, 0.2, None);
        tally.score(0.3, 0.2, Some(i64::MAX));
        let day = |d| Date::new(1970, 1, d).unwrap();
        assert_eq!(tally.days, [(day(1), (1, 0)), (day(2), (1, 1))].into());
        assert_eq!(tally.alerts, 3);
    }

    #[test]
    fn few_records_of_wrong_clocks_do_not_stretch_the_days() {
        let covers = |times: &[i64]| {
            let mut covered = Covered::default();
            times.iter().for_each(|at| covered.take(Some(*at)));
            let covers = covered.covers().unwrap();
            (covers.days(), covers.strays)
        };
        let days: Vec<i64> = (0..=10).map(|day| day * DAY).collect();
        assert_eq!(covers(&days), (Some(10.0), 0));
        assert_eq!(
            covers(&[&days[..], &[40_000 * DAY]].concat()),
            (Some(10.0), 1)
        );
        let both = [i64::MIN, i64::MAX];
        assert_eq!(covers(&[&days[..], &both].concat()), (Some(10.0), 2));
        // With only two records, it is unknown which of them has the wrong clock.
        assert_eq!(covers(&[0, DAY]), (Some(1.0), 0));
        assert_eq!(covers(&[DAY; 20]), (None, 0));
        let many: Vec<i64> = (0..3000).map(|i| i * DAY / 3000).collect();
        let (days, strays) = covers(&[&many[..], &[900 * DAY; 3]].concat());
        assert!(days.unwrap() < 1.0 && strays == 3);
    }

    #[test]
    fn quantiles_by_nearest_rank() {
        let mut tally = Tally::new(0);
        assert_eq!(tally.quantiles(), []);
        for i in (1..=1000).rev() {
            tally.score(i as f32, 10.0, None);
        }
        let scores: Vec<f32> = tally.quantiles().iter().map(|q| q.score).collect();
        assert_eq!(scores, [500.0, 900.0, 990.0, 999.0, 1000.0, 1000.0]);
    }

    #[test]
    fn the_histogram_breaks_at_the_threshold_as_the_verdict_does() {
        let mut tally = Tally::new(0);
        for score in [0.0, 0.5, 2.0, 2.0001, 100.0] {
            tally.score(score, 2.0, None);
        }
        let bins = tally.histogram();
        let filled: Vec<_> = bins.iter().filter(|b| b.records > 0).collect();
        let expected = [(0.0, 2), (0.75, 1), (1.0, 1), (8.0, 1)];
        let filled: Vec<_> = filled.iter().map(|b| (b.from, b.records)).collect();
        assert_eq!(filled, expected);
    }
}
