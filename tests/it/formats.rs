//! Avro, Protobuf and compressed topics, end to end on the embedded broker with a schema registry on loopback.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::common::formats::{AVRO, PROTOBUF, avro, framed, message, protobuf};
use crate::common::kafka::{Note, produce, read_all};
use crate::common::process::{Daemon, run};
use crate::common::registry::{Mood, SchemaRegistry};
use crate::common::{payments, sample, score_of, wait_for};
use apache_avro::Schema;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use residuald::kafka::embedded::EmbeddedBroker;
use serde_json::{Value, json};

const PARTITIONS: i32 = 3;
const RECORDS: usize = 300;
const WITH_SCORES: [&str; 2] = ["output.scores_topic=scores", "input.format=avro"];

fn broker() -> EmbeddedBroker {
    let topics = ["json", "avro", "protobuf", "avro-file", "protobuf-file"];
    let topics = topics.map(|t| [(t.to_owned(), PARTITIONS), (format!("{t}-scores"), 1)]);
    let mut topics: Vec<(String, i32)> = topics.into_iter().flatten().collect();
    for own in ["in", "anomalies", "scores", "dead"] {
        topics.push((own.to_owned(), if own == "in" { PARTITIONS } else { 1 }));
    }
    let topics: Vec<(&str, i32)> = topics.iter().map(|(t, p)| (t.as_str(), *p)).collect();
    EmbeddedBroker::start(&topics).unwrap()
}

fn spread(payloads: impl IntoIterator<Item = Vec<u8>>) -> Vec<Note> {
    let notes = payloads.into_iter().enumerate().map(|(i, payload)| Note {
        partition: i as i32 % PARTITIONS,
        ..Note::new("key", payload)
    });
    notes.collect()
}

/// The verdicts by the place of their records.
fn verdicts(brokers: &str, topic: &str) -> BTreeMap<(i64, i64), Value> {
    let verdicts = read_all(brokers, topic).into_iter().map(|note| {
        let verdict = note.json();
        let at = |key: &str| verdict["source"][key].as_i64().unwrap();
        ((at("partition"), at("offset")), verdict)
    });
    verdicts.collect()
}

fn scores(verdicts: &BTreeMap<(i64, i64), Value>) -> Vec<((i64, i64), u32)> {
    let scores = verdicts.iter();
    scores.map(|(at, v)| (*at, score_of(v).to_bits())).collect()
}

/// Judges what is in `topic` and gives the verdicts.
fn judged(broker: &EmbeddedBroker, topic: &str, settings: &[&str]) -> BTreeMap<(i64, i64), Value> {
    let own = [
        format!("kafka.topics={topic}"),
        format!("kafka.group_id={topic}"),
        format!("output.scores_topic={topic}-scores"),
    ];
    let settings: Vec<&str> = own
        .iter()
        .map(String::as_str)
        .chain(settings.iter().copied())
        .collect();
    let daemon = Daemon::ready(&broker.brokers, &settings);
    daemon.await_count("scored", RECORDS as u64);
    daemon.is_balanced();
    let ended = daemon.drains();
    assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
    verdicts(&broker.brokers, &format!("{topic}-scores"))
}

#[test]
fn every_format_gives_the_same_scores() {
    let broker = broker();
    let payments = sample(RECORDS);
    let schema = Schema::parse_str(AVRO).unwrap();
    let in_avro: Vec<_> = payments.iter().map(|p| avro(&schema, p)).collect();
    let message = message();
    let in_protobuf: Vec<_> = payments.iter().map(|p| protobuf(&message, p)).collect();
    let send = |topic: &str, payloads: Vec<Vec<u8>>| {
        produce(&broker.brokers, topic, &spread(payloads));
    };
    send(
        "json",
        payments.iter().map(|p| p.clone().into_bytes()).collect(),
    );
    send("avro", in_avro.iter().map(|p| framed(7, p)).collect());
    send("avro-file", in_avro);
    let first = |p: &Vec<u8>| framed(8, &[&[0], &p[..]].concat());
    send("protobuf", in_protobuf.iter().map(first).collect());
    send("protobuf-file", in_protobuf);

    let registry = SchemaRegistry::start();
    registry.insists_on("Basic bWU6aHVudGVyMg==");
    registry.schema(7, "AVRO", AVRO, json!([]));
    registry.schema(8, "PROTOBUF", PROTOBUF, json!([]));
    let url = registry.setting();
    let credentials = [
        url.as_str(),
        "input.schema_registry.username=me",
        "input.schema_registry.password=hunter2",
    ];
    let file = |name: &str| format!("input.schema_file=tests/schemas/{name}");
    let (avsc, proto) = (file("payment.avsc"), file("payment.proto"));
    let with = |format: &'static str| [&credentials[..], &[format]].concat();

    let expected = judged(&broker, "json", &[]);
    assert_eq!(expected.len(), RECORDS);
    for (topic, settings) in [
        ("avro", with("input.format=avro")),
        ("protobuf", with("input.format=protobuf")),
        ("avro-file", vec!["input.format=avro", &avsc]),
        (
            "protobuf-file",
            vec![
                "input.format=protobuf",
                &proto,
                "input.message=shop.Payment",
            ],
        ),
    ] {
        let got = judged(&broker, topic, &settings);
        assert_eq!(scores(&got), scores(&expected), "{topic}");
        for (at, verdict) in got {
            let (record, json) = (&verdict["record"], &expected[&at]["record"]);
            for field in ["time", "amount", "entry_mode", "sum_24h"] {
                let number = json[field].as_f64();
                assert_eq!(record[field].as_f64(), number, "{topic} {field}");
                assert!(
                    number.is_some() || record[field] == json[field],
                    "{topic} {record} {json}"
                );
            }
            assert_eq!(record["merchant"]["country"], json["merchant"]["country"]);
        }
    }
    // On a busy machine an answer may come too late, and is asked for again.
    let requests = registry.requests("/schemas/ids/7");
    assert!(
        (1..=2).contains(&requests),
        "a schema is fetched once, not {requests} times"
    );
    assert_eq!(read_all(&broker.brokers, "dead"), []);
}

/// Confluent's serialisers for Python, Go, .NET and JavaScript register compiled files in base64, not .proto text.
#[test]
fn what_confluents_serialiser_for_python_registers_and_sends_is_scored() {
    let made = include_str!("../schemas/confluent/registered.json");
    let made: Value = serde_json::from_str(made).unwrap();
    let registry = SchemaRegistry::start();
    for (id, answer) in made["schemas"].as_object().unwrap() {
        let schema = answer["schema"].as_str().unwrap();
        registry.schema(
            id.parse().unwrap(),
            "PROTOBUF",
            schema,
            answer["references"].clone(),
        );
    }
    let sent = made["payments"].as_array().unwrap();
    let sent: Vec<Vec<u8>> = sent
        .iter()
        .map(|p| BASE64_STANDARD.decode(p.as_str().unwrap()).unwrap())
        .collect();
    let broker = broker();
    let payments = sample(sent.len());
    let json = payments.iter().map(|p| p.clone().into_bytes());
    produce(&broker.brokers, "json", &spread(json.cycle().take(RECORDS)));
    produce(
        &broker.brokers,
        "protobuf",
        &spread(sent.into_iter().cycle().take(RECORDS)),
    );
    let expected = judged(&broker, "json", &[]);
    let got = judged(
        &broker,
        "protobuf",
        &["input.format=protobuf", &registry.setting()],
    );
    assert_eq!(scores(&got), scores(&expected));
    assert_eq!(read_all(&broker.brokers, "dead"), []);
}

/// The payments' schema as its owners changed it: fields in another order, some new, some gone, a type by reference.
fn evolved() -> String {
    let mut schema: Value = serde_json::from_str(AVRO).unwrap();
    let fields = schema["fields"].as_array_mut().unwrap();
    fields.retain(|f| f["name"] != "currency" && f["name"] != "merchant");
    fields.reverse();
    fields.insert(
        3,
        json!({"name": "note", "type": ["null", "string", {"type": "array", "items": "long"}]}),
    );
    fields.push(json!({"name": "merchant", "type": "shop.Merchant"}));
    schema.to_string()
}

fn merchant() -> String {
    let schema: Value = serde_json::from_str(AVRO).unwrap();
    let fields = schema["fields"].as_array().unwrap();
    let merchant = fields.iter().find(|f| f["name"] == "merchant").unwrap();
    let mut merchant = merchant["type"].clone();
    merchant["namespace"] = "shop".into();
    merchant.to_string()
}

#[test]
fn a_schema_may_change_in_mid_stream() {
    let broker = broker();
    let payments = sample(RECORDS);
    produce(
        &broker.brokers,
        "json",
        &spread(payments.iter().map(|p| p.clone().into_bytes())),
    );
    let expected = judged(&broker, "json", &[]);

    let registry = SchemaRegistry::start();
    registry.schema(1, "AVRO", AVRO, json!([]));
    let reference = json!([{"name": "shop.Merchant", "subject": "shop%2Fmerchant", "version": 3}]);
    registry.schema(2, "AVRO", &evolved(), reference);
    registry.subject("shop%252Fmerchant", 3, &merchant());
    let old = Schema::parse_str(AVRO).unwrap();
    // The writer wants the type in its place.
    let inline = evolved().replacen("\"shop.Merchant\"", &merchant(), 1);
    let new = Schema::parse_str(&inline).unwrap();
    let records = payments
        .iter()
        .enumerate()
        .map(|(i, p)| match i < RECORDS / 2 {
            true => framed(1, &avro(&old, p)),
            false => framed(2, &avro(&new, p)),
        });
    produce(&broker.brokers, "avro", &spread(records));
    let got = judged(&broker, "avro", &["input.format=avro", &registry.setting()]);
    assert_eq!(scores(&got), scores(&expected));
    assert_eq!(read_all(&broker.brokers, "dead"), []);
}

#[test]
fn while_the_registry_is_down_only_records_with_new_schemas_wait() {
    let broker = broker();
    let schema = Schema::parse_str(AVRO).unwrap();
    let payments: Vec<_> = sample(30).iter().map(|p| avro(&schema, p)).collect();
    let on = |partition: i32, id: u32| -> Vec<Note> {
        let notes = payments.iter().map(|p| Note {
            partition,
            ..Note::new("key", framed(id, p))
        });
        notes.collect()
    };
    let registry = SchemaRegistry::start();
    registry.schema(1, "AVRO", AVRO, json!([]));
    registry.schema(2, "AVRO", AVRO, json!([]));
    let url = registry.setting();
    let settings = [
        &WITH_SCORES[..],
        &[&url, "input.schema_registry.timeout=1s"],
    ]
    .concat();

    // Down at the start: ready, and everything waits.
    registry.is(Mood::Silent);
    produce(&broker.brokers, "in", &on(0, 1));
    let daemon = Daemon::ready(&broker.brokers, &settings);
    wait_for("a partition that waits", || {
        (daemon.metric("residuald_paused_partitions") == 1.0).then_some(())
    });
    registry.is(Mood::Well);
    daemon.await_count("scored", 30);
    daemon.await_metric("residuald_paused_partitions", 0.0);

    // Down in mid-stream, in every way.
    let moods = [
        Mood::Silent,
        Mood::Failing,
        Mood::Misplaced,
        Mood::Hanging,
        Mood::Endless,
        Mood::Login,
        Mood::Redirecting,
        Mood::MixedUp,
    ];
    for (id, mood) in (10..).zip(moods) {
        registry.schema(id, "AVRO", AVRO, json!([]));
        registry.is(mood);
        let before = daemon.count("scored");
        produce(&broker.brokers, "in", &on(0, 1));
        produce(&broker.brokers, "in", &on(1, id));
        produce(&broker.brokers, "in", &on(2, 1));
        wait_for("the partition that waits", || {
            (daemon.metric("residuald_paused_partitions") == 1.0).then_some(())
        });
        daemon.await_count("scored", before + 60);
        let path = format!("/schemas/ids/{id}");
        wait_for("several tries", || {
            (registry.requests(&path) >= 4).then_some(())
        });
        // Longer than an id may be unknown to a registry that answers.
        std::thread::sleep(Duration::from_millis(3500));
        assert_eq!(daemon.count("scored"), before + 60);
        assert_eq!(daemon.count("dead_letters"), 0);
        assert_eq!(daemon.metric("residuald_paused_partitions"), 1.0);
        let waits = format!("in-1 waits for schema {id} (");
        let said = daemon.get("/readyz?verbose").1;
        assert!(said.contains(&waits), "{said}");
        assert_eq!(daemon.get("/readyz").0, 200);
        registry.is(Mood::Well);
        daemon.await_count("scored", before + 90);
    }
    assert!(daemon.metric("residuald_schema_registry_errors_total") >= 32.0);
    daemon.is_balanced();
    let ended = daemon.drains();
    let lines = |part: &str| ended.stderr.lines().filter(|l| l.contains(part)).count();
    assert_eq!(
        lines("schema registry is unavailable"),
        9,
        "{}",
        ended.stderr
    );
    assert_eq!(lines("answers again"), 9, "{}", ended.stderr);
    assert_eq!(read_all(&broker.brokers, "scores").len(), 750);
    assert_eq!(read_all(&broker.brokers, "dead"), []);
}

/// Records of a partition, each with a schema that the registry does not have, twice each.
fn unknown(ids: std::ops::Range<u32>, timestamp_ms: i64) -> Vec<Note> {
    let notes = ids.flat_map(|id| [id, id]).map(|id| Note {
        timestamp_ms: Some(timestamp_ms),
        ..Note::new("key", framed(id, b"x"))
    });
    notes.collect()
}

fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

#[test]
fn an_old_record_with_an_unknown_schema_costs_one_request_and_no_wait() {
    let broker = broker();
    let registry = SchemaRegistry::start();
    let notes = unknown(100..160, now_ms() - 3_600_000);
    produce(&broker.brokers, "in", &notes);
    let url = registry.setting();
    let daemon = Daemon::ready(&broker.brokers, &[&WITH_SCORES[..], &[&url]].concat());
    daemon.await_count("dead_letters", 120);
    // The answer is remembered.
    produce(&broker.brokers, "in", &notes);
    daemon.await_count("dead_letters", 240);
    daemon.is_balanced();
    daemon.drains();
    for id in 100..160 {
        let path = format!("/schemas/ids/{id}");
        assert_eq!(registry.requests(&path), 1, "{path}");
    }
    assert_eq!(registry.asked().len(), 61, "and one whether it is there");
    assert_eq!(read_all(&broker.brokers, "dead").len(), 240);
}

#[test]
fn schemas_of_young_records_are_waited_for_together() {
    let broker = broker();
    let registry = SchemaRegistry::start();
    // A producer's clock that is ahead: all of them are as young as can be.
    let mut notes = unknown(100..120, now_ms() + 600_000);
    let schema = Schema::parse_str(AVRO).unwrap();
    let good = framed(7, &avro(&schema, &sample(1)[0]));
    notes.push(Note {
        timestamp_ms: Some(now_ms() + 600_000),
        ..Note::new("key", good)
    });
    produce(&broker.brokers, "in", &notes);
    let url = registry.setting();
    let daemon = Daemon::ready(&broker.brokers, &[&WITH_SCORES[..], &[&url]].concat());
    // The last of them is registered a moment too late.
    wait_for("the last id to be asked for", || {
        (registry.requests("/schemas/ids/7") >= 1).then_some(())
    });
    let first = registry.requests("/schemas/ids/100");
    registry.schema(7, "AVRO", AVRO, json!([]));
    daemon.await_count("scored", 1);
    daemon.await_count("dead_letters", 40);
    daemon.is_balanced();
    daemon.drains();
    assert!(first <= 4, "asked {first} times before the last was");
    for id in 100..120 {
        let path = format!("/schemas/ids/{id}");
        let requests = registry.requests(&path);
        assert!((2..=6).contains(&requests), "{path}: {requests}");
    }
    // In their order, whatever was looked at ahead.
    let dead = read_all(&broker.brokers, "dead");
    let payloads: Vec<_> = dead.into_iter().map(|note| note.payload).collect();
    let sent: Vec<_> = notes[..40]
        .iter()
        .map(|note| note.payload.clone())
        .collect();
    assert_eq!(payloads, sent);
}

#[test]
fn records_that_no_schema_reads_are_dead_letters() {
    let broker = broker();
    let registry = SchemaRegistry::start();
    registry.schema(1, "AVRO", AVRO, json!([]));
    registry.schema(2, "JSON", "{}", json!([]));
    registry.schema(3, "AVRO", "{\"type\": \"nonsense\"}", json!([]));
    let schema = Schema::parse_str(AVRO).unwrap();
    let good = avro(&schema, &sample(1)[0]);
    let mut bad_magic = framed(1, &good);
    bad_magic[0] = 1;
    let cases = [
        (framed(99, &good), "unknown_schema", "Schema not found"),
        (
            framed(2, &good),
            "unknown_schema",
            "schema 2 is JSON, not AVRO",
        ),
        (framed(3, &good), "unknown_schema", "not an Avro schema"),
        (bad_magic, "malformed", "0x01"),
        (b"{\"amount\": 1}".to_vec(), "malformed", "0x7b"),
        (framed(1, &good[..20]), "malformed", "truncated"),
    ];
    let mut notes: Vec<Note> = cases
        .iter()
        .map(|(p, ..)| Note::new("bad", p.clone()))
        .collect();
    notes.push(Note::new("good", framed(1, &good)));
    produce(&broker.brokers, "in", &notes);
    let url = registry.setting();
    let daemon = Daemon::ready(&broker.brokers, &[&WITH_SCORES[..], &[&url]].concat());
    daemon.await_count("dead_letters", cases.len() as u64);
    daemon.await_count("scored", 1);
    daemon.is_balanced();
    assert_eq!(
        daemon.metric("residuald_dead_letters_total{reason=\"unknown_schema\"}"),
        3.0
    );
    daemon.drains();
    let dead = read_all(&broker.brokers, "dead");
    for (note, (payload, reason, words)) in dead.iter().zip(&cases) {
        assert_eq!(note.payload.as_ref(), Some(payload));
        let header = |name: &str| note.header(&format!("__connect.errors.{name}")).unwrap();
        assert_eq!(
            header("exception.class.name"),
            format!("residuald.decode.{reason}")
        );
        assert_eq!(header("stage"), "VALUE_CONVERTER");
        assert!(
            header("exception.message").contains(words),
            "{words}: {}",
            header("exception.message")
        );
    }
}

#[test]
fn topics_of_every_compression_are_read() {
    let broker = broker();
    let payments = sample(40);
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
            .set("bootstrap.servers", &broker.brokers)
            .set("compression.type", codec)
            .set("linger.ms", "100")
            .create()
            .unwrap();
        for payment in &payments {
            let record: BaseRecord<'_, (), String> = BaseRecord::to("in").payload(payment);
            producer.send(record).map_err(|(e, _)| e).unwrap();
        }
        producer.flush(crate::common::PATIENCE).unwrap();
    }
    let daemon = Daemon::ready(&broker.brokers, &["output.scores_topic=scores"]);
    daemon.await_count("scored", 200);
    daemon.is_balanced();
    daemon.drains();
    assert_eq!(read_all(&broker.brokers, "dead"), []);
}

#[test]
fn check_holds_a_schema_file_against_the_bundle() {
    let bundle = format!("model.bundle={:?}", payments());
    let check = |settings: &[&str]| {
        let mut arguments = vec!["check", "--set", &bundle, "--set", "kafka.topics=in"];
        for setting in settings {
            arguments.extend(["--set", setting]);
        }
        run(&arguments)
    };
    let avsc = "input.schema_file=tests/schemas/payment.avsc";
    let proto = "input.schema_file=tests/schemas/payment.proto";
    check(&["input.format=avro", avsc]).with_code(0);
    check(&["input.format=protobuf", proto, "input.message=shop.Payment"]).with_code(0);
    for (settings, words) in [
        (
            ["input.format=protobuf", proto, "input.message=shop.Card"],
            "no field `amount`, which feature `amount` requires",
        ),
        (
            ["input.format=protobuf", proto, "input.message=Payment"],
            "there are shop.Payment, shop.Merchant",
        ),
        (
            ["input.format=avro", proto, "kafka.group_id=g"],
            "not an Avro schema",
        ),
        (
            [
                "input.format=avro",
                "input.schema_file=nowhere.avsc",
                "kafka.group_id=g",
            ],
            "nowhere.avsc",
        ),
    ] {
        let ended = check(&settings);
        assert!(ended.with_code(78).contains(words), "{}", ended.stderr);
    }
}
