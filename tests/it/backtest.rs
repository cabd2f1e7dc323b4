//! `residuald backtest` on a real Apache Kafka: what it says is what the daemon says, of the range that was asked for.

use std::collections::BTreeMap;

use crate::common::bundle::{Copy, calibrated};
use crate::common::cluster::{Cluster, cluster};
use crate::common::kafka::{Note, committed, ends, produce, read_all};
use crate::common::process::{Daemon, Ended, residuald};
use crate::common::{PATIENCE, parse, payments, sample, wait_for};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::{Value, json};

const PARTITIONS: i32 = 3;
const DAY_MS: i64 = 86_400_000;
/// 2026-01-01T00:00:00Z
const START_MS: i64 = 1_767_225_600_000;

/// Records `from..to` of the sample stream, an hour apart, spread over the partitions.
fn payments_of(from: usize, to: usize) -> Vec<Note> {
    let records = sample(to).into_iter().enumerate().skip(from);
    let notes = records.map(|(i, record)| Note {
        partition: i as i32 % PARTITIONS,
        timestamp_ms: Some(START_MS + i as i64 * DAY_MS / 24),
        ..Note::new(&format!("card-{i}"), record)
    });
    notes.collect()
}

/// A transaction of `count` good records in every partition, which leaves its marker behind them.
fn transaction(brokers: &str, topic: &str, count: usize, commit: bool) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("transactional.id", format!("holes-in-{topic}"))
        .create()
        .unwrap();
    producer.init_transactions(PATIENCE).unwrap();
    producer.begin_transaction().unwrap();
    for note in payments_of(0, count * PARTITIONS as usize) {
        let mut record: BaseRecord<'_, [u8], [u8]> =
            BaseRecord::to(topic).partition(note.partition);
        record.payload = note.payload.as_deref();
        record.timestamp = note.timestamp_ms;
        producer.send(record).map_err(|(e, _)| e).unwrap();
    }
    match commit {
        true => producer.commit_transaction(PATIENCE).unwrap(),
        false => {
            producer.flush(PATIENCE).unwrap();
            producer.abort_transaction(PATIENCE).unwrap();
        }
    }
}

fn backtest(cluster: &Cluster, topic: &str, flags: &[&str]) -> Ended {
    let mut command = residuald();
    command.args(["backtest", "--topic", topic, "--brokers", &cluster.brokers]);
    if !flags.contains(&"--bundle") {
        command.arg("--bundle").arg(payments());
    }
    crate::common::process::ended(command.args(flags))
}

/// Of a run that must end well.
fn report(cluster: &Cluster, topic: &str, flags: &[&str]) -> Value {
    let ended = backtest(cluster, topic, &[flags, &["--json"]].concat());
    ended.with_code(0);
    parse(ended.stdout.as_bytes())
}

#[test]
fn a_backtest_says_what_the_daemon_said_to_the_bit() {
    let Some(cluster) = cluster() else { return };
    let brokers = cluster.brokers.as_str();
    cluster.create_topics(
        &[
            "backtest-payments",
            "backtest-scores",
            "backtest-anomalies",
            "backtest-dead-letters",
        ],
        PARTITIONS,
    );
    // Good records of four days and more, bad ones, tombstones, aborted ones, and markers where the partitions end.
    produce(brokers, "backtest-payments", &payments_of(0, 900));
    transaction(brokers, "backtest-payments", 20, false);
    let bad = |payload: &str| Note {
        timestamp_ms: Some(START_MS),
        ..Note::new("bad", payload)
    };
    let tombstone = Note {
        payload: None,
        partition: 1,
        ..bad("")
    };
    let odd = [bad("not json"), bad("{}"), bad("{}"), bad(""), tombstone];
    produce(brokers, "backtest-payments", &odd);
    transaction(brokers, "backtest-payments", 30, true);
    transaction(brokers, "backtest-payments", 10, false);

    // By segment, which has to be the same here and there.
    let dir = tempfile::tempdir().unwrap();
    let segmented = calibrated(dir.path(), &["--by", "merchant.category"]);
    let daemon = Daemon::ready(
        brokers,
        &[
            &format!("model.bundle={segmented:?}"),
            "kafka.topics=backtest-payments",
            "kafka.group_id=backtest",
            "output.anomalies_topic=backtest-anomalies",
            "output.scores_topic=backtest-scores",
            "output.dead_letter_topic=backtest-dead-letters",
            "threshold.quantile=0.99",
        ],
    );
    wait_for("every record to be judged", || {
        (daemon.count("scored") + daemon.count("dead_letters") + daemon.count("skipped") >= 995)
            .then_some(())
    });
    daemon.drains();

    let out = dir.path().join("verdicts.ndjson");
    let segmented = [
        "--quantile",
        "0.99",
        "--bundle",
        segmented.to_str().unwrap(),
    ];
    let to_file = [&segmented[..], &["--out", out.to_str().unwrap()]].concat();
    let said = report(cluster, "backtest-payments", &to_file);
    assert_eq!(said["complete"], true);
    assert_eq!(
        (&said["records"], &said["skipped_tombstones"]),
        (&json!(995), &json!(2))
    );
    let bundle = &said["bundle"];
    assert_eq!(bundle["scored"], 990);
    assert_eq!(
        bundle["cannot_be_scored"],
        json!({"malformed": 1, "missing": 2})
    );

    let lines = std::fs::read_to_string(&out).unwrap();
    let (rejected, mut judged): (Vec<&str>, Vec<&str>) = lines
        .lines()
        .partition(|line| line.starts_with("{\"error\""));
    assert_eq!(rejected.len(), 3);
    let scores = read_all(brokers, "backtest-scores");
    let text = |note: &Note| String::from_utf8(note.payload.clone().unwrap()).unwrap();
    let mut published: Vec<String> = scores.iter().map(text).collect();
    judged.sort_unstable();
    published.sort_unstable();
    assert_eq!(judged, published, "the same bytes, ids and scores and all");
    assert!(judged.iter().all(|line| line.contains("\"segment\":")));

    let anomalies = read_all(brokers, "backtest-anomalies").len();
    assert!(anomalies > 10, "{anomalies} are too few to prove anything");
    assert_eq!(bundle["alerts"], anomalies);
    // 900 records, an hour apart.
    let days = 899.0 / 24.0;
    let close = |value: &Value, expected: f64| {
        let value = value.as_f64().unwrap();
        assert!(
            (value - expected).abs() < 1e-9 * expected,
            "{value} and {expected}"
        );
    };
    close(&said["days"], days);
    close(&bundle["alerts_per_day"], anomalies as f64 / days);
    let by_day = bundle["by_day"].as_array().unwrap();
    let sum = |of: &str| by_day.iter().map(|d| d[of].as_u64().unwrap()).sum::<u64>();
    assert_eq!(
        (by_day.len(), sum("records"), sum("alerts")),
        (38, 990, anomalies as u64)
    );
    let binned = bundle["histogram"].as_array().unwrap();
    let above = |b: &&Value| b["from"].as_f64().unwrap() >= 1.0;
    let flagged = binned
        .iter()
        .filter(above)
        .map(|b| b["records"].as_u64().unwrap());
    assert_eq!(flagged.sum::<u64>(), anomalies as u64);
    let features = bundle["features"].as_array().unwrap().iter();
    let share: f64 = features.map(|f| f["share"].as_f64().unwrap()).sum();
    assert!((share - 1.0).abs() < 1e-5, "the shares make {share}");

    // Nobody joined a group or committed anything, and nothing was written.
    let before = ends(brokers, "backtest-payments");
    assert!(committed(brokers, "residuald-history", "backtest-payments").is_empty());
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()
        .unwrap();
    let groups = consumer.fetch_group_list(None, PATIENCE).unwrap();
    let groups: Vec<&str> = groups.groups().iter().map(|g| g.name()).collect();
    assert!(!groups.contains(&"residuald-history"), "{groups:?}");
    assert_eq!(ends(brokers, "backtest-payments"), before);

    let text = backtest(
        cluster,
        "backtest-payments",
        &[&segmented[..], &["--top", "3"]].concat(),
    );
    text.with_code(0);
    println!("{}", text.stdout);
    for words in [
        "backtest-payments: 995 records in ",
        "2 tombstones skipped",
        "from 2026-01-01T00:00:00Z to 2026-02-07T11:00:00Z: 37.5 days",
        "990 scored, 3 could not be scored: missing 2 (",
        &format!("{anomalies} alerts, "),
        "1.00 to 1.50",
        "why records are flagged",
        ", or above that of its merchant.category, ",
    ] {
        assert!(
            text.stdout.contains(words),
            "{words}\nnot in\n{}",
            text.stdout
        );
    }
}

#[test]
fn a_range_is_what_was_asked_for() {
    let Some(cluster) = cluster() else { return };
    let brokers = cluster.brokers.as_str();
    cluster.create_topics(&["range-in"], PARTITIONS);
    produce(brokers, "range-in", &payments_of(0, 300));
    let records = |flags: &[&str]| report(cluster, "range-in", flags)["records"].clone();
    for (from, to, expected) in [
        ("beginning", "end", 300),
        ("0", "50", 150),
        ("90", "end", 30),
        ("1:90", "end", 10),
        ("0:10,2:20", "0:15,2:40", 25),
        ("99", "1000", 3),
        // An hour each: two of the twelve and a half days.
        ("2026-01-02", "2026-01-04", 48),
        ("2026-01-02T00:00:00Z", "end", 276),
        ("2026-01-01T00:30:00Z", "2026-01-01T03:00:00+01:00", 1),
        ("-100000d", "2026-01-01T05:00:00Z", 5),
    ] {
        assert_eq!(
            records(&["--from", from, "--to", to]),
            expected,
            "{from} to {to}"
        );
    }
    for (from, to) in [("100", "end"), ("-1h", "end"), ("50", "50"), ("60", "50")] {
        let ended = backtest(cluster, "range-in", &["--from", from, "--to", to]);
        let line = ended.one_line(65);
        assert!(
            line.contains("topic `range-in` has no records in the requested range"),
            "{line}"
        );
    }
    let beyond = backtest(cluster, "range-in", &["--from", "1:500"]);
    let line = beyond.with_code(65);
    assert!(
        line.contains("partition 1: offset 500 is beyond the end, 100"),
        "{line}"
    );

    // What the topic does not hold any more is said.
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()
        .unwrap();
    let mut until = TopicPartitionList::new();
    until
        .add_partition_offset("range-in", 1, Offset::Offset(40))
        .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let deleted = runtime.block_on(admin.delete_records(&until, &AdminOptions::new()));
    deleted.unwrap();
    for (from, expected) in [("1:10", 60), ("beginning", 260), ("2026-01-01", 260)] {
        let said = report(cluster, "range-in", &["--from", from]);
        assert_eq!(said["records"], expected, "{from}");
        let notes = said["notes"].to_string();
        assert!(
            notes.contains("partition 1: the records before offset 40 are deleted"),
            "{from}: {notes}"
        );
    }
    assert_eq!(
        report(cluster, "range-in", &["--from", "1:40"])["notes"],
        json!([])
    );
}

#[test]
fn two_bundles_side_by_side() {
    let Some(cluster) = cluster() else { return };
    let brokers = cluster.brokers.as_str();
    cluster.create_topics(&["pair-in"], PARTITIONS);
    produce(brokers, "pair-in", &payments_of(0, 600));
    // The same model, calibrated as if normal records scored half as high.
    let lower = Copy::new();
    lower.edit("calibration.json", |calibration| {
        for scores in ["quantiles", "tail"] {
            for score in calibration[scores].as_array_mut().unwrap() {
                *score = (score.as_f64().unwrap() * 0.5).into();
            }
        }
    });
    let against = lower.path.to_str().unwrap();
    let flags = ["--quantile", "0.99", "--against", against];
    let said = report(cluster, "pair-in", &flags);
    let alerts = |side: &str| said[side]["alerts"].as_u64().unwrap();
    let (few, many) = (alerts("bundle"), alerts("against"));
    assert!(0 < few && few < many && many < 600, "{few} and {many}");
    let compared = &said["comparison"];
    let count = |name: &str| compared[name].as_u64().unwrap();
    let counts = [
        "records",
        "flagged_by_both",
        "only_by_bundle",
        "only_by_against",
        "by_neither",
    ];
    assert_eq!(counts.map(count), [600, few, 0, many - few, 600 - many]);
    let spearman = compared["spearman"].as_f64().unwrap();
    assert!((spearman - 1.0).abs() < 1e-12, "{spearman}");
    // Twice the grade everywhere: the most different is the highest.
    let different = &compared["most_different"][0];
    let highest = &said["bundle"]["highest"][0];
    let id = format!("pair-in-{}-{}", different["partition"], different["offset"]);
    assert_eq!(highest["record"], id);
    let text = backtest(cluster, "pair-in", &flags);
    text.with_code(0);
    assert!(
        text.stdout.contains(&format!("{few} flagged by both")),
        "{}",
        text.stdout
    );
    assert!(
        text.stdout.contains("largest differences"),
        "{}",
        text.stdout
    );
}

#[test]
fn settings_come_from_the_daemons_file_and_flags_win() {
    let Some(cluster) = cluster() else { return };
    let brokers = cluster.brokers.as_str();
    cluster.create_topics(&["file-in"], PARTITIONS);
    produce(brokers, "file-in", &payments_of(0, 60));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("residuald.toml");
    let settings = format!(
        "kafka.brokers = {brokers:?}\nkafka.topics = \"file-in\"\nmodel.bundle = {:?}\nthreshold.score = 1e9\n\
         output.attributions = 1\noutput.include_record = false\n",
        payments()
    );
    std::fs::write(&file, settings).unwrap();
    let out = dir.path().join("verdicts.ndjson");
    let run = |flags: &[&str]| {
        let mut command = residuald();
        command.args(["backtest", "--json", "--config"]).arg(&file);
        command.arg("--out").arg(&out).args(flags);
        crate::common::process::ended(&mut command)
    };
    let ended = run(&[]);
    ended.with_code(0);
    let said = parse(ended.stdout.as_bytes());
    assert_eq!(
        (&said["records"], &said["bundle"]["alerts"]),
        (&json!(60), &json!(0))
    );
    let lines = std::fs::read_to_string(&out).unwrap();
    let verdicts: BTreeMap<String, Value> = lines
        .lines()
        .map(|line| parse(line.as_bytes()))
        .map(|verdict| (verdict["id"].as_str().unwrap().to_owned(), verdict))
        .collect();
    assert_eq!(verdicts.len(), 60);
    for verdict in verdicts.values() {
        assert_eq!(verdict["relevant_attribution"].as_array().unwrap().len(), 1);
        assert!(verdict.get("record").is_none());
    }
    let ended = run(&["--score", "0.000001", "--from", "0:0"]);
    ended.with_code(0);
    let said = parse(ended.stdout.as_bytes());
    assert_eq!(
        (&said["records"], &said["bundle"]["alerts"]),
        (&json!(20), &json!(20))
    );

    for (flags, code, words) in [
        (
            &["--topic", "nowhere"][..],
            69,
            "topic `nowhere` does not exist",
        ),
        (
            &["--brokers", "127.0.0.1:1"],
            69,
            "Kafka is not reachable at 127.0.0.1:1",
        ),
        (&["--bundle", "/nowhere"], 65, "/nowhere"),
        (&["-X", "no.such.setting=1"], 78, "no.such.setting"),
        (&["-X", "nothing"], 64, "must be NAME=VALUE"),
        (&["--from", "9:0"], 64, "has no partition 9"),
        (
            &["--from", "0:1", "--to", "1:1"],
            64,
            "name the same partitions in both",
        ),
        (&["--false-alarm-rate", "1e-9"], 78, "calibration records"),
    ] {
        let ended = run(flags);
        let line = ended.with_code(code);
        assert!(line.contains(words), "{flags:?}: {line}");
    }
    for flags in [
        &["--from", "soon"][..],
        &["--quantile", "0.9", "--score", "1"],
        &["--alerts-per-day", "20"],
    ] {
        run(flags).with_code(64);
    }
    let nothing = crate::common::process::run(&["backtest", "--topic", "t"]);
    assert!(nothing.one_line(64).contains("--bundle"));
}
