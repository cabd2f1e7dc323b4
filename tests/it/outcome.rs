//! Whatever a record holds, it has one outcome of a bounded size and the stream goes on: on a real Apache Kafka, with both
//! deliveries.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::common::cluster::{Cluster, cluster};
use crate::common::kafka::{Note, committed, ends, produce, read_all};
use crate::common::process::Daemon;
use crate::common::{sample, wait_for};
use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;

/// Brokers hold compressed batches against their limits, and what is sent here would be next to nothing.
const UNCOMPRESSED: &str = "kafka.producer.\"compression.type\"=none";
const DELIVERIES: [&str; 2] = ["at-least-once", "exactly-once"];
/// The default of the brokers.
const DEFAULT_LIMIT: usize = 1_048_588;

/// Topics of a test's own and a daemon's settings for them.
struct Stream {
    cluster: &'static Cluster,
    prefix: String,
    delivery: &'static str,
}

impl Stream {
    /// `in` takes 8 MB; the others so many bytes.
    fn create(prefix: &str, delivery: &'static str, limit: usize) -> Option<Stream> {
        let cluster = cluster()?;
        let stream = Stream {
            cluster,
            prefix: format!("{prefix}-{delivery}"),
            delivery,
        };
        for (topic, bytes) in [
            ("in", 8_000_000),
            ("anomalies", limit),
            ("scores", limit),
            ("dead", limit),
        ] {
            let (name, bytes) = (stream.name(topic), bytes.to_string());
            let topic = NewTopic::new(&name, 1, TopicReplication::Fixed(1))
                .set("max.message.bytes", &bytes)
                .set("retention.ms", "-1");
            let made = block_on(stream.admin().create_topics([&topic], &AdminOptions::new()));
            made.unwrap().remove(0).unwrap();
        }
        Some(stream)
    }

    /// Another setting for a topic, in place of all others.
    fn set(&self, topic: &str, setting: &str, value: &str) {
        let name = self.name(topic);
        let config = AlterConfig::new(ResourceSpecifier::Topic(&name)).set(setting, value);
        let altered = block_on(self.admin().alter_configs([&config], &AdminOptions::new()));
        altered.unwrap().remove(0).unwrap();
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.cluster.brokers);
        config.create().unwrap()
    }

    /// Another limit for a topic.
    fn alter(&self, topic: &str, limit: usize) {
        let (name, limit) = (self.name(topic), limit.to_string());
        let config = AlterConfig::new(ResourceSpecifier::Topic(&name))
            .set("max.message.bytes", &limit)
            .set("retention.ms", "-1");
        let altered = block_on(self.admin().alter_configs([&config], &AdminOptions::new()));
        altered.unwrap().remove(0).unwrap();
    }

    fn name(&self, topic: &str) -> String {
        format!("{}-{topic}", self.prefix)
    }

    fn produce(&self, notes: &[Note]) {
        produce(&self.cluster.brokers, &self.name("in"), notes);
    }

    /// A record with a header whose name is no text, which rdkafka cannot send.
    fn kcat(&self, payload: &[u8]) {
        let mut kcat = Command::new("kcat")
            .args(["-P", "-b", &self.cluster.brokers, "-t", &self.name("in")])
            .arg("-H")
            .arg(OsStr::from_bytes(b"\xff\xfe=own"))
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        kcat.stdin.take().unwrap().write_all(payload).unwrap();
        assert!(kcat.wait().unwrap().success());
    }

    fn daemon(&self, settings: &[&str]) -> Daemon {
        let own = [
            format!("kafka.topics={}", self.name("in")),
            format!("kafka.group_id={}", self.prefix),
            format!("kafka.delivery={}", self.delivery),
            format!("output.anomalies_topic={}", self.name("anomalies")),
            format!("output.scores_topic={}", self.name("scores")),
            format!("output.dead_letter_topic={}", self.name("dead")),
            "threshold.quantile=0.99".to_owned(),
        ];
        let all: Vec<&str> = own.iter().map(String::as_str).collect();
        Daemon::ready(&self.cluster.brokers, &[&all, settings].concat())
    }

    fn until_all_is_committed(&self) {
        let (brokers, topic) = (&self.cluster.brokers, self.name("in"));
        wait_for("the end of the topic", || {
            let end = ends(brokers, &topic);
            (committed(brokers, &self.prefix, &topic) == end).then_some(())
        });
    }

    /// By the offset of the record that each is about.
    fn read(&self, topic: &str) -> Vec<Note> {
        read_all(&self.cluster.brokers, &self.name(topic))
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(future)
}

fn headers(value: Vec<u8>) -> Vec<(String, Option<Vec<u8>>)> {
    vec![("own".to_owned(), Some(value))]
}

fn good_with(field: &str) -> Vec<u8> {
    let good = sample(1).remove(0);
    format!("{{\"unread\": {field}, {}", &good[1..]).into_bytes()
}

/// The one message about the record at this offset.
fn about(notes: &[Note], offset: i64) -> &Note {
    let mut found = notes.iter().filter(|note| match note.header("ce_id") {
        Some(_) => note.json()["source"]["offset"] == offset,
        None => note.header("__connect.errors.offset") == Some(&offset.to_string()),
    });
    let note = found
        .next()
        .unwrap_or_else(|| panic!("nothing about {offset}"));
    assert!(found.next().is_none(), "{offset} has two outcomes");
    note
}

fn omitted(note: &Note) -> &str {
    let note = note.header("residuald.omitted").unwrap_or_default();
    note.split(": ").next().unwrap()
}

/// Records that cannot be scored, and the parts that their dead letters lack.
fn bad_records() -> Vec<(Note, &'static str)> {
    let large = || vec![b'x'; 1_040_000];
    let inner = serde_json::json!({"text": "\u{1}\"\\".repeat(100_000)}).to_string();
    let text_in_text = serde_json::json!(inner).to_string();
    let bad = |payload: &[u8]| Note::new("k", payload);
    let escapes = [&b"\""[..], &[0x7f; 250_000], b"\""].concat();
    vec![
        (bad(&escapes), ""),
        (bad(text_in_text.as_bytes()), "value"),
        (bad(&vec![b'x'; 2_000_000]), "value"),
        (
            Note {
                headers: headers(large()),
                ..bad(b"{}")
            },
            "headers",
        ),
        (
            Note {
                headers: (0..10_000)
                    .map(|i| (format!("h{i}"), Some(vec![b'x'; 100])))
                    .collect(),
                ..bad(b"{}")
            },
            "headers",
        ),
        (
            Note {
                key: Some(large()),
                ..bad(b"{}")
            },
            "key",
        ),
        (
            Note {
                key: Some(large()),
                headers: headers(large()),
                payload: Some(large()),
                ..bad(b"")
            },
            "value, headers, key",
        ),
        (
            Note {
                key: Some(vec![b'x'; 400_000]),
                headers: headers(vec![b'x'; 400_000]),
                payload: Some(vec![b'x'; 400_000]),
                ..bad(b"")
            },
            "value",
        ),
    ]
}

/// Records that are scored, and the parts that their verdicts lack.
fn good_records() -> Vec<(Note, &'static str)> {
    let large = || vec![b'x'; 1_040_000];
    let nested = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
    let bulk = |bytes: usize| format!("\"{}\"", "x".repeat(bytes));
    let good = |payload: Vec<u8>| Note::new("k", payload);
    vec![
        (good(good_with("1")), ""),
        (good(good_with(&bulk(2_000_000))), "record"),
        (good(good_with(&nested(100))), ""),
        (good(good_with(&nested(300))), "record"),
        (good(good_with("1e400")), "record"),
        (good(good_with(r#""\ud83d""#)), "record"),
        (
            good(good_with(&format!("[{}, {}]", bulk(999_000), nested(300)))),
            "record",
        ),
        (
            Note {
                key: Some(large()),
                ..good(good_with("1"))
            },
            "key",
        ),
        (
            Note {
                headers: vec![
                    ("traceparent".into(), Some(large())),
                    ("tracestate".into(), Some(large())),
                ],
                ..good(good_with("1"))
            },
            "headers",
        ),
        (
            Note {
                key: Some(large()),
                ..good(good_with(&bulk(2_000_000)))
            },
            "record, key",
        ),
    ]
}

#[test]
fn no_key_header_value_or_reason_is_too_large_for_its_outcome() {
    for delivery in DELIVERIES {
        let Some(stream) = Stream::create("large", delivery, DEFAULT_LIMIT) else {
            return;
        };
        let (bad, good) = (bad_records(), good_records());
        let notes: Vec<Note> = bad
            .iter()
            .chain(&good)
            .map(|(note, _)| note.clone())
            .collect();
        stream.produce(&notes);
        let daemon = stream.daemon(&[]);
        daemon.await_count("consumed", notes.len() as u64);
        stream.until_all_is_committed();
        daemon.is_balanced();
        assert_eq!(daemon.count("dead_letters"), bad.len() as u64);
        assert_eq!(daemon.count("scored"), good.len() as u64);
        assert!(daemon.metric("residuald_omitted_parts_total{part=\"headers\"}") >= 3.0);
        let log = daemon.drains().stderr;
        for words in [
            "may have 1000000 bytes",
            "raise kafka.producer.\\\"message.max.bytes\\\", now 1000000 bytes",
        ] {
            assert!(log.contains(words), "{words} is not in {log}");
        }

        let dead = stream.read("dead");
        assert_eq!(dead.len(), bad.len(), "{delivery}");
        for (offset, (note, lacks)) in (0..).zip(&bad) {
            let letter = about(&dead, offset);
            assert_eq!(omitted(letter), *lacks, "{delivery} {offset}");
            let header = |name: &str| letter.header(&format!("__connect.errors.{name}"));
            assert_eq!(header("topic"), Some(&*stream.name("in")));
            assert_eq!(header("partition"), Some("0"));
            let class = header("exception.class.name").unwrap();
            assert!(class.starts_with("residuald.decode."), "{class}");
            let reason = header("exception.message").unwrap();
            assert!((1..500).contains(&reason.len()), "{reason}");
            if !lacks.contains("value") {
                assert_eq!(letter.payload, note.payload, "{delivery} {offset}");
            }
            if !lacks.contains("key") {
                assert_eq!(letter.key, note.key, "{delivery} {offset}");
            }
            if !lacks.contains("headers") {
                let own = |n: &Note| n.headers.iter().find(|(n, _)| n == "own").cloned();
                assert_eq!(own(letter), own(note), "{delivery} {offset}");
            }
        }

        let verdicts = stream.read("scores");
        assert_eq!(verdicts.len(), good.len(), "{delivery}");
        for (offset, (note, lacks)) in (bad.len() as i64..).zip(&good) {
            let verdict = about(&verdicts, offset);
            assert_eq!(omitted(verdict), *lacks, "{delivery} {offset}");
            let body = verdict.json();
            assert!(body["anomaly_score"].as_f64().is_some(), "{body}");
            assert!(body["relevant_attribution"].is_array(), "{body}");
            assert_eq!(body["source"]["topic"], stream.name("in"));
            assert_eq!(body.get("record").is_none(), lacks.contains("record"));
            assert_eq!(verdict.key.is_none(), lacks.contains("key"));
            assert!(note.payload.is_some());
        }
    }
}

/// Small dead letters that share a batch, and one that is too large for the topic by itself.
fn some_bad() -> Vec<Note> {
    let mut notes: Vec<Note> = (0..300)
        .map(|i| {
            Note::new(
                &format!("key-{i}"),
                format!("not json {i} {}", "x".repeat(300)),
            )
        })
        .collect();
    notes.insert(150, Note::new("large", vec![b'x'; 50_000]));
    notes.push(Note::new("good", good_with("1")));
    notes
}

fn small_ones_are_whole(stream: &Stream, sent: &[Note], from: i64) {
    let dead = stream.read("dead");
    let bad = sent.len() as i64 - 1;
    for (offset, note) in (from..from + bad).zip(sent) {
        let letter = about(&dead, offset);
        let is_large = note.key.as_deref() == Some(b"large");
        assert_eq!(omitted(letter), if is_large { "value" } else { "" });
        assert_eq!(letter.payload == note.payload, !is_large, "{offset}");
    }
}

#[test]
fn a_topic_that_takes_little_takes_what_is_small() {
    for delivery in DELIVERIES {
        let Some(stream) = Stream::create("small", delivery, 5_000) else {
            return;
        };
        let notes = some_bad();
        stream.produce(&notes);
        let daemon = stream.daemon(&[UNCOMPRESSED]);
        daemon.await_count("consumed", notes.len() as u64);
        stream.until_all_is_committed();
        daemon.is_balanced();
        let log = daemon.drains().stderr;
        assert!(log.contains("may have 5000 bytes"), "{log}");
        assert!(
            log.contains(&format!(
                "raise max.message.bytes of topic `{}`",
                stream.name("dead")
            )),
            "{log}"
        );
        small_ones_are_whole(&stream, &notes, 0);
        assert_eq!(stream.read("scores").len(), 1, "{delivery}");
    }
}

#[test]
fn a_topic_that_takes_less_than_it_said_takes_what_is_small() {
    for delivery in DELIVERIES {
        let Some(stream) = Stream::create("less", delivery, DEFAULT_LIMIT) else {
            return;
        };
        let first = some_bad();
        stream.produce(&first);
        let daemon = stream.daemon(&[UNCOMPRESSED]);
        daemon.await_count("consumed", first.len() as u64);
        stream.until_all_is_committed();
        stream.alter("dead", 5_000);
        // Brokers hear of it a little later.
        std::thread::sleep(Duration::from_secs(2));
        let second = some_bad();
        stream.produce(&second);
        daemon.await_count("consumed", (first.len() + second.len()) as u64);
        stream.until_all_is_committed();
        daemon.is_balanced();
        daemon.drains();
        small_ones_are_whole(&stream, &second, first.len() as i64);
        assert_eq!(stream.read("scores").len(), 2, "{delivery}");
    }
}

#[test]
fn what_no_topic_takes_is_counted_and_named_and_the_stream_goes_on() {
    for delivery in DELIVERIES {
        let Some(stream) = Stream::create("nothing", delivery, DEFAULT_LIMIT) else {
            return;
        };
        stream.alter("dead", 200);
        let notes = [
            Note::new("k", good_with("1")),
            Note::new("k", "not json"),
            Note::new("k", vec![b'x'; 100_000]),
            Note::new("k", good_with("2")),
        ];
        stream.produce(&notes);
        let daemon = stream.daemon(&[UNCOMPRESSED]);
        daemon.await_count("consumed", 4);
        stream.until_all_is_committed();
        daemon.is_balanced();
        assert_eq!((daemon.count("scored"), daemon.count("skipped")), (2, 2));
        let skipped = "residuald_records_skipped_total{reason=\"undeliverable\"}";
        assert_eq!(daemon.metric(skipped), 2.0);
        let log = daemon.drains().stderr;
        for words in [
            "the dead letter of this record is not published, because it is too large",
            "\"offset\":1",
            "\"offset\":2",
        ] {
            assert!(log.contains(words), "{words} is not in {log}");
        }
        assert_eq!(stream.read("dead").len(), 0);
        assert_eq!(stream.read("scores").len(), 2, "{delivery}");
    }
}

#[test]
fn times_keys_and_header_names_that_others_do_not_take_cost_no_record() {
    const DAY: i64 = 86_400_000;
    for delivery in DELIVERIES {
        let Some(stream) = Stream::create("odd", delivery, DEFAULT_LIMIT) else {
            return;
        };
        stream.set(
            "in",
            "message.timestamp.after.max.ms",
            &i64::MAX.to_string(),
        );
        stream.set("scores", "cleanup.policy", "compact");
        // Brokers hear of it a little later.
        std::thread::sleep(Duration::from_secs(2));
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as i64;
        let at = |timestamp_ms, note: Note| Note {
            timestamp_ms: Some(timestamp_ms),
            ..note
        };
        let keyless = |payload: Vec<u8>| Note {
            key: None,
            ..Note::new("", payload)
        };
        stream.produce(&[
            at(now + 30 * DAY, Note::new("k", good_with("1"))),
            at(now + 30 * DAY, Note::new("k", "not json")),
            at(now, keyless(good_with("2"))),
            at(now, keyless(b"not json".to_vec())),
        ]);
        stream.kcat(&good_with("3"));
        stream.kcat(b"not json");
        let daemon = stream.daemon(&[]);
        daemon.await_count("consumed", 6);
        stream.until_all_is_committed();
        daemon.is_balanced();
        assert_eq!(
            (daemon.count("scored"), daemon.count("dead_letters")),
            (3, 3)
        );
        daemon.drains();
        let (scores, dead) = (stream.read("scores"), stream.read("dead"));
        for (offset, future) in [(0, true), (2, false)] {
            for (notes, offset) in [(&scores, offset), (&dead, offset + 1)] {
                let note = about(notes, offset);
                assert_eq!(omitted(note), if future { "timestamp" } else { "" });
                assert_eq!(note.timestamp_ms != Some(now), future);
            }
        }
        let place = format!("{}-0-2", stream.name("in"));
        assert_eq!(about(&scores, 2).key, Some(place.into_bytes()));
        assert_eq!(about(&dead, 3).key, None);
        let named = about(&dead, 5).header("(header name is not UTF-8)");
        assert_eq!(named, Some("own"));
    }
}

/// Settings of topics that change while it runs: what the brokers refuse goes again in another shape.
#[test]
fn a_topic_that_becomes_strict_costs_no_record() {
    for delivery in DELIVERIES {
        let Some(stream) = Stream::create("strict", delivery, DEFAULT_LIMIT) else {
            return;
        };
        let daemon = stream.daemon(&[]);
        let keyless = |payload: Vec<u8>| Note {
            key: None,
            timestamp_ms: Some(1_767_225_600_123),
            ..Note::new("", payload)
        };
        // With a key, since the brokers clean all others out of a compacted topic.
        let keyed = Note {
            key: Some(b"first".to_vec()),
            ..keyless(good_with("1"))
        };
        stream.produce(&[keyed, keyless(b"not json".to_vec())]);
        stream.until_all_is_committed();
        stream.set("scores", "cleanup.policy", "compact");
        stream.set("dead", "message.timestamp.before.max.ms", "3600000");
        // Brokers hear of it a little later.
        std::thread::sleep(Duration::from_secs(2));
        stream.produce(&[keyless(good_with("2")), keyless(b"not json".to_vec())]);
        stream.until_all_is_committed();
        daemon.is_balanced();
        assert_eq!(
            (daemon.count("scored"), daemon.count("dead_letters")),
            (2, 2),
            "{delivery}: {}",
            daemon.status()["records"]
        );
        daemon.drains();
        let (scores, dead) = (stream.read("scores"), stream.read("dead"));
        assert_eq!((scores.len(), dead.len()), (2, 2), "{delivery}");
        assert_eq!(about(&scores, 0).key.as_deref(), Some(&b"first"[..]));
        let place = format!("{}-0-2", stream.name("in"));
        assert_eq!(about(&scores, 2).key, Some(place.into_bytes()));
        assert_eq!(omitted(about(&dead, 1)), "");
        assert_eq!(omitted(about(&dead, 3)), "timestamp");
    }
}

/// The same with a backlog in which hardly a message fits: a transaction that is refused again and again goes through.
#[test]
fn a_backlog_goes_through_topics_that_became_strict() {
    for delivery in DELIVERIES {
        let Some(stream) = Stream::create("backlog", delivery, DEFAULT_LIMIT) else {
            return;
        };
        let daemon = stream.daemon(&[UNCOMPRESSED]);
        stream.produce(&[Note::new("k", good_with("1"))]);
        stream.until_all_is_committed();
        for topic in ["scores", "anomalies", "dead"] {
            stream.set(topic, "max.message.bytes", "2500");
        }
        // Brokers hear of it a little later.
        std::thread::sleep(Duration::from_secs(2));
        let long = |i: usize| format!("\"{}\"", "x".repeat(1_000 + 7 * i));
        let notes: Vec<Note> = (0..300)
            .map(|i| match i % 3 {
                0 => Note::new("k", long(i)),
                _ => Note::new("k", good_with(&long(i))),
            })
            .collect();
        stream.produce(&notes);
        stream.until_all_is_committed();
        daemon.is_balanced();
        assert_eq!(
            (daemon.count("scored"), daemon.count("dead_letters")),
            (201, 100),
            "{delivery}: {}",
            daemon.status()["records"]
        );
        daemon.drains();
        let (scores, dead) = (stream.read("scores"), stream.read("dead"));
        assert_eq!((scores.len(), dead.len()), (201, 100), "{delivery}");
    }
}
