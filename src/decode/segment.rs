//! Finds the segment of a record, which is the value of a field or the message key, and maps it to an id.

use std::collections::HashMap;

use crate::bundle::segments::LONGEST_VALUE;
use crate::bundle::{SegmentBy, SegmentId, Segments};

/// Maximum number of distinct values that are learnt, so that records cannot fill the memory.
const MOST_LEARNT: usize = 100_000;

/// The source of a record's segment, and the names of the segments.
#[derive(Debug, Clone)]
pub struct SegmentReader {
    pub by: SegmentBy,
    pub names: Names,
}

/// The ids of segments by name.
#[derive(Debug, Clone)]
pub struct Names {
    numbers: HashMap<String, SegmentId>,
    most: usize,
}

impl SegmentReader {
    /// Creates a reader that knows only these segments.
    pub fn of(segments: &Segments) -> SegmentReader {
        let values = (0..).map(SegmentId).zip(&segments.values);
        let numbers: HashMap<_, _> = values.map(|(id, s)| (s.value.clone(), id)).collect();
        SegmentReader {
            by: segments.by.clone(),
            names: Names {
                most: numbers.len(),
                numbers,
            },
        }
    }

    /// Creates a reader that learns the values in the order in which they occur.
    pub fn learning(by: SegmentBy) -> SegmentReader {
        SegmentReader {
            by,
            names: Names {
                most: MOST_LEARNT,
                numbers: HashMap::new(),
            },
        }
    }
}

impl Names {
    /// Returns the id of a segment. A name that is new gets the next id, if there is room.
    pub fn number(&mut self, value: &str) -> Option<SegmentId> {
        if let Some(number) = self.numbers.get(value) {
            return Some(*number);
        }
        if self.numbers.len() >= self.most || value.len() > LONGEST_VALUE {
            return None;
        }
        let next = SegmentId(self.numbers.len() as u32);
        self.numbers.insert(value.to_owned(), next);
        Some(next)
    }

    /// Returns the names in the order of their ids.
    pub fn all(&self) -> Vec<String> {
        let mut all: Vec<_> = self.numbers.iter().collect();
        all.sort_by_key(|(_, number)| number.0);
        all.into_iter().map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use prost_reflect::prost::Message as _;
    use prost_reflect::{DescriptorPool, DynamicMessage};
    use serde_json::{Value, json};

    use super::super::{Decoder, Reason, RecordFormat, RecordType, TypeSource};
    use super::*;
    use crate::bundle::Feature;

    fn features() -> Vec<Feature> {
        let features = json!([{"name": "amount", "path": "amount", "type": "number"}]);
        serde_json::from_value(features).unwrap()
    }

    fn learning(by: SegmentBy) -> Decoder {
        Decoder::new(
            &features(),
            RecordFormat::Json,
            Some(SegmentReader::learning(by)),
        )
    }

    fn by(path: &str) -> SegmentBy {
        SegmentBy::Field(path.to_owned())
    }

    /// The names of the records' segments, in order.
    fn read(decoder: &mut Decoder, payloads: &[Vec<u8>]) -> Vec<Option<String>> {
        let mut rows = Vec::new();
        let ids: Vec<_> = payloads
            .iter()
            .map(|payload| decoder.decode(payload, None, &mut rows).unwrap())
            .collect();
        assert_eq!(rows, vec![1.0; payloads.len()], "the row has features only");
        let names = decoder.segments();
        let name = |id: Option<SegmentId>| id.map(|id| names[id.0 as usize].clone());
        ids.into_iter().map(name).collect()
    }

    #[test]
    fn a_value_has_its_text_and_what_is_no_value_has_none() {
        let records = [
            r#"{"amount": 1, "shop": {"kind": "fuel"}}"#,
            r#"{"shop": {"kind": 5411}, "amount": 1}"#,
            r#"{"amount": 1, "shop": {"kind": true}}"#,
            r#"{"amount": 1, "shop": {"kind": 5411.0}}"#,
            r#"{"amount": 1, "shop": {"kind": ""}}"#,
            r#"{"amount": 1, "shop": {"kind": null}}"#,
            r#"{"amount": 1, "shop": null}"#,
            r#"{"amount": 1, "shop": 7}"#,
            r#"{"amount": 1, "shop": -7.5}"#,
            r#"{"amount": 1, "shop": "fuel"}"#,
            r#"{"amount": 1, "shop": [{"kind": "fuel"}]}"#,
            r#"{"amount": 1, "shop": {"kind": ["fuel"]}}"#,
            r#"{"amount": 1, "shop": {"kind": {"of": "fuel"}}}"#,
            r#"{"amount": 1}"#,
        ];
        let payloads: Vec<Vec<u8>> = records.iter().map(|r| r.as_bytes().to_vec()).collect();
        let found = read(&mut learning(by("shop.kind")), &payloads);
        let mut expected: Vec<Option<String>> = ["fuel", "5411", "true", "5411", ""]
            .iter()
            .map(|text| Some((*text).to_owned()))
            .collect();
        expected.resize(records.len(), None);
        assert_eq!(found, expected);
    }

    #[test]
    fn a_segment_given_twice_is_refused_because_readers_disagree() {
        let mut rows = Vec::new();
        let twice = br#"{"amount": 1, "kind": "fuel", "kind": "cash"}"#;
        let refused = learning(by("kind")).decode(twice, None, &mut rows);
        let super::super::DecodeError::Row(error) = refused.unwrap_err() else {
            panic!("it needs no schema");
        };
        assert_eq!((error.reason, rows.len()), (Reason::Duplicate, 0));
    }

    #[test]
    fn a_field_may_be_feature_and_segment() {
        let payload = br#"{"amount": 1}"#.to_vec();
        let found = read(&mut learning(by("amount")), &[payload]);
        assert_eq!(found, [Some("1".to_owned())]);
    }

    #[test]
    fn the_key_counts_where_it_is_text() {
        let mut decoder = learning(SegmentBy::Key);
        let mut rows = Vec::new();
        let mut read = |key| decoder.decode(br#"{"amount": 1}"#, key, &mut rows).unwrap();
        assert_eq!(read(Some(b"card-1")), Some(SegmentId(0)));
        assert_eq!(read(Some(b"card-2")), Some(SegmentId(1)));
        assert_eq!(read(Some(b"card-1")), Some(SegmentId(0)));
        assert_eq!(read(None), None);
        assert_eq!(read(Some(b"\xff")), None);
    }

    #[test]
    fn what_is_learnt_is_bounded_and_what_is_known_stays_as_it_is() {
        let mut names = SegmentReader::learning(SegmentBy::Key).names;
        assert_eq!(names.number(&"x".repeat(LONGEST_VALUE + 1)), None);
        for i in 0..MOST_LEARNT + 10 {
            names.number(&i.to_string());
        }
        assert_eq!(names.all().len(), MOST_LEARNT);
        assert_eq!(names.number("7"), Some(SegmentId(7)));
        assert_eq!(names.all()[7], "7");
        names.most = 0;
        assert_eq!(names.number("new"), None);
        assert_eq!(names.all().len(), MOST_LEARNT);
    }

    const PROTO: &str = r#"syntax = "proto3"; message Pay { double amount = 1; Kind kind = 2; int64 code = 3; bool paid = 4;
        string text = 5; repeated string tags = 6; Shop shop = 7; message Shop { string kind = 1; } enum Kind { NONE = 0; FUEL = 1; } }"#;

    fn avro() -> Value {
        json!({"type": "record", "name": "Pay", "fields": [
            {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["NONE", "FUEL"]}},
            {"name": "code", "type": "long"},
            {"name": "paid", "type": "boolean"},
            {"name": "text", "type": ["null", "string"]},
            {"name": "tags", "type": {"type": "array", "items": "string"}},
            {"name": "shop", "type": {"type": "record", "name": "Shop", "fields": [{"name": "kind", "type": "string"}]}},
            {"name": "amount", "type": "double"},
        ]})
    }

    /// The same records in the three formats, with a decoder for each.
    fn formats(record: &Value) -> [(RecordFormat, Vec<u8>); 3] {
        use apache_avro::writer::datum::GenericDatumWriter;
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str, text: &str, message| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            RecordFormat::Typed(TypeSource::File(RecordType::open(&path, message).unwrap()))
        };
        let input = open("pay.avsc", &avro().to_string(), None);
        let schema = apache_avro::Schema::parse(&avro()).unwrap();
        let value = apache_avro::to_value(record).unwrap();
        let writer = GenericDatumWriter::builder(&schema).build().unwrap();
        let payload = writer
            .write_value_to_vec(value.resolve(&schema).unwrap())
            .unwrap();
        let typed = open("pay.proto", PROTO, Some("Pay"));
        let set = protox::compile([dir.path().join("pay.proto")], [dir.path()]).unwrap();
        let pool = DescriptorPool::from_file_descriptor_set(set).unwrap();
        let message = pool.get_message_by_name("Pay").unwrap();
        let message = DynamicMessage::deserialize(message, record).unwrap();
        [
            (RecordFormat::Json, record.to_string().into_bytes()),
            (input, payload),
            (typed, message.encode_to_vec()),
        ]
    }

    #[test]
    fn every_format_has_the_same_segments() {
        let record = json!({"amount": 1.0, "kind": "FUEL", "code": -5411, "paid": true, "text": "é",
            "tags": ["a", "b"], "shop": {"kind": "kiosk"}});
        for (path, expected) in [
            ("kind", Some("FUEL")),
            ("code", Some("-5411")),
            ("paid", Some("true")),
            ("text", Some("é")),
            ("shop.kind", Some("kiosk")),
            ("tags", None),
            ("tags.kind", None),
            ("code.kind", None),
            ("shop", None),
            ("nowhere", None),
        ] {
            for (input, payload) in formats(&record) {
                let shown = format!("{path} in {input:?}");
                let segment = Some(SegmentReader::learning(by(path)));
                let mut decoder = Decoder::new(&features(), input, segment);
                let found = read(&mut decoder, &[payload]);
                assert_eq!(found, [expected.map(str::to_owned)], "{shown}");
            }
        }
    }
}
