//! A test's own topics on a real Apache Kafka, read back by an independent client: kcat.

use std::collections::{BTreeMap, HashSet};
use std::process::Command;

use serde_json::Value;

use super::cluster::{Cluster, cluster};
use super::kafka::{Note, committed, ends, read_all};
use super::process::{Daemon, residuald};
use super::{parse, payments};

/// What [`Topics::produce`] sends.
pub const RECORDS: usize = 5000;
const PARTITIONS: i32 = 3;

/// Topics of a test's own: `in`, `anomalies`, `scores` and `dead`, each with `prefix`.
pub struct Topics {
    pub cluster: &'static Cluster,
    prefix: &'static str,
}

impl Topics {
    pub fn create(prefix: &'static str) -> Option<Topics> {
        let cluster = cluster()?;
        let topics = Topics { cluster, prefix };
        let names = ["in", "anomalies", "scores", "dead"].map(|topic| topics.name(topic));
        cluster.create_topics(&names, PARTITIONS);
        Some(topics)
    }

    pub fn name(&self, topic: &str) -> String {
        format!("{}-{topic}", self.prefix)
    }

    pub fn brokers(&self) -> &str {
        &self.cluster.brokers
    }

    pub fn group(&self) -> &str {
        self.prefix
    }

    pub fn daemon(&self, settings: &[&str]) -> Daemon {
        self.start(settings).await_ready()
    }

    /// A daemon on these topics that need not get ready.
    pub fn start(&self, settings: &[&str]) -> Daemon {
        let own = [
            format!("kafka.topics={}", self.name("in")),
            format!("kafka.group_id={}", self.group()),
            format!("output.anomalies_topic={}", self.name("anomalies")),
            format!("output.scores_topic={}", self.name("scores")),
            format!("output.dead_letter_topic={}", self.name("dead")),
            "threshold.quantile=0.99".to_owned(),
        ];
        let all: Vec<&str> = own
            .iter()
            .map(String::as_str)
            .chain(settings.iter().copied())
            .collect();
        Daemon::start(self.brokers(), &all)
    }

    /// `residuald produce` of the shipped sample.
    pub fn produce(&self, rate: &[&str]) -> Command {
        let mut command = residuald();
        command
            .arg("produce")
            .arg(payments().join("sample.ndjson.gz"))
            .args(["--topic", &self.name("in"), "--brokers", self.brokers()])
            .args([
                "--key",
                "card_id",
                "--records",
                &RECORDS.to_string(),
                "--json",
            ])
            .args(rate);
        command
    }

    /// Everything in a topic as kcat prints it: the key and the value of each record.
    pub fn kcat(&self, topic: &str) -> Vec<(String, Value)> {
        let output = Command::new("kcat")
            .args(["-b", self.brokers(), "-C", "-t", &self.name(topic)])
            .args(["-o", "beginning", "-e", "-q", "-f", "%k\t%s\n"])
            .args(["-X", "isolation.level=read_committed"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kcat: {said}");
        let text = String::from_utf8(output.stdout).unwrap();
        let lines = text.lines().map(|line| {
            let (key, value) = line.split_once('\t').expect("key and value");
            (key.to_owned(), parse(value.as_bytes()))
        });
        lines.collect()
    }

    /// The dead letters that are there now.
    pub fn letters(&self) -> Vec<Note> {
        read_all(self.brokers(), &self.name("dead"))
    }

    pub fn committed(&self) -> BTreeMap<i32, i64> {
        committed(self.brokers(), self.prefix, &self.name("in"))
    }

    pub fn ends(&self) -> BTreeMap<i32, i64> {
        ends(self.brokers(), &self.name("in"))
    }
}

pub fn ids(verdicts: &[(String, Value)]) -> HashSet<&str> {
    verdicts
        .iter()
        .map(|(_, v)| v["id"].as_str().unwrap())
        .collect()
}
