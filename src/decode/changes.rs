//! Debezium's change events in Avro and Protobuf: the fields of a feature are below `after`, and `op` says what happened.

use super::envelope::Skip;
use super::paths::Paths;
use super::segment::SegmentReader;
use crate::bundle::notation::Notation;
use crate::bundle::{Feature, FeatureKind, Missing, SegmentBy};

pub const AFTER: &str = "after";
const OP: &str = "op";
/// The values of `op` that have no state to score, with their reasons.
const SKIPS: [(&str, Skip); 3] = [
    ("d", Skip::Delete),
    ("t", Skip::Truncate),
    ("m", Skip::LogMessage),
];

/// Returns the features with paths into a change event.
pub fn features_of_changes(features: &[Feature]) -> Vec<Feature> {
    let below = |feature: &Feature| Feature {
        path: format!("{AFTER}.{}", feature.path),
        ..feature.clone()
    };
    features.iter().map(below).collect()
}

/// Returns the segment's reader with a path into a change event.
pub fn segment_of_changes(segment: SegmentReader) -> SegmentReader {
    SegmentReader {
        by: match segment.by {
            SegmentBy::Field(path) => SegmentBy::Field(format!("{AFTER}.{path}")),
            by => by,
        },
        ..segment
    }
}

/// Returns the path of `op`. Its row has one column: the number of the value among those without a state.
pub fn op() -> Paths {
    let feature = Feature {
        name: OP.to_owned(),
        path: OP.to_owned(),
        kind: FeatureKind::Categorical {
            vocabulary: SKIPS.map(|(op, _)| op.to_owned()).to_vec(),
        },
        missing: Missing::Impute,
        unit: None,
        notation: Notation::default(),
    };
    Paths::new(&[feature], None)
}

/// Returns why a change has no state to score, by the row of `op`.
pub fn skip(row: &[f32]) -> Option<Skip> {
    let at = row.first().filter(|number| **number >= 0.0)?;
    SKIPS.get(*at as usize).map(|(_, skip)| *skip)
}
