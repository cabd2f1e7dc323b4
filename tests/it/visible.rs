//! What is seen of a daemon while nothing happens: lag from the assignment on, what a partition waits for and since when,
//! and an end that is the end, whatever is in the log behind the last record.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::common::kafka::{Note, committed, ends, produce, read_all, spread};
use crate::common::process::{Daemon, run, signal};
use crate::common::registry::{Mood, SchemaRegistry};
use crate::common::topics::Topics;
use crate::common::{PATIENCE, sample, wait_for};
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use residuald::kafka::embedded::EmbeddedBroker;
use serde_json::Value;

const EXACTLY_ONCE: &str = "kafka.delivery=exactly-once";
const STALE_AFTER: &str = "residuald_partition_last_finished_timestamp_seconds";

fn broker(partitions: i32) -> EmbeddedBroker {
    let topics = [("in", partitions), ("anomalies", 1), ("dead", 1)];
    EmbeddedBroker::start(&topics).unwrap()
}

/// The partitions of `/status` by number, once there are so many and the lag of each is known.
fn partitions(daemon: &Daemon, count: usize) -> BTreeMap<i64, Value> {
    wait_for(
        &format!("{count} partitions in {}", daemon.status()),
        || {
            let status = daemon.status();
            let all = status["partitions"].as_array().unwrap();
            let known = all
                .iter()
                .all(|partition| partition["lag"].as_i64().unwrap() >= 0);
            let by_number = |p: &Value| (p["partition"].as_i64().unwrap(), p.clone());
            (all.len() == count && known).then(|| all.iter().map(by_number).collect())
        },
    )
}

fn lags(daemon: &Daemon, count: usize) -> Vec<i64> {
    let partitions = partitions(daemon, count);
    let lag = |partition: &Value| partition["lag"].as_i64().unwrap();
    partitions.values().map(lag).collect()
}

fn await_lags(daemon: &Daemon, expected: &[i64]) {
    wait_for(&format!("lags of {expected:?}"), || {
        (lags(daemon, expected.len()) == expected).then_some(())
    });
}

fn lag_series(topic: &str, partition: i32) -> String {
    format!("residuald_consumer_lag{{partition=\"{partition}\",topic=\"{topic}\"}}")
}

/// What partition 0 waits for, by `/status`, once it does.
fn waits_for(daemon: &Daemon) -> String {
    wait_for("a partition that waits", || {
        let status = daemon.status();
        let what = status["partitions"][0]["waiting_for"].as_str()?;
        assert!(status["partitions"][0]["waiting_since"].is_string());
        Some(what.to_owned())
    })
}

/// Every assigned partition is there with its lag although no record comes; so it is after a restart, where the lag counts
/// from the committed offset.
#[test]
fn partitions_and_lags_are_there_from_the_assignment_on() {
    let broker = broker(3);
    let daemon = Daemon::ready(&broker.brokers, &[]);
    assert_eq!(lags(&daemon, 3), [0, 0, 0]);
    for partition in 0..3 {
        assert_eq!(daemon.metric(&lag_series("in", partition)), 0.0);
    }
    produce(&broker.brokers, "in", &spread(&sample(30), 3));
    daemon.await_count("scored", 30);
    daemon.is_balanced();
    daemon.drains();

    let daemon = Daemon::ready(&broker.brokers, &[]);
    let all = partitions(&daemon, 3);
    for partition in all.values() {
        assert_eq!(partition["lag"], 0, "{partition}");
        assert_eq!(partition["finished_offset"], 10, "{partition}");
        assert_eq!(partition["end_offset"], 10, "{partition}");
        assert!(partition.get("waiting_for").is_none(), "{partition}");
    }
    daemon.drains();
}

/// A topic that was never read: what the group reads first is what `auto.offset.reset` says, and so is the lag.
#[test]
fn the_lag_of_a_new_group_counts_from_where_it_begins() {
    let broker = broker(1);
    let registry = SchemaRegistry::start();
    registry.is(Mood::Silent);
    let framed: Vec<Note> = (0..50).map(|_| Note::new("", [0, 0, 0, 0, 7, 1])).collect();
    produce(&broker.brokers, "in", &framed);
    let url = registry.setting();
    for (reset, expected) in [("earliest", 50), ("latest", 0)] {
        let group = format!("kafka.group_id={reset}");
        let reset = format!("kafka.consumer.\"auto.offset.reset\"={reset}");
        let settings = ["input.format=avro", &url, &group, &reset];
        let daemon = Daemon::ready(&broker.brokers, &settings);
        await_lags(&daemon, &[expected]);
        daemon.drains();
    }
}

/// While a partition is held, each look says so: the gauge never falls to 0 in between, lag and age are there, and every
/// way to ask says what it waits for.
#[test]
fn a_held_partition_is_held_at_every_look_and_says_why() {
    let broker = broker(2);
    let registry = SchemaRegistry::start();
    registry.is(Mood::Silent);
    let framed = |_| Note::new("", [0, 0, 0, 0, 7, 1]);
    produce(
        &broker.brokers,
        "in",
        &(0..50).map(framed).collect::<Vec<_>>(),
    );
    let url = registry.setting();
    let settings = [
        "input.format=avro",
        &url,
        "input.schema_registry.timeout=1s",
    ];
    let daemon = Daemon::ready(&broker.brokers, &settings);
    wait_for("a problem of the registry", || {
        waits_for(&daemon)
            .contains("schema 7 (/schemas/ids/7")
            .then_some(())
    });
    assert_eq!(lags(&daemon, 2), [50, 0]);
    assert_eq!(daemon.metric(&lag_series("in", 0)), 50.0);
    let since = daemon.status()["partitions"][0]["waiting_since"].clone();
    let stale = format!("{STALE_AFTER}{{partition=\"0\",topic=\"in\"}}");
    let finished = daemon.metric(&stale);
    for _ in 0..100 {
        assert_eq!(daemon.metric("residuald_paused_partitions"), 1.0);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(daemon.status()["partitions"][0]["waiting_since"], since);
    assert_eq!(daemon.metric(&stale), finished, "nothing was finished");

    let line = "in-0 waits for schema 7 (";
    let (code, text) = daemon.get("/readyz?verbose");
    assert!(code == 200 && text.starts_with("ready\n"), "{code} {text}");
    assert!(text.contains(line), "{text}");
    assert_eq!(daemon.get("/readyz").1, "ready\n");
    let said = run(&["status", &format!("http://{}", daemon.address)]);
    assert!(said.stdout.contains(line), "{}", said.stdout);

    // The registry is back and has no such schema: all are dead letters, and nothing waits.
    registry.is(Mood::Well);
    daemon.await_count("dead_letters", 50);
    await_lags(&daemon, &[0, 0]);
    daemon.await_metric("residuald_paused_partitions", 0.0);
    assert_eq!(daemon.get("/readyz?verbose").1, "ready\n");
    daemon.drains();
}

/// Who has no token learns nothing of partitions and registry.
#[test]
fn what_partitions_wait_for_is_behind_the_token() {
    let broker = broker(1);
    let daemon = Daemon::start(&broker.brokers, &["http.token=hunter2"]);
    wait_for("readiness", || {
        (daemon.get("/readyz").0 == 200).then_some(())
    });
    for path in ["/readyz?verbose", "/readyz?verbose=1", "/readyz?a&verbose"] {
        assert_eq!(daemon.get(path).0, 401, "{path}");
    }
    assert_eq!(daemon.get("/readyz?probe").0, 200);
    daemon.drains();
}

/// Verdicts that cannot be delivered hold everything up: the lag is seen to grow meanwhile, although nothing is fetched.
#[test]
fn a_pause_says_why_and_the_lag_goes_on_growing() {
    let broker = broker(2);
    let settings = [
        "batch.in_flight=1",
        "batch.max_records=16",
        "output.scores_topic=anomalies",
        // No delivery is answered before the linger is over.
        "kafka.producer.\"linger.ms\"=60000",
        "kafka.drain_timeout=1s",
    ];
    let daemon = Daemon::ready(&broker.brokers, &settings);
    produce(&broker.brokers, "in", &spread(&sample(200), 2));
    wait_for("a pause", || {
        waits_for(&daemon).contains("behind").then_some(())
    });
    daemon.await_metric("residuald_paused_partitions", 2.0);
    await_lags(&daemon, &[100, 100]);
    produce(&broker.brokers, "in", &spread(&sample(100), 2));
    await_lags(&daemon, &[150, 150]);
    signal(daemon.pid(), "KILL");
}

/// Brokers that are gone tell no lag: it is not 0 for ever, and a member that lost its partitions is not ready.
#[test]
fn without_the_brokers_no_lag_is_made_up() {
    let broker = broker(1);
    let stay = "kafka.consumer.\"session.timeout.ms\"=120000";
    let daemon = Daemon::ready(&broker.brokers, &[stay]);
    assert_eq!(lags(&daemon, 1), [0]);
    broker.set_up(false).unwrap();
    wait_for("an unknown lag", || {
        (daemon.status()["partitions"][0]["lag"] == -1).then_some(())
    });
    assert_eq!(waits_for(&daemon), "its offsets from the brokers");
    assert!(!daemon.get("/metrics").1.contains(&lag_series("in", 0)));
    broker.set_up(true).unwrap();
    await_lags(&daemon, &[0]);
    daemon.await_metric(&lag_series("in", 0), 0.0);
    signal(daemon.pid(), "KILL");
}

#[test]
fn who_lost_its_partitions_is_not_ready() {
    let broker = broker(1);
    let daemon = Daemon::ready(&broker.brokers, &[]);
    broker.set_up(false).unwrap();
    wait_for("the loss to be seen", || {
        let (code, text) = daemon.get("/readyz");
        (code == 503 && text.contains("partitions")).then_some(())
    });
    broker.set_up(true).unwrap();
    wait_for("readiness", || {
        (daemon.get("/readyz").0 == 200).then_some(())
    });
    assert_eq!(lags(&daemon, 1), [0]);
    signal(daemon.pid(), "KILL");
}

fn transactional(brokers: &str, id: &str) -> ThreadedProducer<DefaultProducerContext> {
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("transactional.id", id)
        .set("log_level", "2")
        .create()
        .unwrap();
    producer.init_transactions(PATIENCE).unwrap();
    producer
}

fn put(producer: &ThreadedProducer<DefaultProducerContext>, topic: &str, records: &[String]) {
    for record in records {
        let record: BaseRecord<'_, (), String> = BaseRecord::to(topic).partition(0).payload(record);
        producer.send(record).map_err(|(e, _)| e).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
}

/// Transactions committed and aborted, the last offsets of the partition without a record, and then an open transaction.
fn the_end_is_the_end(prefix: &'static str, settings: &[&str]) {
    let Some(topics) = Topics::create(prefix) else {
        return;
    };
    let (brokers, topic) = (topics.brokers(), topics.name("in"));
    let records = sample(8);
    let producer = transactional(brokers, prefix);
    for record in &records[..5] {
        producer.begin_transaction().unwrap();
        put(&producer, &topic, std::slice::from_ref(record));
        producer.commit_transaction(PATIENCE).unwrap();
    }
    let abort = |count: usize| {
        producer.begin_transaction().unwrap();
        put(&producer, &topic, &sample(count));
        producer.abort_transaction(PATIENCE).unwrap();
    };
    abort(300);
    let end = 5 + 5 + 300 + 1;
    wait_for("the marker of the abort", || {
        (ends(brokers, &topic)[&0] == end).then_some(())
    });
    let daemon = topics.daemon(settings);
    daemon.await_count("scored", 5);
    await_lags(&daemon, &[0, 0, 0]);
    let committed = || committed(brokers, topics.group(), &topic).get(&0).copied();
    wait_for("the commit behind the last marker", || {
        (committed() == Some(end)).then_some(())
    });

    // More of it without a record, then an open transaction: it holds the end back, and nothing goes past it.
    abort(10);
    let end = end + 11;
    wait_for("the commit behind more markers", || {
        (committed() == Some(end)).then_some(())
    });
    producer.begin_transaction().unwrap();
    put(&producer, &topic, &records[5..6]);
    let other = transactional(brokers, &format!("{prefix}-other"));
    other.begin_transaction().unwrap();
    put(&other, &topic, &records[6..]);
    other.commit_transaction(PATIENCE).unwrap();
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(
        committed(),
        Some(end),
        "nothing goes past an open transaction"
    );
    assert_eq!(daemon.count("scored"), 5);
    // Three records wait, and so does the marker of the transaction that ended.
    await_lags(&daemon, &[4, 0, 0]);
    let waits = format!("an open transaction to end, which hides 4 offsets from offset {end} on");
    let said = waits_for(&daemon);
    assert!(said.contains(&waits), "{said}");
    let stale = format!("{STALE_AFTER}{{partition=\"0\",topic=\"{topic}\"}}");
    let finished = daemon.metric(&stale);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(daemon.metric(&stale), finished, "so the alert can fire");
    producer.commit_transaction(PATIENCE).unwrap();
    daemon.await_count("scored", 8);
    let end = end + 3 + 2;
    wait_for("the last commit", || {
        (committed() == Some(end)).then_some(())
    });
    await_lags(&daemon, &[0, 0, 0]);
    assert!(partitions(&daemon, 3)[&0].get("waiting_for").is_none());
    daemon.is_balanced();
    daemon.drains();
    let verdicts = topics.kcat("scores");
    let offsets: Vec<_> = verdicts
        .iter()
        .map(|(_, v)| v["source"]["offset"].clone())
        .collect();
    assert_eq!(offsets.len(), 8, "{offsets:?}");
}

#[test]
fn behind_markers_and_aborted_records_there_is_no_lag() {
    the_end_is_the_end(
        "markers",
        &["kafka.consumer.\"auto.commit.interval.ms\"=200"],
    );
}

#[test]
fn behind_markers_and_aborted_records_there_is_no_lag_exactly_once() {
    the_end_is_the_end("markers-once", &[EXACTLY_ONCE]);
}

/// What was committed behind the last marker is where a restart goes on, and an end without any record at all is one too.
#[test]
fn a_topic_of_aborted_records_alone_has_no_lag() {
    let Some(topics) = Topics::create("aborted") else {
        return;
    };
    let (brokers, topic) = (topics.brokers(), topics.name("in"));
    let producer = transactional(brokers, "aborted");
    producer.begin_transaction().unwrap();
    put(&producer, &topic, &sample(20));
    producer.abort_transaction(PATIENCE).unwrap();
    for round in 0..2 {
        let daemon = topics.daemon(&[]);
        await_lags(&daemon, &[0, 0, 0]);
        if round == 1 {
            let finished = &partitions(&daemon, 3)[&0]["finished_offset"];
            assert_eq!(*finished, 21, "it is committed");
        }
        assert_eq!(daemon.count("consumed"), 0);
        daemon.drains();
        assert_eq!(topics.committed()[&0], 21);
    }
}

/// A record that nobody can judge yet is not passed by, however quiet its partition is.
#[test]
fn a_held_record_is_not_taken_for_the_end() {
    let Some(topics) = Topics::create("held") else {
        return;
    };
    let registry = SchemaRegistry::start();
    registry.is(Mood::Failing);
    let note = Note::new("", [0, 0, 0, 0, 7, 1]);
    produce(topics.brokers(), &topics.name("in"), &[note]);
    let url = registry.setting();
    let daemon = topics.daemon(&["input.format=avro", &url]);
    await_lags(&daemon, &[1, 0, 0]);
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(lags(&daemon, 3), [1, 0, 0]);
    // Where it starts is committed at once; the record is not.
    assert!(topics.committed().get(&0).is_none_or(|&next| next == 0));
    registry.is(Mood::Well);
    daemon.await_count("dead_letters", 1);
    await_lags(&daemon, &[0, 0, 0]);
    daemon.drains();
    assert_eq!(read_all(topics.brokers(), &topics.name("dead")).len(), 1);
}
