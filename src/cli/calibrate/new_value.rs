//! The false alarms of a segment that the calibration has not seen, such as a new camera: each segment in turn is judged by the
//! threshold of the others.

use serde::Serialize;

use crate::bundle::SegmentId;
use crate::bundle::p_value::rank;
use crate::bundle::segments::{LEAST_RECORDS, MOST_SEGMENTS};

/// What the segments say about one that is not among them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NewValue {
    /// Number of segments that were left out in turn.
    values: usize,
    /// The false-alarm rate of the others' thresholds on themselves.
    expected: f64,
    /// The mean share of a left-out segment's records that the others' threshold flags.
    flagged: f64,
    /// The largest such share. If a new segment is drawn like these, it flags more with a probability of at most 1 / (values + 1).
    most: f64,
    /// The segment with the largest share.
    most_value: String,
}

impl NewValue {
    /// Leaves out each segment in turn. `segments` has the segment of each score as an index into `names`. Segments with fewer than
    /// [`LEAST_RECORDS`] scores, and those beyond the [`MOST_SEGMENTS`] largest, count nowhere. Returns `None` with fewer than two
    /// segments.
    pub fn of(
        scores: &[f32],
        segments: &[Option<SegmentId>],
        names: &[String],
        rate: f64,
    ) -> Option<NewValue> {
        let mut sizes: Vec<(usize, usize)> = (0..names.len()).map(|at| (0, at)).collect();
        for SegmentId(at) in segments.iter().flatten() {
            sizes[*at as usize].0 += 1;
        }
        sizes.retain(|(size, _)| *size >= LEAST_RECORDS);
        sizes.sort_unstable_by_key(|(size, at)| (std::cmp::Reverse(*size), *at));
        sizes.truncate(MOST_SEGMENTS);
        let mut is_used = vec![false; names.len()];
        for (_, at) in &sizes {
            is_used[*at] = true;
        }
        let with_segment = scores.iter().zip(segments);
        let of_used = with_segment.filter_map(|(score, segment)| {
            let at = (*segment)?.0 as usize;
            is_used[at].then_some((*score, at))
        });
        let mut highest_first: Vec<(f32, usize)> = of_used.collect();
        highest_first.sort_unstable_by(|(a, _), (b, _)| b.total_cmp(a));

        let shares: Vec<(f64, f64, usize)> = sizes
            .iter()
            .filter_map(|&(size, left_out)| {
                let others = highest_first.len() - size;
                let rank = rank(rate, others).max(1);
                let mut of_others = highest_first.iter().filter(|(_, at)| *at != left_out);
                let threshold = of_others.nth(rank - 1)?.0;
                let above = highest_first
                    .iter()
                    .take_while(|(score, _)| *score > threshold);
                let flagged = above.filter(|(_, at)| *at == left_out).count();
                let expected = rank as f64 / (others + 1) as f64;
                Some((flagged as f64 / size as f64, expected, left_out))
            })
            .collect();
        let mean = |of: fn(&(f64, f64, usize)) -> f64| {
            shares.iter().map(of).sum::<f64>() / shares.len() as f64
        };
        let most = shares.iter().max_by(|(a, ..), (b, ..)| a.total_cmp(b))?;
        Some(NewValue {
            values: shares.len(),
            expected: mean(|(_, expected, _)| *expected),
            flagged: mean(|(flagged, ..)| *flagged),
            most: most.0,
            most_value: names[most.2].clone(),
        })
    }

    pub fn print(&self) {
        // Escaped and cut, because producers choose this text.
        let worst: String = self.most_value.escape_debug().take(40).collect();
        println!(
            "A new value: {:.2} % of its normal records would be flagged, where {:.2} % are expected, if it is like these {} \
             (each was judged by the threshold of the others). The most is {:.2} %, for {worst}; more than that has a chance of 1 in {}.",
            100.0 * self.flagged,
            100.0 * self.expected,
            self.values,
            100.0 * self.most,
            self.values + 1,
        );
        if self.flagged > 2.0 * self.expected {
            println!(
                "So a new value has about {:.0} times the false alarms: calibrate again with at least {LEAST_RECORDS} of its normal records.",
                self.flagged / self.expected
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(groups: &[(&str, Vec<f32>)], rate: f64) -> Option<NewValue> {
        let names: Vec<String> = groups.iter().map(|(name, _)| (*name).to_owned()).collect();
        let scores: Vec<f32> = groups.iter().flat_map(|(_, s)| s.clone()).collect();
        let ids = (0..)
            .zip(groups)
            .flat_map(|(at, (_, s))| vec![Some(SegmentId(at)); s.len()]);
        NewValue::of(&scores, &ids.collect::<Vec<_>>(), &names, rate)
    }

    /// 1, 2, …, 100, times `scale`.
    fn steps(scale: f32) -> Vec<f32> {
        (1..=100).map(|i| i as f32 * scale).collect()
    }

    #[test]
    fn a_segment_at_another_scale_is_flagged_by_the_others_threshold() {
        let groups = [("a", steps(1.0)), ("b", steps(1.0)), ("c", steps(2.0))];
        let found = of(&groups, 0.05).unwrap();
        // Without c: rank 10 of 200 is 96, and c has 52 scores above. Without a or b: rank 10 is 182, and they have none.
        assert_eq!((found.values, found.most_value.as_str()), (3, "c"));
        assert_eq!(found.most, 0.52);
        assert!((found.flagged - 0.52 / 3.0).abs() < 1e-12);
        assert!((found.expected - 10.0 / 201.0).abs() < 1e-12);
    }

    #[test]
    fn equal_segments_flag_what_is_asked_for() {
        let groups: Vec<(&str, Vec<f32>)> =
            ["a", "b", "c", "d"].map(|name| (name, steps(1.0))).into();
        let found = of(&groups, 0.1).unwrap();
        assert!((found.flagged - 0.1).abs() < 0.011, "{found:?}");
    }

    #[test]
    fn ties_are_not_above_the_threshold_and_a_rate_too_fine_takes_the_highest() {
        let groups = [("a", vec![5.0; 30]), ("b", vec![5.0; 30])];
        assert_eq!(of(&groups, 0.1).unwrap().flagged, 0.0);
        let found = of(&[("a", steps(1.0)), ("b", steps(1.5))], 1e-6).unwrap();
        assert_eq!(found.most, 0.34);
        assert!((found.expected - 1.0 / 101.0).abs() < 1e-12);
    }

    #[test]
    fn one_segment_or_small_ones_tell_nothing() {
        assert_eq!(of(&[("a", steps(1.0))], 0.1), None);
        assert_eq!(of(&[("a", steps(1.0)), ("b", vec![1.0; 19])], 0.1), None);
        assert_eq!(of(&[], 0.1), None);
    }
}
