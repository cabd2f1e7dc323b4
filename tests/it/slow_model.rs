//! A batch that takes longer than the group's `max.poll.interval.ms`: the consumer goes on polling, so the group keeps
//! it. On a real Apache Kafka, with a bundle whose records say how much work they are (`slow_model/make.py`).

use std::collections::HashSet;
use std::time::Duration;

use crate::common::cluster::cluster;
use crate::common::kafka::{Note, committed, ends, produce, read_all};
use crate::common::process::Daemon;
use crate::common::{parse, root, wait_for_within};

const POLL_INTERVAL: f64 = 6.0; // seconds
/// What the slow batch is meant to take. Twice and a half the interval: the measurement that it rests on may be off.
const SLOW: f64 = 15.0;
const RECORDS: usize = 400;
const PARTITIONS: i32 = 2;
/// The busiest machine has to get through the slow batch.
const LONG: Duration = Duration::from_secs(300);

fn record(value: usize, work: usize) -> Note {
    let payload = format!(r#"{{"value": {value}, "work": {work}}}"#);
    Note {
        partition: value as i32 % PARTITIONS,
        ..Note::new("any", payload)
    }
}

#[test]
fn a_batch_slower_than_the_poll_interval_costs_no_membership() {
    let Some(cluster) = cluster() else { return };
    cluster.create_topics(
        &["slow-in", "slow-anomalies", "slow-scores", "slow-dead"],
        PARTITIONS,
    );
    let brokers = cluster.brokers.as_str();
    let bundle = format!("model.bundle={:?}", root().join("tests/slow_model"));
    let interval = format!(
        "kafka.consumer.\"max.poll.interval.ms\"={}",
        POLL_INTERVAL * 1e3
    );
    let daemon = Daemon::ready(
        brokers,
        &[
            &bundle,
            &interval,
            "kafka.consumer.\"session.timeout.ms\"=3000",
            "kafka.group_id=slow",
            "kafka.topics=slow-in",
            "output.anomalies_topic=slow-anomalies",
            "output.scores_topic=slow-scores",
            "output.dead_letter_topic=slow-dead",
            "threshold.quantile=0.99",
            "inference.workers=1",
            "batch.max_records=16",
            "batch.in_flight=2",
        ],
    );
    let scoring = || daemon.metric("residuald_inference_seconds_sum");
    let rebalances = daemon.metric("residuald_rebalances_total");

    // How fast is this machine?
    let measured = 300;
    produce(brokers, "slow-in", &[record(0, measured)]);
    await_scored(&daemon, 1);
    let mut work = measured as f64 * SLOW / scoring();
    let mut scored = 1;
    // A busy machine may have more time to spare than when its speed was measured.
    for attempt in 1.. {
        let before = scoring();
        let mut notes = vec![record(scored, work as usize)];
        notes.extend((1..RECORDS - 1).map(|after| record(scored + after, 0)));
        produce(brokers, "slow-in", &notes);
        wait_for_within(LONG, "paused partitions", || {
            (daemon.metric("residuald_paused_partitions") > 0.0).then_some(())
        });
        scored += RECORDS - 1;
        await_scored(&daemon, scored);
        let took = scoring() - before;
        if took > POLL_INTERVAL {
            break;
        }
        assert!(attempt < 4, "{took} s: not slow enough to tell anything");
        work *= 2.0;
    }
    daemon.is_balanced();
    daemon.await_metric("residuald_paused_partitions", 0.0);
    assert_eq!(daemon.metric("residuald_rebalances_total"), rebalances);
    let ended = daemon.drains();
    assert!(
        !ended.stderr.contains("maximum poll interval"),
        "{}",
        ended.stderr
    );
    assert_eq!(
        committed(brokers, "slow", "slow-in"),
        ends(brokers, "slow-in")
    );

    let scores = read_all(brokers, "slow-scores");
    let values: HashSet<u64> = scores
        .iter()
        .map(|note| {
            let verdict = parse(note.payload.as_ref().unwrap());
            verdict["anomaly_score"].as_f64().unwrap() as u64
        })
        .collect();
    assert_eq!((scores.len(), values.len()), (scored, scored));
}

fn await_scored(daemon: &Daemon, count: usize) {
    wait_for_within(LONG, "every record to be scored", || {
        (daemon.count("scored") >= count as u64).then_some(())
    });
}
