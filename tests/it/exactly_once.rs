//! Exactly-once and rebalances on a real Apache Kafka, read back by kcat with isolation.level=read_committed: whatever
//! is killed, frozen or moved, each record has one verdict.

use std::collections::HashMap;
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::common::kafka::{produce, spread};
use crate::common::process::{Daemon, signal};
use crate::common::topics::{RECORDS, Topics, ids};
use crate::common::{PATIENCE, score_of, wait_for};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

const EXACTLY_ONCE: &str = "kafka.delivery=exactly-once";
/// The same transactional.id after a restart, so that the open transaction of a killed process ends at once.
const STATIC_MEMBER: &str = "kafka.consumer.\"group.instance.id\"=one";
const SHORT_TRANSACTIONS: &str = "kafka.producer.\"transaction.timeout.ms\"=2000";

fn in_the_background(topics: &Topics, rate: &str) -> Child {
    let mut producer = topics.produce(&["--rate", rate]);
    producer.stdout(Stdio::null()).spawn().unwrap()
}

/// Every record has one verdict, in the order of its partition, and nothing else is there.
fn are_judged_once(topics: &Topics) {
    let scores = topics.kcat("scores");
    assert_eq!((scores.len(), ids(&scores).len()), (RECORDS, RECORDS));
    assert_eq!(topics.kcat("dead"), []);
    let flagged = scores.iter().filter(|(_, v)| !v["severity"].is_null());
    let anomalies = topics.kcat("anomalies");
    assert_eq!(
        (anomalies.len(), ids(&anomalies).len()),
        (flagged.count(), anomalies.len())
    );
    let mut last: HashMap<(&str, i64), i64> = HashMap::new();
    for (key, verdict) in &scores {
        let place = |field: &str| verdict["source"][field].as_i64().unwrap();
        let before = last.insert((key, place("partition")), place("offset"));
        assert!(before < Some(place("offset")), "{key} is out of order");
        assert!(score_of(verdict).is_finite());
    }
}

fn until_all_is_committed(topics: &Topics) {
    wait_for("the end of the topic", || {
        (topics.committed() == topics.ends()).then_some(())
    });
}

#[test]
fn crashes_in_mid_stream_lose_and_repeat_nothing() {
    let Some(topics) = Topics::create("once-crash") else {
        return;
    };
    let settings = [EXACTLY_ONCE, STATIC_MEMBER];
    let mut producer = in_the_background(&topics, "2500");
    for least in [500, 300, 300] {
        let daemon = topics.daemon(&settings);
        daemon.await_count("scored", least);
        assert_eq!(daemon.kill_9().code, None, "killed by a signal");
    }
    assert!(producer.wait().unwrap().success());
    let daemon = topics.daemon(&settings);
    until_all_is_committed(&topics);
    daemon.is_balanced();
    daemon.drains();
    are_judged_once(&topics);
}

/// A process that is killed while it commits leaves offsets that are neither old nor new until the brokers abort its
/// transaction. Its heir must wait for that, and not start over because the group does not tell its offsets.
#[test]
fn offsets_in_an_open_transaction_are_waited_for() {
    let Some(topics) = Topics::create("once-open") else {
        return;
    };
    assert!(topics.produce(&[]).status().unwrap().success());
    let daemon = topics.daemon(&[EXACTLY_ONCE]);
    daemon.await_count("scored", 500);
    daemon.drains();
    let open = OpenTransaction::with_offsets(&topics);
    let daemon = topics.start(&[EXACTLY_ONCE]);
    // Three tries of librdkafka, and more.
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(daemon.count("consumed"), 0);
    open.abort();
    until_all_is_committed(&topics);
    let log = daemon.drains().stderr;
    assert!(
        log.contains("new partitions wait until a transaction"),
        "{log}"
    );
    are_judged_once(&topics);
}

/// Offsets of a group, sent but not committed.
struct OpenTransaction(BaseProducer);

impl OpenTransaction {
    fn with_offsets(topics: &Topics) -> OpenTransaction {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", topics.brokers());
        let producer: BaseProducer = config
            .clone()
            .set("transactional.id", "a-process-that-is-gone")
            .create()
            .unwrap();
        let group: BaseConsumer = config.set("group.id", topics.group()).create().unwrap();
        producer.init_transactions(PATIENCE).unwrap();
        producer.begin_transaction().unwrap();
        let mut offsets = TopicPartitionList::new();
        for (partition, committed) in topics.committed() {
            let next = Offset::Offset(committed + 1);
            offsets
                .add_partition_offset(&topics.name("in"), partition, next)
                .unwrap();
        }
        let group = group.group_metadata().unwrap();
        producer
            .send_offsets_to_transaction(&offsets, &group, PATIENCE)
            .unwrap();
        OpenTransaction(producer)
    }

    fn abort(self) {
        self.0.abort_transaction(PATIENCE).unwrap();
    }
}

#[test]
fn a_frozen_daemon_that_wakes_up_publishes_nothing_of_what_others_took_over() {
    let Some(topics) = Topics::create("once-zombie") else {
        return;
    };
    let settings = [EXACTLY_ONCE, SHORT_TRANSACTIONS];
    let mut producer = in_the_background(&topics, "1500");
    let mut zombie = topics.daemon(&settings);
    zombie.await_count("scored", 500);
    signal(zombie.pid(), "STOP");
    let heir = topics.daemon(&settings);
    heir.await_count("scored", 500);
    signal(zombie.pid(), "CONT");
    assert!(producer.wait().unwrap().success());
    until_all_is_committed(&topics);
    heir.is_balanced();
    heir.drains();
    // The brokers may have shut its producer out: then it ends, to be started again.
    if zombie.has_ended() {
        let ended = zombie.end();
        assert_eq!(ended.code, Some(69), "{}", ended.stderr);
    } else {
        zombie.is_balanced();
        zombie.drains();
    }
    are_judged_once(&topics);
}

#[test]
fn of_two_with_one_transactional_id_the_older_stops_and_says_why() {
    let Some(topics) = Topics::create("once-fenced") else {
        return;
    };
    let settings = [
        EXACTLY_ONCE,
        "kafka.producer.\"transactional.id\"=only-one-of-these",
    ];
    let mut older = topics.daemon(&settings);
    let mut producer = in_the_background(&topics, "1500");
    older.await_count("scored", 500);
    let newer = topics.daemon(&settings);
    let ended = older.end();
    assert_eq!(ended.code, Some(69), "{}", ended.stderr);
    let said = "have fenced transactional.id `only-one-of-these`: another process uses it";
    assert!(ended.stderr.contains(said), "{}", ended.stderr);
    assert!(producer.wait().unwrap().success());
    until_all_is_committed(&topics);
    newer.drains();
    are_judged_once(&topics);
}

/// A second replica joins in mid-stream and leaves again; with `settings` that must cost no duplicates.
fn joins_and_leaves(topics: &Topics, of_replica: impl Fn(usize) -> Vec<String>) {
    let start = |replica| -> Daemon {
        let settings = of_replica(replica);
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        topics.daemon(&settings)
    };
    let first = start(0);
    let mut producer = in_the_background(topics, "500");
    first.await_count("scored", 300);
    let second = start(1);
    second.await_count("scored", 30);
    second.drains();
    assert!(producer.wait().unwrap().success());
    until_all_is_committed(topics);
    first.is_balanced();
    first.drains();
    are_judged_once(topics);
}

const COOPERATIVE: &str = "kafka.consumer.\"partition.assignment.strategy\"=cooperative-sticky";

#[test]
fn cooperative_replicas_come_and_go_without_a_duplicate() {
    let Some(topics) = Topics::create("once-cooperative") else {
        return;
    };
    joins_and_leaves(&topics, |_| {
        [EXACTLY_ONCE, COOPERATIVE].map(str::to_owned).into()
    });
}

#[test]
fn cooperative_replicas_come_and_go_without_a_duplicate_at_least_once_too() {
    let Some(topics) = Topics::create("least-cooperative") else {
        return;
    };
    joins_and_leaves(&topics, |_| vec![COOPERATIVE.to_owned()]);
}

#[test]
fn static_members_come_and_go_without_a_duplicate() {
    let Some(topics) = Topics::create("once-static") else {
        return;
    };
    joins_and_leaves(&topics, |replica| {
        let member = format!("kafka.consumer.\"group.instance.id\"=replica-{replica}");
        vec![EXACTLY_ONCE.to_owned(), member]
    });
}

#[test]
fn replicas_come_and_go_without_a_duplicate_by_the_new_consumer_protocol() {
    let Some(topics) = Topics::create("once-kip848") else {
        return;
    };
    joins_and_leaves(&topics, |_| {
        let new_protocol = "kafka.consumer.\"group.protocol\"=consumer";
        [EXACTLY_ONCE, new_protocol].map(str::to_owned).into()
    });
}

#[test]
fn verdicts_too_large_for_their_topic_go_without_their_record() {
    let Some(topics) = Topics::create("once-large") else {
        return;
    };
    let limit = [("max.message.bytes", "100000")];
    let name = topics.name("slim");
    topics.cluster.create_topic_with(&name, 3, &limit);
    let slim = format!("output.scores_topic={name}");
    let uncompressed = "kafka.producer.\"compression.type\"=none";
    let daemon = topics.daemon(&[EXACTLY_ONCE, &slim, uncompressed]);
    let record = crate::common::sample(1).remove(0);
    let large = format!(
        "{{\"padding\": \"{}\", {}",
        "x".repeat(200_000),
        &record[1..]
    );
    let records = spread(&[record.clone(), large, record], 3);
    produce(topics.brokers(), &topics.name("in"), &records);
    until_all_is_committed(&topics);
    daemon.is_balanced();
    daemon.drains();
    let verdicts = topics.kcat("slim");
    let with_record = verdicts.iter().filter(|(_, v)| v["record"].is_object());
    assert_eq!((verdicts.len(), with_record.count()), (3, 2));
}
