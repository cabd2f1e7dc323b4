use std::sync::Arc;

use apache_avro::Schema;
use apache_avro::types::Value as Avro;
use apache_avro::writer::datum::GenericDatumWriter;
use proptest::prelude::*;
use serde_json::json;

use super::super::paths::Paths;
use super::super::{Reason, SchemaText};
use super::*;
use crate::bundle::Feature;

fn text(schema: &serde_json::Value) -> SchemaText {
    SchemaText {
        text: schema.to_string(),
        references: Vec::new(),
    }
}

fn features(definitions: serde_json::Value) -> Vec<Feature> {
    serde_json::from_value(definitions).unwrap()
}

fn payments() -> serde_json::Value {
    json!({
        "type": "record", "name": "Payment", "namespace": "shop", "fields": [
            {"name": "id", "type": "string"},
            {"name": "amount", "type": "double"},
            {"name": "merchant", "type": ["null", {"type": "record", "name": "Merchant", "fields": [
                {"name": "category", "type": {"type": "enum", "name": "Category", "symbols": ["GROCERY", "TRAVEL"]}},
                {"name": "tags", "type": {"type": "array", "items": "string"}},
                {"name": "age", "type": ["null", "int", "double"]},
            ]}]},
            {"name": "present", "type": "boolean"},
            {"name": "time", "type": {"type": "long", "logicalType": "timestamp-millis"}},
            {"name": "extra", "type": {"type": "map", "values": "bytes"}},
        ],
    })
}

fn payment_features() -> Vec<Feature> {
    features(json!([
        {"name": "amount", "path": "amount", "type": "number"},
        {"name": "category", "path": "merchant.category", "type": "categorical", "vocabulary": ["TRAVEL", "GROCERY"], "missing": "impute"},
        {"name": "age", "path": "merchant.age", "type": "number", "missing": "impute"},
        {"name": "present", "path": "present", "type": "bool"},
        {"name": "hour", "path": "time", "type": "timestamp", "part": "hour_of_day"},
        {"name": "day", "path": "time", "type": "timestamp", "part": "day_of_week"},
    ]))
}

struct Probe {
    schema: Arc<AvroSchema>,
    paths: Paths,
    plan: AvroPlan,
}

impl Probe {
    fn new(schema: &serde_json::Value, features: &[Feature]) -> Probe {
        let schema = Arc::new(AvroSchema::parse(&text(schema)).unwrap());
        let paths = Paths::new(features, None);
        let plan = AvroPlan::new(schema.clone(), &paths);
        Probe {
            schema,
            paths,
            plan,
        }
    }

    fn row(&self, payload: &[u8]) -> Result<Vec<f32>, RowError> {
        let mut rows = Vec::new();
        let scratch = &mut String::new();
        let fill = |row: &mut [f32]| self.plan.fill(payload, &self.paths, row, scratch);
        self.paths.append(&mut rows, fill)?;
        Ok(rows)
    }

    fn json(&self, payload: &[u8]) -> serde_json::Value {
        let text = to_json(&self.schema, payload, 1 << 20).unwrap();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e} in {text}"))
    }
}

fn encode(schema: &serde_json::Value, value: Avro) -> Vec<u8> {
    let schema = Schema::parse(schema).unwrap();
    let writer = GenericDatumWriter::builder(&schema).build().unwrap();
    writer.write_value_to_vec(value).unwrap()
}

fn record(fields: Vec<(&str, Avro)>) -> Avro {
    Avro::Record(fields.into_iter().map(|(k, v)| (k.into(), v)).collect())
}

fn branch(at: u32, value: Avro) -> Avro {
    Avro::Union(at, Box::new(value))
}

fn payment(amount: f64, merchant: Avro) -> Vec<u8> {
    let extra = [("k".to_owned(), Avro::Bytes(vec![1, 2, 255]))];
    let value = record(vec![
        ("id", Avro::String("p-1".into())),
        ("amount", Avro::Double(amount)),
        ("merchant", merchant),
        ("present", Avro::Boolean(true)),
        ("time", Avro::TimestampMillis(1_767_247_200_000)),
        ("extra", Avro::Map(extra.into())),
    ]);
    encode(&payments(), value)
}

fn merchant(age: Avro) -> Avro {
    let tags = vec![Avro::String("a".into()), Avro::String("b".into())];
    branch(
        1,
        record(vec![
            ("category", Avro::Enum(1, "TRAVEL".into())),
            ("tags", Avro::Array(tags)),
            ("age", age),
        ]),
    )
}

#[test]
fn nested_fields_and_unions_fill_the_row() {
    let probe = Probe::new(&payments(), &payment_features());
    for (age, expected) in [
        (branch(1, Avro::Int(3)), 3.0),
        (branch(2, Avro::Double(2.5)), 2.5),
    ] {
        let row = probe.row(&payment(12.5, merchant(age))).unwrap();
        assert_eq!(row, [12.5, 0.0, expected, 1.0, 6.0, 3.0]);
    }
    for absent in [branch(0, Avro::Null), merchant(branch(0, Avro::Null))] {
        let row = probe.row(&payment(12.5, absent)).unwrap();
        assert!(row[2].is_nan(), "{row:?}");
    }
    let nan = probe.row(&payment(f64::NAN, branch(0, Avro::Null)));
    assert_eq!(nan.unwrap_err().reason, Reason::OutOfRange);
}

#[test]
fn a_record_is_json_for_its_verdict() {
    let probe = Probe::new(&payments(), &payment_features());
    assert_eq!(
        probe.json(&payment(0.1, merchant(branch(1, Avro::Int(3))))),
        json!({
            "id": "p-1", "amount": 0.1, "present": true, "time": "2026-01-01T06:00:00.000Z", "extra": {"k": "AQL/"},
            "merchant": {"category": "TRAVEL", "tags": ["a", "b"], "age": 3},
        })
    );
    let nan = probe.json(&payment(f64::NAN, branch(0, Avro::Null)));
    assert_eq!(nan["amount"], "NaN");
    assert_eq!(nan["merchant"], json!(null));
}

#[test]
fn logical_types() {
    let schema = json!({"type": "record", "name": "R", "fields": [
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
        {"name": "rate", "type": {"type": "fixed", "name": "F", "size": 8, "logicalType": "decimal", "precision": 18, "scale": 4}},
        {"name": "day", "type": {"type": "int", "logicalType": "date"}},
        {"name": "clock", "type": {"type": "int", "logicalType": "time-millis"}},
        {"name": "micro", "type": {"type": "long", "logicalType": "time-micros"}},
        {"name": "nanos", "type": {"type": "long", "logicalType": "timestamp-nanos"}},
        {"name": "local", "type": {"type": "long", "logicalType": "local-timestamp-micros"}},
        {"name": "uuid", "type": {"type": "fixed", "name": "U", "size": 16, "logicalType": "uuid"}},
        {"name": "span", "type": {"type": "fixed", "name": "D", "size": 12, "logicalType": "duration"}},
    ]});
    let bundle = features(json!([
        {"name": "price", "path": "price", "type": "number"},
        {"name": "rate", "path": "rate", "type": "number"},
        {"name": "weekday", "path": "day", "type": "timestamp", "part": "day_of_week"},
        {"name": "clock", "path": "clock", "type": "timestamp", "part": "hour_of_day"},
        {"name": "micro", "path": "micro", "type": "timestamp", "part": "hour_of_day"},
        {"name": "nanos", "path": "nanos", "type": "timestamp", "part": "hour_of_day"},
        {"name": "local", "path": "local", "type": "timestamp", "part": "hour_of_day"},
        {"name": "uuid", "path": "uuid", "type": "categorical", "vocabulary": ["00112233-4455-6677-8899-aabbccddeeff"]},
    ]));
    let probe = Probe::new(&schema, &bundle);
    // Bytes written by hand according to the specification.
    let mut payload = vec![4, 0xfb, 0x2e]; // -1234
    payload.extend(12_345_i64.to_be_bytes());
    let mut long = |n: i64| {
        let mut zigzag = (n << 1) ^ (n >> 63);
        while zigzag > 0x7f {
            payload.push((zigzag & 0x7f) as u8 | 0x80);
            zigzag >>= 7;
        }
        payload.push(zigzag as u8);
    };
    long(20_454); // 1 January 2026, a Thursday
    long(6 * 3_600_000);
    long(90 * 60_000_000);
    long(1_767_247_200_000_000_001);
    long(1_767_247_200_000_000);
    payload.extend([0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99]);
    payload.extend([0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]);
    payload.extend([7; 12]);
    assert_eq!(
        probe.row(&payload).unwrap(),
        [-12.34, 1.2345, 3.0, 6.0, 1.5, 6.0, 6.0, 0.0]
    );
    assert_eq!(
        probe.json(&payload),
        json!({
            "price": -12.34, "rate": 1.2345, "day": "2026-01-01", "clock": "06:00:00", "micro": "01:30:00",
            "nanos": "2026-01-01T06:00:00.000000001Z", "local": "2026-01-01T06:00:00.000000Z",
            "uuid": "00112233-4455-6677-8899-aabbccddeeff", "span": "BwcHBwcHBwcHBwcH",
        })
    );
}

#[test]
fn decimals_are_exact() {
    for (scale, unscaled, expected) in [
        (0, &[][..], "0"),
        (0, &[0xff], "-1"),
        (3, &[1], "0.001"),
        (3, &[0xff], "-0.001"),
        (2, &[0x80, 0], "-327.68"),
        (40, &[1], "1e-40"),
    ] {
        assert_eq!(decimal(scale, unscaled).as_deref(), Some(expected));
    }
    assert_eq!(decimal(2, &[1; 17]), None);
}

#[test]
fn what_is_no_value_is_the_wrong_type() {
    let schema = json!({"type": "record", "name": "R", "fields": [
        {"name": "bytes", "type": "bytes"},
        {"name": "list", "type": {"type": "array", "items": "long"}},
        {"name": "number", "type": "long"},
    ]});
    let payload = [0, 0, 2];
    for path in ["bytes", "list", "number.below"] {
        let bundle = features(json!([{"name": "f", "path": path, "type": "number"}]));
        let error = Probe::new(&schema, &bundle).row(&payload).unwrap_err();
        assert_eq!(error.reason, Reason::WrongType, "{error}");
    }
    let bundle = features(json!([{"name": "f", "path": "nowhere", "type": "number"}]));
    let error = Probe::new(&schema, &bundle).row(&payload).unwrap_err();
    assert_eq!(error.reason, Reason::Missing, "{error}");
    let parsed = AvroSchema::parse(&text(&schema)).unwrap();
    assert!(parsed.has("number") && !parsed.has("nowhere") && !parsed.has("number.below"));
    let parsed = AvroSchema::parse(&text(&payments())).unwrap();
    assert!(parsed.has("merchant.age"));
}

#[test]
fn references_bring_their_types() {
    let money = json!({"type": "record", "name": "Money", "namespace": "shop.base", "fields": [
        {"name": "value", "type": "double"}, {"name": "next", "type": ["null", "Money"]},
    ]});
    let schema = SchemaText {
        text: json!({"type": "record", "name": "Payment", "namespace": "shop", "fields": [
            {"name": "a", "type": "shop.base.Money"}, {"name": "b", "type": "shop.base.Money"},
        ]})
        .to_string(),
        references: vec![("shop.base.Money".into(), money.to_string())],
    };
    let schema = AvroSchema::parse(&schema).unwrap();
    assert!(schema.has("a.value") && schema.has("b.next.next.value"));
}

#[test]
fn hostile_records_are_refused() {
    let probe = Probe::new(&payments(), &payment_features());
    let good = payment(12.5, merchant(branch(1, Avro::Int(3))));
    for end in 0..good.len() {
        assert_eq!(
            probe.row(&good[..end]).unwrap_err().reason,
            Reason::Malformed
        );
    }
    let mut long = good.clone();
    long.push(0);
    assert!(
        probe
            .row(&long)
            .unwrap_err()
            .detail
            .contains("1 bytes follow the record")
    );

    let nulls = json!({"type": "record", "name": "R", "fields": [
        {"name": "nulls", "type": {"type": "array", "items": "null"}},
        {"name": "longs", "type": {"type": "array", "items": "long"}},
        {"name": "x", "type": "long"},
    ]});
    let bundle = features(json!([{"name": "x", "path": "x", "type": "number"}]));
    let probe = Probe::new(&nulls, &bundle);
    let many = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    // 2^61 nulls take no bytes and no time, but are refused as JSON. For the same number of longs, the payload is too short.
    let payload = [&many[..], &[0, 0, 14]].concat();
    assert_eq!(probe.row(&payload).unwrap(), [7.0]);
    assert!(to_json(&probe.schema, &payload, 1 << 20).is_err());
    let payload = [&[0][..], &many, &[2, 0, 14]].concat();
    assert_eq!(probe.row(&payload).unwrap_err().reason, Reason::Malformed);

    let list = json!({"type": "record", "name": "List", "fields": [
        {"name": "x", "type": "long"}, {"name": "next", "type": ["null", "List"]},
    ]});
    let probe = Probe::new(&list, &bundle);
    let deep = [2, 2].repeat(500_000);
    let error = probe.row(&deep).unwrap_err();
    assert!(error.detail.contains("nested deeper"), "{error}");
    assert!(to_json(&probe.schema, &deep, 1 << 20).is_err());
    let few = [[2, 2].repeat(20), vec![2, 0]].concat();
    assert_eq!(probe.row(&few).unwrap(), [1.0]);

    let endless = json!({"type": "record", "name": "E", "fields": [{"name": "e", "type": "E"}]});
    if let Ok(schema) = AvroSchema::parse(&text(&endless)) {
        let mut cursor = Cursor(&[]);
        assert!(schema.skip(schema.root, &mut cursor, 0).is_err());
    }
}

#[test]
fn a_schema_that_is_none_says_so() {
    for bad in [
        "",
        "{}",
        "{\"type\": \"record\"}",
        "\"Nowhere\"",
        "syntax = \"proto3\";",
    ] {
        let schema = SchemaText {
            text: bad.into(),
            references: Vec::new(),
        };
        let problem = AvroSchema::parse(&schema).unwrap_err();
        assert!(problem.contains("Avro schema"), "{bad}: {problem}");
    }
}

proptest! {
    #[test]
    fn no_input_panics(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
        let probe = Probe::new(&payments(), &payment_features());
        let _ = probe.row(&payload);
        let _ = to_json(&probe.schema, &payload, 1 << 20);
    }

    /// Apache's own writer agrees on every number.
    #[test]
    fn every_record_of_apache_avro_is_read(amount: f32, age: i32, text in ".*", at in 0..40_usize, byte: u8) {
        prop_assume!(amount.is_finite());
        let probe = Probe::new(&payments(), &payment_features());
        let tags = vec![Avro::String(text)];
        let merchant = record(vec![
            ("category", Avro::Enum(0, "GROCERY".into())),
            ("tags", Avro::Array(tags)),
            ("age", branch(1, Avro::Int(age))),
        ]);
        let mut payload = payment(f64::from(amount), branch(1, merchant));
        let row = probe.row(&payload).unwrap();
        prop_assert_eq!((row[0].to_bits(), row[1], row[2]), (amount.to_bits(), 1.0, age as f32));
        // Damaged bytes may be refused, but must not panic.
        if at < payload.len() {
            payload[at] = byte;
        }
        let _ = probe.row(&payload);
        let _ = to_json(&probe.schema, &payload, 1 << 20);
    }
}

/// The same paths as for JSON objects: by key, with dots in keys, and in maps of maps.
#[test]
fn maps_are_read_by_key() {
    let schema = json!({"type": "record", "name": "Event", "fields": [
        {"name": "attributes", "type": {"type": "map", "values": ["null", "double", "string"]}},
        {"name": "nested", "type": ["null", {"type": "map", "values": {"type": "map", "values": "int"}}]},
        {"name": "after", "type": "long"},
    ]});
    let features = features(json!([
        {"name": "size", "path": "attributes.http.size", "type": "number", "missing": "impute"},
        {"name": "method", "path": "attributes.method", "type": "categorical", "vocabulary": ["GET"], "missing": "impute"},
        {"name": "deep", "path": "nested.a.b", "type": "number", "missing": "impute"},
        {"name": "after", "path": "after", "type": "number"},
    ]));
    let probe = Probe::new(&schema, &features);
    let value = |attributes: Vec<(&str, Avro)>, nested: Vec<(&str, Vec<(&str, i32)>)>| {
        let map = |entries: Vec<(&str, Avro)>| {
            let entries = entries.into_iter().map(|(k, v)| (k.to_owned(), v));
            Avro::Map(entries.collect())
        };
        let inner = |entries: Vec<(&str, i32)>| {
            let entries = entries
                .into_iter()
                .map(|(k, v)| (k.to_owned(), Avro::Int(v)));
            Avro::Map(entries.collect())
        };
        let nested = nested.into_iter().map(|(k, v)| (k, inner(v))).collect();
        let attributes = attributes.into_iter();
        encode(
            &schema,
            record(vec![
                ("attributes", map(attributes.collect())),
                ("nested", branch(1, map(nested))),
                ("after", Avro::Long(9)),
            ]),
        )
    };
    let full = value(
        vec![
            ("http.size", branch(1, Avro::Double(1.5))),
            ("other", branch(2, Avro::String("x".into()))),
            ("method", branch(2, Avro::String("GET".into()))),
        ],
        vec![("z", vec![("b", 1)]), ("a", vec![("c", 2), ("b", 3)])],
    );
    assert_eq!(probe.row(&full), Ok(vec![1.5, 0.0, 3.0, 9.0]));
    let null = value(vec![("http.size", branch(0, Avro::Null))], vec![]);
    let row = probe.row(&null).unwrap();
    assert!(
        row[..3].iter().all(|v| v.is_nan()) && row[3] == 9.0,
        "{row:?}"
    );
    let wrong = value(
        vec![("http.size", branch(2, Avro::String("x".into())))],
        vec![],
    );
    assert_eq!(probe.row(&wrong).unwrap_err().reason, Reason::WrongType);

    // A key that occurs twice: the last value counts. Blocks may state their size.
    let bytes = b"\x03\x30\x0cmethod\x04\x06PUT\x0cmethod\x04\x06GET\x00\x00\x12";
    assert_eq!(probe.row(bytes).unwrap()[1], 0.0);
    for end in 0..bytes.len() {
        assert!(probe.row(&bytes[..end]).is_err());
    }

    let parsed = AvroSchema::parse(&text(&schema)).unwrap();
    for (path, can) in [
        ("attributes.anything", true),
        ("attributes.any.thing", true),
        ("nested.a.b", true),
        ("after", true),
        ("after.x", false),
        ("nowhere", false),
    ] {
        assert_eq!(parsed.has(path), can, "{path}");
    }
}
