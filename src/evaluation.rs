//! Measures how well scores separate labelled anomalies from normal records.
//!
//! A label is `true` for an anomaly. A higher score is more anomalous. Nothing is sampled or interpolated. Counts are integers
//! and sums are `f64`, so the order of the records does not change a result. A NaN score ranks above every other and is never
//! flagged.

pub mod contact_sheet;
pub mod pixels;
pub mod share;
pub mod shift;

use serde::Serialize;

/// Returns the area under the receiver operating characteristic: the probability that a random anomaly scores above a random
/// normal record. A tie counts one half.
///
/// It is the Mann-Whitney U statistic divided by (positives × negatives), with mid-ranks for ties (Hanley & McNeil 1982, "The
/// meaning and use of the area under a ROC curve"). O(n log n). `None` if a class is absent.
///
/// # Panics
/// If `scores` and `labels` differ in length.
pub fn auroc(scores: &[f32], labels: &[bool]) -> Option<f64> {
    let ranked = ranked(scores, labels);
    let positives = count(&ranked);
    let negatives = ranked.len() as u64 - positives;

    let mut below = negatives;
    let mut twice_u: u128 = 0; // 2U is an integer, so the sum is exact
    for tie in ties(&ranked) {
        let anomalies = count(tie);
        let normals = tie.len() as u64 - anomalies;
        below -= normals;
        twice_u += u128::from(anomalies) * u128::from(2 * below + normals);
    }
    let pairs = u128::from(positives) * u128::from(negatives);
    (pairs > 0).then(|| twice_u as f64 / (2.0 * pairs as f64))
}

/// Returns the average precision: Σ (Rₙ − Rₙ₋₁) Pₙ over the distinct scores as thresholds, from the highest down, where P is
/// precision and R recall.
///
/// It is the step-wise, uninterpolated sum of scikit-learn's `average_precision_score`. Records with equal scores are flagged
/// together. O(n log n). `None` if there is no anomaly.
///
/// # Panics
/// If `scores` and `labels` differ in length.
pub fn average_precision(scores: &[f32], labels: &[bool]) -> Option<f64> {
    let ranked = ranked(scores, labels);
    let positives = count(&ranked);

    let (mut flagged, mut found, mut sum) = (0, 0, 0.0);
    for tie in ties(&ranked) {
        let anomalies = count(tie);
        flagged += tie.len();
        found += anomalies;
        sum += anomalies as f64 * (found as f64 / flagged as f64);
    }
    (positives > 0).then(|| sum / positives as f64)
}

/// Confusion counts of labelled records at their thresholds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AtThreshold {
    /// Anomalies that were flagged.
    pub true_positives: u64,
    /// Normal records that were flagged: false alarms.
    pub false_positives: u64,
    /// Anomalies that were missed.
    pub false_negatives: u64,
    /// Normal records that were not flagged.
    pub true_negatives: u64,
    /// TP / (TP + FP); `None` if nothing was flagged.
    pub precision: Option<f64>,
    /// TP / (TP + FN); `None` if there is no anomaly.
    pub recall: Option<f64>,
    /// (TP + FP) / all; `None` if there are no records.
    pub alert_rate: Option<f64>,
}

/// Returns counts, precision and recall of the flagged records.
///
/// # Panics
/// If `flagged` and `labels` differ in length.
pub fn precision_recall(flagged: &[bool], labels: &[bool]) -> AtThreshold {
    assert_eq!(flagged.len(), labels.len(), "one label per record");
    let counted = |flag, anomaly| {
        let pairs = flagged.iter().zip(labels);
        pairs.filter(|&(&f, &l)| (f, l) == (flag, anomaly)).count() as u64
    };
    let (tp, fp) = (counted(true, true), counted(true, false));
    let (fn_, tn) = (counted(false, true), counted(false, false));
    let ratio = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
    AtThreshold {
        true_positives: tp,
        false_positives: fp,
        false_negatives: fn_,
        true_negatives: tn,
        precision: ratio(tp, tp + fp),
        recall: ratio(tp, tp + fn_),
        alert_rate: ratio(tp + fp, labels.len() as u64),
    }
}

/// Returns Spearman's rank correlation of two scores of the same records: Pearson's correlation of their ranks, with mid-ranks
/// for ties. It is in [-1, 1], where 1 means the same order. O(n log n), 12 bytes per record. `None` if all scores in `a` or all
/// scores in `b` are equal.
///
/// # Panics
/// If `a` and `b` differ in length or are longer than 2^31.
pub fn spearman(a: &[f32], b: &[f32]) -> Option<f64> {
    assert_eq!(a.len(), b.len(), "two scores per record");
    let (a, b) = (doubled_ranks(a), doubled_ranks(b));
    // The mean of n doubled ranks is n + 1, regardless of ties.
    let mean = a.len() as f64 + 1.0;
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (&a, &b) in a.iter().zip(&b) {
        let (a, b) = (f64::from(a) - mean, f64::from(b) - mean);
        ab += a * b;
        aa += a * a;
        bb += b * b;
    }
    (aa > 0.0 && bb > 0.0).then(|| ab / (aa.sqrt() * bb.sqrt()))
}

/// Returns twice the mid-rank of each score, counted from 1. Doubling makes it an integer.
fn doubled_ranks(scores: &[f32]) -> Vec<u32> {
    let count = u32::try_from(scores.len())
        .ok()
        .filter(|n| *n <= u32::MAX / 2);
    let score = |i: u32| scores[i as usize] + 0.0;
    let mut order: Vec<u32> = (0..count.expect("at most 2^31 scores")).collect();
    order.sort_unstable_by(|&a, &b| score(a).total_cmp(&score(b)));
    let mut ranks = vec![0; scores.len()];
    let mut below = 0;
    for tie in order.chunk_by(|&a, &b| score(a).total_cmp(&score(b)).is_eq()) {
        let size = tie.len() as u32;
        for &i in tie {
            ranks[i as usize] = 2 * below + size + 1;
        }
        below += size;
    }
    ranks
}

/// Returns (score, label) from the highest score down. Adding zero makes -0.0 equal to 0.0.
fn ranked(scores: &[f32], labels: &[bool]) -> Vec<(f32, bool)> {
    assert_eq!(scores.len(), labels.len(), "one label per score");
    let mut ranked: Vec<_> = scores
        .iter()
        .map(|s| s + 0.0)
        .zip(labels.iter().copied())
        .collect();
    ranked.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
    ranked
}

fn ties(ranked: &[(f32, bool)]) -> impl Iterator<Item = &[(f32, bool)]> {
    ranked.chunk_by(|a, b| a.0.total_cmp(&b.0).is_eq())
}

fn count(records: &[(f32, bool)]) -> u64 {
    records.iter().filter(|(_, anomaly)| *anomaly).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The example in scikit-learn's documentation of `roc_auc_score` and `average_precision_score`.
    #[test]
    fn agrees_with_scikit_learn() {
        let (scores, labels) = ([0.1, 0.4, 0.35, 0.8], [false, false, true, true]);
        assert_eq!(auroc(&scores, &labels), Some(0.75));
        let precision = average_precision(&scores, &labels).unwrap();
        assert!((precision - 0.833_333_333_333_333_3).abs() < 1e-15);
    }

    #[test]
    fn ties_count_one_half_and_are_flagged_together() {
        let labels = [true, false, true, false];
        assert_eq!(auroc(&[1.0; 4], &labels), Some(0.5));
        assert_eq!(average_precision(&[1.0; 4], &labels), Some(0.5));
        // Pairs: 3 over 2 and 0 win, 2 ties with 2, 2 wins over 0: 3.5 of 4.
        let scores = [3.0, 2.0, 2.0, 0.0];
        assert_eq!(auroc(&scores, &labels), Some(0.875));
        // 1/2 recall at precision 1, then 1/2 at precision 2/3.
        assert!((average_precision(&scores, &labels).unwrap() - 5.0 / 6.0).abs() < 1e-15);
        assert_eq!(auroc(&[0.0, -0.0], &[true, false]), Some(0.5));
    }

    #[test]
    fn an_absent_class_has_no_answer() {
        assert_eq!(auroc(&[], &[]), None);
        assert_eq!(auroc(&[1.0, 2.0], &[true, true]), None);
        assert_eq!(auroc(&[1.0, 2.0], &[false, false]), None);
        assert_eq!(average_precision(&[1.0], &[false]), None);
        assert_eq!(average_precision(&[1.0], &[true]), Some(1.0));
    }

    #[test]
    fn counts_of_what_is_flagged() {
        let flagged = [false, false, true, true, false];
        let at = precision_recall(&flagged, &[true, false, false, true, true]);
        let want = AtThreshold {
            true_positives: 1,
            false_positives: 1,
            false_negatives: 2,
            true_negatives: 1,
            precision: Some(0.5),
            recall: Some(1.0 / 3.0),
            alert_rate: Some(0.4),
        };
        assert_eq!(at, want);

        let empty = precision_recall(&[], &[]);
        assert_eq!(
            (empty.precision, empty.recall, empty.alert_rate),
            (None, None, None)
        );
    }

    /// Expected values: scipy.stats.spearmanr.
    #[test]
    fn spearman_agrees_with_scipy() {
        let close = |a: Option<f64>, b: f64| assert!((a.unwrap() - b).abs() < 1e-12, "{a:?}");
        close(
            spearman(&[1.0, 2.0, 3.0, 4.0, 5.0], &[5.0, 6.0, 7.0, 8.0, 7.0]),
            0.820_782_681_668_123_3,
        );
        close(spearman(&[1.0, 2.0, 3.0], &[-3.0, 5.0, 50.0]), 1.0);
        close(spearman(&[1.0, 2.0, 3.0], &[9.0, 5.0, 2.0]), -1.0);
        assert_eq!(spearman(&[1.0, 2.0], &[0.0, -0.0]), None);
        assert_eq!(spearman(&[], &[]), None);
    }

    /// Few distinct scores, so that ties are common.
    fn records() -> impl Strategy<Value = (Vec<f32>, Vec<bool>)> {
        prop::collection::vec((0u8..12, any::<bool>()), 0..60)
            .prop_map(|v| v.into_iter().map(|(s, l)| (f32::from(s) / 4.0, l)).unzip())
    }

    proptest! {
        #[test]
        fn auroc_is_the_share_of_pairs_won((scores, labels) in records()) {
            let of = |class| scores.iter().zip(&labels).filter(move |p| *p.1 == class).map(|p| *p.0);
            let (mut won, mut pairs) = (0.0, 0.0);
            for anomaly in of(true) {
                for normal in of(false) {
                    pairs += 1.0;
                    won += if anomaly > normal { 1.0 } else if anomaly == normal { 0.5 } else { 0.0 };
                }
            }
            prop_assert_eq!(auroc(&scores, &labels), (pairs > 0.0).then(|| won / pairs));
        }

        #[test]
        fn ranks_are_mid_ranks((scores, _) in records()) {
            for (i, rank) in doubled_ranks(&scores).into_iter().enumerate() {
                let below = scores.iter().filter(|s| **s < scores[i]).count();
                let tied = scores.iter().filter(|s| **s == scores[i]).count();
                prop_assert_eq!(rank as usize, 2 * below + tied + 1);
            }
        }

        #[test]
        fn average_precision_sums_over_thresholds((scores, labels) in records()) {
            let mut thresholds = scores.clone();
            thresholds.sort_by(|a, b| b.total_cmp(a));
            thresholds.dedup();
            let (mut recall, mut sum) = (0.0, 0.0);
            for threshold in thresholds {
                let flagged: Vec<bool> = scores.iter().map(|s| *s >= threshold).collect();
                let at = precision_recall(&flagged, &labels);
                let now = at.recall.unwrap_or(0.0);
                sum += (now - recall) * at.precision.unwrap();
                recall = now;
            }
            match average_precision(&scores, &labels) {
                None => prop_assert!(!labels.contains(&true)),
                Some(got) => prop_assert!((got - sum).abs() < 1e-12),
            }
        }
    }
}
