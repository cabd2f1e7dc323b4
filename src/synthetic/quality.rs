//! How much drawn records are like real ones: the distribution of each feature, the relation of each pair, and whether the two can be
//! told apart.
//!
//! Shapes and trends are those of SDMetrics (Patki et al. 2016, "The Synthetic Data Vault"), so they can be compared with its reports: 1 is
//! equal, 0 is as different as possible.

use serde::Serialize;

use super::privacy::closest_other;
use crate::bundle::manifest::{Feature, FeatureKind};

/// Number of parts that a number is cut into beside a category.
const PARTS: usize = 10;
/// Number of rows of each kind for the two-sample test.
const MOST_ROWS: usize = 2_000;

/// The comparison of drawn rows with real ones.
#[derive(Debug, Clone, Serialize)]
pub struct Quality {
    /// For each feature: 1 minus the Kolmogorov-Smirnov statistic of its numbers, or 1 minus the total variation distance of its
    /// categories.
    pub shapes: Vec<f64>,
    /// The mean of `shapes`.
    pub shape: f64,
    /// For each pair of features: how similar their correlation is, or their contingency table.
    pub trends: Vec<Trend>,
    /// The mean over `trends`. `None` for one feature.
    pub trend: Option<f64>,
    /// Share of rows whose closest other row is of the same kind, real or drawn (Lopez-Paz & Oquab 2017, "Revisiting Classifier
    /// Two-Sample Tests", with one neighbour). 0.5 means that they cannot be told apart.
    pub told_apart: f64,
}

/// How similar the relation of two features is.
#[derive(Debug, Clone, Serialize)]
pub struct Trend {
    pub first: usize,
    pub second: usize,
    pub similarity: f64,
}

/// Compares rows [N, F] with real rows [M, F], and their points [N, D] with [M, D].
pub fn compare(
    features: &[Feature],
    drawn: &[f32],
    real: &[f32],
    points: [&[f32]; 2],
    dimensions: usize,
) -> Quality {
    let width = features.len();
    let column = |rows: &[f32], feature: usize| -> Vec<f32> {
        rows.iter().copied().skip(feature).step_by(width).collect()
    };
    let columns: Vec<[Vec<f32>; 2]> = (0..width)
        .map(|feature| [column(real, feature), column(drawn, feature)])
        .collect();
    let shapes: Vec<f64> = features
        .iter()
        .zip(&columns)
        .map(|(feature, both)| shape(feature, both))
        .collect();
    let mut trends = Vec::new();
    for first in 0..width {
        for second in first + 1..width {
            let pair = [
                (&features[first], &columns[first]),
                (&features[second], &columns[second]),
            ];
            trends.push(Trend {
                first,
                second,
                similarity: trend(pair),
            });
        }
    }
    let mean = |values: &mut dyn ExactSizeIterator<Item = f64>| {
        let count = values.len();
        (count > 0).then(|| values.sum::<f64>() / count as f64)
    };
    Quality {
        shape: mean(&mut shapes.iter().copied()).unwrap_or(1.0),
        trend: mean(&mut trends.iter().map(|trend| trend.similarity)),
        shapes,
        trends,
        told_apart: told_apart(points, dimensions),
    }
}

fn is_number(feature: &Feature) -> bool {
    matches!(
        feature.kind,
        FeatureKind::Number | FeatureKind::Timestamp { .. }
    )
}

/// Compares the values that are there, and counts the missing ones as a value of their own.
fn shape(feature: &Feature, [real, drawn]: &[Vec<f32>; 2]) -> f64 {
    let present = |values: &[f32]| {
        let mut present: Vec<f32> = values
            .iter()
            .copied()
            .filter(|value| !value.is_nan())
            .collect();
        present.sort_by(f32::total_cmp);
        present
    };
    let missing = |values: &[f32]| {
        values.iter().filter(|value| value.is_nan()).count() as f64 / values.len().max(1) as f64
    };
    if is_number(feature) {
        let difference = (missing(real) - missing(drawn)).abs();
        return 1.0 - kolmogorov_smirnov(&present(real), &present(drawn)).max(difference);
    }
    let code = |value: &f32| if value.is_nan() { 0 } else { *value as i64 + 2 };
    let codes = [real, drawn].map(|values| values.iter().map(code).collect::<Vec<_>>());
    1.0 - total_variation(&codes[0], &codes[1])
}

/// The greatest difference of two empirical distribution functions. Both are ascending; 0 if one is empty.
fn kolmogorov_smirnov(a: &[f32], b: &[f32]) -> f64 {
    if a.is_empty() || b.is_empty() {
        return 0.0;
    }
    let at = |values: &[f32], x: f32| {
        values.partition_point(|value| *value <= x) as f64 / values.len() as f64
    };
    let differences = a.iter().chain(b).map(|x| (at(a, *x) - at(b, *x)).abs());
    differences.fold(0.0, f64::max)
}

/// Half of the sum of the absolute differences of shares.
fn total_variation<T: Ord>(a: &[T], b: &[T]) -> f64 {
    let mut shares = std::collections::BTreeMap::new();
    for (values, sign) in [(a, 1.0), (b, -1.0)] {
        for value in values {
            *shares.entry(value).or_insert(0.0) += sign / values.len() as f64;
        }
    }
    shares.values().map(|share: &f64| share.abs()).sum::<f64>() / 2.0
}

/// Two numbers: 1 minus half of the difference of their correlations. Otherwise: 1 minus the total variation distance of the table of
/// both, numbers cut at the deciles of the real ones.
fn trend(pair: [(&Feature, &[Vec<f32>; 2]); 2]) -> f64 {
    let [(first, [real_a, drawn_a]), (second, [real_b, drawn_b])] = pair;
    if is_number(first) && is_number(second) {
        let difference = correlation(real_a, real_b) - correlation(drawn_a, drawn_b);
        return 1.0 - difference.abs() / 2.0;
    }
    let codes = [(first, real_a, drawn_a), (second, real_b, drawn_b)]
        .map(|(feature, real, drawn)| codes(feature, real, drawn));
    let [(real_a, drawn_a), (real_b, drawn_b)] = codes;
    let table = |a: Vec<i64>, b: Vec<i64>| a.into_iter().zip(b).collect::<Vec<_>>();
    1.0 - total_variation(&table(real_a, real_b), &table(drawn_a, drawn_b))
}

fn codes(feature: &Feature, real: &[f32], drawn: &[f32]) -> (Vec<i64>, Vec<i64>) {
    let mut ascending: Vec<f32> = real
        .iter()
        .copied()
        .filter(|value| !value.is_nan())
        .collect();
    ascending.sort_by(f32::total_cmp);
    let edges: Vec<f32> = match is_number(feature) && !ascending.is_empty() {
        true => (1..PARTS)
            .map(|part| ascending[part * (ascending.len() - 1) / PARTS])
            .collect(),
        false => Vec::new(),
    };
    let code = |value: &f32| match value {
        value if value.is_nan() => -2,
        value if is_number(feature) => edges.partition_point(|edge| *edge < *value) as i64,
        value => *value as i64,
    };
    (
        real.iter().map(code).collect(),
        drawn.iter().map(code).collect(),
    )
}

/// Pearson's correlation over the rows that have both values. 0 if one does not vary.
fn correlation(a: &[f32], b: &[f32]) -> f64 {
    let pairs = a.iter().zip(b).map(|(a, b)| (f64::from(*a), f64::from(*b)));
    let pairs: Vec<_> = pairs.filter(|(a, b)| !a.is_nan() && !b.is_nan()).collect();
    let count = pairs.len().max(1) as f64;
    let means = pairs
        .iter()
        .fold((0.0, 0.0), |(x, y), (a, b)| (x + a / count, y + b / count));
    let sums = pairs.iter().fold((0.0, 0.0, 0.0), |(ab, aa, bb), (a, b)| {
        let (a, b) = (a - means.0, b - means.1);
        (ab + a * b, aa + a * a, bb + b * b)
    });
    let scale = (sums.1 * sums.2).sqrt();
    if scale > 0.0 { sums.0 / scale } else { 0.0 }
}

fn told_apart([drawn, real]: [&[f32]; 2], dimensions: usize) -> f64 {
    let rows = (drawn.len().min(real.len()) / dimensions).min(MOST_ROWS);
    let (drawn, real) = (&drawn[..rows * dimensions], &real[..rows * dimensions]);
    let mut same = 0.0;
    for (own, other) in [(drawn, real), (real, drawn)] {
        let within = closest_other(own, dimensions);
        let across = super::privacy::closest(own, other, dimensions);
        for (within, across) in within.iter().zip(&across) {
            same += match within.total_cmp(across) {
                std::cmp::Ordering::Less => 1.0,
                std::cmp::Ordering::Equal => 0.5,
                std::cmp::Ordering::Greater => 0.0,
            };
        }
    }
    same / (2 * rows).max(1) as f64
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn features() -> Vec<Feature> {
        serde_json::from_value(json!([
            {"name": "a", "path": "a", "type": "number"},
            {"name": "b", "path": "b", "type": "number"},
            {"name": "c", "path": "c", "type": "categorical", "vocabulary": ["x", "y"]},
        ]))
        .unwrap()
    }

    /// b follows a, and c tells whether a is positive.
    fn rows(seed: u64, related: bool) -> Vec<f32> {
        let mut random = fastrand::Rng::with_seed(seed);
        let rows = (0..1000).map(|_| {
            let mut normal = || (0..12).map(|_| random.f32()).sum::<f32>() - 6.0;
            let (a, other) = (normal(), normal());
            let b = if related { a } else { other } + 0.1 * normal();
            [a, b, f32::from(if related { a > 0.0 } else { other > 0.0 })]
        });
        rows.flatten().collect()
    }

    fn quality(drawn: &[f32], real: &[f32]) -> Quality {
        compare(&features(), drawn, real, [drawn, real], 3)
    }

    #[test]
    fn rows_of_the_same_distribution_cannot_be_told_apart() {
        let same = quality(&rows(1, true), &rows(2, true));
        assert!(same.shape > 0.95 && same.trend.unwrap() > 0.94, "{same:?}");
        assert!((0.45..0.55).contains(&same.told_apart), "{same:?}");
    }

    #[test]
    fn a_lost_relation_shows_in_the_trends_alone_and_tells_them_apart() {
        let lost = quality(&rows(1, false), &rows(2, true));
        assert!(lost.shape > 0.9, "{lost:?}");
        assert!(
            lost.trends[0].similarity < 0.6 && lost.told_apart > 0.6,
            "{lost:?}"
        );
        let shifted: Vec<f32> = rows(1, true).iter().map(|value| value + 10.0).collect();
        let moved = quality(&shifted, &rows(2, true));
        assert_eq!(moved.shapes[0], 0.0);
        assert_eq!(moved.told_apart, 1.0);
    }

    #[test]
    fn missing_values_count() {
        let mut holes = rows(1, true);
        holes
            .iter_mut()
            .step_by(3)
            .for_each(|value| *value = f32::NAN);
        let lost = quality(&holes, &rows(2, true));
        assert_eq!(lost.shapes[0], 0.0);
    }
}
