//! Records in envelopes and in lists, end to end: the same scores as without them, one outcome each, and nothing skipped unsaid.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::Write;

use crate::common::formats::{AVRO, avro};
use crate::common::kafka::{Note, produce, read_all};
use crate::common::process::Daemon;
use crate::common::registry::SchemaRegistry;
use crate::common::topics::Topics;
use crate::common::{parse, sample, score_of, wait_for};
use apache_avro::Schema;
use apache_avro::rabin::Rabin;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use flate2::Compression;
use flate2::write::ZlibEncoder;
use residuald::kafka::embedded::EmbeddedBroker;
use serde_json::{Value, json};

/// Puts a payment into an envelope.
type Wrap<'w> = &'w dyn Fn(&Value) -> Value;

const RECORDS: usize = 60;
const WITH_SCORES: &str = "output.scores_topic=scores";

fn broker() -> EmbeddedBroker {
    EmbeddedBroker::start(&[("in", 1), ("anomalies", 1), ("scores", 1), ("dead", 1)]).unwrap()
}

fn note(message: impl Into<Vec<u8>>) -> Note {
    Note::new("key", message)
}

fn skipped(daemon: &Daemon, reason: &str) -> f64 {
    daemon.metric(&format!(
        "residuald_records_skipped_total{{reason=\"{reason}\"}}"
    ))
}

/// The verdicts of these messages, by offset and index.
fn judged(messages: &[Vec<u8>], scored: usize, settings: &[&str]) -> BTreeMap<(i64, i64), Value> {
    let broker = broker();
    let notes: Vec<Note> = messages.iter().map(|m| note(m.clone())).collect();
    produce(&broker.brokers, "in", &notes);
    let settings = [&[WITH_SCORES], settings].concat();
    let daemon = Daemon::ready(&broker.brokers, &settings);
    daemon.await_count("scored", scored as u64);
    daemon.is_balanced();
    daemon.drains();
    assert_eq!(read_all(&broker.brokers, "dead"), []);
    by_place(read_all(&broker.brokers, "scores").iter().map(Note::json))
}

fn by_place(verdicts: impl Iterator<Item = Value>) -> BTreeMap<(i64, i64), Value> {
    let placed = verdicts.map(|verdict| {
        let source = &verdict["source"];
        let index = source["index"].as_i64().unwrap_or(-1);
        ((source["offset"].as_i64().unwrap(), index), verdict)
    });
    placed.collect()
}

fn scores(verdicts: &BTreeMap<(i64, i64), Value>) -> Vec<u32> {
    verdicts.values().map(|v| score_of(v).to_bits()).collect()
}

fn instant(record: &Value) -> jiff::Timestamp {
    record["time"].as_str().unwrap().parse().unwrap()
}

/// A decimal of two places, as Kafka Connect writes it with the scale 2.
fn decimal(number: &Value) -> String {
    let cents = (number.as_f64().unwrap() * 100.0).round() as i64;
    BASE64_STANDARD.encode(cents.to_be_bytes())
}

/// The row of a table with a payment in it, and its schema: the amount is a decimal, and the time a number of microseconds.
fn row(payment: &Value) -> (Value, Value) {
    let mut row = payment.clone();
    row["amount"] = decimal(&payment["amount"]).into();
    row["time"] = instant(payment).as_microsecond().into();
    let schema = json!({"type": "struct", "fields": [
        {"field": "amount", "type": "bytes", "name": "org.apache.kafka.connect.data.Decimal", "parameters": {"scale": "2"}},
        {"field": "time", "type": "int64", "name": "io.debezium.time.MicroTimestamp"},
    ]});
    (row, schema)
}

/// Every number as extended JSON writes it, and the time as a date.
fn extended(value: &Value) -> Value {
    match value {
        Value::Number(n) if n.is_f64() => json!({"$numberDouble": n.to_string()}),
        Value::Number(n) => json!({"$numberLong": n.to_string()}),
        Value::Object(fields) => fields
            .iter()
            .map(|(key, value)| match key.as_str() {
                "time" => (key.clone(), json!({"$date": value})),
                _ => (key.clone(), extended(value)),
            })
            .collect(),
        other => other.clone(),
    }
}

/// Every value as a branch of a union.
fn unions(value: &Value) -> Value {
    match value {
        Value::Number(n) if n.is_f64() => json!({"double": n}),
        Value::Number(n) => json!({"long": n}),
        Value::String(text) => json!({"string": text}),
        Value::Bool(truth) => json!({"boolean": truth}),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(k, v)| (k.clone(), unions(v)));
            json!({"shop.Part": fields.collect::<serde_json::Map<_, _>>()})
        }
        other => other.clone(),
    }
}

#[test]
fn every_envelope_gives_the_same_scores() {
    let payments: Vec<Value> = sample(RECORDS)
        .iter()
        .map(|p| parse(p.as_bytes()))
        .collect();
    let messages = |wrap: &dyn Fn(&Value) -> Value| -> Vec<Vec<u8>> {
        let wrapped = payments.iter().map(|p| wrap(p).to_string().into_bytes());
        wrapped.collect()
    };
    let plain = judged(&messages(&Value::clone), RECORDS, &[]);
    assert_eq!(plain.len(), RECORDS);
    let change =
        |row: Value| json!({"before": {"amount": "AA=="}, "after": row, "op": "u", "ts_ms": 1});
    let cloud_event = |data: Value| json!({"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": data});
    let top = |payment: &Value| {
        let union = unions(payment);
        union["shop.Part"].clone()
    };
    let wrappers: [(&str, Wrap<'_>); 10] = [
        ("connect", &|p| {
            let (row, schema) = row(p);
            json!({"schema": schema, "payload": row})
        }),
        ("debezium", &|p| {
            let (row, mut schema) = row(p);
            schema["field"] = "after".into();
            let schema = json!({"type": "struct", "fields": [schema]});
            json!({"schema": schema, "payload": change(row)})
        }),
        ("debezium", &|p| change(p.clone())),
        ("debezium", &|p| change(extended(p).to_string().into())),
        ("cloudevents", &|p| cloud_event(p.clone())),
        ("cloudevents", &|p| {
            let mut event = cloud_event(Value::Null);
            event.as_object_mut().unwrap().remove("data");
            event["data_base64"] = BASE64_STANDARD.encode(p.to_string()).into();
            event
        }),
        ("mongo", &extended),
        ("json-string", &|p| p.to_string().into()),
        ("avro-json", &top),
        ("cloudevents,debezium", &|p| {
            cloud_event(json!({"before": null, "after": p}))
        }),
    ];
    for (envelope, wrap) in wrappers {
        let setting = format!("input.envelope={envelope}");
        let got = judged(&messages(wrap), RECORDS, &[&setting]);
        assert_eq!(scores(&got), scores(&plain), "{envelope}");
        for (at, verdict) in got {
            let (record, expected) = (&verdict["record"], &plain[&at]["record"]);
            assert_eq!(
                record["amount"].as_f64(),
                expected["amount"].as_f64(),
                "{envelope}"
            );
            assert_eq!(instant(record), instant(expected), "{envelope}");
            assert_eq!(verdict["id"], plain[&at]["id"], "{envelope}");
        }
    }
}

#[test]
fn lists_and_lines_give_the_same_scores_with_an_index() {
    let payments = sample(RECORDS);
    let plain: Vec<Vec<u8>> = payments.iter().map(|p| p.clone().into_bytes()).collect();
    let plain = judged(&plain, RECORDS, &[]);
    let list = |some: &[String]| format!("[{}]", some.join(", "));
    let chunks = |wrap: &dyn Fn(&[String]) -> String| -> Vec<Vec<u8>> {
        payments
            .chunks(7)
            .map(|some| wrap(some).into_bytes())
            .collect()
    };
    for (setting, messages) in [
        ("list", chunks(&list)),
        (
            "records",
            chunks(&|some| format!("{{\"time\": 1, \"records\": {}}}", list(some))),
        ),
        (
            "$.a.b",
            chunks(&|some| format!("{{\"a\": {{\"b\": {}}}}}", list(some))),
        ),
        ("lines", chunks(&|some| some.join("\n") + "\n")),
    ] {
        let got = judged(&messages, RECORDS, &[&format!("input.unwrap={setting}")]);
        assert_eq!(scores(&got), scores(&plain), "{setting}");
        for (i, ((offset, index), verdict)) in got.iter().enumerate() {
            assert_eq!((*offset, *index), (i as i64 / 7, i as i64 % 7), "{setting}");
            let id = verdict["id"].as_str().unwrap();
            assert!(id.starts_with(&format!("in-0-{offset}#{index}@")), "{id}");
            assert_eq!(verdict["record"], parse(payments[i].as_bytes()));
        }
    }
    let batch = chunks(&|some| {
        let events = some
            .iter()
            .map(|p| format!("{{\"specversion\": \"1.0\", \"data\": {p}}}"));
        list(&events.collect::<Vec<_>>())
    });
    let got = judged(&batch, RECORDS, &["input.envelope=cloudevents"]);
    assert_eq!(scores(&got), scores(&plain));
    // A list inside of the envelope. Connect's schema says what the numbers of each record mean.
    let connect = chunks(&|some| {
        let rows: Vec<(Value, Value)> = some.iter().map(|p| row(&parse(p.as_bytes()))).collect();
        let schema = json!({"type": "array", "items": rows[0].1});
        let rows: Vec<&Value> = rows.iter().map(|(row, _)| row).collect();
        json!({"schema": schema, "payload": rows}).to_string()
    });
    let event = chunks(&|some| format!("{{\"specversion\": \"1.0\", \"data\": {}}}", list(some)));
    for (envelope, unwrap, messages) in [
        ("connect", "payload", connect),
        ("cloudevents", "data", event),
    ] {
        let settings = [
            format!("input.envelope={envelope}"),
            format!("input.unwrap={unwrap}"),
        ];
        let got = judged(&messages, RECORDS, &settings.each_ref().map(String::as_str));
        assert_eq!(scores(&got), scores(&plain), "{envelope}");
    }
}

/// With a schema file: maps by key, the headers of other registries, and Debezium's events.
#[test]
fn avro_in_maps_events_and_behind_other_headers_gives_the_same_scores() {
    let payments = sample(RECORDS);
    let schema = Schema::parse_str(AVRO).unwrap();
    let bare: Vec<Vec<u8>> = payments.iter().map(|p| avro(&schema, p)).collect();
    let each = |wrap: &dyn Fn(&[u8]) -> Vec<u8>| bare.iter().map(|p| wrap(p)).collect::<Vec<_>>();
    let zlib = |record: &[u8]| {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(record).unwrap();
        encoder.finish().unwrap()
    };
    let fingerprint = schema.fingerprint::<Rabin>().bytes;
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, schema: &Value| {
        let path = dir.path().join(name);
        std::fs::write(&path, schema.to_string()).unwrap();
        format!("input.schema_file={}", path.display())
    };
    let payment = "input.schema_file=tests/schemas/payment.avsc".to_owned();
    let mut in_map = parse(AVRO.as_bytes());
    for field in in_map["fields"].as_array_mut().unwrap() {
        if field["name"] == "merchant" {
            field["type"] = json!({"type": "map", "values": ["null", "double", "string"]});
        }
    }
    let map_schema = Schema::parse(&in_map).unwrap();
    let events = json!({"type": "record", "name": "Envelope", "namespace": "shop.db", "fields": [
        {"name": "before", "type": ["null", parse(AVRO.as_bytes())]},
        {"name": "after", "type": ["null", "shop.Payment"]},
        {"name": "op", "type": "string"},
    ]});
    let expected = judged(&bare, RECORDS, &["input.format=avro", &payment]);
    for (what, messages, file) in [
        (
            "Glue",
            each(&|p| [&[3, 0][..], &[7; 16], p].concat()),
            &payment,
        ),
        (
            "Glue, compressed",
            each(&|p| [&[3, 5][..], &[7; 16], &zlib(p)].concat()),
            &payment,
        ),
        (
            "Apicurio",
            each(&|p| [&[0, 0, 0, 0, 0, 0, 0, 0, 9], p].concat()),
            &payment,
        ),
        (
            "single object",
            each(&|p| [&[0xc3, 1], &fingerprint[..], p].concat()),
            &payment,
        ),
        (
            "map",
            payments.iter().map(|p| avro(&map_schema, p)).collect(),
            &file("map.avsc", &in_map),
        ),
    ] {
        let got = judged(&messages, RECORDS, &["input.format=avro", file]);
        assert_eq!(scores(&got), scores(&expected), "{what}");
        for (at, verdict) in got {
            assert_eq!(
                verdict["record"]["amount"], expected[&at]["record"]["amount"],
                "{what}"
            );
        }
    }
    let event = |before: Option<&[u8]>, after: Option<&[u8]>, op: u8| {
        let side = |record: Option<&[u8]>| record.map_or(vec![0], |r| [&[2], r].concat());
        [side(before), side(after), vec![2, op]].concat()
    };
    let mut changes = each(&|p| event(Some(&bare[0]), Some(p), b'u'));
    changes.push(event(Some(&bare[0]), None, b'd'));
    let events = file("events.avsc", &events);
    let settings = ["input.format=avro", "input.envelope=debezium", &events];
    let got = judged(&changes, RECORDS, &settings);
    assert_eq!(scores(&got), scores(&expected));
    for (at, verdict) in got {
        assert_eq!(verdict["record"], expected[&at]["record"]);
    }
}

#[test]
fn another_header_without_a_schema_file_names_it() {
    let broker = broker();
    let schema = Schema::parse_str(AVRO).unwrap();
    let record = avro(&schema, &sample(1)[0]);
    let messages = [
        (
            [&[3, 0][..], &[7; 16], &record].concat(),
            "AWS Glue's schema registry: set input.schema_file",
        ),
        (
            [&[0xc3, 1][..], &[9; 8], &record].concat(),
            "single-object encoding with the schema of fingerprint 0909090909090909: set input.schema_file",
        ),
        (
            [&[0, 0, 0, 0, 0, 0, 0, 0, 9][..], &record].concat(),
            "Apicurio's header with the global id 9",
        ),
        (
            sample(1)[0].clone().into_bytes(),
            "set input.format = \"json\"",
        ),
    ];
    let notes: Vec<Note> = messages.iter().map(|(m, _)| note(m.clone())).collect();
    produce(&broker.brokers, "in", &notes);
    let registry = SchemaRegistry::start();
    let settings = ["input.format=avro", &registry.setting()];
    let daemon = Daemon::ready(&broker.brokers, &settings);
    daemon.await_count("dead_letters", notes.len() as u64);
    daemon.is_balanced();
    daemon.drains();
    let letters = read_all(&broker.brokers, "dead");
    for (letter, (_, said)) in letters.iter().zip(&messages) {
        let why = letter.header("__connect.errors.exception.message").unwrap();
        assert!(why.contains(said), "{why}");
    }
}

#[test]
fn what_has_nothing_to_score_is_counted_by_its_reason() {
    let broker = broker();
    let payment = sample(1).remove(0);
    let event = |op: &str, after: &str| {
        format!("{{\"before\": null, \"after\": {after}, \"op\": \"{op}\"}}")
    };
    let mut notes: Vec<Note> = [
        event("c", &payment),
        event("d", "null"),
        event("d", "null"),
        event("t", "null"),
        event("m", "null"),
        "{\"schema\": null, \"payload\": null}".to_owned(),
        event("u", "null"),
        payment,
    ]
    .map(note)
    .to_vec();
    notes.push(Note {
        payload: None,
        ..note("")
    });
    produce(&broker.brokers, "in", &notes);
    let daemon = Daemon::ready(&broker.brokers, &["input.envelope=debezium"]);
    daemon.await_count("consumed", notes.len() as u64);
    daemon.is_balanced();
    for (reason, count) in [
        ("tombstone", 2.0),
        ("delete", 2.0),
        ("truncate", 1.0),
        ("log_message", 1.0),
        ("empty_list", 0.0),
    ] {
        assert_eq!(skipped(&daemon, reason), count, "{reason}");
    }
    assert_eq!(
        (daemon.count("scored"), daemon.count("dead_letters")),
        (1, 2)
    );
    daemon.drains();
    let letters = read_all(&broker.brokers, "dead");
    let why: Vec<&str> = letters
        .iter()
        .map(|letter| letter.header("__connect.errors.exception.message").unwrap())
        .collect();
    assert!(why[0].contains("`after` is absent or null"), "{}", why[0]);
    assert!(
        why[1].contains("input.envelope = \"debezium\" expects a change event"),
        "{}",
        why[1]
    );
}

#[test]
fn a_record_in_an_envelope_names_the_setting_that_reads_it() {
    let broker = broker();
    let payment = sample(1).remove(0);
    let messages = [
        (
            format!("{{\"schema\": null, \"payload\": {payment}}}"),
            "input.envelope = \"connect\"",
        ),
        (
            format!("{{\"before\": null, \"after\": {payment}, \"op\": \"c\"}}"),
            "input.envelope = \"debezium\"",
        ),
        (
            format!("{{\"specversion\": \"1.0\", \"data\": {payment}}}"),
            "input.envelope = \"cloudevents\"",
        ),
        (
            extended(&parse(payment.as_bytes())).to_string(),
            "input.envelope = \"mongo\"",
        ),
        (
            Value::from(payment.as_str()).to_string(),
            "input.envelope = \"json-string\"",
        ),
        (
            unions(&parse(payment.as_bytes()))["shop.Part"].to_string(),
            "input.envelope = \"avro-json\"",
        ),
        (format!("[{payment}]"), "input.unwrap = \"list\""),
        (
            format!("{{\"records\": [{payment}]}}"),
            "input.unwrap = \"records\"",
        ),
        (format!("{payment}\n{payment}"), "input.unwrap = \"lines\""),
        (
            format!("{{\"body\": {{\"events\": [{payment}]}}}}"),
            "input.unwrap = \"body.events\"",
        ),
        (
            format!(
                "{{\"specversion\": \"1.0\", \"data\": {{\"before\": null, \"after\": {payment}}}}}"
            ),
            "input.envelope = [\"cloudevents\", \"debezium\"]",
        ),
    ];
    let notes: Vec<Note> = messages.iter().map(|(m, _)| note(m.as_str())).collect();
    produce(&broker.brokers, "in", &notes);
    let daemon = Daemon::ready(&broker.brokers, &[]);
    daemon.await_count("dead_letters", notes.len() as u64);
    daemon.is_balanced();
    daemon.drains();
    let letters = read_all(&broker.brokers, "dead");
    for (letter, (message, setting)) in letters.iter().zip(&messages) {
        let why = letter.header("__connect.errors.exception.message").unwrap();
        assert!(why.ends_with(setting), "{message}: {why}");
    }
    assert_eq!(letters.len(), messages.len());
}

#[test]
fn nan_matters_only_where_it_is_read() {
    let broker = broker();
    let good = sample(1).remove(0);
    let with = |from: &str, to: &str| note(good.replacen(from, to, 1));
    let notes = [
        with("\"label\":0", "\"label\":NaN"),
        with("\"speed_kmh\":0.7", "\"speed_kmh\":-Infinity"),
        with("\"amount\":120.0", "\"amount\":NaN"),
    ];
    produce(&broker.brokers, "in", &notes);
    let run = |settings: &[&str], group: &str| {
        let group = format!("kafka.group_id={group}");
        let settings = [settings, &[WITH_SCORES, &group]].concat();
        let daemon = Daemon::ready(&broker.brokers, &settings);
        daemon.await_count("consumed", 3);
        daemon.is_balanced();
        let counts = (daemon.count("scored"), daemon.count("dead_letters"));
        daemon.drains();
        counts
    };
    assert_eq!(run(&[], "strict"), (1, 2));
    let letters = read_all(&broker.brokers, "dead");
    for (letter, field) in letters.iter().zip(["speed_kmh", "amount"]) {
        let why = letter.header("__connect.errors.exception.message").unwrap();
        assert!(why.starts_with(&format!("field `{field}`: ")), "{why}");
        assert!(why.contains("set input.allow_nan = true"), "{why}");
        let class = letter.header("__connect.errors.exception.class.name");
        assert_eq!(class, Some("residuald.decode.malformed"));
    }
    let strict = read_all(&broker.brokers, "scores");
    let verdict = strict[0].json();
    let mut record = parse(good.as_bytes());
    record["label"] = Value::Null;
    assert_eq!(verdict["record"], record);

    // `amount` must not be missing.
    assert_eq!(run(&["input.allow_nan=true"], "lenient"), (2, 1));
    let letters = read_all(&broker.brokers, "dead");
    let why = letters[2]
        .header("__connect.errors.exception.message")
        .unwrap();
    assert!(why.contains("field `amount` is absent or null"), "{why}");
    let all = read_all(&broker.brokers, "scores");
    assert_eq!(all.len(), 3);
    assert_eq!(score_of(&all[1].json()), score_of(&verdict));
    assert_eq!(
        all[2].json()["feature_imputed"].as_array().unwrap().last(),
        Some(&"device_new".into())
    );
    assert!(
        all[2].json()["feature_imputed"]
            .as_array()
            .unwrap()
            .contains(&"speed_kmh".into())
    );
}

/// Messages of seven payments, one of them bad; an empty list; a list that is too long; one that is no list.
fn mixed() -> (Vec<Note>, usize) {
    let payments = sample(210);
    let mut notes = Vec::new();
    let mut scored = 0;
    for (i, some) in payments.chunks(7).enumerate() {
        let mut some = some.to_vec();
        scored += some.len();
        if i % 10 == 3 {
            some[4] = some[4].replacen("\"amount\":", "\"amuont\":", 1);
            scored -= 1;
        }
        notes.push(note(format!("{{\"records\": [{}]}}", some.join(","))));
    }
    notes.push(note("{\"records\": []}"));
    notes.push(note(format!("{{\"records\": [{}]}}", ["{}"; 21].join(","))));
    notes.push(note(payments[0].as_str()));
    (notes, scored)
}

#[test]
fn every_record_of_a_list_has_one_outcome_in_both_deliveries() {
    for (prefix, delivery) in [
        ("list-least", "at-least-once"),
        ("list-once", "exactly-once"),
    ] {
        let Some(topics) = Topics::create(prefix) else {
            return;
        };
        let (notes, scored) = mixed();
        let (first, rest) = notes.split_at(20);
        produce(topics.brokers(), &topics.name("in"), first);
        let delivery = format!("kafka.delivery={delivery}");
        let settings = [
            &delivery,
            "input.unwrap=records",
            "input.max_unwrapped=20",
            "batch.max_records=16",
            "kafka.consumer.\"group.instance.id\"=one",
        ];
        // Ends in the middle once, and another process goes on.
        let daemon = topics.daemon(&settings);
        daemon.await_count("scored", 30);
        daemon.kill_9();
        produce(topics.brokers(), &topics.name("in"), rest);
        let daemon = topics.daemon(&settings);
        wait_for("the end of the topic", || {
            (topics.committed() == topics.ends()).then_some(())
        });
        daemon.is_balanced();
        assert_eq!(daemon.metric("residuald_records_unaccounted"), 0.0);
        assert_eq!(skipped(&daemon, "empty_list"), 1.0);
        daemon.drains();

        let verdicts: Vec<Value> = topics.kcat("scores").into_iter().map(|(_, v)| v).collect();
        let ids: HashSet<&str> = verdicts.iter().map(|v| v["id"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), scored);
        if delivery.ends_with("exactly-once") {
            assert_eq!(verdicts.len(), scored);
        }
        let letters = topics.letters();
        let bad: Vec<&Note> = letters
            .iter()
            .filter(|l| {
                l.header("__connect.errors.exception.message")
                    .unwrap()
                    .contains("record 4 of the message")
            })
            .collect();
        let places: HashSet<_> = bad
            .iter()
            .map(|l| l.header("__connect.errors.offset"))
            .collect();
        assert_eq!(places.len(), 3);
        let text = String::from_utf8(bad[0].payload.clone().unwrap()).unwrap();
        assert!(
            text.starts_with("{\"records\":[{") && text.contains("amuont"),
            "{text}"
        );
        assert_eq!(
            parse(text.as_bytes())["records"].as_array().unwrap().len(),
            1
        );
        for said in [
            "the message has 21 records, but input.max_unwrapped is 20",
            "expects an object with a list at `records`",
        ] {
            let said = letters.iter().find(|l| {
                l.header("__connect.errors.exception.message")
                    .unwrap()
                    .contains(said)
            });
            assert!(said.is_some());
        }
        if delivery.ends_with("exactly-once") {
            assert_eq!(letters.len(), 5);
        }
    }
}

/// A dead letter of one record of a list is replayed alone, and backtest gives the daemon's ids and scores.
#[test]
fn a_replayed_letter_brings_its_record_alone_and_backtest_agrees() {
    let Some(topics) = Topics::create("list-replay") else {
        return;
    };
    let payments = sample(5);
    let bad = payments[2].replacen("\"amount\":", "\"amuont\":", 1);
    let list = format!("[{},{},{bad},{}]", payments[0], payments[1], payments[3]);
    produce(topics.brokers(), &topics.name("in"), &[note(list)]);
    let settings = ["input.unwrap=list"];
    let daemon = topics.daemon(&settings);
    daemon.await_count("dead_letters", 1);
    daemon.await_count("scored", 3);
    let ended = crate::common::process::run(&[
        "dead-letters",
        "replay",
        "--brokers",
        topics.brokers(),
        "--topic",
        &topics.name("dead"),
        "--json",
    ]);
    ended.with_code(0);
    assert_eq!(parse(ended.stdout.as_bytes())["replayed"], 1);
    // The model has not changed, so the record is refused again, alone.
    daemon.await_count("dead_letters", 2);
    daemon.is_balanced();
    assert_eq!(daemon.count("scored"), 3);
    daemon.drains();
    // The markers of the replay are in the topic, too.
    let letters = topics.letters();
    let why = letters
        .iter()
        .filter_map(|letter| letter.header("__connect.errors.exception.message"));
    let again = why.filter(|why| why.starts_with("record 0 of the message: field `amount`"));
    assert_eq!(again.count(), 1);

    let dir = tempfile::tempdir().unwrap();
    let (out, config) = (dir.path().join("out.ndjson"), dir.path().join("c.toml"));
    let settings = format!(
        "kafka.brokers = \"{}\"\nkafka.topics = \"{}\"\ninput.unwrap = \"list\"\nmodel.bundle = \"{}\"\nthreshold.quantile = 0.99\n",
        topics.brokers(),
        topics.name("in"),
        crate::common::payments().display(),
    );
    std::fs::write(&config, settings).unwrap();
    let (out_path, config) = (out.to_str().unwrap(), config.to_str().unwrap());
    let arguments = ["backtest", "--config", config, "--out", out_path, "--json"];
    let ended = crate::common::process::run(&arguments);
    ended.with_code(0);
    assert_eq!(parse(ended.stdout.as_bytes())["records"], 5);
    let text = std::fs::read_to_string(&out).unwrap();
    let lines: Vec<Value> = text.lines().map(|l| parse(l.as_bytes())).collect();
    let refused = lines.iter().filter(|l| !l["reason"].is_null());
    let places = refused.map(|l| l["source"]["index"].as_u64().unwrap());
    // Two partitions, which are read in any order.
    assert_eq!(places.collect::<BTreeSet<u64>>(), BTreeSet::from([0, 2]));
    let published: Vec<Value> = topics.kcat("scores").into_iter().map(|(_, v)| v).collect();
    let of = |verdicts: &[Value]| -> BTreeMap<String, u32> {
        let scored = verdicts.iter().filter(|v| v["reason"].is_null());
        let pairs = scored.map(|v| (v["id"].as_str().unwrap().to_owned(), score_of(v).to_bits()));
        pairs.collect()
    };
    assert_eq!(of(&lines), of(&published));
    assert_eq!(of(&lines).len(), 3);
}
