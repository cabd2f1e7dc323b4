//! Compares real records with those that the bundle was trained on, feature by feature.

use serde::Serialize;

use super::verdicts::Residuals;
use crate::bundle::{Bundle, FeatureKind, Generative};
use crate::decode::{Decoder, RecordFormat};
use crate::evaluation::shift::{chance, kolmogorov_smirnov, total_variation};

/// Distance of the distributions from which a feature is another one, if it is also beyond chance.
const OTHER: f64 = 0.2;
/// A share of the residual that is this many times the usual one, and larger by the next number, is beyond what is normal.
const TIMES_USUAL: f64 = 3.0;
const ABOVE_USUAL: f64 = 0.1;

/// A feature in the real records and in training.
#[derive(Debug, Clone, Serialize)]
pub struct FeatureShift {
    pub feature: String,
    /// Kolmogorov-Smirnov statistic of numbers, total variation distance of categories and booleans, or the difference of the shares of
    /// missing values, whichever is greatest.
    pub distance: f64,
    /// Mean share of the residual, in the real records and in drawn ones.
    pub residual: f64,
    pub usual_residual: f64,
    /// What is beyond normal, or `None`.
    pub problem: Option<String>,
}

/// Compares the payloads that can be decoded, and returns the features with the greatest distance first. The hour and the weekday of
/// times are left out, because a sample covers only a part of a week.
pub fn compare<'p>(
    payloads: impl Iterator<Item = &'p [u8]>,
    bundle: &Bundle,
    generative: &Generative,
    residuals: &Residuals,
    usual: &Residuals,
) -> Vec<FeatureShift> {
    let features = bundle.features();
    let mut decoder = Decoder::new(features, RecordFormat::Json, None);
    let mut rows = Vec::new();
    for payload in payloads {
        // Refused records are counted by the daemon.
        let _ = decoder.decode(payload, None, &mut rows);
    }
    let reference = &generative.reference;
    let real = [&reference.training[..], &reference.held_out].concat();
    let column = |rows: &[f32], at: usize| -> Vec<f32> {
        rows.chunks_exact(features.len())
            .map(|row| row[at])
            .collect()
    };
    let is_time = |kind: &FeatureKind| matches!(kind, FeatureKind::Timestamp { .. });
    let compared = features
        .iter()
        .enumerate()
        .filter(|(_, f)| !is_time(&f.kind));
    let mut shifts: Vec<FeatureShift> = compared
        .map(|(at, feature)| {
            let shift = shift(&feature.kind, column(&rows, at), column(&real, at));
            let (residual, usual) = (residuals.mean(&feature.name), usual.mean(&feature.name));
            let residual_problem =
                (residual > TIMES_USUAL * usual && residual > usual + ABOVE_USUAL).then(|| {
                    format!(
                        "makes up {:.0} % of the residual, usually {:.0} %",
                        100.0 * residual,
                        100.0 * usual
                    )
                });
            let problems = [shift.1, residual_problem];
            let problems: Vec<String> = problems.into_iter().flatten().collect();
            FeatureShift {
                feature: feature.name.clone(),
                distance: shift.0,
                residual,
                usual_residual: usual,
                problem: (!problems.is_empty()).then(|| problems.join(", and ")),
            }
        })
        .collect();
    shifts.sort_by(|a, b| b.distance.total_cmp(&a.distance));
    shifts
}

/// Returns the distance, and what has changed if that is beyond normal.
fn shift(kind: &FeatureKind, sample: Vec<f32>, training: Vec<f32>) -> (f64, Option<String>) {
    let (all, of) = (sample.len(), training.len());
    if all == 0 {
        return (0.0, None);
    }
    let is_there = |values: Vec<f32>| -> Vec<f32> {
        values.into_iter().filter(|value| !value.is_nan()).collect()
    };
    let (mut sample, mut training) = (is_there(sample), is_there(training));
    let missing = |there: usize, all: usize| 1.0 - there as f64 / all.max(1) as f64;
    let (missing, usual) = (missing(sample.len(), all), missing(training.len(), of));
    let missing_distance = (missing - usual).abs();
    let critical = OTHER.max(chance(sample.len().max(1), training.len().max(1)));
    let (distance, what) = match kind {
        FeatureKind::Categorical { vocabulary } => categories(vocabulary.len(), &sample, &training),
        FeatureKind::Bool => categories(2, &sample, &training),
        _ => numbers(&mut sample, &mut training),
    };
    let what = (distance > critical).then_some(what);
    let absent = (missing_distance > OTHER.max(chance(all, of))).then(|| {
        format!(
            "is missing in {:.0} % of the records, in training in {:.0} %",
            100.0 * missing,
            100.0 * usual
        )
    });
    (distance.max(missing_distance), absent.or(what))
}

fn numbers(sample: &mut [f32], training: &mut [f32]) -> (f64, String) {
    let distance = kolmogorov_smirnov(sample, training).unwrap_or_default();
    let median = |sorted: &[f32]| sorted.get(sorted.len() / 2).copied().unwrap_or(f32::NAN);
    let (here, there) = (median(sample), median(training));
    let times = here / there;
    let times = match times.is_finite() && times > 0.0 {
        true => format!(", {times:.3} times as much"),
        false => String::new(),
    };
    (
        distance,
        format!("has the median {here}, in training {there}{times}"),
    )
}

fn categories(entries: usize, sample: &[f32], training: &[f32]) -> (f64, String) {
    // The last place is for categories that the vocabulary does not have.
    let count = |values: &[f32]| {
        let mut counts = vec![0; entries + 1];
        for &value in values {
            let known = (value >= 0.0).then_some(value as usize);
            counts[known.unwrap_or(entries).min(entries)] += 1;
        }
        counts
    };
    let (sample_counts, training_counts) = (count(sample), count(training));
    let unseen = sample_counts[entries] as f64 / sample.len().max(1) as f64;
    let what = match unseen > 0.5 {
        true => format!(
            "has values that training has not seen in {:.0} % of the records",
            100.0 * unseen
        ),
        false => "has other shares of its values than in training".to_owned(),
    };
    let distance = total_variation(&sample_counts, &training_counts);
    (distance.unwrap_or_default(), what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(count: usize, seed: u64, scale: f32) -> Vec<f32> {
        let mut random = fastrand::Rng::with_seed(seed);
        (0..count).map(|_| (1.0 + random.f32()) * scale).collect()
    }

    #[test]
    fn another_unit_is_told_by_the_medians() {
        let (distance, problem) = shift(
            &FeatureKind::Number,
            normal(500, 1, 100.0),
            normal(500, 2, 1.0),
        );
        let problem = problem.unwrap();
        assert!(
            distance == 1.0 && problem.contains("times as much"),
            "{problem}"
        );
        assert_eq!(
            shift(
                &FeatureKind::Number,
                normal(500, 3, 1.0),
                normal(500, 2, 1.0)
            )
            .1,
            None
        );
    }

    #[test]
    fn values_that_are_missing_or_unseen_are_told() {
        let missing = shift(
            &FeatureKind::Number,
            vec![f32::NAN; 50],
            normal(500, 1, 1.0),
        );
        assert!(missing.1.unwrap().contains("missing in 100 %"));
        let unseen = shift(&FeatureKind::Bool, vec![-1.0; 50], vec![0.0; 50]);
        assert!(unseen.1.unwrap().contains("not seen"));
        // Too few records to tell.
        assert_eq!(shift(&FeatureKind::Bool, vec![1.0], vec![0.0; 50]).1, None);
    }
}
