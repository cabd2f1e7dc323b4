//! `residuald check --connect` on a real Apache Kafka: what the surroundings lack, all of it at once, and nothing changed.

use crate::common::process::{Ended, run};
use crate::common::topics::Topics;
use crate::common::{parse, payments};

fn check(topics: &Topics, settings: &[&str]) -> Ended {
    let bundle = format!("model.bundle={:?}", payments());
    let brokers = format!("kafka.brokers={}", topics.brokers());
    let group = format!("kafka.group_id={}", topics.group());
    let mut arguments = vec!["check", "--connect"];
    for setting in [&brokers, &bundle, &group] {
        arguments.extend(["--set", setting]);
    }
    for setting in settings {
        arguments.extend(["--set", setting]);
    }
    run(&arguments)
}

#[test]
fn everything_that_is_missing_is_named_at_once() {
    let Some(topics) = Topics::create("connect") else {
        return;
    };
    let reads = format!("kafka.topics={}", topics.name("in"));
    let anomalies = format!("output.anomalies_topic={}", topics.name("anomalies"));
    let dead = format!("output.dead_letter_topic={}", topics.name("dead"));
    let good = [reads.as_str(), &anomalies, &dead];

    let fine = check(&topics, &good);
    assert!(fine.with_code(0).is_empty(), "{}", fine.stderr);
    for line in [
        "ok: topic `connect-in` has 3 partitions\n",
        "ok: topic `connect-in` can be read\n",
        "ok: topic `connect-anomalies` has 3 partitions\n",
        "ok: group `connect` can be used\n",
        "not checked: permission to write to connect-anomalies, connect-dead",
    ] {
        assert!(fine.stdout.contains(line), "{line} in {}", fine.stdout);
    }

    let missing = check(
        &topics,
        &[
            "kafka.topics=absent-1,absent-2",
            "output.anomalies_topic=absent-3",
            &dead,
            "input.format=avro",
            "input.schema_registry.url=http://127.0.0.1:9",
        ],
    );
    let said = missing.with_code(69);
    assert!(said.contains("4 faults:"), "{said}");
    for fault in [
        "topic `absent-1` does not exist",
        "`absent-2`",
        "`absent-3`",
        "the schema registry does not respond: ",
    ] {
        assert!(said.contains(fault), "{fault} in {said}");
    }

    // A fault of the bundle is among them.
    let both = check(
        &topics,
        &[
            &good[..2],
            &["output.dead_letter_topic=absent-4", "model.bundle=no/such"],
        ]
        .concat(),
    );
    let said = both.with_code(65);
    assert!(
        said.contains("2 faults:") && said.contains("absent-4") && said.contains("no/such"),
        "{said}"
    );

    let nobody = check(
        &topics,
        &[
            &good[..],
            &["kafka.brokers=127.0.0.1:9", "kafka.connect_timeout=2s"],
        ]
        .concat(),
    );
    assert!(
        nobody.one_line(69).contains("not reachable at 127.0.0.1:9"),
        "{}",
        nobody.stderr
    );
}

#[test]
fn a_running_daemon_is_not_shut_out() {
    let Some(topics) = Topics::create("connect-twice") else {
        return;
    };
    let once = [
        "kafka.delivery=exactly-once",
        "kafka.consumer.\"group.instance.id\"=one",
    ];
    let reads = format!("kafka.topics={}", topics.name("in"));
    let anomalies = format!("output.anomalies_topic={}", topics.name("anomalies"));
    let dead = format!("output.dead_letter_topic={}", topics.name("dead"));
    let own = [reads.as_str(), &anomalies, &dead];
    let free = check(&topics, &[&own[..], &once].concat());
    free.with_code(0);
    assert!(
        free.stdout.contains("ok: transactions can be opened"),
        "{}",
        free.stdout
    );

    let daemon = topics.daemon(&once);
    let busy = check(
        &topics,
        &[&own[..], &once, &["telemetry.log_format=json"]].concat(),
    );
    busy.with_code(0);
    assert!(
        busy.stdout.contains(
            "not checked: transactions were not tried: group `connect-twice` has 1 members"
        ),
        "{}",
        busy.stdout
    );
    let sent = topics.produce(&[]).output().unwrap();
    let sent = parse(&sent.stdout)["produced"].as_u64().unwrap();
    daemon.await_count("scored", sent);
    daemon.drains();
}
