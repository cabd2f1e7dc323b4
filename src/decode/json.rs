//! Decodes JSON directly into the row, in one pass over the text, without a tree and without allocations per record.

mod framing;
pub mod nan;

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor,
};

use super::envelope::likeness;
use super::paths::{Child, Node, Paths, UNSET};
use super::segment::SegmentReader;
use super::value::Value;
use super::{Reason, RowError, malformed};
use crate::bundle::{Feature, SegmentId};
use crate::clip::clip;

pub use framing::unframed;

/// Decodes JSON objects into rows. Each thread has its own, because it keeps scratch space.
#[derive(Debug)]
pub struct JsonDecoder {
    pub(super) paths: Paths,
    scratch: Scratch,
}

#[derive(Debug, Default)]
struct Scratch {
    text: String,
    /// The typed error of a value, because serde's errors are only strings.
    error: Option<RowError>,
    /// Whether NaN and infinities count as missing. Otherwise a feature refuses them.
    allow_nan: bool,
    /// Whether the text that is read may contain marked strings, see [`nan`].
    is_marked: bool,
}

impl JsonDecoder {
    /// Creates a decoder for the features of a manifest.
    pub fn new(features: &[Feature]) -> JsonDecoder {
        JsonDecoder::segmented(features, None)
    }

    /// Creates a decoder that also reads segments. `segment` comes from the calibration.
    pub fn segmented(features: &[Feature], segment: Option<SegmentReader>) -> JsonDecoder {
        JsonDecoder {
            paths: Paths::new(features, segment),
            scratch: Scratch::default(),
        }
    }

    /// Makes NaN and infinities count as missing. Without it, a feature refuses them.
    pub fn allowing_nan(mut self, allow_nan: bool) -> JsonDecoder {
        self.scratch.allow_nan = allow_nan;
        self
    }

    /// Appends one row of `features.len()` numbers to `rows`, and returns the segment if a field determines it. On an error,
    /// `rows` is unchanged.
    ///
    /// # Errors
    /// [`RowError`] if the payload is not one JSON object that fits the schema. It names the setting that reads the record, if the
    /// record looks like one in an envelope.
    pub fn decode(
        &mut self,
        payload: &[u8],
        rows: &mut Vec<f32>,
    ) -> Result<Option<SegmentId>, RowError> {
        let decoded = self.append(payload, rows, false);
        decoded.map_err(|mut error| {
            if matches!(
                error.reason,
                Reason::Missing | Reason::WrongType | Reason::Malformed
            ) && let Some(likeness) = likeness(payload)
            {
                error.detail =
                    format!("{}; {likeness}", beginning(&error.detail.to_string())).into();
            }
            error
        })
    }

    /// Like [`JsonDecoder::decode`], for a record that was taken out of its envelope. NaN and infinities in it are marked.
    pub(super) fn decode_bare(
        &mut self,
        payload: &[u8],
        rows: &mut Vec<f32>,
    ) -> Result<Option<SegmentId>, RowError> {
        self.append(payload, rows, true)
    }

    fn append(
        &mut self,
        payload: &[u8],
        rows: &mut Vec<f32>,
        is_marked: bool,
    ) -> Result<Option<SegmentId>, RowError> {
        let JsonDecoder { paths, scratch } = self;
        scratch.is_marked = is_marked;
        paths.append(rows, |row| fill(paths, scratch, payload, row))
    }
}

fn fill(
    paths: &Paths,
    scratch: &mut Scratch,
    payload: &[u8],
    row: &mut [f32],
) -> Result<(), RowError> {
    // Checked first, because serde_json does not validate strings that it skips.
    let text = std::str::from_utf8(framing::unframed(payload))
        .map_err(|e| not_json(payload, format!("not UTF-8: {e}")))?;
    // Inside a record, `null` is an absent object. A whole record must not be absent.
    if text.trim_ascii() == "null" {
        return Err(malformed("not a JSON object: null"));
    }
    let Err(failed) = read(paths, scratch, text, row) else {
        return Ok(());
    };
    // NaN is not JSON, so it is looked for only where the text could not be parsed.
    if let Failed::Text(_) = failed
        && let Cow::Owned(marked) = nan::marked(text)
    {
        row.fill(f32::from_bits(UNSET));
        scratch.is_marked = true;
        return read(paths, scratch, &marked, row).map_err(|failed| failed.error(payload));
    }
    Err(failed.error(payload))
}

/// Why a text did not fill a row.
enum Failed {
    /// The text is not a JSON object.
    Text(serde_json::Error),
    Value(RowError),
}

impl Failed {
    fn error(self, payload: &[u8]) -> RowError {
        match self {
            Failed::Value(error) => error,
            Failed::Text(error) if error.is_eof() => {
                not_json(payload, format!("truncated JSON: {error}"))
            }
            Failed::Text(error) => not_json(payload, format!("not a JSON object: {error}")),
        }
    }
}

fn read(paths: &Paths, scratch: &mut Scratch, text: &str, row: &mut [f32]) -> Result<(), Failed> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let target = RefCell::new(Target {
        row,
        paths,
        scratch,
    });
    let seed = NodeSeed {
        node: &paths.root,
        target: &target,
    };
    let parsed = seed
        .deserialize(&mut deserializer)
        .and_then(|()| deserializer.end());
    parsed.map_err(|e| {
        let typed = target.borrow_mut().scratch.error.take();
        typed.map_or(Failed::Text(e), Failed::Value)
    })
}

/// Returns the error for a payload that is not JSON, with what it seems to be, if that is known.
pub fn not_json(payload: &[u8], problem: String) -> RowError {
    malformed(match framing::guess(payload) {
        Some(guess) => format!("{problem}; {guess}"),
        None => problem,
    })
}

/// The row that is filled while one record is read.
struct Target<'r> {
    row: &'r mut [f32],
    paths: &'r Paths,
    scratch: &'r mut Scratch,
}

type TargetCell<'t, 'r> = &'t RefCell<Target<'r>>;

/// Returns NaN or the infinity for which a string stands, if the text that is read is marked.
fn marked_nan<'v>(value: &'v str, target: TargetCell<'_, '_>) -> Option<&'v str> {
    let literal = nan::literal_of(value)?;
    target.borrow().scratch.is_marked.then_some(literal)
}

struct NodeSeed<'n, 't, 'r> {
    node: &'n Node,
    target: TargetCell<'t, 'r>,
}

impl<'de> DeserializeSeed<'de> for NodeSeed<'_, '_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for NodeSeed<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut expected = 0;
        while let Some(found) = map.next_key_seed(KeySeed {
            node: self.node,
            expected,
        })? {
            let Some((child, at)) = found else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            expected = at + 1;
            match child {
                Child::Node(node) => map.next_value_seed(NodeSeed {
                    node,
                    target: self.target,
                })?,
                Child::Leaf(columns) => map.next_value_seed(LeafSeed {
                    columns,
                    target: self.target,
                })?,
            }
        }
        Ok(())
    }

    // `"merchant": null` leaves every field below it missing.
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.refuse_non_object(Unexpected::Bool(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.refuse_non_object(Unexpected::Unsigned(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.refuse_non_object(Unexpected::Signed(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.refuse_non_object(Unexpected::Float(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        if marked_nan(value, self.target).is_some() && self.target.borrow().scratch.allow_nan {
            return Ok(());
        }
        // The error quotes the string with escapes, which can be many times longer, so the string is cut.
        self.refuse_non_object(Unexpected::Str(&clip(value)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        self.refuse_non_object(Unexpected::Seq)?;
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

impl NodeSeed<'_, '_, '_> {
    /// Refuses a value where features need an object. A segment does not refuse a record.
    fn refuse_non_object<E: Error>(self, found: Unexpected<'_>) -> Result<(), E> {
        match self.node.has_features {
            true => Err(E::invalid_type(found, &self)),
            false => Ok(()),
        }
    }
}

struct KeySeed<'n> {
    node: &'n Node,
    expected: usize,
}

impl<'de, 'n> DeserializeSeed<'de> for KeySeed<'n> {
    type Value = Option<(&'n Child, usize)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'n> Visitor<'_> for KeySeed<'n> {
    type Value = Option<(&'n Child, usize)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.node.find(key, self.expected))
    }
}

struct LeafSeed<'n, 't, 'r> {
    columns: &'n [usize],
    target: TargetCell<'t, 'r>,
}

impl LeafSeed<'_, '_, '_> {
    /// Refuses NaN or an infinity where a feature reads it. A segment is absent.
    fn refuse_nan<E: Error>(&self, literal: &str) -> Result<(), E> {
        let Target {
            row,
            paths,
            scratch,
        } = &mut *self.target.borrow_mut();
        for &at in self.columns {
            let column = &paths.columns[at];
            if paths.is_segment(at) {
                row[at] = f32::NAN;
                continue;
            }
            let problem = format!(
                "{literal} is not JSON. Let the producer write null, or set input.allow_nan = true, which reads it as missing"
            );
            let error = column.error(Reason::Malformed, &problem);
            let message = error.detail.clone();
            scratch.error = Some(error);
            return Err(E::custom(message));
        }
        Ok(())
    }

    fn store<E: Error>(&self, value: Option<Value<'_>>) -> Result<(), E> {
        let Target {
            row,
            paths,
            scratch,
        } = &mut *self.target.borrow_mut();
        for &column in self.columns {
            let slot = &mut row[column];
            let column = &paths.columns[column];
            let result = if slot.to_bits() != UNSET {
                Err(column.error(Reason::Duplicate, "given twice"))
            } else {
                match value {
                    Some(value) => column.read(value, &mut scratch.text),
                    None => Ok(f32::NAN),
                }
            };
            match result {
                Ok(number) => *slot = number,
                Err(error) => {
                    let message = error.detail.clone();
                    scratch.error = Some(error);
                    return Err(E::custom(message));
                }
            }
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for LeafSeed<'_, '_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for LeafSeed<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.store(Some(Value::Bool(value)))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.store(Some(Value::Unsigned(value)))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.store(Some(Value::Signed(value)))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.store(Some(Value::Float(value)))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        let Some(literal) = marked_nan(value, self.target) else {
            return self.store(Some(Value::Text(value)));
        };
        let allow_nan = self.target.borrow().scratch.allow_nan;
        match allow_nan {
            true => self.store(None),
            false => self.refuse_nan(literal),
        }
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.store(None)
    }

    // A feature refuses arrays and objects, and a segment ignores them.
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        self.store::<A::Error>(Some(Value::Other("an array")))?;
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        self.store::<A::Error>(Some(Value::Other("an object")))?;
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

/// Cuts a detail that quotes the record, so that what follows it is not cut.
fn beginning(detail: &str) -> Cow<'_, str> {
    const MOST: usize = 160;
    match detail.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &detail[..end]).into(),
        None => detail.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decoder() -> JsonDecoder {
        let features: Vec<Feature> = serde_json::from_value(serde_json::json!([
            {"name": "amount", "path": "amount", "type": "number"},
            {"name": "category", "path": "merchant.category", "type": "categorical", "vocabulary": ["grocery", "travel"], "missing": "impute"},
            {"name": "age", "path": "merchant.age", "type": "number", "missing": "impute"},
            {"name": "present", "path": "present", "type": "bool"},
            {"name": "hour", "path": "time", "type": "timestamp", "part": "hour_of_day"},
            {"name": "day", "path": "time", "type": "timestamp", "part": "day_of_week"},
        ]))
        .unwrap();
        JsonDecoder::new(&features)
    }

    fn decode(payload: &[u8]) -> Result<Vec<f32>, Reason> {
        let mut rows = vec![7.0];
        let result = decoder().decode(payload, &mut rows);
        assert_eq!(rows[0], 7.0, "earlier rows stay");
        match result {
            Ok(_) => Ok(rows.split_off(1)),
            Err(error) => {
                assert_eq!(rows.len(), 1, "a refused record leaves nothing");
                assert!(!error.detail.is_empty());
                Err(error.reason)
            }
        }
    }

    const GOOD: &str = r#"{"amount": 12.5, "merchant": {"category": "travel", "age": 3}, "present": true, "time": "2026-01-01T06:00:00Z"}"#;

    #[test]
    fn nested_fields_fill_the_row() {
        assert_eq!(
            decode(GOOD.as_bytes()),
            Ok(vec![12.5, 1.0, 3.0, 1.0, 6.0, 3.0])
        );
    }

    #[test]
    fn key_order_and_unknown_keys_do_not_matter() {
        let shuffled = br#"{"x": [1, {"amount": 9}], "time": "2026-01-01T06:00:00Z", "present": 1, "merchant": {"z": null, "age": 3, "category": "travel"}, "amount": 12.5, "y": "\u0000"}"#;
        assert_eq!(decode(shuffled), decode(GOOD.as_bytes()));
    }

    #[test]
    fn a_key_with_dots_is_read_as_objects_in_objects() {
        for merchant in [
            r#""merchant.category": "travel", "merchant.age": 3"#,
            r#""merchant": {"category": "travel"}, "merchant.age": 3"#,
            r#""merchant": null, "merchant.age": 3, "merchant.category": "travel""#,
        ] {
            let record = format!(
                r#"{{"amount": 12.5, {merchant}, "present": true, "time": "2026-01-01T06:00:00Z"}}"#
            );
            assert_eq!(
                decode(record.as_bytes()),
                decode(GOOD.as_bytes()),
                "{record}"
            );
        }
        let twice = GOOD.replacen("12.5,", r#"12.5, "merchant.age": 4,"#, 1);
        assert_eq!(decode(twice.as_bytes()), Err(Reason::Duplicate));
        let within = r#"{"amount": 1, "present": true, "time": "2026-01-01T06:00:00Z", "amount.x": 2, "merchant.age.x": 3, "merchant.": 4}"#;
        assert_eq!(decode(within.as_bytes()).unwrap()[0], 1.0);
    }

    #[test]
    fn json_behind_a_schema_registrys_header_or_a_byte_order_mark_is_read() {
        for frame in [
            &b"\x00\x00\x00\x00\x07"[..],
            b"\xef\xbb\xbf",
            b"\x00\x00\x00\x00\x07\xef\xbb\xbf",
        ] {
            let framed = [frame, GOOD.as_bytes()].concat();
            let expected = if frame.len() == 8 {
                Err(Reason::Malformed)
            } else {
                decode(GOOD.as_bytes())
            };
            assert_eq!(decode(&framed), expected, "{frame:?}");
        }
    }

    #[test]
    fn what_is_no_json_is_named() {
        let said = |payload: &[u8]| {
            decoder()
                .decode(payload, &mut Vec::new())
                .unwrap_err()
                .to_string()
        };
        assert!(said(&[0, 0, 0, 0, 7, 2, 8]).contains("schema registry's id 7"));
        assert!(said(b"\x1f\x8b\x08\x00").contains("gzip"));
        assert!(said(br#"[{"amount": 1}]"#).ends_with("set input.unwrap = \"list\""));
    }

    #[test]
    fn nan_matters_only_where_a_feature_reads_it() {
        let with = |from: &str, to: &str| GOOD.replacen(from, to, 1);
        let unread = format!(
            "{}, \"unread\": [NaN, {{\"x\": -Infinity}}]}}",
            &GOOD[..GOOD.len() - 1]
        );
        let bits = |row: Vec<f32>| row.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert_eq!(
            bits(decode(unread.as_bytes()).unwrap()),
            bits(decode(GOOD.as_bytes()).unwrap())
        );
        for literal in ["NaN", "Infinity", "-Infinity"] {
            let error = decoder().decode(with("12.5", literal).as_bytes(), &mut Vec::new());
            let said = error.unwrap_err().to_string();
            assert_eq!(
                said,
                format!(
                    "field `amount`: {literal} is not JSON. Let the producer write null, or set input.allow_nan = true, which reads it as missing"
                )
            );
        }
        let mut lenient = decoder().allowing_nan(true);
        let mut row = Vec::new();
        let error = lenient.decode(with("12.5", "NaN").as_bytes(), &mut row);
        assert_eq!(error.unwrap_err().reason, Reason::Missing);
        let json =
            r#"{"amount": 1, "merchant": NaN, "present": false, "time": "2026-01-01T00:00:00Z"}"#;
        lenient.decode(json.as_bytes(), &mut row).unwrap();
        assert!(row[1].is_nan() && row[2].is_nan());
        assert_eq!(decode(json.as_bytes()), Err(Reason::Malformed));
        // Without NaN beside it, a string is a string, whatever is in it.
        let text = GOOD.replacen("12.5", "1, \"x\": \"\u{e000}NaN\"", 1);
        assert!(decode(text.as_bytes()).is_ok());
    }

    #[test]
    fn absent_and_null_are_missing() {
        for record in [
            r#"{"amount": 1, "present": false, "time": "2026-01-01T00:00:00Z"}"#,
            r#"{"amount": 1, "merchant": null, "present": false, "time": "2026-01-01T00:00:00Z"}"#,
            r#"{"amount": 1, "merchant": {"age": null}, "present": false, "time": "2026-01-01T00:00:00Z"}"#,
        ] {
            let row = decode(record.as_bytes()).unwrap();
            assert!(row[1].is_nan() && row[2].is_nan(), "{record}");
            assert_ne!(row[1].to_bits(), UNSET);
        }
        assert_eq!(
            decode(br#"{"amount": null, "present": true, "time": "2026-01-01T00:00:00Z"}"#),
            Err(Reason::Missing)
        );
    }

    #[test]
    fn bad_records_are_refused_with_their_reason() {
        let with = |field: &str| GOOD.replacen("12.5", field, 1);
        let deep = format!(
            r#"{{"x": {}1{}, "amount": 1}}"#,
            "[".repeat(100_000),
            "]".repeat(100_000)
        );
        let cases: Vec<(Vec<u8>, Reason)> = vec![
            (b"not json".to_vec(), Reason::Malformed),
            (b"".to_vec(), Reason::Malformed),
            (b"[1, 2]".to_vec(), Reason::Malformed),
            (b"42".to_vec(), Reason::Malformed),
            (b" null\n".to_vec(), Reason::Malformed),
            (GOOD.as_bytes()[..40].to_vec(), Reason::Malformed),
            (format!("{GOOD} {{}}").into_bytes(), Reason::Malformed),
            (b"{\"amount\": \"\xff\"}".to_vec(), Reason::Malformed),
            (b"{\"ignored\": \"\xff\"}".to_vec(), Reason::Malformed),
            (with("NaN").into_bytes(), Reason::Malformed),
            (with("1e400").into_bytes(), Reason::Malformed),
            (with("1e39").into_bytes(), Reason::OutOfRange),
            (with("\"12.5\"").into_bytes(), Reason::WrongType),
            (with("[12.5]").into_bytes(), Reason::WrongType),
            (with("{\"a\": 1}").into_bytes(), Reason::WrongType),
            (with("1, \"amount\": 2").into_bytes(), Reason::Duplicate),
            (with("null, \"amount\": 2").into_bytes(), Reason::Duplicate),
            (deep.into_bytes(), Reason::Missing),
            (br#"{"merchant": 5}"#.to_vec(), Reason::Malformed),
        ];
        for (payload, reason) in cases {
            let shown = String::from_utf8_lossy(&payload[..payload.len().min(120)]).into_owned();
            assert_eq!(decode(&payload), Err(reason), "{shown}");
        }
    }

    proptest! {
        #[test]
        fn no_input_panics(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&payload);
        }

        #[test]
        fn no_damage_to_a_good_record_panics(at in 0..GOOD.len(), byte in any::<u8>()) {
            let mut payload = GOOD.as_bytes().to_vec();
            payload[at] = byte;
            let _ = decode(&payload);
        }

        #[test]
        fn every_float32_survives(number in any::<f32>().prop_filter("finite", |n| n.is_finite())) {
            let payload = GOOD.replacen("12.5", &format!("{number:e}"), 1);
            prop_assert_eq!(decode(payload.as_bytes()).unwrap()[0].to_bits(), number.to_bits());
        }
    }

    #[test]
    fn a_long_record_does_not_hide_the_setting_that_reads_it() {
        let features = serde_json::json!([{"name": "a", "path": "a", "type": "number"}]);
        let features: Vec<Feature> = serde_json::from_value(features).unwrap();
        let inner = serde_json::json!({"a": 1, "note": "x".repeat(2000)}).to_string();
        let payload = serde_json::to_vec(&inner).unwrap();
        let error = JsonDecoder::new(&features).decode(&payload, &mut vec![]);
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("set input.envelope = \"json-string\""),
            "{error}"
        );
    }
}
