//! The features that the decoder targets use, and the invariants they check for every payload.
#![allow(dead_code, reason = "each target uses only some of this module")]

use residuald::bundle::{Feature, SegmentBy};
use residuald::decode::{
    DecodeError, Decoder, RecordFormat, Schema, SchemaText, Schemas, SegmentReader, Wanted,
};
use residuald::decode::{Format, TypeSource};
use residuald::message::unreadable;
use serde_json::json;

pub const AVRO: &str = include_str!("all.avsc");
pub const PROTOBUF: &str = include_str!("all.proto");

/// Makes a panic of another crate no finding. The readers catch those; they would catch a panic of their own code too, but that must fail.
pub fn allow_panics_of_crates() {
    let fatal = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let ours = |at: &std::panic::Location<'_>| !at.file().contains("/registry/src/");
        if info.location().is_none_or(ours) {
            fatal(info);
        }
    }));
}

/// At least one feature of each type, top-level and nested. Some are absent from some schemas.
pub fn features() -> Vec<Feature> {
    let impute = |name: &str, kind: &str| json!({"name": name, "path": name, "type": kind, "missing": "impute"});
    let mut features = vec![
        impute("number", "number"),
        impute("flag", "bool"),
        impute("decimal", "number"),
        impute("choice", "number"),
        impute("nested.deep.number", "number"),
        impute("absent.everywhere", "number"),
    ];
    for path in ["text", "symbol", "uuid", "nested.text", "one_text"] {
        let mut feature = impute(path, "categorical");
        feature["vocabulary"] = json!(["a", "A", "5", "true"]);
        features.push(feature);
    }
    for (path, part) in [
        ("time", "hour_of_day"),
        ("date", "day_of_week"),
        ("clock", "hour_of_day"),
        ("nested.time", "day_of_week"),
    ] {
        let mut feature = impute(path, "timestamp");
        feature["part"] = json!(part);
        feature["epoch_unit"] = json!("ms");
        features.push(feature);
    }
    serde_json::from_value(json!(features)).expect("features")
}

/// A decoder that also reads a segment. In some schemas the segment's field is an object; such a record must still decode.
pub fn decoder(input: RecordFormat) -> Decoder {
    let by = SegmentBy::Field("children.kind".to_owned());
    Decoder::new(&features(), input, Some(SegmentReader::learning(by)))
}

/// A registry that knows the schema `text` under id 1 and refuses id 2.
pub fn registry(format: Format, text: &str) -> (RecordFormat, Wanted) {
    let (schemas, wanted) = Schemas::new();
    let text = SchemaText {
        text: text.to_owned(),
        references: Vec::new(),
    };
    let schema = Schema::parse(format, &text);
    assert!(schema.is_ok(), "{schema:?}");
    wanted.answer(1, schema);
    wanted.answer(2, Err("refused".to_owned()));
    (
        RecordFormat::Typed(TypeSource::Registry(format, schemas)),
        wanted,
    )
}

/// Checks that a payload either appends one complete row of finite numbers and NaN or appends nothing,
/// and that its JSON form, if it has one, is valid.
pub fn check(decoder: &mut Decoder, input: &RecordFormat, payload: &[u8]) {
    let mut rows = vec![1.0];
    let width = features_wide();
    match decoder.decode(payload, None, &mut rows) {
        Ok(_) => {
            assert_eq!(rows.len(), 1 + width);
            assert!(rows.iter().all(|n| !n.is_infinite()));
            // A value that was never written would have a different bit pattern.
            let nan = f32::NAN.to_bits();
            assert!(rows.iter().all(|n| !n.is_nan() || n.to_bits() == nan));
        }
        Err(DecodeError::Row(error)) => {
            assert_eq!(rows, [1.0]);
            assert!(!error.detail.is_empty());
        }
        Err(DecodeError::Nothing(_)) => assert_eq!(rows, [1.0]),
        Err(DecodeError::SchemaPending(_)) => {
            assert_eq!(rows, [1.0]);
            decoder.ask_for_schema(payload, None);
        }
    }
    if let Some(json) = input.to_json(payload) {
        let verdict = format!("{{\"record\":{}}}", json.get());
        let is_read = serde_json::from_str::<serde_json::Value>(&verdict).is_ok();
        // JSON passes through unchanged, with any lone surrogate or 1e999 it contains. Converted records must be valid.
        let is_json = matches!(input, RecordFormat::Json | RecordFormat::Wrapped(_));
        assert!(is_read || is_json);
        assert_eq!(is_read, unreadable(json.get()).is_none());
    }
}

fn features_wide() -> usize {
    static WIDTH: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *WIDTH.get_or_init(|| features().len())
}
