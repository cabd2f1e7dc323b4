//! End to end on a real Apache Kafka, read back by an independent client: kcat.

use std::collections::{HashMap, HashSet};
use std::process::Stdio;

use crate::common::process::{residuald, run};
use crate::common::topics::{RECORDS, Topics, ids};
use crate::common::{parse, payments, sample, score_of, wait_for};
use residuald::evaluation::{auroc, average_precision};
use serde_json::Value;

/// What `residuald score --json` says of the same records.
fn file_score() -> Value {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("sample.ndjson");
    std::fs::write(&file, sample(RECORDS).join("\n")).unwrap();
    let bundle = payments();
    let ended = run(&[
        "score",
        file.to_str().unwrap(),
        "--bundle",
        bundle.to_str().unwrap(),
        "--label",
        "label",
        "--json",
    ]);
    ended.with_code(0);
    parse(ended.stdout.as_bytes())
}

#[test]
fn a_stream_is_scored_as_its_file_is() {
    let Some(topics) = Topics::create("stream") else {
        return;
    };
    let produced = crate::common::process::ended(&mut topics.produce(&[]));
    produced.with_code(0);
    let produced = parse(produced.stdout.as_bytes());
    assert_eq!(produced["produced"], RECORDS);

    let daemon = topics.daemon(&[]);
    daemon.await_count("scored", RECORDS as u64);
    daemon.is_balanced();
    daemon.drains();
    assert_eq!(topics.committed(), topics.ends());

    let scores = topics.kcat("scores");
    assert_eq!((scores.len(), ids(&scores).len()), (RECORDS, RECORDS));
    assert_eq!(topics.kcat("dead"), []);
    let flagged: HashSet<&str> = scores
        .iter()
        .filter(|(_, verdict)| !verdict["severity"].is_null())
        .map(|(_, verdict)| verdict["id"].as_str().unwrap())
        .collect();
    let anomalies = topics.kcat("anomalies");
    assert_eq!(ids(&anomalies), flagged);
    assert_eq!(anomalies.len(), flagged.len());

    // Keyed by the card, and within a partition in the order in which the cards paid.
    let mut last: HashMap<(&str, i64), i64> = HashMap::new();
    for (key, verdict) in &scores {
        assert_eq!(key, verdict["record"]["card_id"].as_str().unwrap());
        let source = &verdict["source"];
        let (partition, offset) = (&source["partition"], &source["offset"]);
        let before = last.insert((key, partition.as_i64().unwrap()), offset.as_i64().unwrap());
        assert!(before < offset.as_i64(), "{key} is out of order");
    }

    let (stream, labels): (Vec<f32>, Vec<bool>) = scores
        .iter()
        .map(|(_, v)| (score_of(v), v["record"]["label"] != 0))
        .unzip();
    let file = &file_score()["labelled"];
    for (name, stream) in [
        ("auroc", auroc(&stream, &labels)),
        ("average_precision", average_precision(&stream, &labels)),
    ] {
        let (stream, file) = (stream.unwrap(), file[name].as_f64().unwrap());
        assert!((stream - file).abs() <= 1e-6, "{name}: {stream} and {file}");
    }
}

#[test]
fn a_crash_in_mid_stream_loses_nothing() {
    let Some(topics) = Topics::create("crash") else {
        return;
    };
    let mut producer = topics.produce(&["--rate", "2500"]);
    let mut producer = producer.stdout(Stdio::null()).spawn().unwrap();
    let commit_often = "kafka.consumer.\"auto.commit.interval.ms\"=100";
    for least in [500, 300] {
        let daemon = topics.daemon(&[commit_often]);
        daemon.await_count("scored", least);
        assert_eq!(daemon.kill_9().code, None, "killed by a signal");
    }
    assert!(producer.wait().unwrap().success());
    let daemon = topics.daemon(&[commit_often]);
    wait_for("the end of the topic", || {
        (topics.committed() == topics.ends()).then_some(())
    });
    daemon.is_balanced();
    daemon.drains();

    let scores = topics.kcat("scores");
    assert_eq!(ids(&scores).len(), RECORDS, "nothing is lost");
    // What was judged twice got the same verdict, byte for byte.
    let mut first: HashMap<&str, &Value> = HashMap::new();
    for (_, verdict) in &scores {
        let id = verdict["id"].as_str().unwrap();
        assert_eq!(*first.entry(id).or_insert(verdict), verdict);
    }
    println!("{} verdicts of {RECORDS} records", scores.len());
}

#[test]
fn a_replica_that_joins_and_leaves_costs_no_duplicates() {
    let Some(topics) = Topics::create("replicas") else {
        return;
    };
    let first = topics.daemon(&[]);
    let mut producer = topics.produce(&["--rate", "1000"]);
    let mut producer = producer.stdout(Stdio::null()).spawn().unwrap();
    first.await_count("scored", 500);
    let second = topics.daemon(&[]);
    second.await_count("scored", 300);
    let of_second = second.count("scored");
    second.drains();
    assert!(producer.wait().unwrap().success());
    wait_for("all records to be judged", || {
        let scored = topics.kcat("scores").len();
        (scored >= RECORDS).then_some(())
    });
    first.is_balanced();
    assert!((first.count("scored") + of_second) as usize <= RECORDS);
    first.drains();
    assert_eq!(topics.committed(), topics.ends());
    let scores = topics.kcat("scores");
    assert_eq!((scores.len(), ids(&scores).len()), (RECORDS, RECORDS));
}

#[test]
fn an_absent_topic_to_write_to_is_69() {
    let Some(topics) = Topics::create("absent") else {
        return;
    };
    for (setting, topic) in [
        ("kafka.topics", "nowhere"),
        ("output.anomalies_topic", "no-anomalies"),
        ("output.scores_topic", "no-scores"),
        ("output.dead_letter_topic", "no-dead-letters"),
    ] {
        let mut command = residuald();
        command.arg("run");
        for setting in [
            format!("kafka.brokers={}", topics.brokers()),
            format!("model.bundle={:?}", payments()),
            "http.listen=127.0.0.1:0".to_owned(),
            format!("kafka.topics={}", topics.name("in")),
            format!("output.anomalies_topic={}", topics.name("anomalies")),
            format!("output.dead_letter_topic={}", topics.name("dead")),
            format!("{setting}={topic}"),
        ] {
            command.args(["--set", &setting]);
        }
        let ended = crate::common::process::ended(&mut command);
        let line = ended.one_line(69);
        assert!(
            line.contains(&format!("topic `{topic}` does not exist")),
            "{line}"
        );
    }
    let produce = ["--topic", "nowhere", "--brokers", topics.brokers()];
    let file = payments().join("sample.ndjson.gz");
    let ended = crate::common::process::ended(residuald().arg("produce").arg(file).args(produce));
    ended.one_line(69);
}
