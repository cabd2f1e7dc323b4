use base64::prelude::BASE64_STANDARD;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::super::schemas::{Format, Header};
use super::super::{has, message_at, to_json};
use super::*;

/// Schemas and records of Confluent's serialiser for Python: tests/schemas/confluent/make.py.
fn confluent() -> Value {
    let made = include_str!("../../../../tests/schemas/confluent/registered.json");
    serde_json::from_str(made).unwrap()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// Returns a schema with all of its references.
fn fetched(made: &Value, schema: &Value) -> SchemaText {
    let mut references = Vec::new();
    for reference in schema["references"].as_array().unwrap() {
        let subject = format!("{}/{}", text(&reference["subject"]), reference["version"]);
        let referred = fetched(made, &made["subjects"][&subject]);
        references.push((text(&reference["name"]), referred.text));
        references.extend(referred.references);
    }
    SchemaText {
        text: text(&schema["schema"]),
        references,
    }
}

/// Converts a .proto file to what such a serialiser registers.
fn compiled(name: &str, source: &str) -> String {
    let file = File::from_source(name, source).unwrap();
    BASE64_STANDARD.encode(file.file_descriptor_proto().encode_to_vec())
}

fn schema(text: String, references: &[(&str, String)]) -> SchemaText {
    let references = references.iter().map(|(n, t)| ((*n).to_owned(), t.clone()));
    SchemaText {
        text,
        references: references.collect(),
    }
}

#[test]
fn what_confluents_serialiser_registers_reads_what_it_sends() {
    let made = confluent();
    let orders = made["orders"].as_array().unwrap().iter();
    let read: Vec<(String, Value)> = orders
        .map(|order| {
            let payload = BASE64_STANDARD.decode(text(order)).unwrap();
            let header = Header::read(Format::Protobuf, &payload).unwrap();
            let registered = &made["schemas"][header.id.to_string()];
            let file = parse(&fetched(&made, registered)).unwrap();
            let message = message_at(&file, &header.message).unwrap();
            let json = to_json(&message, header.record, 1 << 16).unwrap();
            let name = message.full_name().to_owned();
            (name, serde_json::from_str(&json).unwrap())
        })
        .collect();
    let line = json!({
        "article": "tea",
        "price": {"value": 3.75, "currency": "PLN"},
        "discount": {"percent": 12.5},
        "weight": {"value": "ASw=", "precision": 3, "scale": 1},
        "picked": "2026-03-09T06:00:00Z",
    });
    assert_eq!(
        read,
        [
            ("shop.orders.Order.Line".to_owned(), line),
            (
                "shop.orders.Order.Line.Discount".to_owned(),
                json!({"percent": 12.5})
            ),
        ]
    );
}

#[test]
fn a_schema_and_its_references_may_be_text_or_compiled() {
    let main = "syntax = \"proto3\"; import \"base/money.proto\"; message P { base.Money m = 1; }";
    let money = "syntax = \"proto3\"; package base; message Money { double value = 1; }";
    // The name that it was compiled with differs from the one that imports use.
    let compiled_money = || compiled("money.proto", money);
    let unpadded = compiled("p.proto", main).trim_end_matches('=').to_owned();
    let wrapped: String = compiled_money()
        .as_bytes()
        .chunks(20)
        .map(|line| format!("{}\r\n", std::str::from_utf8(line).unwrap()))
        .collect();
    for (main, money) in [
        (main.to_owned(), compiled_money()),
        (compiled("p.proto", main), money.to_owned()),
        (compiled("p.proto", main), compiled_money()),
        (unpadded, wrapped),
    ] {
        let file = parse(&schema(main, &[("base/money.proto", money)])).unwrap();
        assert!(has(&message_at(&file, &[0]).unwrap(), "m.value"));
    }
}

#[test]
fn a_compiled_file_keeps_its_presence_and_its_defaults() {
    let two = "syntax = \"proto2\"; message P { optional int32 n = 1 [default = 7]; }";
    let three = "syntax = \"proto3\"; message P { optional int32 n = 1; int32 m = 2; }";
    let of = |source: &str| {
        let file = parse(&schema(compiled("p.proto", source), &[])).unwrap();
        message_at(&file, &[0]).unwrap()
    };
    assert!(of(two).get_field(1).unwrap().supports_presence());
    assert!(of(three).get_field(1).unwrap().supports_presence());
    assert!(!of(three).get_field(2).unwrap().supports_presence());
}

#[test]
fn files_that_no_reference_brings_are_known() {
    let main = r#"
        syntax = "proto3";
        import "confluent/meta.proto";
        import "confluent/types/decimal.proto";
        import "confluent/type/variant.proto";
        import "google/type/calendar_period.proto";
        import "google/type/color.proto";
        import "google/type/date.proto";
        import "google/type/datetime.proto";
        import "google/type/dayofweek.proto";
        import "google/type/decimal.proto";
        import "google/type/expr.proto";
        import "google/type/fraction.proto";
        import "google/type/interval.proto";
        import "google/type/latlng.proto";
        import "google/type/localized_text.proto";
        import "google/type/money.proto";
        import "google/type/month.proto";
        import "google/type/phone_number.proto";
        import "google/type/postal_address.proto";
        import "google/type/quaternion.proto";
        import "google/type/timeofday.proto";
        message P {
            google.type.Money money = 1 [(confluent.field_meta) = { doc: "paid" }];
            google.type.DayOfWeek day = 2;
            confluent.type.Decimal decimal = 3;
        }"#;
    for text in [main.to_owned(), compiled("p.proto", main)] {
        let file = parse(&schema(text, &[])).unwrap();
        assert!(has(&message_at(&file, &[0]).unwrap(), "money.units"));
    }
    let own = "syntax = \"proto3\"; package google.type; message Money { string text = 1; }";
    let main = "syntax = \"proto3\"; import \"google/type/money.proto\"; message P { google.type.Money m = 1; }";
    let references = [("google/type/money.proto", own.to_owned())];
    let file = parse(&schema(main.into(), &references)).unwrap();
    assert!(
        has(&message_at(&file, &[0]).unwrap(), "m.text"),
        "a reference wins"
    );
}

#[test]
fn what_is_neither_is_refused_with_the_file_and_the_reason() {
    let main = "syntax = \"proto3\"; import \"base/money.proto\"; message P { base.Money m = 1; }";
    let broken = |money: &str| {
        let references = [("base/money.proto", money.to_owned())];
        parse(&schema(compiled("p.proto", main), &references)).unwrap_err()
    };
    let file = FileDescriptorProto {
        syntax: Some("editions".into()),
        ..FileDescriptorProto::default()
    };
    let edition = BASE64_STANDARD.encode(file.encode_to_vec());
    let nested = format!("message M {{ {}", "message M { ".repeat(200_000));
    for (money, said) in [
        (
            "AAAAA",
            "`base/money.proto` is neither a .proto file nor base64",
        ),
        (
            "bm9uc2Vuc2U=",
            "`base/money.proto` is base64, but not a FileDescriptorProto",
        ),
        (
            "syntax = \"proto3\"; message Money { base.Gone g = 1; }",
            "Gone",
        ),
        (&edition, "`base/money.proto` has the syntax \"editions\""),
        (&nested, "recursion limit for nested messages"),
    ] {
        let problem = broken(money);
        assert!(problem.starts_with("not a Protobuf schema: "), "{problem}");
        assert!(problem.contains(said), "{said}\nnot in\n{problem}");
    }
    let alone = parse(&schema(compiled("p.proto", main), &[])).unwrap_err();
    assert!(alone.contains("base/money.proto"), "{alone}");
}

/// Found by the test below: with a dot instead of a letter, a message cannot be found by its own name.
#[test]
fn a_compiled_file_whose_messages_are_not_found_is_refused() {
    let made = confluent();
    let schemas: Vec<&Value> = made["schemas"].as_object().unwrap().values().collect();
    let mut schema = fetched(&made, schemas[1]);
    let mut bytes = BASE64_STANDARD.decode(&schema.text).unwrap();
    let length = bytes.len();
    bytes[1685 % length] = 46;
    bytes.truncate(111);
    schema.text = BASE64_STANDARD.encode(&bytes);
    let refused = parse(&schema).unwrap_err();
    assert!(refused.contains("the compiler panicked"), "{refused}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// A registered schema cannot end the daemon, whatever its content.
    #[test]
    fn no_compiled_file_panics(at in 0..4096_usize, byte: u8, cut in 0..8192_usize, which in 0..4_usize) {
        let made = confluent();
        let schemas: Vec<&Value> = made["schemas"].as_object().unwrap().values().collect();
        let mut schema = fetched(&made, schemas[which]);
        let mut bytes = BASE64_STANDARD.decode(&schema.text).unwrap();
        let length = bytes.len();
        bytes[at % length] = byte;
        bytes.truncate(cut.max(1));
        schema.text = BASE64_STANDARD.encode(&bytes);
        if let Ok(file) = parse(&schema) {
            let _ = message_at(&file, &[0]).map(|message| has(&message, "lines.price"));
        }
    }
}
