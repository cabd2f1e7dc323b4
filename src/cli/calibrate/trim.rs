//! Finds the likely anomalies in a sample, so that they do not raise the thresholds.
//!
//! A live stream contains anomalies. If only 1.6 % of the records are fraud, the threshold for a false-alarm rate of 0.001 over
//! all records is above nearly every fraud. The old calibration was made on normal records, so it tells how many normal records
//! exceed each score. Records in excess of that are left out, from the highest score down, until no part of the tail has more
//! than before:
//!
//! ```text
//! #{kept scores >= x}  <=  records * p(x at the scale before)      in each segment, for every x above the 90 % quantile
//! ```
//!
//! The scale is the median, taken per segment if the old calibration has the same segments. Anomalies hardly change the median,
//! and it follows normal scores that have shifted as a whole.

use crate::bundle::segments::LEAST_RECORDS;
use crate::bundle::{Calibration, ScoreDistribution, SegmentBy, SegmentId};
use crate::config::default_rate;
use crate::failure::Failure;

/// All records below this quantile are kept.
const BODY: f64 = 0.9;
/// The old threshold may flag up to this multiple of its rate, by chance or because normal records have changed a little.
pub const MOST_TIMES: f64 = 2.0;
/// Maximum share of records that is left out automatically.
const MOST: f64 = 0.05;

/// The scores of a sample, on the scale of the old calibration.
pub struct Tail<'c> {
    scaled: Vec<f32>,
    /// Indices of the records in each segment.
    groups: Vec<Vec<usize>>,
    before: &'c ScoreDistribution,
    /// Overall medians of the sample and of the old calibration.
    medians: (f32, f32),
    rate: f64,
}

impl<'c> Tail<'c> {
    pub fn new(
        scores: &[f32],
        segments: &[Option<SegmentId>],
        by: Option<&SegmentBy>,
        calibration: &'c Calibration,
    ) -> Tail<'c> {
        let same = calibration.segments.as_ref();
        let same = same.filter(|segments| Some(&segments.by) == by);
        let before = same.map_or(&calibration.all, |segments| segments.shape());
        let typical_before = positive(before.quantile(0.5));
        let separate = if same.is_some() { segments } else { &[] };
        let groups = groups(scores.len(), separate);
        let mut scaled = vec![0.0; scores.len()];
        for group in &groups {
            let typical = positive(median(group.iter().map(|&at| scores[at])));
            for &at in group {
                scaled[at] = scores[at] / typical * typical_before;
            }
        }
        let all = median(scores.iter().copied());
        Tail {
            scaled,
            groups,
            before,
            medians: (all, calibration.all.quantile(0.5)),
            rate: default_rate(calibration),
        }
    }

    /// Returns the indices of the `share` of records with the highest scores.
    pub fn highest(&self, share: f64) -> Vec<usize> {
        let most = (share * self.scaled.len() as f64).round() as usize;
        let mut indices = self.descending(0..self.scaled.len());
        indices.truncate(most);
        indices
    }

    /// Returns the indices of the records in excess of what is normal. Empty if the excess may be chance.
    ///
    /// # Errors
    /// The excess is so large that it cannot consist of anomalies only.
    pub fn excess(&self) -> Result<Vec<usize>, Failure> {
        let records = self.scaled.len() as f64;
        let threshold = self.before.threshold_at(self.rate)?;
        let above = self.scaled.iter().filter(|s| **s > threshold).count() as f64;
        let expected = self.rate * records;
        // Five standard deviations, plus three for small numbers.
        let chance = expected + 5.0 * expected.sqrt() + 3.0;
        if above <= chance.max(MOST_TIMES * expected) {
            return Ok(Vec::new());
        }
        let mut excess = Vec::new();
        for group in &self.groups {
            self.thin(group, &mut excess);
        }
        match excess.len() as f64 / records {
            share if share > MOST => Err(self.too_many(share)),
            _ => Ok(excess),
        }
    }

    /// Adds the excess records of one group to `excess`. Groups are handled separately, because anomalies are often in one
    /// segment and must not use up the allowance of all records.
    fn thin(&self, group: &[usize], excess: &mut Vec<usize>) {
        let records = group.len() as f64;
        let allowed = |score: f32| (records * self.before.p_value(score)).round() as usize;
        let least = self.before.quantile(BODY);
        let tail = self.descending(group.iter().copied().filter(|&at| self.scaled[at] > least));
        // The calibration cannot rank scores beyond the largest normal one, so the highest of these are left out first.
        let largest = self.before.largest().next_up();
        let unseen = tail.partition_point(|&at| self.scaled[at] >= largest);
        let (highest, rest) = tail.split_at(unseen.saturating_sub(allowed(largest)));
        excess.extend(highest);
        let mut kept = 0;
        for &at in rest {
            if kept < allowed(self.scaled[at]) {
                kept += 1;
            } else {
                excess.push(at);
            }
        }
    }

    fn too_many(&self, share: f64) -> Failure {
        let (now, before) = self.medians;
        Failure::data(format!(
            "{:.1} % of the records score higher than the bundle's calibration expects of normal records (median score {now:.4}, before {before:.4}), \
             which is too many to leave out as anomalies. Mark the anomalies with --label or --exclude-flagged, or give their share with \
             --contamination (0 if all are normal). If normal behaviour itself has changed, train again",
            100.0 * share
        ))
    }

    /// Returns the indices sorted by score, highest first.
    fn descending(&self, indices: impl Iterator<Item = usize>) -> Vec<usize> {
        let mut indices: Vec<usize> = indices.collect();
        indices.sort_by(|&a, &b| self.scaled[b].total_cmp(&self.scaled[a]));
        indices
    }
}

/// Groups the indices of the records by segment. Small segments and records without a segment share one group.
fn groups(records: usize, segments: &[Option<SegmentId>]) -> Vec<Vec<usize>> {
    if segments.is_empty() {
        return vec![(0..records).collect()];
    }
    let mut by_segment: Vec<Vec<usize>> = Vec::new();
    let mut rest = Vec::new();
    for (at, segment) in segments.iter().enumerate() {
        match segment {
            Some(SegmentId(id)) => {
                let id = *id as usize;
                if by_segment.len() <= id {
                    by_segment.resize_with(id + 1, Vec::new);
                }
                by_segment[id].push(at);
            }
            None => rest.push(at),
        }
    }
    let (mut groups, small): (Vec<_>, Vec<_>) = by_segment
        .into_iter()
        .partition(|group| group.len() >= LEAST_RECORDS);
    rest.extend(small.into_iter().flatten());
    groups.push(rest);
    groups
}

fn median(scores: impl Iterator<Item = f32>) -> f32 {
    let mut scores: Vec<f32> = scores.collect();
    let middle = scores.len() / 2;
    if scores.is_empty() {
        return 0.0;
    }
    *scores.select_nth_unstable_by(middle, f32::total_cmp).1
}

/// Makes a typical score safe to divide by.
fn positive(typical: f32) -> f32 {
    typical.max(f32::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::Segments;

    /// Scores of `records` normal records with a tail, times `scale`.
    fn normal(records: usize, scale: f32) -> Vec<f32> {
        let share = |i: usize| (i as f32 + 0.5) / records as f32;
        (0..records)
            .map(|i| scale * (1.0 - share(i)).powf(-0.3))
            .collect()
    }

    fn calibration() -> Calibration {
        Calibration::of(normal(20_000, 1.0), Vec::new(), None)
    }

    fn excess(scores: &[f32]) -> Result<Vec<usize>, Failure> {
        Tail::new(scores, &[], None, &calibration()).excess()
    }

    #[test]
    fn normal_records_are_all_kept_whatever_their_scale() {
        for (records, scale) in [(50, 1.0), (500, 3.0), (20_000, 0.2), (300_000, 1.7)] {
            assert!(
                excess(&normal(records, scale)).unwrap().is_empty(),
                "{records}"
            );
        }
        assert!(excess(&[]).unwrap().is_empty());
        assert!(excess(&[0.0; 100]).unwrap().is_empty());
    }

    #[test]
    fn anomalies_are_left_out_and_the_threshold_stays() {
        for scale in [1.0, 4.0] {
            let mut scores = normal(20_000, scale);
            let before = ScoreDistribution::of(scores.clone(), 1000, 10_000)
                .threshold_at(0.001)
                .unwrap();
            // 2 % anomalies, from just above the threshold to far beyond every normal record.
            scores.extend((0..400).map(|i| before * (1.0 + i as f32 / 40.0)));
            let places = excess(&scores).unwrap();
            assert!((350..=450).contains(&places.len()), "{}", places.len());
            let mut kept = scores.clone();
            let mut out = places;
            out.sort_unstable();
            for &at in out.iter().rev() {
                kept.swap_remove(at);
            }
            for rate in [0.0003, 0.001, 0.01] {
                let normal = ScoreDistribution::of(normal(20_000, scale), 1000, 10_000);
                let (now, right) = (
                    ScoreDistribution::of(kept.clone(), 1000, 10_000)
                        .threshold_at(rate)
                        .unwrap(),
                    normal.threshold_at(rate).unwrap(),
                );
                assert!((now / right - 1.0).abs() < 0.1, "{rate}: {now} {right}");
            }
        }
    }

    #[test]
    fn a_normal_of_another_kind_is_refused() {
        let mut scores = normal(10_000, 1.0);
        scores.extend(normal(3_000, 20.0));
        let refused = excess(&scores).unwrap_err();
        assert!(
            refused.message.contains("--contamination"),
            "{}",
            refused.message
        );
    }

    #[test]
    fn segments_have_a_scale_each() {
        let scores = [normal(7_000, 1.0), normal(3_000, 10.0)].concat();
        let segments: Vec<_> = (0..10_000).map(|at| Some(SegmentId(at / 7_000))).collect();
        let by = SegmentBy::Key;
        let names = vec!["a".to_owned(), "b".to_owned()];
        let calibration = Calibration {
            segments: Segments::of(by.clone(), &scores, &segments, names),
            ..calibration()
        };
        let tail = Tail::new(&scores, &segments, Some(&by), &calibration);
        assert!(tail.excess().unwrap().is_empty());
        assert!(excess(&scores).is_err(), "one scale for both");
    }
}
