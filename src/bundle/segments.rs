//! Scores by segment, for example by merchant category.
//!
//! Normal scores often differ between segments. One threshold for all then flags too much where scores are high and nothing where
//! they are low. But a segment rarely has enough scores for a false-alarm rate of one in a thousand. So it borrows from all
//! records: `shape` has their scores, each divided by the median of its segment. For a segment with n scores, their median m, and
//! k = 50:
//!
//! ```text
//! p(x) = (#{own scores >= x} + k * p_shape(x / m)) / (n + k)      but at least 1 / (number of all records + 1)
//! ```
//!
//! This is the posterior mean under a Beta prior that weighs `p_shape` as k records (Gelman et al., Bayesian Data Analysis, 2.4).
//! A small segment follows the shape, a large one its own scores. `benches/segments.py` compared this form and this k with others.

use std::collections::HashSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::manifest::{Feature, ModelInput};
use super::p_value::{PARTS, ScoreDistribution, TAIL};
use super::path;

/// k: the weight of the borrowed scores, in records.
const BORROWED: f64 = 50.0;
/// Segments with fewer records use the threshold of all records, because their median is too uncertain.
pub const LEAST_RECORDS: usize = 20;
/// Maximum number of segments. The most frequent ones are kept.
pub const MOST_SEGMENTS: usize = 1000;
/// Maximum length of a segment's value, in bytes.
pub const LONGEST_VALUE: usize = 256;
const SEGMENT_TAIL: usize = 1000;
const SEGMENT_PARTS: usize = 100;

/// How a record's segment is determined.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SegmentBy {
    /// By the field at this dotted path, whether or not the model reads it.
    Field(String),
    /// By the message key.
    Key,
}

/// Index into [`Segments::values`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentId(pub u32);

/// The scores of each segment.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Segments {
    pub by: SegmentBy,
    /// Scores of all records, each divided by the median of its segment. Records without a segment count as one segment.
    shape: ScoreDistribution,
    /// Sorted by value.
    pub values: Vec<Segment>,
}

/// The value that identifies a segment, and the scores of the segment's records.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Segment {
    pub value: String,
    #[serde(flatten)]
    pub scores: ScoreDistribution,
}

/// A limit of scores, overall and for each segment.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreLimits {
    pub all: f32,
    pub segments: Vec<f32>,
}

impl ScoreLimits {
    pub fn of(&self, segment: Option<SegmentId>) -> f32 {
        segment.map_or(self.all, |SegmentId(at)| self.segments[at as usize])
    }
}

impl SegmentBy {
    /// Returns why records of `input` cannot be segmented this way. `None` if they can.
    pub fn fault(&self, input: &ModelInput) -> Option<String> {
        let SegmentBy::Field(path) = self else {
            return None;
        };
        let keys = match path::keys(path) {
            Ok(keys) => keys,
            Err(problem) => return Some(problem),
        };
        let ModelInput::Tabular { features } = input else {
            return None;
        };
        let conflict = |f: &&Feature| {
            let feature = path::keys_or_parts(&f.path);
            path::contains(&feature, &keys) || path::contains(&keys, &feature)
        };
        let feature = features.iter().find(conflict)?;
        Some(format!(
            "`{path}` conflicts with the path of feature `{}`, `{}`: a field cannot be both a value and an object",
            feature.name, feature.path
        ))
    }
}

impl fmt::Display for SegmentBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SegmentBy::Field(path) => f.write_str(path),
            SegmentBy::Key => f.write_str("the message key"),
        }
    }
}

impl Segments {
    /// Returns the scores of all records, each divided by the median of its segment.
    pub fn shape(&self) -> &ScoreDistribution {
        &self.shape
    }

    /// Builds the segments from the scores of normal records. `segments` has the segment of each record, if any, as an index into
    /// `names`. Returns `None` if no segment has enough records. The trainer computes the same.
    pub fn of(
        by: SegmentBy,
        scores: &[f32],
        segments: &[Option<SegmentId>],
        names: Vec<String>,
    ) -> Option<Segments> {
        let mut groups: Vec<(String, Vec<f32>)> =
            names.into_iter().map(|name| (name, Vec::new())).collect();
        let mut rest = Vec::new();
        for (score, segment) in scores.iter().zip(segments) {
            match segment {
                Some(SegmentId(at)) => groups[*at as usize].1.push(*score),
                None => rest.push(*score),
            }
        }
        groups.sort_by(|a, b| b.1.len().cmp(&a.1.len()).then_with(|| a.0.cmp(&b.0)));
        let enough = groups.partition_point(|(_, scores)| scores.len() >= LEAST_RECORDS);
        let left_out = groups.split_off(enough.min(MOST_SEGMENTS));
        rest.extend(left_out.into_iter().flat_map(|(_, scores)| scores));
        groups.sort_by(|a, b| a.0.cmp(&b.0));

        let mut relative = Vec::with_capacity(scores.len());
        let mut summarise = |scores: Vec<f32>| {
            let distribution = ScoreDistribution::of(scores.clone(), SEGMENT_PARTS, SEGMENT_TAIL);
            let typical = typical(&distribution);
            relative.extend(scores.iter().map(|score| (score / typical).min(f32::MAX)));
            distribution
        };
        let segment = |(value, scores)| Segment {
            value,
            scores: summarise(scores),
        };
        let values: Vec<Segment> = groups.into_iter().map(segment).collect();
        if !rest.is_empty() {
            summarise(rest);
        }
        (!values.is_empty()).then(|| Segments {
            by,
            shape: ScoreDistribution::of(relative, PARTS, TAIL),
            values,
        })
    }

    /// Returns a message for each problem of the segments in a bundle that reads `input` and was calibrated on `records` records.
    pub fn faults(&self, input: &ModelInput, records: usize) -> Vec<String> {
        let mut faults: Vec<String> = self.by.fault(input).into_iter().collect();
        let distinct: HashSet<_> = self.values.iter().map(|s| &s.value).collect();
        if self.values.is_empty() || distinct.len() != self.values.len() {
            faults.push("values must be distinct, and there must be at least one".to_owned());
        }
        if self.values.len() > MOST_SEGMENTS {
            faults.push(format!("there are more than {MOST_SEGMENTS} values"));
        }
        if self.values.iter().any(|s| s.value.len() > LONGEST_VALUE) {
            faults.push(format!("a value has more than {LONGEST_VALUE} bytes"));
        }
        if self.values.iter().any(|s| s.scores.count > records) {
            faults.push(format!(
                "a value has more records than the whole calibration, which has {records}"
            ));
        }
        // Otherwise all records could support a rate that a segment does not.
        if self.shape.count != records {
            faults.push(format!(
                "shape.count is {}, but the calibration has {records} records",
                self.shape.count
            ));
        }
        let parts = self.values.iter().map(|s| (s.value.as_str(), &s.scores));
        for (name, scores) in parts.chain([("shape", &self.shape)]) {
            let problems = scores.faults().into_iter();
            faults.extend(problems.map(|problem| format!("{name}: {problem}")));
        }
        let whole = faults.into_iter();
        whole.map(|fault| format!("segments: {fault}")).collect()
    }

    /// Returns the probability that a normal record of this segment scores at least this high. It is never below the smallest
    /// p-value that all records together can show.
    pub fn p_value(&self, SegmentId(at): SegmentId, score: f32) -> f64 {
        let own = &self.values[at as usize].scores;
        let borrowed = BORROWED * self.shape.p_value(score / typical(own));
        let p = (own.at_least(score) + borrowed) / (own.count as f64 + BORROWED);
        p.max(self.shape.finest_rate())
    }

    /// Returns the lowest score above which `p_value` is at most `rate`, or at most its own minimum if that is larger. So every
    /// segment supports every rate that the scores of all records support.
    pub fn threshold_at(&self, segment: SegmentId, rate: f64) -> f32 {
        let rate = rate.max(self.p_value(segment, f32::INFINITY)) * (1.0 + 1e-9);
        // The p-value is monotonic in the score, and the bits of non-negative floats are in the order of the floats.
        let (mut low, mut high) = (0, f32::MAX.to_bits());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.p_value(segment, f32::from_bits(middle).next_up()) <= rate {
                true => high = middle,
                false => low = middle + 1,
            }
        }
        f32::from_bits(low)
    }
}

/// Returns the median, by which scores are divided to make segments comparable. A median of 0 counts as 1.
fn typical(scores: &ScoreDistribution) -> f32 {
    match scores.quantile(0.5) {
        median if median > 0.0 => median,
        _ => 1.0,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn by(path: &str) -> SegmentBy {
        SegmentBy::Field(path.to_owned())
    }

    fn input() -> ModelInput {
        serde_json::from_value(serde_json::json!({"kind": "tabular", "features": [
            {"name": "amount", "path": "amount", "type": "number"},
            {"name": "age", "path": "merchant.age", "type": "number"},
        ]}))
        .unwrap()
    }

    /// The trainer's test has the same records.
    fn made() -> Segments {
        let names = ["alpha", "5411", "small", "true"].map(str::to_owned);
        let (mut scores, mut segments) = (Vec::new(), Vec::new());
        for i in 0..3000_u32 {
            let score = (i * 7919 % 10_007 + 1) as f32 / 10_007.0;
            scores.push(score * [1.0, 4.0, 1.0, 0.5, 1.0][i as usize % 5]);
            let small = (i < 60).then_some(SegmentId(2));
            let (alpha, code) = (Some(SegmentId(0)), Some(SegmentId(1)));
            segments.push([alpha, code, small, Some(SegmentId(3)), alpha][i as usize % 5]);
        }
        Segments::of(by("merchant.code"), &scores, &segments, names.to_vec()).unwrap()
    }

    #[test]
    fn they_are_made_as_the_trainer_makes_them() {
        let made = made();
        assert_eq!(made.faults(&input(), 3000), Vec::<String>::new());
        let json = serde_json::to_value(&made).unwrap();
        assert_eq!(json["by"], serde_json::json!({"field": "merchant.code"}));
        let number = |value: &serde_json::Value| value.as_f64().unwrap();
        let close = |got: f64, expected: f64| assert!((got - expected).abs() <= 2e-7, "{got}");
        // Value, records, quantiles 50 and 37 of 100, first score of the tail, length of the tail.
        for (at, (value, count, median, low, first, tail)) in [
            ("5411", 600, 2.001_798_7, 1.484_952_5, 0.010_792_445, 600),
            ("alpha", 1200, 0.5, 0.370_203_86, 0.168_082_34, 1000),
            ("true", 600, 0.250_699_52, 0.186_100_23, 0.001_848_706, 600),
        ]
        .into_iter()
        .enumerate()
        {
            let segment = &json["values"][at];
            assert_eq!(
                (&segment["value"], &segment["count"]),
                (&value.into(), &count.into())
            );
            close(number(&segment["quantiles"][50]), median);
            close(number(&segment["quantiles"][37]), low);
            close(number(&segment["tail"][0]), first);
            assert_eq!(segment["tail"].as_array().unwrap().len(), tail);
        }
        assert_eq!(json["values"].as_array().unwrap().len(), 3);
        let shape = &json["shape"];
        for (part, expected) in [
            (0, 0.000_199_860_1),
            (1, 0.002_004_209_2),
            (250, 0.5),
            (777, 1.552_360_9),
            (999, 1.997_995_9),
        ] {
            close(number(&shape["quantiles"][part]), expected);
        }
        assert_eq!(shape["count"], 3000);
    }

    #[test]
    fn they_come_back_from_their_json() {
        let made = made();
        let text = serde_json::to_string(&made).unwrap();
        assert_eq!(serde_json::from_str::<Segments>(&text).unwrap(), made);
    }

    #[test]
    fn p_value_is_the_mixture() {
        let made = made();
        let own = &made.values[1].scores;
        assert_eq!(made.values[1].value, "alpha");
        // 12 of the segment's 1200 scores are at least as high, and about one in a hundred of the shape's.
        let score = own.quantile(0.99);
        let shape = made.shape.p_value(score / own.quantile(0.5));
        let expected = (12.0 + 50.0 * shape) / 1250.0;
        let got = made.p_value(SegmentId(1), score);
        assert!((got - expected).abs() < 1e-9, "{got} {expected}");
        assert!((0.008..0.013).contains(&got), "{got}");
    }

    #[test]
    fn p_value_falls_and_the_threshold_is_where_it_reaches_the_rate() {
        let made = made();
        for at in 0..3 {
            let id = SegmentId(at);
            let mut before = 1.0;
            for score in (0..6000).map(|i| i as f32 / 1000.0) {
                let p = made.p_value(id, score);
                assert!(p > 0.0 && p <= before, "{score}: {p} after {before}");
                before = p;
            }
            let mut higher = f32::INFINITY;
            for rate in [1.0 / 3001.0, 0.001, 0.01, 0.1, 0.5] {
                let threshold = made.threshold_at(id, rate);
                assert!(threshold <= higher, "{rate}: {threshold}");
                assert!(made.p_value(id, threshold.next_up()) <= rate * (1.0 + 1e-9));
                assert!(made.p_value(id, threshold) > rate, "{rate}: {threshold}");
                higher = threshold;
            }
            // All records together do not support this rate. The threshold is that of the smallest supported rate, not above
            // every score.
            assert!(made.threshold_at(id, 1e-9) < 10.0);
        }
    }

    #[test]
    fn a_small_segment_supports_what_all_records_support() {
        let scores: Vec<f32> = (0..10_000)
            .map(|i| (i * 7919 % 10_007) as f32 + 1.0)
            .collect();
        let segments: Vec<_> = (0..10_000)
            .map(|i| (i < 20).then_some(SegmentId(0)))
            .collect();
        let made = Segments::of(SegmentBy::Key, &scores, &segments, vec!["a".into()]).unwrap();
        let threshold = made.threshold_at(SegmentId(0), 1.0 / 10_001.0);
        let finest = made.p_value(SegmentId(0), threshold.next_up());
        assert!(
            finest <= 1.0 / 10_001.0 && threshold < 40_000.0,
            "{finest} {threshold}"
        );
    }

    #[test]
    fn the_most_frequent_are_kept_and_too_few_records_are_no_segment() {
        let names: Vec<String> = (0..1100).map(|i| format!("{i:04}")).collect();
        let (mut scores, mut segments) = (Vec::new(), Vec::new());
        for at in 0..1100_u32 {
            // 0000 to 0049 have too few records. Among segments of equal size, the first names are kept.
            let records = if at < 50 {
                19
            } else {
                20 + usize::from(at == 1099)
            };
            scores.extend((0..records).map(|i| i as f32 + 1.0));
            segments.extend((0..records).map(|_| Some(SegmentId(at))));
        }
        let made = Segments::of(SegmentBy::Key, &scores, &segments, names).unwrap();
        assert_eq!(made.values.len(), MOST_SEGMENTS);
        let value = |at: usize| made.values[at].value.as_str();
        assert_eq!((value(0), value(998), value(999)), ("0050", "1048", "1099"));
        assert_eq!(made.faults(&input(), scores.len()), Vec::<String>::new());
        let none = Segments::of(
            SegmentBy::Key,
            &scores[..19],
            &segments[..19],
            vec!["x".into()],
        );
        assert_eq!(none, None);
    }

    #[test]
    fn scores_of_zero_and_huge_ones_stay_finite() {
        let mut scores = vec![0.0; 30];
        scores.extend([1e-38; 15].iter().chain(&[f32::MAX; 10]));
        let segments: Vec<_> = (0..55)
            .map(|i| Some(SegmentId(u32::from(i >= 30))))
            .collect();
        let names = vec!["zero".to_owned(), "wide".to_owned()];
        let made = Segments::of(SegmentBy::Key, &scores, &segments, names).unwrap();
        assert_eq!(made.faults(&input(), 55), Vec::<String>::new());
        for id in [SegmentId(0), SegmentId(1)] {
            for score in [0.0, 1e-40, 1.0, f32::MAX] {
                let p = made.p_value(id, score);
                assert!(p > 0.0 && p <= 1.0, "{p}");
            }
        }
    }

    #[test]
    fn faults_are_found() {
        let broken = |place: &str, value: serde_json::Value| {
            let mut json = serde_json::to_value(made()).unwrap();
            *json.pointer_mut(place).unwrap() = value;
            let segments: Segments = serde_json::from_value(json).unwrap();
            segments.faults(&input(), 3000).join("; ")
        };
        let cases: [(&str, serde_json::Value, &str); 11] = [
            ("/values/1/value", "x".repeat(257).into(), "256 bytes"),
            ("/values/1/count", 3001.into(), "more records"),
            ("/by/field", "merchant".into(), "feature `age`"),
            ("/by/field", "amount.eur".into(), "feature `amount`"),
            ("/by/field", "a..b".into(), "an empty part"),
            ("/values", serde_json::json!([]), "at least one"),
            ("/values/1/value", "5411".into(), "distinct"),
            (
                "/values/1/tail",
                serde_json::json!([]),
                "alpha: count and tail",
            ),
            ("/values/1/quantiles/0", 9.0.into(), "alpha: quantiles"),
            ("/shape/tail/0", (-1.0).into(), "shape: tail"),
            ("/shape/count", 2999.into(), "shape.count is 2999"),
        ];
        for (place, value, said) in cases {
            let faults = broken(place, value);
            assert!(faults.contains(said), "{said} not in {faults}");
        }
        assert_eq!(broken("/by", "key".into()), "");
        let pixels = serde_json::json!({"kind": "image", "height": 8, "width": 8, "channels": 1, "resize": "bilinear"});
        let images: ModelInput = serde_json::from_value(pixels).unwrap();
        assert_eq!(made().faults(&images, 3000), Vec::<String>::new());
    }
}
