//! Which records of a sample are likely anomalies, so that they do not raise the thresholds: what is calibrated on must be normal.
//!
//! A live stream holds some. If only 1.6 % of the records are fraud, a false-alarm rate of 0.001 on all of them is a threshold above
//! nearly every fraud. The bundle's calibration before was made on normal records, so it says how many of them score how high. Records
//! beyond that number are left out, from the highest score down, so that no part of the tail holds more than before:
//!
//! ```text
//! #{kept scores >= x}  <=  records * p(x at the scale before)      in each segment, for every x above the 90 % quantile
//! ```
//!
//! The scale is the median, of each segment if the calibration before has the same segments: it hardly moves with the anomalies, and it
//! follows a normal that is now higher or lower as a whole.

use crate::bundle::segments::LEAST_RECORDS;
use crate::bundle::{Calibration, ScoreDistribution, SegmentBy, SegmentId};
use crate::cli::shared::threshold::default_rate;
use crate::failure::Failure;

/// Below this quantile all records are kept.
const BODY: f64 = 0.9;
/// The threshold before may flag so many times its rate: chance, or a normal that has changed a little.
pub const MOST_TIMES: f64 = 2.0;
/// More than this share are not left out on a guess.
const MOST: f64 = 0.05;

/// The scores of a sample at the scale of the calibration before.
pub struct Tail<'c> {
    scaled: Vec<f32>,
    /// Places by segment.
    groups: Vec<Vec<usize>>,
    before: &'c ScoreDistribution,
    /// The medians of the sample, without regard to segments, and before.
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
        let own = calibration.segments.as_ref();
        let same = own.filter(|segments| Some(&segments.by) == by);
        let before = same.map_or(&calibration.all, |segments| segments.shape());
        let typical_before = positive(before.quantile(0.5));
        let told_apart = if same.is_some() { segments } else { &[] };
        let groups = groups(scores.len(), told_apart);
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

    /// Places of the `share` of the records with the highest scores.
    pub fn highest(&self, share: f64) -> Vec<usize> {
        let most = (share * self.scaled.len() as f64).round() as usize;
        let mut places = self.descending(0..self.scaled.len());
        places.truncate(most);
        places
    }

    /// Places of the records that are too many for normal ones; none if they may be chance.
    ///
    /// # Errors
    /// They are so many that they cannot be anomalies.
    pub fn excess(&self) -> Result<Vec<usize>, Failure> {
        let records = self.scaled.len() as f64;
        let threshold = self.before.threshold_at(self.rate)?;
        let above = self.scaled.iter().filter(|s| **s > threshold).count() as f64;
        let expected = self.rate * records;
        // Five standard deviations, and three for small numbers.
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

    /// Adds what a group has too many of. A group by itself: anomalies are often of one segment, where they must not take the places of
    /// all records.
    fn thin(&self, group: &[usize], excess: &mut Vec<usize>) {
        let records = group.len() as f64;
        let allowed = |score: f32| (records * self.before.p_value(score)).round() as usize;
        let least = self.before.quantile(BODY);
        let tail = self.descending(group.iter().copied().filter(|&at| self.scaled[at] > least));
        // Beyond what was ever seen of a normal record the calibration cannot tell scores apart: there the highest go first.
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
            "{:.1} % of the records score higher than normal records of this bundle (median score {now:.4}, before {before:.4}): too many \
             to leave out as anomalies. Say which records are anomalies with --label or --exclude-flagged, or what share of them with \
             --contamination, 0 if all are normal. If normal has changed in kind, train again",
            100.0 * share
        ))
    }

    /// Places by their scores, the highest first.
    fn descending(&self, places: impl Iterator<Item = usize>) -> Vec<usize> {
        let mut places: Vec<usize> = places.collect();
        places.sort_by(|&a, &b| self.scaled[b].total_cmp(&self.scaled[a]));
        places
    }
}

/// Places by segment. Small segments and records without one make one group together.
fn groups(records: usize, segments: &[Option<SegmentId>]) -> Vec<Vec<usize>> {
    if segments.is_empty() {
        return vec![(0..records).collect()];
    }
    let mut own: Vec<Vec<usize>> = Vec::new();
    let mut rest = Vec::new();
    for (at, segment) in segments.iter().enumerate() {
        match segment {
            Some(SegmentId(id)) => {
                let id = *id as usize;
                if own.len() <= id {
                    own.resize_with(id + 1, Vec::new);
                }
                own[id].push(at);
            }
            None => rest.push(at),
        }
    }
    let (mut groups, small): (Vec<_>, Vec<_>) = own
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

/// To divide by.
fn positive(typical: f32) -> f32 {
    typical.max(f32::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::Segments;

    /// Scores of `records` normal records with a tail, at a scale.
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
            // 2 % of anomalies between the threshold and far beyond every normal record.
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
