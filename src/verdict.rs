//! Turns a score into a verdict: how rare the score is, whether the record is an anomaly, how severe it is, and why.

use serde::Serialize;

use crate::batch::Scores;
use crate::bundle::segments::ScoreLimits;
use crate::bundle::{Calibration, Feature, FeatureKind, RateTooFine, SegmentBy, SegmentId};
use crate::image::{Finding, Region};

/// The rate of normal records that are critical, as a share of the rate of those above the threshold.
const CRITICAL_SHARE: f64 = 0.1;

/// How the operator sets the threshold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ThresholdRule {
    /// The share of normal records that may be flagged, in (0, 1).
    FalseAlarmRate(f64),
    /// The number of false alarms per day, at the expected number of records per day.
    AlertsPerDay { alerts: f64, records_per_day: f64 },
    /// A quantile of the calibration, in (0, 1). 0.999 is the same as a false-alarm rate of 0.001.
    Quantile(f64),
    /// A fixed score that was determined elsewhere. It is the same in every segment.
    Score(f32),
}

impl ThresholdRule {
    fn rate(self, calibration: &Calibration) -> f64 {
        match self {
            ThresholdRule::FalseAlarmRate(rate) => rate,
            ThresholdRule::AlertsPerDay {
                alerts,
                records_per_day,
            } => alerts / records_per_day,
            ThresholdRule::Quantile(level) => 1.0 - level,
            ThresholdRule::Score(score) => calibration.all.p_value(score),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The score is above the threshold.
    Warning,
    /// The score is above the one that normal records exceed ten times less often than the threshold. If the sample is
    /// too small to determine that score, the score is above all calibration records.
    Critical,
}

impl Severity {
    pub const ALL: [Severity; 2] = [Severity::Warning, Severity::Critical];

    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }
}

/// Turns scores into verdicts for one model.
#[derive(Debug, Clone)]
pub struct Judge {
    features: Vec<Feature>,
    calibration: Calibration,
    /// A record is an anomaly if its score is above this threshold, unless its segment has a threshold of its own.
    pub threshold: f32,
    critical: f32,
    /// The thresholds of each segment.
    lines: Vec<Line>,
    /// Set if images are translated before they are scored.
    translation: Option<TranslationId>,
}

/// The score above which a record is an anomaly, and the score above which it is critical.
#[derive(Debug, Clone, Copy)]
struct Line {
    threshold: f32,
    critical: f32,
}

/// The verdict on one record.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict<'a> {
    pub anomaly_score: f32,
    /// The conformal p-value: the probability that a normal record scores at least this high.
    pub p_value: f64,
    /// The score divided by the threshold. A record with a grade above 1 is an anomaly.
    pub anomaly_grade: f32,
    pub threshold: f32,
    /// The segment to which `p_value` and `threshold` apply. `None` means all records.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segment: Option<&'a str>,
    /// `None` if the record is not an anomaly.
    pub severity: Option<Severity>,
    #[serde(flatten)]
    pub explanation: Explanation<'a>,
}

/// The reasons for a record's score.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Explanation<'a> {
    Features {
        /// The features that contribute most to the score, largest first.
        relevant_attribution: Vec<Attribution<'a>>,
        /// The features that the record lacked and the model filled in.
        feature_imputed: Vec<&'a str>,
        /// The normal record of the training data that is most similar to the anomaly, if the bundle keeps normal
        /// records.
        #[serde(skip_serializing_if = "Option::is_none")]
        nearest_normal: Option<NearestNormal<'a>>,
    },
    Image {
        /// The JSON name is `picture`, because consumers read that name.
        #[serde(rename = "picture")]
        image: Size,
        /// The anomalous regions, in pixels of the upright image before resizing. The region with the largest share
        /// comes first.
        regions: &'a [Region],
        #[serde(skip_serializing_if = "Option::is_none")]
        heatmap: Option<Shown>,
        #[serde(skip_serializing_if = "Option::is_none")]
        reconstruction: Option<Shown>,
        /// The model that translated the image before it was scored.
        #[serde(skip_serializing_if = "Option::is_none")]
        translation: Option<&'a TranslationId>,
    },
}

/// How images are translated, as a verdict says it. The same image, model and numbers give the same image.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TranslationId {
    /// The name of the bundle, or the class of the pipeline.
    pub model: String,
    /// The hash of the bundle's manifest, or of the pipeline's files.
    pub sha256: String,
    pub steps: usize,
    /// `None` for a model that was trained on pairs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strength: Option<f64>,
    pub seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Size {
    pub width: usize,
    pub height: usize,
}

/// An image that residuald made, as a verdict shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shown {
    pub content_type: &'static str,
    pub width: usize,
    pub height: usize,
    #[serde(flatten)]
    pub place: Place,
}

/// Where the bytes of an image are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// The bytes are in the verdict itself, in base64.
    Data(String),
    /// The bytes are at this URI (claim check).
    Uri(String),
}

impl<'a> Verdict<'a> {
    /// Returns the features that contribute most to the score, largest first. Empty for an image.
    pub fn attributions(&self) -> &[Attribution<'a>] {
        match &self.explanation {
            Explanation::Features {
                relevant_attribution,
                ..
            } => relevant_attribution,
            Explanation::Image { .. } => &[],
        }
    }

    /// Returns the anomalous regions of an image.
    pub fn regions(&self) -> &'a [Region] {
        match self.explanation {
            Explanation::Features { .. } => &[],
            Explanation::Image { regions, .. } => regions,
        }
    }
}

/// The contribution of one feature to the score, and the value that the model expected.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Attribution<'a> {
    pub feature: &'a str,
    /// The feature's share of the residual, in [0, 1]. The shares of all features add up to 1.
    pub share: f32,
    pub observed: Observation<'a>,
    pub expected: Observation<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<&'a str>,
}

/// A normal record, with the fields that the schema names.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NearestNormal<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The values by feature, in the order of the manifest. Features that the record lacks are left out.
    #[serde(serialize_with = "as_map")]
    pub values: Vec<(&'a str, Observation<'a>)>,
}

fn as_map<S: serde::Serializer>(
    values: &[(&str, Observation<'_>)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(values.iter().copied())
}

/// A value in the user's terms.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Observation<'a> {
    Number(f32),
    Bool(bool),
    Category(&'a str),
    /// A category that did not occur in training. The record itself contains its name.
    #[serde(serialize_with = "unseen")]
    Unseen,
}

fn unseen<S: serde::Serializer>(serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str("(not seen in training)")
}

/// The model's outputs for one record. All of them but the score are [features].
#[derive(Debug, Clone, Copy)]
pub struct Scored<'b> {
    pub score: f32,
    pub row: &'b [f32],
    pub residual: &'b [f32],
    pub reconstruction: &'b [f32],
}

impl<'b> Scored<'b> {
    /// Returns the outputs for `row`, which was scored as number `index`.
    pub fn at(scores: &'b Scores, index: usize, row: &'b [f32]) -> Scored<'b> {
        let columns = index * row.len()..(index + 1) * row.len();
        Scored {
            score: scores[index],
            row,
            residual: &scores.residuals[columns.clone()],
            reconstruction: &scores.reconstructions[columns],
        }
    }

    /// Returns why the record cannot have a verdict, or `None` if it can. A score is a distance, so it must not be
    /// negative, and the values that explain it must be finite.
    pub fn flaw(&self) -> Option<String> {
        if !is_score(self.score) {
            return Some(format!("the model's score is {}", self.score));
        }
        if let Some(residual) = self.residual.iter().find(|residual| !residual.is_finite()) {
            return Some(format!("a residual of the model is {residual}"));
        }
        let expected = self.reconstruction.iter().find(|e| !e.is_finite());
        expected.map(|expected| format!("a value that the model expects is {expected}"))
    }
}

/// Returns whether a score is finite and not negative.
pub fn is_score(score: f32) -> bool {
    score.is_finite() && score >= 0.0
}

/// A normal record that the bundle keeps, with its id and its row [features].
#[derive(Debug, Clone, Copy)]
pub struct Neighbour<'b> {
    pub id: Option<&'b str>,
    pub row: &'b [f32],
}

impl Judge {
    /// Creates a judge with the thresholds that `rule` gives for the calibration.
    ///
    /// # Errors
    /// [`RateTooFine`] when the calibration is too small to support the requested rate.
    pub fn new(
        features: Vec<Feature>,
        calibration: Calibration,
        rule: ThresholdRule,
    ) -> Result<Judge, RateTooFine> {
        let rate = rule.rate(&calibration);
        let threshold = match rule {
            ThresholdRule::Score(score) => score,
            _ => calibration.all.threshold_at(rate)?,
        };
        let critical = calibration
            .all
            .threshold_at(rate * CRITICAL_SHARE)
            .unwrap_or_else(|_| calibration.all.largest());
        Ok(Judge {
            features,
            threshold,
            critical: critical.max(threshold),
            lines: lines(&calibration, rule, rate),
            calibration,
            translation: None,
        })
    }

    /// Has the verdicts on images say how the images were translated.
    pub fn with_translation(self, translation: Option<TranslationId>) -> Judge {
        Judge {
            translation,
            ..self
        }
    }

    fn line(&self, segment: Option<SegmentId>) -> Line {
        match segment {
            Some(SegmentId(at)) => self.lines[at as usize],
            None => Line {
                threshold: self.threshold,
                critical: self.critical,
            },
        }
    }

    /// Returns the score above which a record of this segment is an anomaly.
    pub fn threshold_of(&self, segment: Option<SegmentId>) -> f32 {
        self.line(segment).threshold
    }

    /// Returns the score above which a record is an anomaly, overall and for each segment.
    pub fn thresholds(&self) -> ScoreLimits {
        ScoreLimits {
            all: self.threshold,
            segments: self.lines.iter().map(|line| line.threshold).collect(),
        }
    }

    /// Returns what defines the segments, and how many segments have thresholds.
    pub fn segments(&self) -> Option<(SegmentBy, usize)> {
        let segments = self.calibration.segments.as_ref()?;
        Some((segments.by.clone(), segments.values.len()))
    }

    /// Returns what defines the segments, and their lowest and highest threshold.
    pub fn segment_thresholds(&self) -> Option<(&SegmentBy, f32, f32)> {
        let by = &self.calibration.segments.as_ref()?.by;
        let all = || self.lines.iter().map(|line| line.threshold);
        Some((by, all().reduce(f32::min)?, all().reduce(f32::max)?))
    }

    /// Returns the share of normal records that the threshold flags, according to the calibration. It is at least 1 /
    /// (count + 1).
    pub fn expected_anomaly_ratio(&self) -> f64 {
        self.calibration.all.p_value(self.threshold.next_up())
    }

    /// Returns the share of normal records in each bucket: `..=bounds[0]`, `bounds[0]..=bounds[1]` and so on, and in
    /// the overflow bucket.
    pub fn normal_shares(&self, bounds: &[f64]) -> Vec<f64> {
        let above = |bound: &f64| self.calibration.all.p_value((*bound as f32).next_up());
        let edges: Vec<f64> = bounds.iter().map(above).collect();
        let from = std::iter::once(1.0).chain(edges.iter().copied());
        let to = edges.iter().copied().chain([0.0]);
        from.zip(to).map(|(from, to)| from - to).collect()
    }

    /// Returns the score below which the share `level` of the calibration's records lies.
    pub fn normal_quantile(&self, level: f64) -> f32 {
        self.calibration.all.quantile(level)
    }

    pub fn is_anomaly(&self, score: f32, segment: Option<SegmentId>) -> bool {
        score > self.threshold_of(segment)
    }

    pub fn severity(&self, score: f32, segment: Option<SegmentId>) -> Option<Severity> {
        let line = self.line(segment);
        if score <= line.threshold {
            None
        } else if score > line.critical {
            Some(Severity::Critical)
        } else {
            Some(Severity::Warning)
        }
    }

    /// Builds the whole verdict, with the `most` features that contribute most and the `nearest` normal record.
    pub fn judge<'a>(
        &'a self,
        scored: Scored<'_>,
        segment: Option<SegmentId>,
        nearest: Option<Neighbour<'_>>,
        most: usize,
    ) -> Verdict<'a> {
        let columns = self.features.iter().zip(scored.row);
        let imputed = columns.filter(|(_, value)| value.is_nan());
        let explanation = Explanation::Features {
            feature_imputed: imputed.map(|(feature, _)| feature.name.as_str()).collect(),
            relevant_attribution: self.attribute(scored, most),
            nearest_normal: nearest.map(|normal| self.describe(normal)),
        };
        self.verdict(scored.score, segment, explanation)
    }

    /// Builds the whole verdict on an image, with the maps to show.
    pub fn judge_image<'a>(
        &'a self,
        score: f32,
        segment: Option<SegmentId>,
        finding: &'a Finding,
        heatmap: Option<Shown>,
        reconstruction: Option<Shown>,
    ) -> Verdict<'a> {
        let explanation = Explanation::Image {
            image: Size {
                width: finding.width,
                height: finding.height,
            },
            regions: &finding.regions,
            heatmap,
            reconstruction,
            translation: self.translation.as_ref(),
        };
        self.verdict(score, segment, explanation)
    }

    fn verdict<'a>(
        &'a self,
        score: f32,
        segment: Option<SegmentId>,
        explanation: Explanation<'a>,
    ) -> Verdict<'a> {
        let threshold = self.threshold_of(segment);
        let own = self.calibration.segments.as_ref().zip(segment);
        Verdict {
            anomaly_score: score,
            p_value: match own {
                Some((segments, segment)) => segments.p_value(segment, score),
                None => self.calibration.all.p_value(score),
            },
            anomaly_grade: score / threshold,
            threshold,
            segment: own.map(|(segments, id)| segments.values[id.0 as usize].value.as_str()),
            severity: self.severity(score, segment),
            explanation,
        }
    }

    fn describe(&self, normal: Neighbour<'_>) -> NearestNormal<'_> {
        let columns = self.features.iter().zip(normal.row);
        let present = columns.filter(|(_, value)| !value.is_nan());
        NearestNormal {
            id: normal.id.map(str::to_owned),
            values: present
                .map(|(feature, &value)| (feature.name.as_str(), observe(&feature.kind, value)))
                .collect(),
        }
    }

    fn attribute(&self, scored: Scored<'_>, most: usize) -> Vec<Attribution<'_>> {
        if most == 0 {
            return Vec::new();
        }
        let total: f32 = scored.residual.iter().sum();
        let mut order: Vec<usize> = (0..self.features.len()).collect();
        order.sort_by(|&a, &b| scored.residual[b].total_cmp(&scored.residual[a]));
        order
            .into_iter()
            .filter(|&i| scored.residual[i] > 0.0)
            .take(most)
            .map(|i| Attribution {
                feature: &self.features[i].name,
                share: scored.residual[i] / total,
                observed: observe(&self.features[i].kind, scored.row[i]),
                expected: expect(&self.features[i].kind, scored.reconstruction[i]),
                unit: self.features[i].unit.as_deref(),
            })
            .collect()
    }
}

/// Returns the thresholds of each segment. If a segment does not support `rate`, its threshold is for the lowest rate
/// that it supports.
fn lines(calibration: &Calibration, rule: ThresholdRule, rate: f64) -> Vec<Line> {
    let Some(segments) = &calibration.segments else {
        return Vec::new();
    };
    let line = |segment: SegmentId| {
        let (threshold, rate) = match rule {
            ThresholdRule::Score(score) => (score, segments.p_value(segment, score)),
            _ => (segments.threshold_at(segment, rate), rate),
        };
        let critical = segments.threshold_at(segment, rate * CRITICAL_SHARE);
        Line {
            threshold,
            critical: critical.max(threshold),
        }
    };
    let ids = (0..segments.values.len()).map(|at| SegmentId(at as u32));
    ids.map(line).collect()
}

/// Like [`observe`], except that a boolean is shown as how strongly the model expects true, in [0, 1]. A rounded value
/// would often equal the observed value and explain nothing.
fn expect(kind: &FeatureKind, value: f32) -> Observation<'_> {
    match kind {
        FeatureKind::Bool => Observation::Number(value),
        kind => observe(kind, value),
    }
}

/// Converts a column's number to the user's terms.
fn observe(kind: &FeatureKind, value: f32) -> Observation<'_> {
    match kind {
        FeatureKind::Number | FeatureKind::Timestamp { .. } => Observation::Number(value),
        FeatureKind::Bool => Observation::Bool(value >= 0.5),
        FeatureKind::Categorical { vocabulary } => {
            let entry = (value >= 0.0).then(|| vocabulary.get(value as usize));
            entry
                .flatten()
                .map_or(Observation::Unseen, |entry| Observation::Category(entry))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::Segments;
    use crate::bundle::p_value::tests::evenly_spaced;

    fn features() -> Vec<Feature> {
        serde_json::from_value(serde_json::json!([
            {"name": "amount", "path": "amount", "type": "number", "unit": "EUR"},
            {"name": "category", "path": "c", "type": "categorical", "vocabulary": ["a", "b"], "missing": "impute"},
            {"name": "present", "path": "p", "type": "bool", "missing": "impute"},
        ]))
        .unwrap()
    }

    fn calibration() -> Calibration {
        Calibration {
            all: evenly_spaced(9999, 9999),
            residual_scale: vec![1.0; 3],
            segments: None,
        }
    }

    fn judge(rule: ThresholdRule) -> Judge {
        Judge::new(features(), calibration(), rule).unwrap()
    }

    #[test]
    fn every_rule_lands_on_the_same_threshold() {
        for rule in [
            ThresholdRule::FalseAlarmRate(0.001),
            ThresholdRule::AlertsPerDay {
                alerts: 20.0,
                records_per_day: 20_000.0,
            },
            ThresholdRule::Quantile(0.999),
            ThresholdRule::Score(9990.0),
        ] {
            assert_eq!(judge(rule).threshold, 9990.0, "{rule:?}");
        }
    }

    #[test]
    fn severity_follows_the_rate() {
        let judge = judge(ThresholdRule::FalseAlarmRate(0.001));
        assert_eq!(judge.severity(9990.0, None), None);
        assert_eq!(judge.severity(9995.0, None), Some(Severity::Warning));
        assert_eq!(judge.severity(9999.5, None), Some(Severity::Critical));
    }

    #[test]
    fn a_rate_too_fine_for_the_sample_is_refused() {
        let rule = ThresholdRule::AlertsPerDay {
            alerts: 1.0,
            records_per_day: 1e6,
        };
        let error = Judge::new(features(), calibration(), rule).unwrap_err();
        assert_eq!(error.needed, 999_999);
    }

    #[test]
    fn the_reason_names_what_was_seen_and_what_was_expected() {
        let judge = judge(ThresholdRule::FalseAlarmRate(0.001));
        let verdict = judge.judge(
            Scored {
                score: 19980.0,
                row: &[930.0, -1.0, f32::NAN],
                residual: &[6.0, 2.0, 0.0],
                reconstruction: &[42.0, 1.0, 1.0],
            },
            None,
            Some(Neighbour {
                id: Some("p-7"),
                row: &[40.0, 0.0, f32::NAN],
            }),
            5,
        );
        assert_eq!(verdict.anomaly_grade, 2.0);
        let reasons = verdict.attributions();
        assert_eq!(reasons.len(), 2, "a feature that adds nothing is no reason");
        assert_eq!((reasons[0].feature, reasons[0].share), ("amount", 0.75));
        assert_eq!(reasons[0].expected, Observation::Number(42.0));
        assert_eq!(reasons[1].observed, Observation::Unseen);
        assert_eq!(reasons[1].expected, Observation::Category("b"));
        let json = serde_json::to_value(&verdict).unwrap();
        assert_eq!(json["severity"], "critical");
        assert_eq!(json["feature_imputed"], serde_json::json!(["present"]));
        assert_eq!(
            json["nearest_normal"],
            serde_json::json!({"id": "p-7", "values": {"amount": 40.0, "category": "a"}})
        );
        assert_eq!(
            json["relevant_attribution"][1]["observed"],
            "(not seen in training)"
        );
    }

    /// 9,999 records. Every third record is in segment `low` and has a hundredth of the score.
    fn segmented(rule: ThresholdRule) -> Judge {
        let scores: Vec<f32> = (1..=9999)
            .map(|i| i as f32 * if i % 3 == 0 { 0.01 } else { 1.0 })
            .collect();
        let ids: Vec<_> = (1..=9999)
            .map(|i| (i % 3 == 0).then_some(SegmentId(0)))
            .collect();
        let by = SegmentBy::Field("c".into());
        let segments = Segments::of(by, &scores, &ids, vec!["low".into()]);
        let calibration = Calibration::of(scores, vec![1.0; 3], segments);
        Judge::new(features(), calibration, rule).unwrap()
    }

    #[test]
    fn a_segment_has_its_own_line_and_the_others_that_of_all() {
        let low = Some(SegmentId(0));
        for rule in [
            ThresholdRule::FalseAlarmRate(0.01),
            ThresholdRule::Quantile(0.99),
        ] {
            let judge = segmented(rule);
            let threshold = judge.threshold_of(low);
            assert!((98.0..100.0).contains(&threshold), "{threshold}");
            assert_eq!(judge.threshold_of(None), judge.threshold);
            assert!(judge.threshold > 9000.0);
            assert!(judge.is_anomaly(100.5, low) && !judge.is_anomaly(100.5, None));
            assert_eq!(judge.severity(threshold, low), None);
            assert_eq!(judge.severity(99.5, low), Some(Severity::Warning));
            assert_eq!(judge.severity(200.0, low), Some(Severity::Critical));
            let scored = Scored {
                score: 99.5,
                row: &[1.0, 0.0, 1.0],
                residual: &[1.0, 0.0, 0.0],
                reconstruction: &[0.0, 0.0, 1.0],
            };
            let verdict = judge.judge(scored, low, None, 1);
            assert_eq!(
                (verdict.segment, verdict.threshold),
                (Some("low"), threshold)
            );
            assert!(verdict.p_value <= 0.01 && verdict.anomaly_grade > 1.0);
            let verdict = judge.judge(scored, None, None, 1);
            assert_eq!(
                (verdict.segment, verdict.threshold),
                (None, judge.threshold)
            );
            assert!(verdict.p_value > 0.6 && verdict.severity.is_none());
        }
        let judge = segmented(ThresholdRule::Score(50.0));
        assert_eq!((judge.threshold_of(low), judge.threshold), (50.0, 50.0));
        assert_eq!(judge.severity(60.0, low), Some(Severity::Warning));
        assert_eq!(judge.severity(99.0, low), Some(Severity::Critical));
        let refused = Judge::new(
            features(),
            segmented(ThresholdRule::Score(1.0)).calibration,
            ThresholdRule::FalseAlarmRate(1e-5),
        );
        assert_eq!(refused.unwrap_err().count, 9999);
    }
}
