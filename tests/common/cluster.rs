//! A real Apache Kafka for all tests of one process, through `tests/kafka/kafka.sh`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock};

use super::admin::Admin;
use super::{root, skip};

/// Shared by the tests that ask for the same options, so that each test has topics, groups and transactional.ids of its
/// own; `kafka.sh` stops it once the test's process has ended.
pub struct Cluster {
    pub dir: PathBuf,
    pub brokers: String,
}

/// The cluster, started by the first test that asks; `None`, loudly, where it cannot be had.
pub fn cluster() -> Option<&'static Cluster> {
    cluster_with(&[])
}

/// The same with options of `kafka.sh start`: a cluster for each set of options.
pub fn cluster_with(options: &[&str]) -> Option<&'static Cluster> {
    type Numbered = (usize, &'static OnceLock<Option<Cluster>>);
    static CLUSTERS: Mutex<BTreeMap<String, Numbered>> = Mutex::new(BTreeMap::new());
    let (number, started) = {
        let mut clusters = CLUSTERS.lock().unwrap();
        let number = clusters.len();
        let of_these = clusters.entry(options.join(" "));
        *of_these.or_insert_with(|| (number, Box::leak(Box::default())))
    };
    // Only tests that want this cluster wait for it.
    started.get_or_init(|| start(number, options)).as_ref()
}

fn start(number: usize, options: &[&str]) -> Option<Cluster> {
    for (tool, package) in [
        ("java", "openjdk-17-jre-headless"),
        ("kcat", "kcat"),
        ("openssl", "openssl"),
    ] {
        if !is_there(tool) {
            let install = format!("install {tool} (`make tools`; Debian: {package})");
            skip("the tests on a real Kafka", &install);
            return None;
        }
    }
    if !root().join(".kafka/libs").exists() && !is_there("mvn") {
        skip(
            "the tests on a real Kafka",
            "`make tools kafka` brings Maven and Apache Kafka",
        );
        return None;
    }
    let pid = std::process::id().to_string();
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("kafka-{pid}-{number}"));
    let started = kafka_sh(&dir, &[&["start", "--while-pid", &pid], options].concat());
    let brokers = started
        .lines()
        .last()
        .expect("bootstrap servers")
        .to_owned();
    Some(Cluster { dir, brokers })
}

fn is_there(tool: &str) -> bool {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("command -v {tool}")]);
    command.stdout(Stdio::null()).status().unwrap().success()
}

pub fn kafka_sh(dir: &Path, arguments: &[&str]) -> String {
    let output = Command::new(root().join("tests/kafka/kafka.sh"))
        .args(arguments)
        .arg("--dir")
        .arg(dir)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "kafka.sh {arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

impl Cluster {
    /// These must be new.
    pub fn create_topics<T: AsRef<str>>(&self, names: &[T], partitions: i32) {
        Admin::new(&self.brokers).create_all(names, partitions, &[]);
    }

    /// The same with settings of the topic.
    pub fn create_topic_with(&self, name: &str, partitions: i32, settings: &[(&str, &str)]) {
        Admin::new(&self.brokers).create_all(&[name], partitions, settings);
    }
}
