//! On a real Apache Kafka whose only broker is cut off from its controller for some seconds: it then names no brokers at all, and
//! librdkafka forgets it.

use std::time::Duration;

use crate::common::cluster::cluster_with;
use crate::common::kafka::{committed, ends, produce, read_all, spread};
use crate::common::process::{Daemon, signal};
use crate::common::{sample, wait_for, wait_for_within};

/// The broker's session is over after three seconds.
const FENCED_AFTER: Duration = Duration::from_secs(5);
/// A producer is looked at every five seconds, and a group member may have to wait out its session.
const BACK_WITHIN: Duration = Duration::from_secs(180);

#[test]
fn a_broker_that_names_no_brokers_is_found_again() {
    let Some(cluster) = cluster_with(&["--controller-apart"]) else {
        return;
    };
    cluster.create_topics(&["in", "anomalies", "dead"], 2);
    let pid = std::fs::read_to_string(cluster.dir.join("server-1.pid")).unwrap();
    let pid: u32 = pid.trim().parse().unwrap();
    for delivery in ["at-least-once", "exactly-once"] {
        let group = format!("fenced-{delivery}");
        let settings = [
            "kafka.topics=in".to_owned(),
            format!("kafka.group_id={group}"),
            format!("kafka.delivery={delivery}"),
            "output.scores_topic=anomalies".to_owned(),
            "output.dead_letter_topic=dead".to_owned(),
            "kafka.consumer.\"session.timeout.ms\"=6000".to_owned(),
            // Often enough that one comes while the broker is cut off.
            "kafka.client.\"topic.metadata.refresh.interval.ms\"=500".to_owned(),
            "kafka.client.\"topic.metadata.refresh.sparse\"=false".to_owned(),
        ];
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let daemon = Daemon::ready(&cluster.brokers, &settings);
        signal(pid, "STOP");
        daemon.await_metric("residuald_brokers_silent", 1.0);
        assert!(
            daemon
                .get("/readyz?verbose")
                .1
                .contains("the brokers have not answered since")
        );
        assert!(daemon.status()["brokers_silent_since"].is_string());
        signal(pid, "CONT");
        for _ in 0..4 {
            std::thread::sleep(Duration::from_secs(4));
            signal(pid, "STOP");
            std::thread::sleep(FENCED_AFTER);
            signal(pid, "CONT");
        }
        produce(&cluster.brokers, "in", &spread(&sample(200), 2));
        wait_for_within(
            BACK_WITHIN,
            "the records to be judged and committed",
            || {
                let end = ends(&cluster.brokers, "in");
                (committed(&cluster.brokers, &group, "in") == end).then_some(())
            },
        );
        daemon.await_metric("residuald_brokers_silent", 0.0);
        wait_for("an assignment", || {
            (daemon.get("/readyz").0 == 200).then_some(())
        });
        daemon.is_balanced();
        daemon.drains();
        assert!(
            read_all(&cluster.brokers, "anomalies").len() >= 200,
            "{delivery}"
        );
    }
}
