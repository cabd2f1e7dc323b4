//! Under a real limit of memory, a cgroup of the test's own: nothing that a record can be has the daemon killed, and every record has
//! its outcome. Half a minute each; `make memory-test MINUTES=10` goes on for longer.

mod common;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::cgroup::Group;
use common::kafka::{Note, produce, read_all, spread};
use common::process::{Daemon, run};
use common::topics::Topics;
use common::{not_here, payments, root, sample, skip, wait_for_within};
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};

const MIB: u64 = 1 << 20;
/// A busy machine takes its time for a gigabyte of zeros.
const PATIENCE: Duration = Duration::from_secs(600);

fn group(mib: u64) -> Option<Group> {
    let group = Group::limited_to(mib * MIB);
    if let Err(problem) = &group {
        let need = format!(
            "a cgroup cannot be made ({problem}): run it as root, or in a group with memory delegated"
        );
        not_here("the tests under a memory limit", &need);
    }
    group.ok()
}

/// How long bombs are sent; one round without it.
fn minutes() -> Duration {
    let minutes = std::env::var("RESIDUALD_MEMORY_MINUTES").ok();
    let minutes = minutes.map_or(0.0, |text| text.parse().expect("a number of minutes"));
    Duration::from_secs_f64(60.0 * minutes)
}

fn start(group: &Group, topics: &Topics, settings: &[&str]) -> Daemon {
    let own = [
        format!("kafka.topics={}", topics.name("in")),
        format!("kafka.group_id={}", topics.group()),
        format!("output.anomalies_topic={}", topics.name("anomalies")),
        format!("output.dead_letter_topic={}", topics.name("dead")),
    ];
    let own = own.iter().map(String::as_str);
    let all: Vec<&str> = own.chain(settings.iter().copied()).collect();
    let command = group.command(env!("CARGO_BIN_EXE_residuald"));
    Daemon::start_by(command, topics.brokers(), &all).await_ready()
}

/// Sends rounds until the time is over, each once the one before is consumed.
fn rounds(group: &Group, daemon: &mut Daemon, mut send: impl FnMut() -> u64) {
    let (started, mut sent, mut round) = (Instant::now(), 0, 0);
    while round == 0 || started.elapsed() < minutes() {
        sent += send();
        round += 1;
        wait_for_within(PATIENCE, "every record's outcome", || {
            assert!(
                !daemon.has_ended(),
                "the daemon has ended: {}",
                group.killed()
            );
            let finished = ["scored", "dead_letters", "skipped"].map(|of| daemon.count(of));
            (finished.iter().sum::<u64>() >= sent).then_some(())
        });
    }
    daemon.is_balanced();
    assert_eq!(daemon.count("consumed"), sent, "each record once");
    assert_eq!(group.killed(), 0, "processes killed for memory");
    let budget = daemon.metric("residuald_memory_budget_bytes{share=\"limit\"}");
    eprintln!(
        "{round} rounds, {sent} records, at most {} of {} MiB, resident now {} MiB",
        group.peak() / MIB,
        budget as u64 / MIB,
        daemon.metric("process_resident_memory_bytes") as u64 / MIB,
    );
}

/// A producer whose batches are as large as they get.
fn packer(brokers: &str, codec: &str) -> ThreadedProducer<DefaultProducerContext> {
    ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("compression.type", codec)
        .set("message.max.bytes", "1000000000")
        .set("batch.size", "1000000000")
        .set("batch.num.messages", "1000000")
        .set("queue.buffering.max.messages", "1000000")
        .set("queue.buffering.max.kbytes", "2000000")
        .set("linger.ms", "500")
        .set("log_level", "2")
        .create()
        .unwrap()
}

/// A batch of one record of `mib` MiB of zeros.
fn zeros(brokers: &str, topic: &str, codec: &str, mib: usize, partition: i32) -> u64 {
    let payload = vec![b'0'; mib << 20];
    let producer = packer(brokers, codec);
    let record = BaseRecord::<(), _>::to(topic)
        .partition(partition)
        .payload(&payload);
    producer.send(record).map_err(|(e, _)| e).unwrap();
    producer.flush(PATIENCE).unwrap();
    1
}

/// A batch of many records of nothing.
fn crumbs(brokers: &str, topic: &str, codec: &str, count: u64) -> u64 {
    let producer = packer(brokers, codec);
    for _ in 0..count {
        let record = BaseRecord::<(), ()>::to(topic).partition(0);
        producer.send(record).map_err(|(e, _)| e).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    count
}

fn filled(bytes: usize) -> Option<Vec<u8>> {
    Some(vec![b'k'; bytes])
}

/// Records that are large everywhere but in their value.
fn heavy(good: &str) -> Vec<Note> {
    const LARGE: usize = 800_000;
    let mut notes = Vec::new();
    for i in 0..150 {
        let bad = Note {
            partition: i % 3,
            payload: Some(b"no record".to_vec()),
            ..Note::default()
        };
        notes.push(Note {
            headers: vec![("large".to_owned(), filled(LARGE))],
            ..bad.clone()
        });
        notes.push(Note {
            key: filled(LARGE),
            ..bad.clone()
        });
        notes.push(Note {
            headers: vec![("h".to_owned(), None); 20_000],
            ..bad
        });
        notes.push(Note {
            partition: i % 3,
            key: filled(LARGE),
            headers: vec![("h".to_owned(), filled(100)); 500],
            ..Note::new("", good)
        });
    }
    notes
}

#[test]
fn no_batch_key_or_header_has_the_daemon_killed() {
    let Some(topics) = Topics::create("memory") else {
        return;
    };
    let Some(group) = group(384) else { return };
    let mut daemon = start(&group, &topics, &[]);
    let (brokers, topic) = (topics.brokers(), topics.name("in"));
    let good = sample(300);
    rounds(&group, &mut daemon, || {
        let mut sent = 0;
        for (codec, mib) in [("gzip", 400), ("zstd", 400), ("lz4", 200), ("snappy", 18)] {
            sent += zeros(brokers, &topic, codec, mib, 1);
            sent += crumbs(brokers, &topic, codec, 100_000);
            produce(brokers, &topic, &spread(&good, 3));
            sent += good.len() as u64;
        }
        // Each fits, all together do not.
        for i in 0..30 {
            sent += zeros(brokers, &topic, "gzip", 12, i % 3);
        }
        let heavy = heavy(&good[0]);
        produce(brokers, &topic, &heavy);
        sent + heavy.len() as u64
    });
    let skipped = |reason: &str| {
        let series = format!("residuald_records_skipped_total{{reason=\"{reason}\"}}");
        daemon.metric(&series)
    };
    assert!(skipped("oversized_batch") > 0.0);
    let too_large = daemon.metric("residuald_dead_letters_total{reason=\"too_large\"}");
    assert!(too_large >= 3.0, "{too_large}: gzip, zstd, lz4");
    daemon.await_metric("residuald_memory_in_flight_bytes", 0.0);
    let letters = read_all(brokers, &topics.name("dead"));
    let letter = letters.iter().find(|letter| {
        letter
            .header("residuald.omitted")
            .is_some_and(|why| why.contains("batch"))
    });
    let why = letter
        .unwrap()
        .header("__connect.errors.exception.message")
        .unwrap();
    assert!(
        why.contains("memory.limit") && why.contains("offsets"),
        "{why}"
    );
    daemon.drains();
}

#[test]
fn no_image_has_the_daemon_killed() {
    let Some(topics) = Topics::create("memory-images") else {
        return;
    };
    let Some(group) = group(448) else { return };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bombs");
    let made = Command::new(root().join(".venv/bin/python"))
        .arg(root().join("tests/images/bombs.py"))
        .arg(&folder)
        .status();
    if !made.is_ok_and(|status| status.success()) {
        skip(
            "the images under a memory limit",
            "`make venv` brings Pillow",
        );
        return;
    }
    let bundle = format!("model.bundle={:?}", root().join("tests/images/gray"));
    let mut daemon = start(&group, &topics, &[&bundle, "threshold.score=4"]);
    let (mut good, mut bombs) = (Vec::new(), Vec::new());
    for file in std::fs::read_dir(&folder).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let note = Note::new(name, std::fs::read(&path).unwrap());
        if name.starts_with("bomb") {
            &mut bombs
        } else {
            &mut good
        }
        .push(note);
    }
    let mut round = 0;
    rounds(&group, &mut daemon, || {
        round += 1;
        let mut all: Vec<Note> = (0..4)
            .flat_map(|_| bombs.iter().chain(&good).cloned())
            .collect();
        for (i, note) in all.iter_mut().enumerate() {
            note.partition = i as i32 % 3;
        }
        produce(topics.brokers(), &topics.name("in"), &all);
        all.len() as u64
    });
    let scored = daemon.count("scored");
    assert_eq!(scored, round * 4 * good.len() as u64, "what fits waits");
    let too_large = daemon.metric("residuald_dead_letters_total{reason=\"too_large\"}");
    assert_eq!(too_large as u64, round * 4 * bombs.len() as u64);
    for letter in read_all(topics.brokers(), &topics.name("dead")) {
        let why = letter.header("__connect.errors.exception.message").unwrap();
        let over = why.contains("the share for images") && why.contains("memory.limit");
        // A line of 33 million pixels is refused before anything is reckoned.
        let wide = letter.key.as_deref() == Some(b"bomb-wide.png");
        assert!(over || wide, "{why}");
    }
    daemon.drains();
}

#[test]
fn the_budget_is_said_and_too_little_is_refused() {
    let Some(group) = group(200) else { return };
    let bundle = format!("model.bundle={:?}", payments());
    let check = |limit: &str| {
        let limit = format!("memory.limit={limit}");
        run(&[
            "check",
            "--set",
            "kafka.topics=in",
            "--set",
            &bundle,
            "--set",
            &limit,
        ])
    };
    let said = check("1GiB");
    said.with_code(0);
    assert!(
        said.stdout
            .contains("1024 MiB (memory.limit): process and model"),
        "{}",
        said.stdout
    );
    let refused = check("80MiB");
    assert!(refused.one_line(78).contains("80 MiB (memory.limit)"));
    let mut command = group.command(env!("CARGO_BIN_EXE_residuald"));
    command.args(["check", "--set", "kafka.topics=in", "--set", &bundle]);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("200 MiB (/sys/fs/cgroup/"), "{text}");
}
