//! Values for what a record lacks: the centre and the spread of several draws.

use crate::bundle::manifest::{Feature, FeatureKind};

/// What the draws say about one missing value.
#[derive(Debug, Clone, PartialEq)]
pub enum Imputed {
    /// The median, and the interval around it that holds the requested share of the draws.
    Number { value: f32, low: f32, high: f32 },
    /// The most frequent word, or 0 and 1 for a boolean, and its share of the draws.
    Category { value: usize, share: f32 },
    /// Most draws lack the value as well: it is missing for a reason.
    Absent { share: f32 },
}

/// Summarises the draws of one feature. `interval`: the share of the draws in the interval, such as 0.9. NaN is a missing value.
///
/// A value counts as absent if more than half of the draws lack it.
pub fn impute(feature: &Feature, draws: &[f32], interval: f32) -> Imputed {
    let mut present: Vec<f32> = draws
        .iter()
        .copied()
        .filter(|value| !value.is_nan())
        .collect();
    let absent = draws.len() - present.len();
    if 2 * absent > draws.len() || present.is_empty() {
        return Imputed::Absent {
            share: absent as f32 / draws.len() as f32,
        };
    }
    if matches!(
        feature.kind,
        FeatureKind::Bool | FeatureKind::Categorical { .. }
    ) {
        let highest = present.iter().fold(0.0, |a: f32, b| a.max(*b)) as usize;
        let mut counts = vec![0_usize; highest + 1];
        present
            .iter()
            .for_each(|value| counts[value.max(0.0) as usize] += 1);
        // The first of equally frequent words, so that the order of the draws does not matter.
        let most = counts.iter().copied().max().unwrap_or(0);
        return Imputed::Category {
            value: counts.iter().position(|count| *count == most).unwrap_or(0),
            share: most as f32 / present.len() as f32,
        };
    }
    present.sort_by(f32::total_cmp);
    let tail = (1.0 - interval) / 2.0;
    Imputed::Number {
        value: present[present.len() / 2],
        low: order_statistic(&present, tail),
        high: order_statistic(&present, 1.0 - tail),
    }
}

/// Returns the draw at a probability: K draws cut a distribution into K + 1 parts of equal mean probability.
fn order_statistic(ascending: &[f32], probability: f32) -> f32 {
    let place = probability * (ascending.len() + 1) as f32 - 1.0;
    let place = place.clamp(0.0, (ascending.len() - 1) as f32);
    ascending[place.round() as usize]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn feature(kind: serde_json::Value) -> Feature {
        let mut feature = json!({"name": "a", "path": "a"});
        feature
            .as_object_mut()
            .unwrap()
            .extend(kind.as_object().unwrap().clone());
        serde_json::from_value(feature).unwrap()
    }

    #[test]
    fn numbers_get_a_median_and_an_interval() {
        let draws: Vec<f32> = (1..=19).map(|i| i as f32).collect();
        let number = feature(json!({"type": "number"}));
        assert_eq!(
            impute(&number, &draws, 0.9),
            Imputed::Number {
                value: 10.0,
                low: 1.0,
                high: 19.0
            }
        );
        assert_eq!(
            impute(&number, &draws, 0.5),
            Imputed::Number {
                value: 10.0,
                low: 5.0,
                high: 15.0
            }
        );
    }

    #[test]
    fn categories_get_the_most_frequent_word() {
        let category = feature(json!({"type": "categorical", "vocabulary": ["x", "y", "z"]}));
        let draws = [2.0, 1.0, 1.0, 0.0, f32::NAN];
        assert_eq!(
            impute(&category, &draws, 0.9),
            Imputed::Category {
                value: 1,
                share: 0.5
            }
        );
    }

    #[test]
    fn what_most_draws_lack_stays_missing() {
        let number = feature(json!({"type": "number"}));
        let draws = [1.0, f32::NAN, f32::NAN, f32::NAN];
        assert_eq!(
            impute(&number, &draws, 0.9),
            Imputed::Absent { share: 0.75 }
        );
    }
}
