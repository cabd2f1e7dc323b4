//! Checks whether a bundle can replace another one while the records keep their schema.

use std::collections::HashSet;
use std::mem::discriminant;

use super::manifest::{EpochUnit, Feature, FeatureKind, Missing, ModelInput};

/// Returns why `new` cannot read the records that `old` reads. Empty if it can.
///
/// Both must read tables or both must read images. For tables, these rules apply:
///
/// - At least one path is read by both.
/// - A feature of both is read from the same path with the same type.
/// - A path that both read holds the same type.
/// - A field that only `new` reads may be missing from a record.
///
/// Vocabularies, units, the rest of the model, and the size of images may change.
pub fn incompatibilities(old: &ModelInput, new: &ModelInput) -> Vec<String> {
    match (old, new) {
        (ModelInput::Image(_), ModelInput::Image(_)) => vec![],
        (ModelInput::Tabular { features: old }, ModelInput::Tabular { features: new }) => {
            between_tables(old, new)
        }
        (ModelInput::Tabular { .. }, ModelInput::Image(_)) => {
            vec!["the new bundle reads images, but the current one reads tables".to_owned()]
        }
        (ModelInput::Image(_), ModelInput::Tabular { .. }) => {
            vec!["the new bundle reads tables, but the current one reads images".to_owned()]
        }
    }
}

fn between_tables(old: &[Feature], new: &[Feature]) -> Vec<String> {
    let paths: HashSet<&str> = old.iter().map(|f| f.path.as_str()).collect();
    if !new.iter().any(|f| paths.contains(f.path.as_str())) {
        return vec!["the new bundle reads no field that the current one reads".to_owned()];
    }
    new.iter()
        .filter_map(|feature| fault(old, feature))
        .collect()
}

fn fault(old: &[Feature], new: &Feature) -> Option<String> {
    let name = &new.name;
    if let Some(before) = old.iter().find(|f| f.name == *name) {
        if before.path != new.path {
            return Some(format!(
                "feature `{name}` is read from `{}`, but the current bundle reads it from `{}`",
                new.path, before.path
            ));
        }
        if kind(&before.kind) != kind(&new.kind) {
            return Some(format!(
                "feature `{name}` has another type in the current bundle"
            ));
        }
        return (!new.notation.covers(&before.notation)).then(|| {
            format!("feature `{name}` does not read every spelling of its values that the current bundle reads")
        });
    }
    let mut same_path = old.iter().filter(|f| f.path == new.path).peekable();
    if same_path.peek().is_none() {
        let required = new.missing == Missing::Reject;
        return required.then(|| {
            format!(
                "feature `{name}` requires the field `{}`, which the current bundle does not read",
                new.path
            )
        });
    }
    let same = same_path.any(|f| kind(&f.kind) == kind(&new.kind));
    (!same).then(|| {
        format!(
            "the field `{}` has another type in the current bundle",
            new.path
        )
    })
}

/// Returns the part of a feature's kind that decides how its field is read.
fn kind(kind: &FeatureKind) -> (std::mem::Discriminant<FeatureKind>, Option<EpochUnit>) {
    let unit = match kind {
        FeatureKind::Timestamp { epoch_unit, .. } => *epoch_unit,
        _ => None,
    };
    (discriminant(kind), unit)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn table(features: serde_json::Value) -> ModelInput {
        serde_json::from_value(json!({"kind": "tabular", "features": features})).unwrap()
    }

    fn image(side: usize) -> ModelInput {
        let input = json!({"kind": "image", "height": side, "width": side, "channels": 1, "resize": "bilinear"});
        serde_json::from_value(input).unwrap()
    }

    fn in_force() -> ModelInput {
        table(json!([
            {"name": "amount", "path": "amount", "type": "number"},
            {"name": "hour", "path": "time", "type": "timestamp", "part": "hour_of_day"},
            {"name": "category", "path": "merchant.category", "type": "categorical", "vocabulary": ["a"]},
        ]))
    }

    #[test]
    fn what_a_new_training_changes_is_compatible() {
        let new = table(json!([
            {"name": "amount", "path": "amount", "type": "number", "missing": "impute", "unit": "USD"},
            {"name": "day", "path": "time", "type": "timestamp", "part": "day_of_week"},
            {"name": "category", "path": "merchant.category", "type": "categorical", "vocabulary": ["a", "b"]},
            {"name": "age", "path": "age", "type": "number", "missing": "impute"},
        ]));
        for (old, new) in [
            (in_force(), new),
            (in_force(), in_force()),
            (image(8), image(16)),
        ] {
            assert_eq!(incompatibilities(&old, &new), Vec::<String>::new());
        }
    }

    #[test]
    fn fewer_spellings_are_not_compatible() {
        let reads = |spellings: serde_json::Value| {
            let mut feature = json!({"name": "amount", "path": "amount", "type": "number"});
            let object = feature.as_object_mut().unwrap();
            object.extend(spellings.as_object().unwrap().clone());
            table(json!([feature]))
        };
        let german = || reads(json!({"number_format": "decimal_comma", "missing_values": ["-"]}));
        let more = reads(json!({"number_format": "decimal_comma", "missing_values": ["?", "-"]}));
        assert_eq!(incompatibilities(&german(), &more), Vec::<String>::new());
        assert_eq!(
            incompatibilities(&reads(json!({})), &german()),
            Vec::<String>::new()
        );
        for fewer in [
            json!({}),
            json!({"number_format": "decimal_comma"}),
            json!({"number_format": "decimal_point", "missing_values": ["-"]}),
        ] {
            let faults = incompatibilities(&german(), &reads(fewer));
            assert!(faults[0].contains("every spelling"), "{faults:?}");
        }
    }

    #[test]
    fn another_schema_is_not() {
        for (new, said) in [
            (image(8), "reads images"),
            (
                table(json!([{"name": "x", "path": "x", "type": "number", "missing": "impute"}])),
                "no field",
            ),
            (
                table(json!([{"name": "amount", "path": "x", "type": "number"},
                          {"name": "hour", "path": "time", "type": "timestamp", "part": "hour_of_day"}])),
                "from `x`",
            ),
            (
                table(json!([{"name": "amount", "path": "amount", "type": "bool"}])),
                "another type",
            ),
            (
                table(json!([{"name": "sum", "path": "amount", "type": "bool"}])),
                "field `amount` has another type",
            ),
            (
                table(
                    json!([{"name": "hour", "path": "time", "type": "timestamp", "part": "hour_of_day", "epoch_unit": "ms"}]),
                ),
                "another type",
            ),
            (
                table(
                    json!([{"name": "amount", "path": "amount", "type": "number"},
                          {"name": "age", "path": "age", "type": "number"}]),
                ),
                "requires the field `age`",
            ),
        ] {
            let found = incompatibilities(&in_force(), &new).join("; ");
            assert!(found.contains(said), "{said} not in {found}");
        }
        assert_eq!(incompatibilities(&image(8), &in_force()).len(), 1);
    }
}
