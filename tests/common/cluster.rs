//! A real Apache Kafka for the tests of one file, through `tests/kafka/kafka.sh`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use super::{root, skip};

/// One cluster for all tests of a file; `kafka.sh` stops it once the test's process has ended.
pub struct Cluster {
    pub dir: PathBuf,
    pub brokers: String,
}

/// The cluster, started by the first test that asks; `None`, loudly, where it cannot be had.
pub fn cluster() -> Option<&'static Cluster> {
    cluster_with(&[])
}

/// The same with options of `kafka.sh start`, which every test of a file has to give alike.
pub fn cluster_with(options: &[&str]) -> Option<&'static Cluster> {
    static CLUSTER: OnceLock<Option<Cluster>> = OnceLock::new();
    CLUSTER.get_or_init(|| start(options)).as_ref()
}

fn start(options: &[&str]) -> Option<Cluster> {
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
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("kafka-{pid}"));
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
    /// Keeps its records whatever their timestamps: retention goes by these.
    pub fn create_topic(&self, name: &str, partitions: i32) {
        let partitions = partitions.to_string();
        let keep = "retention.ms=-1";
        let create = [
            "topic",
            "create",
            name,
            "--partitions",
            &partitions,
            "--config",
            keep,
        ];
        kafka_sh(&self.dir, &create);
    }
}
