//! Values for what a record lacks: the centre and the spread of several draws, and how they are written into the record.

use std::borrow::Cow;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::bundle::manifest::{Feature, FeatureKind, Missing};
use crate::bundle::path;
use crate::patch::{Edit, number};
use crate::record::Place;

/// Name of the field that tells what was filled in.
pub const FIELD: &str = "imputed";
/// Number of draws for each record, if nothing else is asked for.
pub const DRAWS: usize = 20;
/// Share of the draws that an interval holds, if nothing else is asked for.
pub const INTERVAL: f32 = 0.9;
/// Maximum number of draws for each record.
pub const MOST_DRAWS: usize = 10_000;

/// The features that a record lacked, by their column, and what the draws say about them.
pub type Imputation = Vec<(usize, Imputed)>;

/// What the draws say about one missing value.
#[derive(Debug, Clone, Copy, PartialEq)]
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

/// Returns whether a row [F] lacks a value that can be filled in. Times cannot.
pub fn is_incomplete(features: &[Feature], row: &[f32]) -> bool {
    let mut both = features.iter().zip(row);
    both.any(|(feature, value)| value.is_nan() && can_be_filled(feature))
}

fn can_be_filled(feature: &Feature) -> bool {
    !matches!(feature.kind, FeatureKind::Timestamp { .. })
}

/// Summarises the draws of one record for each value that its row [F] lacks. `draws`: [draws, F].
pub fn impute_row(features: &[Feature], row: &[f32], draws: &[f32], interval: f32) -> Imputation {
    let lacking = (0..features.len()).filter(|&column| row[column].is_nan());
    let fillable = lacking.filter(|&column| can_be_filled(&features[column]));
    let imputed = fillable.map(|column| {
        let own = draws.iter().copied().skip(column).step_by(row.len());
        let own: Vec<f32> = own.collect();
        (column, impute(&features[column], &own, interval))
    });
    imputed.collect()
}

/// Returns the fields to set in a record: each value that was found, and [`FIELD`].
pub fn edits<'f>(features: &'f [Feature], imputation: &Imputation) -> Vec<Edit<'f>> {
    if imputation.is_empty() {
        return Vec::new();
    }
    let mut edits = Vec::new();
    let mut about = serde_json::Map::new();
    for (column, imputed) in imputation {
        let feature = &features[*column];
        let (value, said) = texts(feature, imputed);
        about.insert(feature.name.clone(), said);
        edits.extend(value.map(|json| Edit {
            keys: path::keys_or_parts(&feature.path),
            json,
        }));
    }
    edits.push(Edit {
        keys: vec![Cow::Borrowed(FIELD)],
        json: Value::Object(about).to_string(),
    });
    edits
}

/// Returns the JSON of a filled value, if there is one, and what [`FIELD`] says about it.
fn texts(feature: &Feature, imputed: &Imputed) -> (Option<String>, Value) {
    let json_number =
        |value: f32| -> Value { serde_json::from_str(&number(value)).unwrap_or(Value::Null) };
    match (*imputed, &feature.kind) {
        (Imputed::Number { value, low, high }, _) => (
            Some(number(value)),
            json!({"value": json_number(value), "low": json_number(low), "high": json_number(high)}),
        ),
        (Imputed::Category { value, share }, FeatureKind::Categorical { vocabulary }) => {
            let word = json!(vocabulary.get(value));
            (
                Some(word.to_string()),
                json!({"value": word, "share": json_number(share)}),
            )
        }
        (Imputed::Category { value, share }, _) => {
            let value = json!(value > 0);
            (
                Some(value.to_string()),
                json!({"value": value, "share": json_number(share)}),
            )
        }
        (Imputed::Absent { share }, _) => {
            (None, json!({"value": null, "share": json_number(share)}))
        }
    }
}

/// Returns the features, each of which may be missing.
pub fn optional(features: &[Feature]) -> Vec<Feature> {
    let mut features = features.to_vec();
    for feature in &mut features {
        feature.missing = Missing::Impute;
    }
    features
}

/// Returns the feature that is read from the top-level field `field` or from below it, where a record's changes are told.
pub fn feature_in<'f>(field: &str, features: &'f [Feature]) -> Option<&'f Feature> {
    let mut features = features.iter();
    features.find(|feature| path::keys_or_parts(&feature.path)[0] == field)
}

/// Returns the seed of the draws for the record at a place of a topic, so that a redelivered record gets the same values. It is
/// the first 8 bytes, little-endian, of the SHA-256 of `seed`, partition, offset and index + 1 (0 without an index), each of them 8
/// bytes, little-endian, and the topic's name.
pub fn seed_at(seed: u64, topic: &str, place: Place) -> u64 {
    let index = place.index.map_or(0, |index| u64::from(index) + 1);
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    hash.update(i64::from(place.partition).to_le_bytes());
    hash.update(place.offset.to_le_bytes());
    hash.update(index.to_le_bytes());
    hash.update(topic.as_bytes());
    let digest = hash.finalize();
    u64::from_le_bytes(std::array::from_fn(|i| digest[i]))
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

    #[test]
    fn what_was_filled_in_is_written_into_the_record_and_told() {
        let named = |name: &str, kind: serde_json::Value| {
            let mut feature = feature(kind);
            (feature.name, feature.path) = (name.to_owned(), name.to_owned());
            feature
        };
        let features = [
            named("n", json!({"type": "number"})),
            named(
                "c",
                json!({"type": "categorical", "vocabulary": ["x", "y"]}),
            ),
            named("t", json!({"type": "timestamp", "part": "hour_of_day"})),
            named("gone", json!({"type": "number"})),
        ];
        let nan = f32::NAN;
        let draws = [
            [1.5, 1.0, 3.0, nan],
            [2.5, 1.0, 4.0, nan],
            [3.5, 0.0, 5.0, 9.0],
        ];
        let row = [nan; 4];
        assert!(is_incomplete(&features, &row));
        assert!(!is_incomplete(&features, &[1.0, 0.0, nan, 1.0]));
        let imputation = impute_row(&features, &row, draws.as_flattened(), 0.5);
        let record = crate::patch::set(r#"{"c": null}"#, edits(&features, &imputation)).unwrap();
        let record: Value = serde_json::from_str(&record).unwrap();
        assert_eq!(record["n"], 2.5);
        assert_eq!(record["c"], "y");
        assert_eq!(record["imputed"]["c"]["value"], "y");
        assert_eq!(record["imputed"]["gone"]["value"], Value::Null);
        assert!(record.get("gone").is_none() && record.get("t").is_none());
        assert!(edits(&features, &Vec::new()).is_empty());
    }

    #[test]
    fn a_place_gives_its_own_seed_always() {
        let place = |partition, offset, index| Place {
            partition,
            offset,
            index,
        };
        let one = seed_at(7, "in", place(0, 1, None));
        // Stays the same in every version, because a replay must give the same values.
        assert_eq!(one, 0xe1ca2608b74d13c0);
        for other in [
            seed_at(8, "in", place(0, 1, None)),
            seed_at(7, "im", place(0, 1, None)),
            seed_at(7, "in", place(1, 1, None)),
            seed_at(7, "in", place(0, 2, None)),
            seed_at(7, "in", place(0, 1, Some(0))),
        ] {
            assert_ne!(one, other);
        }
    }
}
