//! End to end on the embedded broker: the real binary as a child process, every record accounted for.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use crate::common::bundle::calibrated;
use crate::common::kafka::{Note, committed, ends, produce, read_all, spread};
use crate::common::process::{Daemon, http_get, scored};
use crate::common::{parse, sample, score_of, wait_for};
use residuald::kafka::embedded::EmbeddedBroker;
use serde_json::{Value, json};

const PARTITIONS: i32 = 3;
/// Small enough that every verdict fits into one partition of the embedded broker, which keeps 5 MiB.
const RECORDS: usize = 1500;
/// Flags about one record in twenty, so that there is something to see.
const LOW_THRESHOLD: &str = "threshold.quantile=0.95";
const WITH_SCORES: &str = "output.scores_topic=scores";

fn broker() -> EmbeddedBroker {
    EmbeddedBroker::start(&[
        ("in", PARTITIONS),
        ("anomalies", 2),
        ("scores", 1),
        ("dead", 1),
    ])
    .unwrap()
}

/// Where a verdict's record lay: partition and offset.
fn place(verdict: &Value) -> (i32, i64) {
    let source = &verdict["source"];
    assert_eq!(source["topic"], "in");
    (
        source["partition"].as_i64().unwrap() as i32,
        source["offset"].as_i64().unwrap(),
    )
}

fn distinct_ids(notes: &[Note]) -> usize {
    let ids: HashSet<_> = notes.iter().map(|n| n.header("ce_id").unwrap()).collect();
    ids.len()
}

#[test]
fn every_record_is_judged_once_and_published_with_the_reason() {
    let broker = broker();
    let mut sent = spread(&sample(RECORDS), PARTITIONS);
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for note in &mut sent {
        let traced = [("traceparent", trace), ("tracestate", "a=b"), ("own", "x")];
        note.headers = traced
            .map(|(name, value)| (name.to_owned(), Some(value.as_bytes().to_vec())))
            .to_vec();
        note.timestamp_ms = Some(1_767_225_600_123);
    }
    produce(&broker.brokers, "in", &sent);
    let daemon = Daemon::ready(&broker.brokers, &[LOW_THRESHOLD, WITH_SCORES]);
    daemon.await_count("scored", RECORDS as u64);
    daemon.is_balanced();
    let anomalies_counted = daemon.count("anomalies") as usize;
    daemon.drains();

    // The records as they went in, by partition and offset.
    let sent: HashMap<_, _> = read_all(&broker.brokers, "in")
        .into_iter()
        .map(|note| ((note.partition, note.offset), note))
        .collect();
    let scores = read_all(&broker.brokers, "scores");
    let anomalies = read_all(&broker.brokers, "anomalies");
    assert_eq!(scores.len(), RECORDS);
    assert_eq!(distinct_ids(&scores), RECORDS);
    assert_eq!(read_all(&broker.brokers, "dead"), []);

    let mut last_offset = BTreeMap::new();
    let mut flagged = 0;
    for note in &scores {
        let verdict = note.json();
        let (partition, offset) = place(&verdict);
        let before = last_offset.insert(partition, offset);
        assert_eq!(
            before.unwrap_or(-1) + 1,
            offset,
            "out of order in {partition}"
        );
        check_verdict(note, &verdict, &sent[&(partition, offset)], trace);
        flagged += usize::from(!verdict["severity"].is_null());
    }
    assert_eq!((anomalies.len(), anomalies_counted), (flagged, flagged));
    assert!((10..RECORDS / 2).contains(&flagged), "{flagged} anomalies");
    let judged: HashSet<_> = scores.iter().map(|n| n.payload.clone()).collect();
    for note in &anomalies {
        assert!(
            judged.contains(&note.payload),
            "an anomaly is the same bytes on both topics"
        );
    }
    assert_eq!(
        committed(&broker.brokers, "residuald", "in"),
        ends(&broker.brokers, "in")
    );
}

fn check_verdict(note: &Note, verdict: &Value, sent: &Note, trace: &str) {
    assert_eq!(note.key, sent.key);
    assert_eq!(verdict["record"], sent.json());
    let model = &verdict["model"];
    let id = format!(
        "in-{}-{}@{}",
        sent.partition,
        sent.offset,
        &model["sha256"].as_str().unwrap()[..8]
    );
    let event_type = match verdict["severity"].as_str() {
        Some("warning" | "critical") => "io.residuald.anomaly.v1",
        None => "io.residuald.score.v1",
        other => panic!("severity {other:?}"),
    };
    for (name, value) in [
        ("ce_specversion", "1.0"),
        ("ce_id", &id),
        ("ce_source", "/residuald/payments"),
        ("ce_type", event_type),
        ("ce_time", "2026-01-01T00:00:00.123Z"),
        ("content-type", "application/json"),
        ("traceparent", trace),
        ("tracestate", "a=b"),
    ] {
        assert_eq!(note.header(name), Some(value), "{name}");
    }
    assert_eq!(note.header("own"), None, "only the trace travels");
    assert_eq!(
        (&verdict["id"], &verdict["time"], &model["name"]),
        (
            &id.into(),
            &"2026-01-01T00:00:00.123Z".into(),
            &"payments".into()
        )
    );
    let grade = verdict["anomaly_grade"].as_f64().unwrap();
    let p_value = verdict["p_value"].as_f64().unwrap();
    assert_eq!(grade > 1.0, !verdict["severity"].is_null(), "{verdict}");
    assert!(p_value > 0.0 && p_value <= 1.0, "{verdict}");
    check_reasons(verdict["relevant_attribution"].as_array().unwrap());
    let normal = &verdict["nearest_normal"];
    assert_eq!(normal.is_null(), verdict["severity"].is_null(), "{verdict}");
    if !normal.is_null() {
        assert_eq!(normal["id"].as_str().unwrap().len(), 15, "{normal}");
        let values = normal["values"].as_object().unwrap();
        assert!(values["amount"].as_f64().unwrap() > 0.0, "{normal}");
        assert!(values["card_present"].is_boolean(), "{normal}");
        assert!(values["entry_mode"].is_string(), "{normal}");
    }
}

fn check_reasons(reasons: &[Value]) {
    assert!((1..=5).contains(&reasons.len()), "{reasons:?}");
    let shares: Vec<f64> = reasons
        .iter()
        .map(|r| r["share"].as_f64().unwrap())
        .collect();
    assert!(shares.is_sorted_by(|a, b| a >= b), "{reasons:?}");
    assert!(shares.iter().all(|s| *s >= 0.0), "{reasons:?}");
    assert!(shares.iter().sum::<f64>() <= 1.0 + 1e-5, "{reasons:?}");
    for reason in reasons {
        assert!(reason["feature"].is_string(), "{reason}");
        assert!(!reason["observed"].is_null(), "{reason}");
        assert!(!reason["expected"].is_null(), "{reason}");
    }
}

#[test]
fn a_record_is_judged_by_its_segment_and_the_verdict_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = calibrated(dir.path(), &["--by", "merchant.category"]);
    let broker = broker();
    let mut records: Vec<Value> = sample(RECORDS)
        .iter()
        .map(|r| parse(r.as_bytes()))
        .collect();
    // Unseen, null, an array, and a boolean that no segment is named by.
    for (i, merchant) in [json!("new"), Value::Null, json!(["a"]), json!(true)]
        .into_iter()
        .enumerate()
    {
        records[i]["merchant"]["category"] = merchant;
    }
    let texts: Vec<String> = records.iter().map(Value::to_string).collect();
    // The model reads the category as well, and neither null nor an array is one.
    let refused = 2;
    produce(&broker.brokers, "in", &spread(&texts, PARTITIONS));
    let setting = format!("model.bundle={bundle:?}");
    let settings = [&setting, WITH_SCORES, "threshold.false_alarm_rate=0.02"];
    let daemon = Daemon::ready(&broker.brokers, &settings);
    daemon.await_count("scored", (RECORDS - refused) as u64);
    daemon.is_balanced();
    let of_all = daemon.status()["threshold"].as_f64().unwrap() as f32;
    assert_eq!(
        daemon.status()["segments"],
        json!({"by": {"field": "merchant.category"}, "calibrated": 16})
    );
    assert_eq!(daemon.metric("residuald_threshold") as f32, of_all);
    daemon.drains();

    let verdicts: Vec<Value> = read_all(&broker.brokers, "scores")
        .iter()
        .map(Note::json)
        .collect();
    let mut thresholds: BTreeMap<Option<String>, HashSet<u32>> = BTreeMap::new();
    for verdict in &verdicts {
        let segment = verdict
            .get("segment")
            .map(|s| s.as_str().unwrap().to_owned());
        let category = verdict["record"]["merchant"]["category"].as_str();
        let known = category.filter(|category| *category != "new");
        assert_eq!(segment.as_deref(), known, "{verdict}");
        let threshold = verdict["threshold"].as_f64().unwrap() as f32;
        thresholds
            .entry(segment)
            .or_default()
            .insert(threshold.to_bits());
        let flagged = score_of(verdict) > threshold;
        assert_eq!(flagged, verdict["severity"].is_string(), "{verdict}");
        assert_eq!(
            flagged,
            verdict["p_value"].as_f64().unwrap() <= 0.02 + 1e-9,
            "{verdict}"
        );
    }
    assert!(thresholds.values().all(|one| one.len() == 1));
    assert_eq!(thresholds[&None], HashSet::from([of_all.to_bits()]));
    let different: HashSet<_> = thresholds.values().flatten().collect();
    assert!(different.len() > 10, "{thresholds:?}");
    let anomalies = read_all(&broker.brokers, "anomalies");
    assert!(
        anomalies
            .iter()
            .any(|note| note.json()["segment"].is_string())
    );

    // `score` says the same of the same records.
    let scored = scored(&texts, &bundle, &["--false-alarm-rate", "0.02"]);
    let of_score: HashMap<(i32, i64), &Value> = scored
        .iter()
        .map(|line| {
            let at = line["record"].as_i64().unwrap() - 1;
            let partitions = i64::from(PARTITIONS);
            (((at % partitions) as i32, at / partitions), line)
        })
        .collect();
    for verdict in &verdicts {
        let line = of_score[&place(verdict)];
        for field in [
            "anomaly_score",
            "p_value",
            "threshold",
            "segment",
            "severity",
        ] {
            assert_eq!(
                verdict.get(field),
                line.get(field),
                "{field}: {verdict} {line}"
            );
        }
    }
}

#[test]
fn the_message_key_can_be_the_segment() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = calibrated(dir.path(), &["--by-key", "--key", "merchant.category"]);
    let broker = broker();
    let record = sample(1).remove(0);
    let keys: [(Option<&[u8]>, Option<&str>); 4] = [
        (Some(b"grocery"), Some("grocery")),
        (Some(b"somebody new"), None),
        (Some(b"\xff"), None),
        (None, None),
    ];
    for (key, _) in keys {
        let note = Note {
            key: key.map(<[u8]>::to_vec),
            ..Note::new("", record.as_str())
        };
        produce(&broker.brokers, "in", &[note]);
    }
    let setting = format!("model.bundle={bundle:?}");
    let daemon = Daemon::ready(&broker.brokers, &[&setting, WITH_SCORES]);
    daemon.await_count("scored", keys.len() as u64);
    daemon.drains();
    let scores = read_all(&broker.brokers, "scores");
    let segments: Vec<Value> = scores
        .iter()
        .map(|note| note.json()["segment"].clone())
        .collect();
    assert_eq!(segments, keys.map(|(_, segment)| json!(segment)));
}

#[test]
fn a_restart_goes_on_where_a_clean_drain_ended() {
    let broker = broker();
    let records = sample(900);
    for (round, part) in records.chunks(300).enumerate() {
        let daemon = Daemon::ready(&broker.brokers, &[WITH_SCORES]);
        produce(&broker.brokers, "in", &spread(part, PARTITIONS));
        // The first two rounds stop somewhere in the middle.
        let least = if round == 2 { 1 } else { 50 };
        daemon.await_count("scored", least);
        daemon.drains();
        let scored = read_all(&broker.brokers, "scores").len() as i64;
        let finished: i64 = committed(&broker.brokers, "residuald", "in").values().sum();
        assert_eq!(scored, finished, "what is committed is what was published");
    }
    let daemon = Daemon::ready(&broker.brokers, &[WITH_SCORES]);
    wait_for("the rest", || {
        (read_all(&broker.brokers, "scores").len() >= records.len()).then_some(())
    });
    daemon.drains();
    let scores = read_all(&broker.brokers, "scores");
    assert_eq!((scores.len(), distinct_ids(&scores)), (900, 900));
}

#[test]
fn readiness_waits_for_the_brokers_and_the_assignment() {
    let broker = broker();
    broker.set_up(false).unwrap();
    let daemon = Daemon::start(&broker.brokers, &["kafka.connect_timeout=60s"]);
    assert_eq!(daemon.get("/livez"), (200, "alive\n".into()));
    let (code, why) = daemon.get("/readyz");
    assert_eq!(code, 503, "{why}");
    assert!(
        why.contains("partitions") && why.contains("producer"),
        "{why}"
    );
    let status = daemon.status();
    assert_eq!(status["ready"], false, "{status}");
    assert_eq!(status["waiting_for"].as_array().unwrap().len(), 2);

    broker.set_up(true).unwrap();
    wait_for("readiness", || {
        (daemon.get("/readyz") == (200, "ready\n".into())).then_some(())
    });
    assert_eq!(daemon.status()["ready"], true);
    daemon.drains();
}

#[test]
fn a_stop_while_the_brokers_are_away_ends_the_wait() {
    let broker = broker();
    broker.set_up(false).unwrap();
    let daemon = Daemon::start(&broker.brokers, &["kafka.connect_timeout=50s"]);
    let ended = daemon.terminate();
    assert!(ended.took < Duration::from_secs(10), "{:?}", ended.took);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("stopped before Kafka answered"),
        "{}",
        ended.stderr
    );
}

#[test]
fn http_tells_what_goes_on() {
    let broker = broker();
    let daemon = Daemon::ready(&broker.brokers, &["threshold.score=0.5"]);
    let mut notes = spread(&sample(100), PARTITIONS);
    notes.push(Note::new("bad", "not json"));
    notes.push(Note {
        payload: None,
        ..Note::new("tombstone", "")
    });
    produce(&broker.brokers, "in", &notes);
    daemon.await_count("scored", 100);
    daemon.await_count("dead_letters", 1);
    daemon.await_count("skipped", 1);
    daemon.is_balanced();

    let status = daemon.status();
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["model"]["name"], "payments");
    assert_eq!(status["provider"], "cpu");
    assert_eq!(status["threshold"], 0.5);
    // What is said of partitions may be a second old.
    wait_for("all of three partitions to be finished", || {
        let status = daemon.status();
        let partitions = status["partitions"].as_array().unwrap();
        let sum = |of: &str| {
            partitions
                .iter()
                .map(|p| p[of].as_i64().unwrap())
                .sum::<i64>()
        };
        let settled = partitions.len() == 3 && sum("lag") == 0 && sum("finished_offset") == 102;
        settled.then_some(())
    });

    let (code, head, text) = http_get(&daemon.address, "/metrics");
    assert!(code == 200 && head.contains("text/plain"), "{head}");
    for (series, value) in [
        ("residuald_records_consumed_total", 102.0),
        ("residuald_records_scored_total", 100.0),
        ("residuald_records_skipped_total{reason=\"tombstone\"}", 1.0),
        ("residuald_dead_letters_total{reason=\"malformed\"}", 1.0),
        ("residuald_records_unaccounted", 0.0),
        ("residuald_records_in_flight", 0.0),
        ("residuald_threshold", 0.5),
        ("residuald_score_count", 100.0),
        ("residuald_paused_partitions", 0.0),
        ("residuald_consumer_lag{partition=\"0\",topic=\"in\"}", 0.0),
    ] {
        daemon.await_metric(series, value);
    }
    let anomalies = ["warning", "critical"]
        .map(|s| daemon.metric(&format!("residuald_anomalies_total{{severity=\"{s}\"}}")));
    assert_eq!(
        anomalies.iter().sum::<f64>(),
        daemon.count("anomalies") as f64
    );
    for name in [
        "batch_size",
        "decode_seconds",
        "queue_seconds",
        "inference_seconds",
        "end_to_end_seconds",
        "rebalances_total",
        "model_info",
        "build_info",
    ] {
        let typed = format!("# TYPE residuald_{name} ");
        assert!(text.contains(&typed), "{name} in {text}");
    }
    assert!(text.contains("provider=\"cpu\""), "{text}");
    assert_eq!(daemon.get("/nowhere").0, 404);
    daemon.drains();
}

#[test]
fn a_message_of_ten_megabytes_is_accounted_for() {
    let broker = broker();
    let good = &sample(1)[0];
    let bulk = "x".repeat(10 << 20);
    let huge_good = format!("{}, \"bulk\": \"{bulk}\"}}", &good[..good.len() - 1]);
    // A partition each: the embedded broker forgets a huge record when the next one comes.
    let on = |partition, note| Note { partition, ..note };
    let notes = [
        on(0, Note::new("bad", format!("{{{bulk}"))),
        on(1, Note::new("huge", huge_good)),
        on(2, Note::new("small", good.as_str())),
    ];
    produce(&broker.brokers, "in", &notes);
    let daemon = Daemon::ready(&broker.brokers, &[WITH_SCORES]);
    daemon.await_count("dead_letters", 1);
    daemon.await_count("scored", 2);
    daemon.is_balanced();
    daemon.drains();

    let dead = &read_all(&broker.brokers, "dead")[0];
    assert_eq!(dead.key.as_deref(), Some(&b"bad"[..]));
    assert!(dead.payload.as_ref().is_none_or(Vec::is_empty));
    assert!(dead.header("residuald.omitted").is_some(), "{dead:?}");
    assert_eq!(dead.header("__connect.errors.offset"), Some("0"));

    let scores = read_all(&broker.brokers, "scores");
    let of = |key: &str| {
        let found = scores
            .iter()
            .find(|n| n.key.as_deref() == Some(key.as_bytes()));
        found.expect("a verdict").clone()
    };
    let (huge, small) = (of("huge"), of("small"));
    assert_eq!(huge.json().get("record"), None, "too large to carry");
    assert!(huge.header("residuald.omitted").is_some());
    assert_eq!(small.json()["record"], parse(good.as_bytes()));
    assert_eq!(score_of(&huge.json()), score_of(&small.json()));
}

#[test]
fn a_broker_that_goes_away_and_comes_back_loses_nothing() {
    let broker = broker();
    let records = sample(RECORDS);
    let notes = spread(&records, PARTITIONS);
    let daemon = Daemon::ready(&broker.brokers, &[WITH_SCORES, LOW_THRESHOLD]);
    let (first, rest) = notes.split_at(500);
    produce(&broker.brokers, "in", first);
    daemon.await_count("scored", 100);
    broker.set_up(false).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(daemon.get("/livez").0, 200);
    broker.set_up(true).unwrap();
    produce(&broker.brokers, "in", rest);
    daemon.await_count("scored", RECORDS as u64);
    daemon.drains();
    let scores = read_all(&broker.brokers, "scores");
    assert!(scores.len() >= RECORDS);
    assert_eq!(distinct_ids(&scores), RECORDS);
}

#[test]
fn replicas_that_come_and_go_lose_nothing() {
    let broker = broker();
    let records = sample(RECORDS);
    let notes = spread(&records, PARTITIONS);
    let settings = [
        WITH_SCORES,
        "batch.max_records=16",
        "kafka.consumer.\"auto.commit.interval.ms\"=200",
    ];
    let first = Daemon::ready(&broker.brokers, &settings);
    std::thread::scope(|scope| {
        let flow = scope.spawn(|| {
            for part in notes.chunks(25) {
                produce(&broker.brokers, "in", part);
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        first.await_count("scored", 50);
        let second = Daemon::ready(&broker.brokers, &settings);
        second.await_count("scored", 50);
        second.drains();
        flow.join().unwrap();
    });
    assert!(first.metric("residuald_rebalances_total") >= 3.0);
    wait_for("all records to be judged", || {
        (distinct_ids(&read_all(&broker.brokers, "scores")) == RECORDS).then_some(())
    });
    first.is_balanced();
    wait_for("the commits", || {
        let (brokers, group) = (&broker.brokers, "residuald");
        (committed(brokers, group, "in") == ends(brokers, "in")).then_some(())
    });
    first.drains();
}

#[test]
fn with_a_single_batch_in_flight_everything_still_comes_through() {
    let broker = broker();
    produce(&broker.brokers, "in", &spread(&sample(RECORDS), PARTITIONS));
    let settings = [WITH_SCORES, "batch.in_flight=1", "batch.max_records=32"];
    let daemon = Daemon::ready(&broker.brokers, &settings);
    daemon.await_count("scored", RECORDS as u64);
    daemon.is_balanced();
    daemon.drains();
    let scores = read_all(&broker.brokers, "scores");
    assert_eq!((scores.len(), distinct_ids(&scores)), (RECORDS, RECORDS));
}

#[test]
fn it_pauses_while_deliveries_are_held_up_and_keeps_its_place_in_the_group() {
    let broker = broker();
    let records = sample(RECORDS);
    produce(&broker.brokers, "in", &spread(&records, PARTITIONS));
    let settings = [
        WITH_SCORES,
        "batch.in_flight=1",
        "batch.max_records=16",
        // No delivery is answered before the linger is over: the consumer is behind.
        "kafka.producer.\"linger.ms\"=900",
    ];
    let daemon = Daemon::ready(&broker.brokers, &settings);
    wait_for("a pause", || {
        (daemon.metric("residuald_paused_partitions") > 0.0).then_some(())
    });
    assert_eq!(daemon.get("/readyz").0, 200);
    daemon.await_count("scored", 64);
    daemon.drains();
    let scores = read_all(&broker.brokers, "scores");
    let finished: i64 = committed(&broker.brokers, "residuald", "in").values().sum();
    assert_eq!(scores.len() as i64, finished);
    assert_eq!(distinct_ids(&scores), scores.len());
}

#[test]
fn a_second_signal_stops_at_once() {
    let broker = broker();
    produce(&broker.brokers, "in", &spread(&sample(64), PARTITIONS));
    let settings = ["kafka.producer.\"linger.ms\"=60000", WITH_SCORES];
    let mut daemon = Daemon::ready(&broker.brokers, &settings);
    wait_for("records in flight", || {
        (daemon.count("in_flight") > 0).then_some(())
    });
    crate::common::process::signal(daemon.pid(), "TERM");
    wait_for("the drain", || {
        (daemon.get("/readyz").0 == 503).then_some(())
    });
    crate::common::process::signal(daemon.pid(), "TERM");
    assert_eq!(daemon.end().code, Some(130));
}

#[test]
fn a_drain_that_cannot_end_says_so_and_commits_nothing() {
    let broker = broker();
    produce(&broker.brokers, "in", &spread(&sample(64), PARTITIONS));
    let settings = [
        "kafka.producer.\"linger.ms\"=60000",
        "kafka.drain_timeout=1s",
        WITH_SCORES,
    ];
    let daemon = Daemon::ready(&broker.brokers, &settings);
    wait_for("records in flight", || {
        (daemon.count("in_flight") == 64).then_some(())
    });
    let ended = daemon.terminate();
    let line = ended.one_line(69);
    assert!(line.contains("64 records were still in flight"), "{line}");
    // Where it started, and nothing beyond.
    let starts: BTreeMap<i32, i64> = (0..PARTITIONS).map(|partition| (partition, 0)).collect();
    assert_eq!(committed(&broker.brokers, "residuald", "in"), starts);

    // The next start judges them all.
    let daemon = Daemon::ready(&broker.brokers, &[WITH_SCORES]);
    daemon.await_count("scored", 64);
    daemon.drains();
    assert_eq!(distinct_ids(&read_all(&broker.brokers, "scores")), 64);
}

/// With the screen on, what is flagged is what is flagged without it, to the byte; the books balance; and in audit mode
/// nothing is left unscored.
#[test]
fn a_screen_spares_the_scorer_and_loses_no_anomaly() {
    let records = 6000;
    let sent = spread(&sample(records), PARTITIONS);
    let clears = 0.6..=0.95;
    let flagged = |screen: &str| {
        let broker = broker();
        produce(&broker.brokers, "in", &sent);
        let mode = format!("screen.mode={screen}");
        let daemon = Daemon::ready(&broker.brokers, &["threshold.quantile=0.99", &mode]);
        daemon.await_count("scored", records as u64);
        daemon.is_balanced();
        let count = |screen: &str, audited: bool| {
            daemon.metric(&format!(
                "residuald_screen_records_total{{audited=\"{audited}\",screen=\"{screen}\"}}"
            ))
        };
        let audited = count("cleared", true) + count("passed", true);
        let others = count("cleared", false) + count("passed", false);
        let unscored = count("cleared", false) / records as f64;
        let cleared = unscored + count("cleared", true) / records as f64;
        let observed = daemon.metric("residuald_score_count");
        match screen {
            "off" => {
                assert_eq!((audited, others), (0.0, 0.0));
                assert_eq!(observed, records as f64);
            }
            "audit" => {
                assert_eq!((audited, others), (records as f64, 0.0));
                assert_eq!(observed, records as f64);
                assert!(clears.contains(&cleared), "{cleared}");
            }
            _ => {
                assert_eq!(audited + others, records as f64);
                assert_eq!(observed, audited, "scores are those of a fair sample");
                assert!(clears.contains(&unscored), "{unscored}");
            }
        }
        let missed = "residuald_screen_audited_anomalies_total{screen=\"cleared\"}";
        assert_eq!(daemon.metric(missed), 0.0);
        daemon.drains();
        let verdicts = read_all(&broker.brokers, "anomalies");
        let by_place = verdicts.into_iter().map(|note| {
            let mut verdict = parse(note.payload.as_ref().unwrap());
            verdict.as_object_mut().unwrap().remove("time");
            (place(&verdict), verdict)
        });
        by_place.collect::<BTreeMap<_, _>>()
    };
    let all = flagged("off");
    assert!(all.len() > 60);
    assert_eq!(flagged("audit"), all);
    assert_eq!(flagged("on"), all);
}
