use serde_json::{Value, json};

use super::super::{Decoder, RecordFormat};
use super::*;
use crate::bundle::Feature;

fn wrapping(unwrap: Unwrap, envelopes: &[Envelope]) -> Wrapping {
    Wrapping {
        unwrap,
        envelopes: envelopes.to_vec(),
        allow_nan: false,
        most_records: 100,
    }
}

fn open(envelopes: &[Envelope], message: &Value) -> Result<Value, RowError> {
    let message = message.to_string();
    match wrapping(Unwrap::No, envelopes).open(message.as_bytes())? {
        Content::Record(json) => Ok(serde_json::from_str(&json).unwrap()),
        Content::Nothing(skip) => Ok(json!({"skip": skip.as_str()})),
    }
}

fn opened(envelope: Envelope, message: &Value) -> Value {
    open(&[envelope], message).unwrap()
}

fn refused(envelope: Envelope, message: &Value) -> String {
    open(&[envelope], message).unwrap_err().to_string()
}

fn field(name: &str, kind: &str, logical: &str) -> Value {
    json!({"field": name, "type": kind, "name": logical, "optional": true, "version": 1})
}

/// A row with a decimal of every kind and a time of every kind, as Kafka Connect and Debezium write it, and what it means.
fn row() -> (Value, Value, Value) {
    let decimal = json!({
        "field": "amount", "type": "bytes", "name": "org.apache.kafka.connect.data.Decimal",
        "parameters": {"scale": "2", "connect.decimal.precision": "10"}, "optional": false, "version": 1,
    });
    let mut wide = decimal.clone();
    wide["field"] = "wide".into();
    wide["parameters"]["scale"] = "0".into();
    let mut negative = decimal.clone();
    negative["field"] = "negative".into();
    let connect = "org.apache.kafka.connect.data";
    let debezium = "io.debezium.time";
    let fields = json!([
        {"field": "id", "type": "int32", "optional": false},
        decimal,
        negative,
        wide,
        field("any_scale", "struct", "io.debezium.data.VariableScaleDecimal"),
        field("at", "int64", &format!("{connect}.Timestamp")),
        field("on", "int32", &format!("{connect}.Date")),
        field("daily", "int32", &format!("{connect}.Time")),
        field("ms", "int64", &format!("{debezium}.Timestamp")),
        field("us", "int64", &format!("{debezium}.MicroTimestamp")),
        field("ns", "int64", &format!("{debezium}.NanoTimestamp")),
        field("day", "int32", &format!("{debezium}.Date")),
        field("clock_us", "int64", &format!("{debezium}.MicroTime")),
        field("clock_ns", "int64", &format!("{debezium}.NanoTime")),
        field("zoned", "string", &format!("{debezium}.ZonedTimestamp")),
        field("zoned_clock", "string", &format!("{debezium}.ZonedTime")),
        field("never", "int64", &format!("{debezium}.MicroTimestamp")),
        field("absent", "int64", &format!("{debezium}.MicroTimestamp")),
        {"field": "lines", "type": "array", "optional": true, "items": {
            "type": "struct", "optional": false, "fields": [field("shipped", "int32", &format!("{debezium}.Date"))],
        }},
        {"field": "prices", "type": "map", "optional": true, "keys": {"type": "string"}, "values": {
            "type": "bytes", "name": format!("{connect}.Decimal"), "parameters": {"scale": "1"},
        }},
    ]);
    // 12345 is 0x3039, and -5 is 0xfb. 2^128 takes 17 bytes.
    let row = json!({
        "id": 1004, "amount": "MDk=", "negative": "+w==", "wide": "AQAAAAAAAAAAAAAAAAAAAAA=",
        "any_scale": {"scale": 3, "value": "MDk="},
        "at": 1_767_225_600_123_i64, "on": 20454, "daily": 36_900_000, "ms": 1_767_225_600_000_i64,
        "us": 1_767_225_600_000_001_i64, "ns": 1_767_225_600_000_000_001_i64, "day": 20454,
        "clock_us": 36_900_000_001_i64, "clock_ns": 36_900_000_000_000_i64, "zoned": "2026-01-01T00:00:00Z",
        "zoned_clock": "10:15:00+02:00", "never": 9_223_372_036_825_200_000_i64, "absent": null,
        "lines": [{"shipped": 0}, {"shipped": null}], "prices": {"eur": "Dw==", "usd": null},
    });
    let plain = json!({
        "id": 1004, "amount": 123.45, "negative": -0.05, "wide": 3.402_823_669_209_385e38, "any_scale": 12.345,
        "at": "2026-01-01T00:00:00.123Z", "on": "2026-01-01T00:00:00Z", "daily": "1970-01-01T10:15:00Z",
        "ms": "2026-01-01T00:00:00Z", "us": "2026-01-01T00:00:00.000001Z", "ns": "2026-01-01T00:00:00.000000001Z",
        "day": "2026-01-01T00:00:00Z", "clock_us": "1970-01-01T10:15:00.000001Z", "clock_ns": "1970-01-01T10:15:00Z",
        "zoned": "2026-01-01T00:00:00Z", "zoned_clock": "1970-01-01T10:15:00+02:00",
        // Postgres' infinity is beyond the calendar.
        "never": 9_223_372_036_825_200_000_i64, "absent": null,
        "lines": [{"shipped": "1970-01-01T00:00:00Z"}, {"shipped": null}], "prices": {"eur": 1.5, "usd": null},
    });
    (fields, row, plain)
}

#[test]
fn connect_says_in_its_schema_what_numbers_mean() {
    let (fields, row, plain) = row();
    let schema =
        json!({"type": "struct", "fields": fields, "optional": false, "name": "shop.Payment"});
    let message = json!({"schema": schema, "payload": row});
    assert_eq!(opened(Envelope::Connect, &message), plain);
    let bare = json!({"schema": null, "payload": {"amount": 1.5}});
    assert_eq!(opened(Envelope::Connect, &bare), json!({"amount": 1.5}));
    // decimal.format = NUMERIC
    let numeric = json!({
        "schema": {"type": "struct", "fields": [
            {"field": "a", "type": "bytes", "name": "org.apache.kafka.connect.data.Decimal", "parameters": {"scale": "2"}},
        ]},
        "payload": {"a": 1.25},
    });
    assert_eq!(opened(Envelope::Connect, &numeric), json!({"a": 1.25}));
    let tombstone = json!({"schema": null, "payload": null});
    assert_eq!(
        opened(Envelope::Connect, &tombstone),
        json!({"skip": "tombstone"})
    );
    assert_eq!(
        refused(Envelope::Connect, &json!({"amount": 1, "card": "x"})),
        "input.envelope = \"connect\" expects an object with `schema` and `payload`, found an object with the keys `amount`, `card`"
    );
    assert!(refused(Envelope::Connect, &json!([1])).contains("found a list"));
    let bad = json!({
        "schema": {"type": "struct", "fields": [
            {"field": "a", "type": "bytes", "name": "org.apache.kafka.connect.data.Decimal", "parameters": {"scale": "2"}},
        ]},
        "payload": {"a": "%"},
    });
    assert!(refused(Envelope::Connect, &bad).contains("a decimal is not in base64"));
}

#[test]
fn debezium_gives_the_state_after_the_change() {
    let (fields, row, plain) = row();
    let schema = json!({"type": "struct", "fields": [
        {"field": "before", "type": "struct", "optional": true, "fields": fields},
        {"field": "after", "type": "struct", "optional": true, "fields": fields},
        {"field": "op", "type": "string", "optional": false},
    ]});
    let event = |before: Value, after: Value, op: &str| json!({"before": before, "after": after, "op": op, "ts_ms": 1, "source": {"table": "payments"}});
    let wrapped = json!({"schema": schema, "payload": event(json!({"id": 1}), row.clone(), "u")});
    assert_eq!(opened(Envelope::Debezium, &wrapped), plain);
    // Without a schema, nothing says that a string is a decimal.
    for op in ["c", "u", "r"] {
        let bare = event(Value::Null, row.clone(), op);
        assert_eq!(opened(Envelope::Debezium, &bare), row);
    }
    for (op, skip) in [("d", "delete"), ("t", "truncate"), ("m", "log_message")] {
        let event = event(row.clone(), Value::Null, op);
        assert_eq!(opened(Envelope::Debezium, &event), json!({"skip": skip}));
        let wrapped = json!({"schema": null, "payload": event});
        assert_eq!(opened(Envelope::Debezium, &wrapped), json!({"skip": skip}));
    }
    let tombstone = json!({"schema": null, "payload": null});
    assert_eq!(
        opened(Envelope::Debezium, &tombstone),
        json!({"skip": "tombstone"})
    );
    let large = event(
        Value::Null,
        json!({"a": "__debezium_unavailable_value", "b": 1}),
        "u",
    );
    assert_eq!(
        opened(Envelope::Debezium, &large),
        json!({"a": null, "b": 1})
    );
    // The connector for MongoDB.
    let document =
        r#"{"_id": {"$oid": "57e193d7a9cc81b4027498b5"}, "amount": {"$numberDecimal": "12.50"}}"#;
    assert_eq!(
        opened(
            Envelope::Debezium,
            &event(Value::Null, document.into(), "c")
        ),
        json!({"_id": "57e193d7a9cc81b4027498b5", "amount": 12.50})
    );
    let partial = event(Value::Null, Value::Null, "u");
    assert!(refused(Envelope::Debezium, &partial).contains("change_streams_update_full"));
    assert!(
        refused(Envelope::Debezium, &event(Value::Null, row, "x"))
            .contains("expected c, u, r, d, t or m")
    );
    let plain = refused(Envelope::Debezium, &json!({"amount": 1}));
    assert!(
        plain.contains("expects a change event")
            && plain.contains("found an object with the keys `amount`"),
        "{plain}"
    );
}

#[test]
fn a_decimal_without_a_schema_says_what_to_set() {
    let features = json!([{"name": "amount", "path": "amount", "type": "number"}]);
    let features: Vec<Feature> = serde_json::from_value(features).unwrap();
    let format = RecordFormat::Wrapped(wrapping(Unwrap::No, &[Envelope::Debezium]));
    let mut decoder = Decoder::new(&features, format, None);
    let mut said = |event: Value| {
        let decoded = decoder.decode(event.to_string().as_bytes(), None, &mut Vec::new());
        decoded.unwrap_err().to_string()
    };
    let event = json!({"before": null, "after": {"amount": "MDk="}, "op": "c"});
    let bare = said(event.clone());
    assert!(
        bare.starts_with("field `amount`: expected a number, found a string. If it is a decimal"),
        "{bare}"
    );
    assert!(
        bare.contains("value.converter.schemas.enable = true"),
        "{bare}"
    );
    let wrapped = said(json!({"schema": {"fields": []}, "payload": event}));
    assert_eq!(wrapped, "field `amount`: expected a number, found a string");
}

#[test]
fn cloudevents_have_their_record_in_data() {
    let event = |extra: Value| {
        let mut event =
            json!({"specversion": "1.0", "id": "1", "source": "/till", "type": "payment"});
        event
            .as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        event
    };
    let data = json!({"amount": 1.5});
    assert_eq!(
        opened(Envelope::CloudEvents, &event(json!({"data": data}))),
        data
    );
    let base64 = event(json!({"data_base64": "eyJhbW91bnQiOiAxLjV9"}));
    assert_eq!(opened(Envelope::CloudEvents, &base64), data);
    let inner = event(json!({"data": {"before": null, "after": data}}));
    let both = [Envelope::CloudEvents, Envelope::Debezium];
    assert_eq!(open(&both, &inner).unwrap(), data);
    let deleted = event(json!({"data": {"before": data, "after": null}}));
    assert_eq!(open(&both, &deleted).unwrap(), json!({"skip": "delete"}));
    let text = event(json!({"data": "{\"amount\": 1.5}"}));
    let chain = [Envelope::CloudEvents, Envelope::JsonString];
    assert_eq!(open(&chain, &text).unwrap(), data);
    assert!(
        refused(Envelope::CloudEvents, &event(json!({})))
            .contains("neither `data` nor `data_base64`")
    );
    assert!(
        refused(Envelope::CloudEvents, &event(json!({"data_base64": "%"}))).contains("not base64")
    );
    assert!(
        refused(Envelope::CloudEvents, &json!({"data": 1}))
            .contains("with `specversion` and `data`")
    );
    let batch = json!([
        event(json!({"data": {"a": 1}})),
        event(json!({"data": {"a": 2}}))
    ])
    .to_string();
    let cloud_events = wrapping(Unwrap::No, &[Envelope::CloudEvents]);
    let Split::Many(alone) = cloud_events.split(batch.as_bytes()).unwrap() else {
        panic!("a batch has several records");
    };
    let records = alone.iter().map(|one| cloud_events.open(one).unwrap());
    let expected = [r#"{"a":1}"#, r#"{"a":2}"#].map(|json| Content::record(json.to_owned()));
    assert_eq!(records.collect::<Vec<_>>(), expected);
}

#[test]
fn extended_json_becomes_plain() {
    let document = json!({
        "_id": {"$oid": "57e193d7a9cc81b4027498b5"},
        "int": {"$numberInt": "42"}, "long": {"$numberLong": "-9007199254740993"}, "v1": {"$numberLong": 5},
        "double": {"$numberDouble": "1.5"}, "whole": {"$numberDouble": "1.0"},
        "decimal": {"$numberDecimal": "12.50"}, "large": {"$numberDecimal": "1E+3"},
        "relaxed": {"$date": "2026-01-01T00:00:00.123Z"}, "canonical": {"$date": {"$numberLong": "1767225600123"}},
        "milliseconds": {"$date": 1_767_225_600_123_i64}, "offset": {"$date": "2026-01-01T02:00:00+02:00"},
        "binary": {"$binary": {"base64": "AQI=", "subType": "00"}}, "old_binary": {"$binary": "AQI=", "$type": "00"},
        "uuid": {"$uuid": "3b241101-e2bb-4255-8caf-4136c566a962"}, "timestamp": {"$timestamp": {"t": 1_767_225_600, "i": 1}},
        "symbol": {"$symbol": "x"}, "undefined": {"$undefined": true},
        "nested": {"list": [{"$numberInt": "1"}, {"a": {"$numberInt": "2"}}]}, "plain": 7,
        "other": {"$minKey": 1}, "reference": {"$ref": "c", "$id": 1},
    });
    assert_eq!(
        opened(Envelope::Mongo, &document),
        json!({
            "_id": "57e193d7a9cc81b4027498b5", "int": 42, "long": -9_007_199_254_740_993_i64, "v1": 5, "double": 1.5,
            "whole": 1.0, "decimal": 12.50, "large": 1000.0, "relaxed": "2026-01-01T00:00:00.123Z",
            "canonical": "2026-01-01T00:00:00.123Z", "milliseconds": "2026-01-01T00:00:00.123Z",
            "offset": "2026-01-01T00:00:00Z", "binary": "AQI=", "old_binary": "AQI=",
            "uuid": "3b241101-e2bb-4255-8caf-4136c566a962", "timestamp": "2026-01-01T00:00:00Z", "symbol": "x",
            "undefined": null, "nested": {"list": [1, {"a": 2}]}, "plain": 7, "other": {"$minKey": 1},
            "reference": {"$ref": "c", "$id": 1},
        })
    );
    // Kafka Connect writes the document as a string.
    let text = Value::from(r#"{"a": {"$numberInt": "1"}}"#);
    assert_eq!(opened(Envelope::Mongo, &text), json!({"a": 1}));
    for (bad, said) in [
        (json!({"a": {"$numberInt": "1.5"}}), "is not a $numberInt"),
        (
            json!({"a": {"$numberDouble": "x"}}),
            "is not a $numberDouble",
        ),
        (json!({"a": {"$date": "yesterday"}}), "is not a $date"),
        (json!([1]), "found a list"),
    ] {
        assert!(refused(Envelope::Mongo, &bad).contains(said), "{said}");
    }
}

#[test]
fn mongos_change_streams_have_the_full_document() {
    let event = |operation: &str, full: Value| {
        json!({
            "_id": {"_data": "82"}, "operationType": operation, "ns": {"db": "shop", "coll": "payments"},
            "documentKey": {"_id": 1}, "fullDocument": full,
        })
    };
    let document = json!({"amount": {"$numberDouble": "1.5"}});
    for operation in ["insert", "update", "replace"] {
        let event = event(operation, document.clone());
        assert_eq!(opened(Envelope::Mongo, &event), json!({"amount": 1.5}));
    }
    for (operation, skip) in [
        ("delete", "delete"),
        ("drop", "truncate"),
        ("invalidate", "log_message"),
    ] {
        let event = event(operation, Value::Null);
        assert_eq!(opened(Envelope::Mongo, &event), json!({"skip": skip}));
    }
    let partial = refused(Envelope::Mongo, &event("update", Value::Null));
    assert!(partial.contains("updateLookup"), "{partial}");
}

#[test]
fn avros_unions_name_their_branch() {
    let record = json!({
        "amount": {"double": 1.5}, "count": {"long": 3}, "city": {"string": "Bonn"}, "absent": null, "ok": {"boolean": true},
        "merchant": {"shop.Merchant": {"age": {"int": 7}, "tags": {"array": [{"string": "a"}, null]}}},
        "attributes": {"map": {"x": {"float": 0.5}}}, "color": {"shop.Color": "RED"}, "nan": {"double": "NaN"},
        "at": {"long.timestamp-millis": 5}, "plain": {"age": 7}, "string": 4, "two": {"double": 1.5, "x": 1},
    });
    assert_eq!(
        opened(Envelope::AvroJson, &record),
        json!({
            "amount": 1.5, "count": 3, "city": "Bonn", "absent": null, "ok": true,
            "merchant": {"age": 7, "tags": ["a", null]}, "attributes": {"x": 0.5}, "color": "RED", "nan": "NaN",
            "at": 5, "plain": {"age": 7}, "string": 4, "two": {"double": 1.5, "x": 1},
        })
    );
    assert!(refused(Envelope::AvroJson, &json!("x")).contains("found a string"));
}

#[test]
fn json_in_a_string_is_read() {
    let text = Value::from(r#"{"amount": 1.5}"#);
    assert_eq!(opened(Envelope::JsonString, &text), json!({"amount": 1.5}));
    assert!(
        refused(Envelope::JsonString, &json!({"a": 1}))
            .contains("found an object with the keys `a`")
    );
}

#[test]
fn nan_in_an_envelope_stays_one() {
    let message = br#"{"schema": null, "payload": {"a": NaN, "b": "NaN"}}"#;
    let Content::Record(json) = wrapping(Unwrap::No, &[Envelope::Connect])
        .open(message)
        .unwrap()
    else {
        panic!("there is a record");
    };
    assert_eq!(nan::unmarked(&json), r#"{"a": NaN, "b": "NaN"}"#);
    let document = r#"{"a": {"$numberDouble": "-Infinity"}}"#;
    let Content::Record(json) = mongo::open(document).unwrap() else {
        panic!("there is a record");
    };
    assert_eq!(nan::unmarked(&json), r#"{"a":-Infinity}"#);
}

fn split(unwrap: Unwrap, message: &str) -> Result<Vec<String>, RowError> {
    let wrapping = wrapping(unwrap, &[]);
    match wrapping.split(message.as_bytes())? {
        Split::Many(alone) => {
            let alone = alone.into_iter().map(|one| String::from_utf8(one).unwrap());
            Ok(alone.collect())
        }
        Split::Empty => Ok(Vec::new()),
        Split::One => panic!("input.unwrap is set"),
    }
}

#[test]
fn a_message_of_records_is_divided_into_messages_of_the_same_shape() {
    let at = |path: &str| Unwrap::At(path.to_owned());
    for (unwrap, message, expected, record) in [
        (
            Unwrap::List,
            r#" [{"a": 1}, NaN, "x"] "#,
            vec![r#"[{"a": 1}]"#, "[NaN]", r#"["x"]"#],
            r#"{"a": 1}"#,
        ),
        (Unwrap::List, "[]", vec![], ""),
        (
            Unwrap::Lines,
            "{\"a\": 1}\r\n\n{\"a\": 2}\n",
            vec![r#"{"a": 1}"#, r#"{"a": 2}"#],
            r#"{"a": 1}"#,
        ),
        (
            at("records"),
            r#"{"x": 1, "records": [{"a": 1}, 2]}"#,
            vec![r#"{"records":[{"a": 1}]}"#, r#"{"records":[2]}"#],
            r#"{"a": 1}"#,
        ),
        (
            at("a.b"),
            r#"{"a": {"b": [1]}}"#,
            vec![r#"{"a":{"b":[1]}}"#],
            "1",
        ),
        (
            at("a.b"),
            r#"{"a.b": [1]}"#,
            vec![r#"{"a":{"b":[1]}}"#],
            "1",
        ),
    ] {
        let alone = split(unwrap.clone(), message).unwrap();
        assert_eq!(alone, expected);
        // Each is a message of one record, in the same shape.
        for one in &alone {
            assert_eq!(
                split(unwrap.clone(), one).unwrap(),
                std::slice::from_ref(one)
            );
        }
        if let Some(first) = alone.first() {
            let opened = wrapping(unwrap, &[]).open(first.as_bytes()).unwrap();
            assert_eq!(opened, Content::Record(record.into()));
        }
    }
    for (unwrap, message, said) in [
        (
            Unwrap::List,
            r#"{"a": 1}"#,
            "input.unwrap = \"list\" expects a list of records, found an object with the keys `a`",
        ),
        (
            at("records"),
            r#"{"value": []}"#,
            "expects an object with a list at `records`, found an object with the keys `value`",
        ),
        (
            at("records"),
            r#"{"records": {}}"#,
            "found an empty object there",
        ),
        (at("records"), "[1]", "found a list"),
        (Unwrap::List, "[1, 2", "not a JSON list"),
        (Unwrap::List, "[1] x", "not a JSON list"),
        (
            at("records"),
            r#"{"records": [], "records": []}"#,
            "given twice",
        ),
    ] {
        let error = split(unwrap, message).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    let many = format!("[{}]", ["1"; 101].join(","));
    let error = split(Unwrap::List, &many).unwrap_err();
    assert_eq!(error.reason, Reason::TooLarge);
    assert!(
        error
            .to_string()
            .contains("101 records, but input.max_unwrapped is 100"),
        "{error}"
    );
}

/// Returns the records of a message, each taken out of a message of its own.
fn records(wrapping: &Wrapping, message: &Value) -> Result<Vec<Value>, RowError> {
    let Split::Many(alone) = wrapping.split(message.to_string().as_bytes())? else {
        return Ok(Vec::new());
    };
    let mut records = Vec::new();
    for one in &alone {
        // A message of one record is divided into itself, so that a dead letter can be replayed.
        let again = wrapping.split(one)?;
        assert_eq!(again, Split::Many(vec![one.clone()]));
        match wrapping.open(one)? {
            Content::Record(json) => records.push(serde_json::from_str(&json).unwrap()),
            Content::Nothing(skip) => records.push(json!({"skip": skip.as_str()})),
        }
    }
    Ok(records)
}

#[test]
fn a_list_inside_of_an_envelope_is_divided() {
    let at = |path: &str| Unwrap::At(path.to_owned());
    let (fields, row, plain) = row();
    let item = json!({"type": "struct", "fields": fields});
    let list = json!({"type": "array", "items": item});
    let connect = wrapping(at("payload"), &[Envelope::Connect]);
    let message = json!({"schema": list, "payload": [row, row, null]});
    // The schema holds for each record: it says what the numbers mean.
    assert_eq!(
        records(&connect, &message).unwrap(),
        [plain.clone(), plain.clone(), Value::Null]
    );
    let nested = json!({"type": "struct", "fields": [
        {"field": "body", "type": "struct", "fields": [{"field": "events", "type": "array", "items": item}]},
    ]});
    let nested = json!({"schema": nested, "payload": {"body": {"events": [row]}}});
    let deeper = wrapping(at("payload.body.events"), &[Envelope::Connect]);
    assert_eq!(
        records(&deeper, &nested).unwrap(),
        std::slice::from_ref(&plain)
    );
    let dotted =
        json!({"type": "struct", "fields": [{"field": "a.b", "type": "array", "items": item}]});
    let dotted = json!({"schema": dotted, "payload": {"a.b": [row]}});
    let at_dots = wrapping(at("payload.a.b"), &[Envelope::Connect]);
    assert_eq!(records(&at_dots, &dotted).unwrap(), [plain]);
    let bare = json!({"schema": null, "payload": [{"a": 1}]});
    assert_eq!(records(&connect, &bare).unwrap(), [json!({"a": 1})]);
    let empty = json!({"schema": null, "payload": []}).to_string();
    assert_eq!(connect.split(empty.as_bytes()).unwrap(), Split::Empty);

    let event = |data: Value| json!({"specversion": "1.0", "id": "1", "data": data});
    let change = |after: Value| json!({"before": {"a": 0}, "after": after});
    let data = wrapping(at("data"), &[Envelope::CloudEvents]);
    let two = event(json!([{"a": 1}, {"a": 2}]));
    assert_eq!(
        records(&data, &two).unwrap(),
        [json!({"a": 1}), json!({"a": 2})]
    );
    let changes = wrapping(at("data"), &[Envelope::CloudEvents, Envelope::Debezium]);
    let two = event(json!([change(json!({"a": 1})), change(Value::Null)]));
    assert_eq!(
        records(&changes, &two).unwrap(),
        [json!({"a": 1}), json!({"skip": "delete"})]
    );
    // A list of envelopes at a path with the same name.
    let list = json!({"data": [event(json!({"a": 1}))]});
    assert_eq!(records(&data, &list).unwrap(), [json!({"a": 1})]);

    for (envelope, message, said) in [
        (
            Envelope::Connect,
            &message,
            "`payload` in the envelope is a list of records: set input.unwrap = \"payload\"",
        ),
        (
            Envelope::CloudEvents,
            &event(json!([1])),
            "`data` in the envelope is a list of records: set input.unwrap = \"data\"",
        ),
        (
            Envelope::JsonString,
            &json!("[1]"),
            "has a list inside of it, which no setting reads",
        ),
        (
            Envelope::CloudEvents,
            &json!([event(json!([1]))]),
            "has a list inside of it, which no setting reads",
        ),
    ] {
        assert!(refused(envelope, message).contains(said), "{message}");
    }
    let large = json!({"schema": {"name": "x".repeat(1 << 20)}, "payload": vec![1; 40]});
    let error = records(&connect, &large).unwrap_err();
    assert_eq!(error.reason, Reason::TooLarge);
    assert!(error.to_string().contains("would take 40 MiB"), "{error}");
}

#[test]
fn an_envelope_in_an_envelope_names_both() {
    let features = json!([{"name": "amount", "path": "amount", "type": "number"}]);
    let features: Vec<Feature> = serde_json::from_value(features).unwrap();
    let change = json!({"before": null, "after": {"amount": 1}, "op": "c"});
    let said = |wrapping: Wrapping, message: &Value| {
        let mut decoder = Decoder::new(&features, RecordFormat::Wrapped(wrapping), None);
        let decoded = decoder.decode(message.to_string().as_bytes(), None, &mut Vec::new());
        decoded.unwrap_err().to_string()
    };
    let event = json!({"specversion": "1.0", "data": change});
    let inside = said(wrapping(Unwrap::No, &[Envelope::CloudEvents]), &event);
    assert!(
        inside.ends_with("; inside of the envelope it looks like a change event of Debezium: set input.envelope = [\"cloudevents\", \"debezium\"]"),
        "{inside}"
    );
    let listed = said(wrapping(Unwrap::List, &[]), &json!([change]));
    assert!(
        listed.ends_with(
            "; it looks like a change event of Debezium: set input.envelope = \"debezium\""
        ),
        "{listed}"
    );
}

#[test]
fn what_looks_like_an_envelope_names_its_setting() {
    for (message, setting) in [
        (
            r#"{"schema": {}, "payload": {"amount": 1}}"#,
            "input.envelope = \"connect\"",
        ),
        (
            r#"{"schema": {}, "payload": {"before": null, "after": {}, "op": "c"}}"#,
            "input.envelope = \"debezium\"",
        ),
        (
            r#"{"before": null, "after": {}, "op": "c"}"#,
            "input.envelope = \"debezium\"",
        ),
        (
            r#"{"specversion": "1.0", "data": {}}"#,
            "input.envelope = \"cloudevents\"",
        ),
        (
            r#"[{"specversion": "1.0", "data": {}}]"#,
            "input.envelope = \"cloudevents\"",
        ),
        (
            r#"{"_id": {"$oid": "x"}, "amount": 1}"#,
            "input.envelope = \"mongo\"",
        ),
        (
            r#"{"operationType": "insert", "fullDocument": {}}"#,
            "input.envelope = \"mongo\"",
        ),
        (
            r#"{"amount": {"double": 1.5}}"#,
            "input.envelope = \"avro-json\"",
        ),
        (r#""{\"amount\": 1}""#, "input.envelope = \"json-string\""),
        (r#" [{"amount": 1}]"#, "input.unwrap = \"list\""),
        (
            "{\"amount\": 1}\n{\"amount\": 2}",
            "input.unwrap = \"lines\"",
        ),
        (
            r#"{"records": [{"amount": NaN}], "n": 1}"#,
            "input.unwrap = \"records\"",
        ),
        (
            r#"{"body": {"events": [{"amount": 1}], "n": 1}, "id": {"a": 1}}"#,
            "input.unwrap = \"body.events\"",
        ),
        (r#"{"list": [{"amount": 1}]}"#, "input.unwrap = \"$.list\""),
        (
            r#"{"schema": {}, "payload": [{"amount": 1}]}"#,
            "set input.envelope = \"connect\" and input.unwrap = \"payload\"",
        ),
        (
            r#"{"schema": {}, "payload": {"records": [{"amount": 1}]}}"#,
            "set input.envelope = \"connect\" and input.unwrap = \"payload.records\"",
        ),
        // The lines of an order are part of the record.
        (
            r#"{"schema": {}, "payload": {"lines": [{"sku": 1}], "amount": 1}}"#,
            "input.envelope = \"connect\"",
        ),
        (
            r#"{"specversion": "1.0", "data": [{"amount": 1}]}"#,
            "set input.envelope = \"cloudevents\" and input.unwrap = \"data\"",
        ),
        (
            r#"{"specversion": "1.0", "data": {"before": null, "after": {"a": 1}}}"#,
            "around a change event of Debezium: set input.envelope = [\"cloudevents\", \"debezium\"]",
        ),
        (
            r#"[{"specversion": "1.0", "data": {"schema": {}, "payload": {"before": null, "after": {}}}}]"#,
            "set input.envelope = [\"cloudevents\", \"debezium\"]",
        ),
        (
            r#"[{"before": null, "after": {}, "op": "c"}]"#,
            "each a change event of Debezium: set input.envelope = \"debezium\" and input.unwrap = \"list\"",
        ),
        (
            r#""{\"specversion\": \"1.0\", \"data\": {}}""#,
            "set input.envelope = [\"json-string\", \"cloudevents\"]",
        ),
    ] {
        let likeness = likeness(message.as_bytes()).unwrap_or_default();
        assert!(likeness.ends_with(setting), "{message}: {likeness}");
    }
    for message in [
        "",
        "{}",
        "[1]",
        "[]",
        "\"x\"",
        r#"{"amount": 1}"#,
        r#"{"a": {"b": 1}}"#,
        r#"{"tags": ["a"]}"#,
        r#"{"a": [{"b": 1}], "c": [{"b": 1}]}"#,
        r#"{"a": {"b": {"c": {"d": {"e": [{"f": 1}]}}}}}"#,
        "not json",
    ] {
        assert_eq!(likeness(message.as_bytes()), None, "{message}");
    }
}

#[test]
fn deep_and_long_records_are_bounded() {
    let deep = format!("{}1{}", "{\"a\":".repeat(100_000), "}".repeat(100_000));
    for envelope in [Envelope::Mongo, Envelope::AvroJson] {
        let error = envelope.open(deep.as_str().into()).unwrap_err();
        assert!(
            error.to_string().contains("deeper than 64 levels"),
            "{error}"
        );
    }
    let unions = format!("{}1{}", "{\"map\":".repeat(100_000), "}".repeat(100_000));
    assert!(Envelope::AvroJson.open(unions.into()).is_err());
    let bare = format!(r#"{{"schema": null, "payload": {deep}}}"#);
    assert!(Envelope::Connect.open(bare.into()).is_ok());
}

proptest::proptest! {
    #[test]
    fn no_message_panics(text in "[\\[\\]{}\":,$a1 \\n-]{0,60}") {
        for (_, envelope) in Envelope::NAMES {
            let _ = envelope.open(text.as_str().into());
        }
        for unwrap in [Unwrap::List, Unwrap::Lines, Unwrap::At("a".to_owned())] {
            let wrapping = wrapping(unwrap, &[]);
            if let Ok(Split::Many(alone)) = wrapping.split(text.as_bytes()) {
                for one in alone {
                    assert!(matches!(wrapping.open(&one), Ok(Content::Record(_))));
                }
            }
        }
        for (_, envelope) in Envelope::NAMES {
            let _ = wrapping(Unwrap::At("data".to_owned()), &[envelope]).split(text.as_bytes());
        }
        let _ = likeness(text.as_bytes());
    }
}
