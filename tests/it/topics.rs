//! On a real Apache Kafka: topics that come, go, grow and are recreated, patterns, and offsets that are not there. Every
//! record is judged, or it is said which ones are not.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use crate::common::admin::Admin;
use crate::common::cluster::{Cluster, cluster, kafka_sh};
use crate::common::kafka::{committed, ends, produce, read_all, spread};
use crate::common::process::{Daemon, residuald, signal};
use crate::common::{parse, payments, sample, wait_for};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

const AT_LEAST_ONCE: &str = "kafka.delivery=at-least-once";
const EXACTLY_ONCE: &str = "kafka.delivery=exactly-once";
const LATEST: &str = "kafka.consumer.\"auto.offset.reset\"=latest";
const NONE: &str = "kafka.consumer.\"auto.offset.reset\"=none";
/// A daemon of these tests stands still for a moment, and is to keep its place in the group.
const PATIENT_GROUP: &str = "kafka.consumer.\"session.timeout.ms\"=45000";

/// The topics, the group and the outputs of a test.
struct Stage {
    cluster: &'static Cluster,
    admin: Admin,
    prefix: &'static str,
}

impl Stage {
    fn create(prefix: &'static str) -> Option<Stage> {
        let cluster = cluster()?;
        let admin = Admin::new(&cluster.brokers);
        let stage = Stage {
            cluster,
            admin,
            prefix,
        };
        for output in ["anomalies", "scores", "dead"] {
            stage.admin.create(&stage.name(output), 1);
        }
        Some(stage)
    }

    fn name(&self, topic: &str) -> String {
        format!("{}-{topic}", self.prefix)
    }

    fn topic(&self, topic: &str, partitions: i32) -> String {
        let name = self.name(topic);
        self.admin.create(&name, partitions);
        name
    }

    /// Record `i` goes to partition `i % partitions`.
    fn send(&self, topic: &str, records: &[String], partitions: i32) {
        produce(&self.cluster.brokers, topic, &spread(records, partitions));
    }

    fn settings(&self, topics: &[&str]) -> Vec<String> {
        vec![
            format!("kafka.brokers={}", self.cluster.brokers),
            format!("kafka.topics={topics:?}"),
            format!("kafka.group_id={}", self.prefix),
            format!("output.anomalies_topic={}", self.name("anomalies")),
            format!("output.scores_topic={}", self.name("scores")),
            format!("output.dead_letter_topic={}", self.name("dead")),
            format!("kafka.consumer.\"group.instance.id\"={}", self.prefix),
        ]
    }

    fn start(&self, topics: &[&str], settings: &[&str]) -> Daemon {
        let own = self.settings(topics);
        let own = own.iter().map(String::as_str);
        let all: Vec<&str> = own.chain(settings.iter().copied()).collect();
        Daemon::start(&self.cluster.brokers, &all)
    }

    fn daemon(&self, topics: &[&str], settings: &[&str]) -> Daemon {
        self.start(topics, settings).await_ready()
    }

    /// What a start that fails says.
    fn refused(&self, topics: &[&str], settings: &[&str]) -> String {
        let mut command = residuald();
        command.arg("run");
        let bundle = format!("model.bundle={:?}", payments());
        let own = self.settings(topics);
        let own = own.iter().map(String::as_str);
        for setting in own
            .chain(settings.iter().copied())
            .chain([bundle.as_str(), "http.listen=127.0.0.1:0"])
        {
            command.args(["--set", setting]);
        }
        let ended = crate::common::process::ended(&mut command);
        ended.one_line(69).to_owned()
    }

    /// The records that have a verdict, and how many verdicts there are.
    fn judged(&self) -> (HashSet<String>, usize) {
        let verdicts = read_all(&self.cluster.brokers, &self.name("scores"));
        let records = verdicts.iter().map(|v| v.json()["record"].to_string());
        (records.collect(), verdicts.len())
    }

    fn await_judged(&self, records: &[String]) -> usize {
        let wanted = records.iter().map(|r| parse(r.as_bytes()).to_string());
        let wanted: Vec<String> = wanted.collect();
        wait_for(&format!("{} records to be judged", records.len()), || {
            let (judged, verdicts) = self.judged();
            wanted
                .iter()
                .all(|record| judged.contains(record))
                .then_some(verdicts)
        })
    }

    fn await_committed(&self, topic: &str) {
        wait_for(&format!("all of {topic} to be committed"), || {
            (self.committed(topic) == ends(&self.cluster.brokers, topic)).then_some(())
        });
    }

    fn committed(&self, topic: &str) -> BTreeMap<i32, i64> {
        committed(&self.cluster.brokers, self.prefix, topic)
    }

    fn delete_offsets(&self, of: &str) {
        let options = ["--delete-offsets", "--group", self.prefix, "--topic", of];
        kafka_sh(&self.cluster.dir, &[&["group"][..], &options].concat());
    }
}

/// Records of their own for each step: the first `count` after `from`.
fn records(from: usize, count: usize) -> Vec<String> {
    sample(from + count).split_off(from)
}

fn resets(daemon: &Daemon, reason: &str) -> f64 {
    daemon.metric(&format!(
        "residuald_partition_resets_total{{reason=\"{reason}\"}}"
    ))
}

fn is_missing(daemon: &Daemon, topic: &str) -> bool {
    daemon.metric(&format!("residuald_topic_missing{{topic=\"{topic}\"}}")) == 1.0
}

/// A topic that has more records than the group had read of the one before it, while the daemon runs.
fn made_again_while_it_runs(prefix: &'static str, delivery: &str) {
    let Some(stage) = Stage::create(prefix) else {
        return;
    };
    let topic = stage.topic("in", 1);
    let (old, new) = (records(0, 1000), records(1000, 2000));
    let daemon = stage.daemon(&[&topic], &[delivery, LATEST]);
    stage.send(&topic, &old, 1);
    stage.await_judged(&old);
    stage.await_committed(&topic);

    stage.admin.delete(&topic);
    stage.admin.create(&topic, 1);
    stage.send(&topic, &new, 1);
    stage.await_judged(&new);
    stage.await_committed(&topic);
    daemon.is_balanced();
    assert_eq!(resets(&daemon, "recreated"), 1.0);
    let log = daemon.drains().stderr;
    assert!(log.contains("was deleted and recreated"), "{log}");

    // The next start knows that this one is read.
    let daemon = stage.daemon(&[&topic], &[delivery, LATEST]);
    stage.send(&topic, &old, 1);
    stage.await_committed(&topic);
    assert_eq!(daemon.count("consumed"), 1000);
    assert_eq!(resets(&daemon, "recreated"), 0.0);
    daemon.drains();
}

#[test]
fn a_topic_made_again_while_the_daemon_runs_is_read_from_its_beginning() {
    made_again_while_it_runs("again", AT_LEAST_ONCE);
}

#[test]
fn a_topic_made_again_while_the_daemon_runs_is_read_from_its_beginning_exactly_once() {
    made_again_while_it_runs("again-once", EXACTLY_ONCE);
}

#[test]
fn a_topic_made_again_while_no_daemon_runs_is_read_from_its_beginning() {
    let Some(stage) = Stage::create("again-down") else {
        return;
    };
    let topic = stage.topic("in", 1);
    let (old, new) = (records(0, 100), records(100, 300));
    let daemon = stage.daemon(&[&topic], &[]);
    stage.send(&topic, &old, 1);
    stage.await_committed(&topic);
    let metadata = metadata_of_the_commit(&stage, &topic);
    daemon.drains();

    stage.admin.delete(&topic);
    stage.admin.create(&topic, 1);
    stage.send(&topic, &new, 1);
    // As a commit that was on its way when the topic went: the brokers do not compare ids.
    commit(&stage, &topic, 100, &metadata);
    let daemon = stage.daemon(&[&topic], &[LATEST]);
    stage.await_judged(&new);
    assert_eq!(resets(&daemon, "recreated"), 1.0);
    let log = daemon.drains().stderr;
    assert!(log.contains("was deleted and recreated"), "{log}");
}

fn group_of(stage: &Stage) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", &stage.cluster.brokers)
        .set("group.id", stage.prefix)
        .set("enable.auto.commit", "false")
        .set("log_level", "2")
        .create()
        .unwrap()
}

fn metadata_of_the_commit(stage: &Stage, topic: &str) -> String {
    let mut asked = TopicPartitionList::new();
    asked.add_partition(topic, 0);
    let told = group_of(stage).committed_offsets(asked, crate::common::PATIENCE);
    let told = told.unwrap();
    told.elements()[0].metadata().to_owned()
}

fn commit(stage: &Stage, topic: &str, offset: i64, metadata: &str) {
    wait_for("the commit", || {
        let mut offsets = TopicPartitionList::new();
        let mut element = offsets.add_partition(topic, 0);
        element.set_offset(Offset::Offset(offset)).unwrap();
        element.set_metadata(metadata);
        let committed = group_of(stage).commit(&offsets, CommitMode::Sync);
        committed.ok()
    });
}

fn partitions_are_added(prefix: &'static str, delivery: &str) {
    let Some(stage) = Stage::create(prefix) else {
        return;
    };
    let topic = stage.topic("in", 2);
    let settings = [delivery, LATEST];
    let daemon = stage.daemon(&[&topic], &settings);
    // The second partition stays without records, and is no newer than the group for that.
    let first = records(0, 10);
    stage.send(&topic, &first, 1);
    stage.await_judged(&first);

    stage.admin.grow(&topic, 4);
    let second = records(10, 1000);
    stage.send(&topic, &second, 4);
    stage.await_judged(&second);
    daemon.drains();

    stage.admin.grow(&topic, 6);
    let third = records(1010, 1200);
    stage.send(&topic, &third, 6);
    let daemon = stage.daemon(&[&topic], &settings);
    let verdicts = stage.await_judged(&third);
    assert_eq!(verdicts, 10 + 1000 + 1200, "nothing is judged twice");
    assert_eq!(daemon.metric("residuald_records_unread_total"), 0.0);
    daemon.drains();
}

#[test]
fn partitions_that_are_added_are_read_from_their_beginning() {
    partitions_are_added("grow", AT_LEAST_ONCE);
}

#[test]
fn partitions_that_are_added_are_read_from_their_beginning_exactly_once() {
    partitions_are_added("grow-once", EXACTLY_ONCE);
}

#[test]
fn with_latest_what_was_there_before_the_group_is_left_out() {
    let Some(stage) = Stage::create("latest") else {
        return;
    };
    let topic = stage.topic("in", 2);
    let (before, after) = (records(0, 100), records(100, 50));
    stage.send(&topic, &before, 2);
    let daemon = stage.daemon(&[&topic], &[LATEST]);
    wait_for("the starts to be committed", || {
        (stage.committed(&topic).len() == 2).then_some(())
    });
    stage.send(&topic, &after, 2);
    assert_eq!(stage.await_judged(&after), 50);
    let log = daemon.drains().stderr;
    assert!(
        log.contains("the 50 records before it are not read"),
        "{log}"
    );
}

fn one_of_two_is_deleted(prefix: &'static str, delivery: &str) {
    let Some(stage) = Stage::create(prefix) else {
        return;
    };
    let (stays, goes) = (stage.topic("stays", 2), stage.topic("goes", 2));
    let topics = [stays.as_str(), goes.as_str()];
    let daemon = stage.daemon(&topics, &[delivery]);
    let all = records(0, 500);
    let (first, second) = (&all[..100], &all[100..200]);
    stage.send(&stays, first, 2);
    stage.send(&goes, second, 2);
    stage.await_judged(&all[..200]);
    assert!(!is_missing(&daemon, &goes));

    stage.admin.delete(&goes);
    wait_for("the missing topic to be counted", || {
        is_missing(&daemon, &goes).then_some(())
    });
    stage.send(&stays, &all[200..300], 2);
    stage.await_judged(&all[200..300]);
    assert!(!is_missing(&daemon, &stays));
    daemon.is_balanced();
    daemon.drains();

    // A start without it goes on with the other one, and takes it up when it is there again.
    let daemon = stage.daemon(&topics, &[delivery, LATEST]);
    wait_for("the missing topic to be counted", || {
        is_missing(&daemon, &goes).then_some(())
    });
    stage.send(&stays, &all[300..400], 2);
    stage.await_judged(&all[300..400]);
    stage.admin.create(&goes, 3);
    stage.send(&goes, &all[400..], 3);
    stage.await_judged(&all[400..]);
    wait_for("the topic to be there", || {
        (!is_missing(&daemon, &goes)).then_some(())
    });
    daemon.is_balanced();
    daemon.drains();
}

#[test]
fn one_of_two_topics_may_be_deleted() {
    one_of_two_is_deleted("gone", AT_LEAST_ONCE);
}

#[test]
fn one_of_two_topics_may_be_deleted_exactly_once() {
    one_of_two_is_deleted("gone-once", EXACTLY_ONCE);
}

/// Its records are in flight when it goes: their verdicts are delivered, and the others' offsets committed.
#[test]
fn a_topic_may_be_deleted_while_its_records_are_in_flight() {
    let Some(stage) = Stage::create("gone-busy") else {
        return;
    };
    let (stays, goes) = (stage.topic("stays", 1), stage.topic("goes", 1));
    let settings = [EXACTLY_ONCE, "kafka.transaction_window=5s"];
    let daemon = stage.daemon(&[&stays, &goes], &settings);
    let all = records(0, 200);
    stage.send(&stays, &all[..100], 1);
    stage.send(&goes, &all[100..], 1);
    daemon.await_count("consumed", 200);
    stage.admin.delete(&goes);
    assert_eq!(stage.await_judged(&all), 200);
    stage.await_committed(&stays);
    daemon.is_balanced();
    daemon.drains();
}

#[test]
fn every_missing_topic_is_named_when_a_group_starts_for_the_first_time() {
    let Some(stage) = Stage::create("named") else {
        return;
    };
    let there = stage.topic("in", 1);
    let line = stage.refused(&["no-this", &there, "no-that"], &[]);
    assert!(line.contains("`no-that`, `no-this`"), "{line}");
    assert!(!line.contains(&there), "{line}");
    let line = stage.refused(&["no-this"], &[]);
    assert!(line.contains("topic `no-this` does not exist"), "{line}");
}

fn a_pattern(prefix: &'static str, delivery: &str) {
    let Some(stage) = Stage::create(prefix) else {
        return;
    };
    let all = records(0, 900);
    let early = [stage.topic("a", 1), stage.topic("b", 1)];
    stage.send(&early[0], &all[..200], 1);
    stage.send(&early[1], &all[200..400], 1);
    // It matches the outputs too, which must not be read.
    let pattern = format!("^{prefix}-.*");
    let daemon = stage.daemon(&[&pattern], &[delivery]);
    stage.await_judged(&all[..400]);

    let late = stage.topic("c", 2);
    stage.send(&late, &all[400..600], 2);
    stage.await_judged(&all[400..600]);
    stage.admin.delete(&early[0]);
    stage.send(&early[1], &all[600..700], 1);
    let verdicts = stage.await_judged(&all[600..700]);
    assert_eq!(verdicts, 700);
    daemon.is_balanced();
    let log = daemon.drains().stderr;
    assert!(log.contains(&late), "{log}");

    // By their names in the verdicts, in any order of numbers.
    let daemon = stage.daemon(&[&pattern], &[delivery, LATEST]);
    stage.send(&late, &all[700..800], 2);
    let newest = stage.topic("aa", 1);
    stage.send(&newest, &all[800..], 1);
    assert_eq!(stage.await_judged(&all[700..]), 900);
    let verdicts = read_all(&stage.cluster.brokers, &stage.name("scores"));
    let of = |topic: &str| {
        let of = verdicts
            .iter()
            .filter(|v| v.json()["source"]["topic"] == topic);
        of.count()
    };
    assert_eq!([of(&late), of(&newest)], [300, 100]);
    daemon.drains();
}

#[test]
fn a_pattern_takes_up_what_matches_now_and_later() {
    a_pattern("some", AT_LEAST_ONCE);
}

#[test]
fn a_pattern_takes_up_what_matches_now_and_later_exactly_once() {
    a_pattern("same", EXACTLY_ONCE);
}

#[test]
fn a_pattern_that_matches_nothing_waits_and_says_so() {
    let Some(stage) = Stage::create("nothing") else {
        return;
    };
    let daemon = stage.daemon(&["^nothing-in$"], &[]);
    wait_for("the missing topic to be counted", || {
        is_missing(&daemon, "^nothing-in$").then_some(())
    });
    let topic = stage.topic("in", 1);
    let all = records(0, 50);
    stage.send(&topic, &all, 1);
    stage.await_judged(&all);
    assert!(!is_missing(&daemon, "^nothing-in$"));
    daemon.drains();
}

#[test]
fn with_none_a_group_without_an_offset_is_refused() {
    let Some(stage) = Stage::create("none") else {
        return;
    };
    let topic = stage.topic("in", 1);
    for delivery in [AT_LEAST_ONCE, EXACTLY_ONCE] {
        let line = stage.refused(&[&topic], &[delivery, NONE]);
        assert!(
            line.contains("none-in-0: the group has no offset"),
            "{line}"
        );
        assert!(line.contains("--reset-offsets"), "{line}");
    }
    let all = records(0, 20);
    stage.send(&topic, &all, 1);
    commit(&stage, &topic, 5, "");
    let daemon = stage.daemon(&[&topic], &[NONE]);
    assert_eq!(stage.await_judged(&all[5..]), 15);
    daemon.drains();

    stage.send(&topic, &all, 1);
    stage.admin.delete_records(&topic, 0, 30);
    let line = stage.refused(&[&topic], &[NONE]);
    assert!(line.contains("offset 20 is not in the partition"), "{line}");
}

#[test]
fn deleted_offsets_are_told_apart_from_new_partitions() {
    let Some(stage) = Stage::create("offsets") else {
        return;
    };
    let topic = stage.topic("in", 2);
    let all = records(0, 200);
    stage.send(&topic, &all, 2);
    let daemon = stage.daemon(&[&topic], &[]);
    stage.await_judged(&all);
    stage.await_committed(&topic);
    daemon.drains();

    // Static members stay in the group until their session is over.
    wait_for("the offset to be deleted", || {
        stage.delete_offsets(&format!("{topic}:1"));
        (stage.committed(&topic).len() == 1).then_some(())
    });
    let daemon = stage.daemon(&[&topic], &[]);
    daemon.await_count("scored", 100);
    stage.await_committed(&topic);
    assert_eq!(resets(&daemon, "offset_deleted"), 1.0);
    assert_eq!(daemon.metric("residuald_records_read_again_total"), 100.0);
    daemon.drains();

    wait_for("the offset to be deleted", || {
        stage.delete_offsets(&format!("{topic}:0"));
        (stage.committed(&topic).len() == 1).then_some(())
    });
    let daemon = stage.daemon(&[&topic], &[LATEST]);
    wait_for("the partition to be counted", || {
        (resets(&daemon, "offset_deleted") == 1.0).then_some(())
    });
    assert_eq!(daemon.metric("residuald_records_unread_total"), 100.0);
    let log = daemon.drains().stderr;
    assert!(
        log.contains("the group's offset in offsets-in-0 was deleted"),
        "{log}"
    );
}

#[test]
fn what_retention_deletes_before_it_is_read_is_counted_and_nothing_else_is_left_out() {
    let Some(stage) = Stage::create("retention") else {
        return;
    };
    let topic = stage.topic("in", 1);
    let settings = [LATEST, PATIENT_GROUP];
    let all = records(0, 500);
    let daemon = stage.daemon(&[&topic], &settings);
    wait_for("the start to be committed", || {
        (stage.committed(&topic).len() == 1).then_some(())
    });
    stage.send(&topic, &all[..100], 1);
    stage.await_committed(&topic);
    daemon.drains();

    // Before a start.
    stage.send(&topic, &all[100..300], 1);
    stage.admin.delete_records(&topic, 0, 150);
    let daemon = stage.daemon(&[&topic], &settings);
    stage.await_judged(&all[150..300]);
    assert_eq!(daemon.metric("residuald_records_unread_total"), 50.0);
    assert_eq!(resets(&daemon, "records_deleted"), 1.0);

    // While the daemon is too slow.
    stage.await_committed(&topic);
    signal(daemon.pid(), "STOP");
    // A fetch that waited at the broker takes the first of them along.
    stage.send(&topic, &all[300..301], 1);
    stage.send(&topic, &all[301..500], 1);
    stage.admin.delete_records(&topic, 0, 400);
    signal(daemon.pid(), "CONT");
    let judged = stage.await_judged(&all[400..]);
    assert!(judged < 450, "nothing was deleted before it was read");
    let unread = (500 - judged) as f64;
    wait_for("the deleted records to be counted", || {
        (daemon.metric("residuald_records_unread_total") == unread).then_some(())
    });
    daemon.is_balanced();
    let log = daemon.drains().stderr;
    assert!(log.contains("were deleted before they were read"), "{log}");
}

/// A topic that is written: verdicts wait until it is there again, and none is lost.
fn an_output_is_deleted(prefix: &'static str, delivery: &str) {
    let Some(stage) = Stage::create(prefix) else {
        return;
    };
    let topic = stage.topic("in", 1);
    let daemon = stage.daemon(&[&topic], &[delivery]);
    let (before, after) = (records(0, 100), records(100, 500));
    stage.send(&topic, &before, 1);
    stage.await_judged(&before);
    let scores = stage.name("scores");
    stage.admin.delete(&scores);
    stage.send(&topic, &after, 1);
    wait_for("the missing topic to be seen", || {
        is_missing(&daemon, &scores).then_some(())
    });
    assert_eq!(
        daemon.status()["missing_topics"],
        serde_json::json!([scores])
    );
    let said = daemon.get("/readyz?verbose").1;
    assert!(
        said.contains(&format!("topic {scores} does not exist")),
        "{said}"
    );
    std::thread::sleep(Duration::from_secs(5));
    stage.admin.create(&scores, 1);
    assert_eq!(stage.await_judged(&after), after.len());
    stage.await_committed(&topic);
    daemon.is_balanced();
    assert!(!is_missing(&daemon, &scores));
    assert_eq!(daemon.status()["missing_topics"], serde_json::json!([]));
    daemon.drains();
}

#[test]
fn verdicts_wait_for_their_topic() {
    an_output_is_deleted("written", AT_LEAST_ONCE);
}

#[test]
fn verdicts_wait_for_their_topic_exactly_once() {
    an_output_is_deleted("written-once", EXACTLY_ONCE);
}
