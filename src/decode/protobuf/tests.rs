use proptest::prelude::*;
use prost_reflect::prost::Message as _;
use prost_reflect::{DynamicMessage, MessageDescriptor};
use serde_json::json;

use super::super::paths::Paths;
use super::super::{Reason, SchemaText};
use super::row::Scratch;
use super::*;
use crate::bundle::Feature;

const PAYMENT: &str = r#"
    syntax = "proto3";
    package shop;
    import "google/protobuf/timestamp.proto";
    import "google/protobuf/duration.proto";
    import "google/protobuf/wrappers.proto";
    message Payment {
        double amount = 1;
        Merchant merchant = 2;
        bool present = 3;
        google.protobuf.Timestamp time = 4;
        optional int32 count = 5;
        google.protobuf.DoubleValue limit = 6;
        google.protobuf.Duration took = 7;
        oneof source { string card = 8; Wallet wallet = 9; uint32 voucher = 10; }
        repeated sint64 history = 11;
        map<string, string> labels = 12;
        bytes raw = 13;
        sfixed32 low = 14;
        message Inner { int64 n = 1; }
    }
    message Merchant { Category category = 1; int32 age = 2; string name = 3; }
    message Wallet { int32 level = 1; }
    enum Category { UNKNOWN = 0; GROCERY = 1; TRAVEL = 2; }
"#;

fn file() -> FileDescriptor {
    let schema = SchemaText {
        text: PAYMENT.into(),
        references: Vec::new(),
    };
    parse(&schema).unwrap()
}

fn payment() -> MessageDescriptor {
    message_at(&file(), &[0]).unwrap()
}

fn features() -> Vec<Feature> {
    serde_json::from_value(json!([
        {"name": "amount", "path": "amount", "type": "number"},
        {"name": "category", "path": "merchant.category", "type": "categorical", "vocabulary": ["TRAVEL", "GROCERY", "UNKNOWN"], "missing": "impute"},
        {"name": "age", "path": "merchant.age", "type": "number", "missing": "impute"},
        {"name": "present", "path": "present", "type": "bool"},
        {"name": "hour", "path": "time", "type": "timestamp", "part": "hour_of_day", "missing": "impute"},
        {"name": "count", "path": "count", "type": "number", "missing": "impute"},
        {"name": "limit", "path": "limit", "type": "number", "missing": "impute"},
        {"name": "took", "path": "took", "type": "number", "missing": "impute"},
        {"name": "card", "path": "card", "type": "categorical", "vocabulary": ["visa"], "missing": "impute"},
        {"name": "level", "path": "wallet.level", "type": "number", "missing": "impute"},
        {"name": "low", "path": "low", "type": "number"},
        {"name": "nowhere", "path": "no.where", "type": "number", "missing": "impute"},
    ]))
    .unwrap()
}

fn rows(features: &[Feature], payload: &[u8]) -> Result<Vec<f32>, RowError> {
    let paths = Paths::new(features, None);
    let plan = ProtobufPlan::new(&payment(), &paths);
    let mut rows = Vec::new();
    let scratch = &mut Scratch::default();
    paths.append(&mut rows, |row| plan.fill(payload, &paths, row, scratch))?;
    Ok(rows)
}

fn row(payload: &[u8]) -> Result<Vec<f32>, RowError> {
    rows(&features(), payload)
}

/// Encodes a message, given in Protobuf's JSON mapping, as bytes with prost-reflect.
fn encode(json: serde_json::Value) -> Vec<u8> {
    let message = DynamicMessage::deserialize(payment(), json).unwrap();
    message.encode_to_vec()
}

fn same(row: &[f32], expected: &[f32]) {
    let bits = |row: &[f32]| row.iter().map(|n| n.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(row), bits(expected), "{row:?} {expected:?}");
}

const NO: f32 = f32::NAN;

#[test]
fn nested_fields_and_well_known_types_fill_the_row() {
    let payload = encode(json!({
        "amount": 12.5, "merchant": {"category": "TRAVEL", "age": 3}, "present": true, "time": "2026-01-01T06:00:00Z",
        "count": 7, "limit": 2.5, "took": "1.500s", "card": "visa", "low": -4, "history": [1, -2], "labels": {"a": "b"},
    }));
    let row = row(&payload).unwrap();
    same(
        &row,
        &[12.5, 0.0, 3.0, 1.0, 6.0, 7.0, 2.5, 1.5, 0.0, NO, -4.0, NO],
    );
}

#[test]
fn what_has_no_presence_has_its_default() {
    same(
        &row(&[]).unwrap(),
        &[0.0, NO, NO, 0.0, NO, NO, NO, NO, NO, NO, 0.0, NO],
    );
    let payload =
        encode(json!({"merchant": {}, "count": 0, "limit": 0.0, "took": "0s", "wallet": {}}));
    same(
        &row(&payload).unwrap(),
        &[0.0, 2.0, 0.0, 0.0, NO, 0.0, 0.0, 0.0, NO, 0.0, 0.0, NO],
    );
    // A symbol that this schema does not know is an unknown category.
    let newer = [0x12, 2, 8, 77];
    assert_eq!(row(&newer).unwrap()[1], -1.0);
}

#[test]
fn of_what_comes_twice_the_last_counts() {
    let twice = [
        encode(json!({"amount": 1.0, "merchant": {"age": 3, "category": "TRAVEL"}})),
        encode(json!({"amount": 2.0, "merchant": {"age": 4}})),
    ]
    .concat();
    let row_of = row(&twice).unwrap();
    assert_eq!(row_of[..3], [2.0, 0.0, 4.0], "messages merge");
    let oneof = [
        encode(json!({"card": "visa"})),
        encode(json!({"wallet": {"level": 5}})),
    ];
    let later = row(&oneof.concat()).unwrap();
    assert!(later[8].is_nan() && later[9] == 5.0, "{later:?}");
    let other = [oneof[1].clone(), oneof[0].clone()].concat();
    let other = row(&other).unwrap();
    assert!(other[8] == 0.0 && other[9].is_nan(), "{other:?}");
    let unwanted = [oneof.concat(), encode(json!({"voucher": 1}))].concat();
    let neither = row(&unwanted).unwrap();
    assert!(neither[8].is_nan() && neither[9].is_nan(), "{neither:?}");
}

#[test]
fn what_is_no_value_is_the_wrong_type() {
    let payload = encode(
        json!({"history": [1], "labels": {"a": "b"}, "raw": "AQ==", "merchant": {"age": 1}}),
    );
    for path in [
        "history",
        "labels",
        "labels.a",
        "raw",
        "merchant",
        "amount.below",
    ] {
        let one = json!([{"name": "f", "path": path, "type": "number"}]);
        let error = rows(
            &serde_json::from_value::<Vec<Feature>>(one).unwrap(),
            &payload,
        );
        assert_eq!(error.unwrap_err().reason, Reason::WrongType, "{path}");
    }
    let nan = encode(json!({"amount": "NaN"}));
    assert_eq!(row(&nan).unwrap_err().reason, Reason::OutOfRange);
    assert!(has(&payment(), "merchant.age") && !has(&payment(), "merchant.nowhere"));
}

#[test]
fn hostile_messages_are_refused() {
    let good = encode(json!({"amount": 12.5, "merchant": {"name": "x", "age": 3}, "card": "visa"}));
    assert!(row(&good).is_ok());
    assert!(row(&good[..good.len() - 1]).is_err());
    let groups = |count: usize| [vec![0x7b; count], vec![0x7c; count]].concat();
    assert!(row(&groups(50)).is_ok());
    for bad in [
        &[0x00][..],
        &[0x09, 1],
        &[0x08, 1],
        &[
            0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1,
        ],
        &[
            0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f,
        ],
        &[0x42, 1, 0xff],
        &[0x7b, 0x84, 1],
        &[0x7c],
        &[0x0e],
        &[0x22, 2, 0x0d, 1],
        &groups(500_000),
    ] {
        let error = row(bad).unwrap_err();
        let shown = &bad[..bad.len().min(12)];
        assert_eq!(error.reason, Reason::Malformed, "{shown:?}: {error}");
    }
    // A field that nothing reads may nest to any depth, but is refused as JSON.
    let deep = (0..1000).fold(Vec::new(), |inner: Vec<u8>, _| {
        let mut outer = vec![0x12];
        let mut length = inner.len();
        while length > 0x7f {
            outer.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        outer.push(length as u8);
        outer.extend(inner);
        outer
    });
    let _ = row(&deep);
    let _ = to_json(&payment(), &deep, 1 << 20);
}

#[test]
fn a_message_is_json_for_its_verdict() {
    let payload = encode(
        json!({"amount": 0.5, "merchant": {"category": "TRAVEL"}, "time": "2026-01-01T06:00:00Z", "history": [5]}),
    );
    let text = to_json(&payment(), &payload, 1 << 20).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["merchant"]["category"], "TRAVEL");
    assert_eq!(json["time"], "2026-01-01T06:00:00Z");
    assert_eq!(json["history"], json!([5]));
    assert_eq!(json["present"], false);
    assert_eq!(to_json(&payment(), &payload, 20), None);
    assert_eq!(to_json(&payment(), &[0xff], 1 << 20), None);
}

#[test]
fn messages_by_place_and_files_by_name() {
    let file = file();
    let name = |index: &[usize]| message_at(&file, index).map(|m| m.full_name().to_owned());
    assert_eq!(name(&[0]).unwrap(), "shop.Payment");
    assert_eq!(name(&[1]).unwrap(), "shop.Merchant");
    assert!(name(&[9]).is_err() && name(&[]).is_err() && name(&[1, 0]).is_err());

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("payment.proto");
    std::fs::write(&path, PAYMENT).unwrap();
    assert_eq!(open(&path, "shop.Payment").unwrap().fields().len(), 14);
    let problem = open(&path, "Payment").unwrap_err();
    assert!(
        problem.contains("shop.Payment, shop.Payment.Inner"),
        "{problem}"
    );
    let set = dir.path().join("payment.desc");
    let compiled = protox::compile([&path], [dir.path()]).unwrap();
    std::fs::write(
        &set,
        prost_reflect::prost::Message::encode_to_vec(&compiled),
    )
    .unwrap();
    assert_eq!(open(&set, "shop.Payment").unwrap().fields().len(), 14);
    std::fs::write(&set, "no").unwrap();
    assert!(
        open(&set, "shop.Payment")
            .unwrap_err()
            .contains("descriptor set")
    );
}

#[test]
fn references_are_imports() {
    let mut schema = SchemaText {
        text: "syntax = \"proto3\"; import \"base/money.proto\"; message P { base.Money m = 1; }"
            .into(),
        references: vec![(
            "base/money.proto".into(),
            "syntax = \"proto3\"; package base; message Money { double value = 1; }".into(),
        )],
    };
    let message = message_at(&parse(&schema).unwrap(), &[0]).unwrap();
    assert!(has(&message, "m.value"));
    schema.references.clear();
    assert!(parse(&schema).unwrap_err().contains("base/money.proto"));
    schema.text = "{\"type\": \"record\"}".into();
    assert!(
        parse(&schema)
            .unwrap_err()
            .contains("not a Protobuf schema")
    );
}

proptest! {
    #[test]
    fn no_input_panics(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = row(&payload);
        let _ = to_json(&payment(), &payload, 1 << 20);
    }

    /// prost's own writer agrees on every number, and its reader on what is a message at all.
    #[test]
    fn every_message_of_prost_is_read(amount: f32, age: i32, low: i32, name in ".*", at in 0..40_usize, byte: u8) {
        prop_assume!(amount.is_finite());
        let mut payload = encode(json!({"amount": amount, "merchant": {"age": age, "name": name}, "low": low}));
        let read = row(&payload).unwrap();
        prop_assert_eq!((read[0], read[2], read[10]), (amount, age as f32, low as f32));
        if at < payload.len() {
            payload[at] = byte;
        }
        let _ = row(&payload);
    }
}

const EVENT: &str = r#"
    syntax = "proto3";
    package shop;
    import "google/protobuf/struct.proto";
    message Event {
        map<string, double> numbers = 1;
        map<int32, Part> parts = 2;
        google.protobuf.Struct details = 3;
        google.protobuf.Value value = 4;
        map<string, google.protobuf.Value> values = 5;
        map<string, string> labels = 6;
        message Part { int32 size = 1; optional int32 weight = 2; }
    }
"#;

fn event() -> MessageDescriptor {
    let schema = SchemaText {
        text: EVENT.into(),
        references: Vec::new(),
    };
    message_at(&parse(&schema).unwrap(), &[0]).unwrap()
}

/// The same paths as for JSON objects: by key, with dots in keys, and in structs of structs.
#[test]
fn maps_and_structs_are_read_by_key() {
    let number = |name: &str, path: &str| json!({"name": name, "path": path, "type": "number", "missing": "impute"});
    let features: Vec<Feature> = serde_json::from_value(json!([
        number("a", "numbers.a"),
        number("dotted", "numbers.b.c"),
        number("size", "parts.7.size"),
        number("weight", "parts.7.weight"),
        number("deep", "details.x.y"),
        {"name": "flag", "path": "details.flag", "type": "bool", "missing": "impute"},
        {"name": "kind", "path": "values.kind", "type": "categorical", "vocabulary": ["A"], "missing": "impute"},
        number("bare", "value"),
        {"name": "label", "path": "labels.l", "type": "categorical", "vocabulary": ["", "x"], "missing": "impute"},
    ]))
    .unwrap();
    let paths = Paths::new(&features, None);
    let plan = ProtobufPlan::new(&event(), &paths);
    let row = |payload: &[u8]| {
        let mut rows = Vec::new();
        let scratch = &mut Scratch::default();
        paths
            .append(&mut rows, |row| plan.fill(payload, &paths, row, scratch))
            .map(|_| rows)
    };
    let encoded = |json: serde_json::Value| {
        let message = DynamicMessage::deserialize(event(), json).unwrap();
        message.encode_to_vec()
    };
    let full = encoded(json!({
        "numbers": {"z": 1.0, "a": 2.5, "b.c": 3.5}, "parts": {"7": {"size": 4, "weight": 0}, "8": {"size": 5}},
        "details": {"x": {"y": 6.5, "z": []}, "flag": true, "other": {"flag": 1}},
        "values": {"kind": "A"}, "value": 7.5, "labels": {"l": "x"},
    }));
    same(
        &row(&full).unwrap(),
        &[2.5, 3.5, 4.0, 0.0, 6.5, 1.0, 0.0, 7.5, 1.0],
    );
    let nothing = row(&[]).unwrap_err().to_string();
    assert!(
        nothing.starts_with("none of the fields that the schema reads is in the record"),
        "{nothing}"
    );
    // A key without a value has the default of its type. A number in a path is a key, too.
    let defaults = encoded(json!({
        "numbers": {"a": 0.0}, "parts": {"7": {}}, "details": {"x.y": 1.0, "flag": null}, "value": null, "labels": {"l": ""},
    }));
    same(
        &row(&defaults).unwrap(),
        &[0.0, NO, 0.0, NO, 1.0, NO, NO, NO, 0.0],
    );
    // Entries may leave out their default key and value.
    assert_eq!(row(b"\x32\x03\x0a\x01l").unwrap()[8], 0.0);
    let twice = [
        encoded(json!({"parts": {"7": {"size": 1, "weight": 2}}})),
        encoded(json!({"parts": {"7": {"size": 3}}})),
    ];
    let last = row(&twice.concat()).unwrap();
    assert!(
        last[2] == 3.0 && last[3].is_nan(),
        "entries do not merge: {last:?}"
    );
    for (wrong, said) in [
        (
            json!({"details": {"x": 1.0}}),
            "field `details.x.y`: expected a number, found a parent that is not an object",
        ),
        (
            json!({"details": {"x": {"y": "text"}}}),
            "expected a number, found a string",
        ),
        (
            json!({"value": []}),
            "field `value`: expected a number, found an array",
        ),
        (
            json!({"value": {"a": 1.0}}),
            "expected a number, found an object",
        ),
    ] {
        let error = row(&encoded(wrong)).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    for end in 1..full.len() {
        let _ = row(&full[..end]);
    }
    for (path, can) in [
        ("numbers.any.key", true),
        ("parts.7.size", true),
        ("details.any.thing", true),
        ("value", true),
        ("value.x", true),
        ("nowhere", false),
    ] {
        assert_eq!(has(&event(), path), can, "{path}");
        // A quoted key is the same key.
        let quoted: Vec<String> = path.split('.').map(|key| format!("{key:?}")).collect();
        assert_eq!(has(&event(), &quoted.join(".")), can, "{quoted:?}");
    }
}

#[test]
fn schema_files_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let opened = |name: &str| open(&folder.path().join(name), "m.M");
    let message = "syntax = \"proto3\"; package m; import \"sub/part.proto\"; import \"google/protobuf/timestamp.proto\"; message M { Part part = 1; google.protobuf.Timestamp at = 2; }";
    let part = "syntax = \"proto3\"; package m; message Part { double amount = 1; }";
    std::fs::create_dir(folder.path().join("sub")).unwrap();
    write("m.proto", message);
    let absent = opened("m.proto").unwrap_err();
    assert!(absent.contains("sub/part.proto' not found"), "{absent}");
    write("sub/part.proto", part);
    assert!(has(&opened("m.proto").unwrap(), "part.amount"));
    assert!(has(&opened("m.proto").unwrap(), "at.seconds"));
    // Each file is small enough, but not all of them together.
    let half = format!("{part}// {}", "x".repeat(9 << 20));
    write("sub/part.proto", &half);
    write("m.proto", &format!("{message}// {}", "x".repeat(9 << 20)));
    let error = opened("m.proto").unwrap_err();
    assert!(
        error.contains("what it imports are larger than 16 MiB, the limit"),
        "{error}"
    );
    for name in ["endless.proto", "endless.bin"] {
        std::os::unix::fs::symlink("/dev/zero", folder.path().join(name)).unwrap();
        let error = opened(name).unwrap_err();
        assert!(
            error.contains("the file is larger than 16 MiB, the limit"),
            "{error}"
        );
    }
}
