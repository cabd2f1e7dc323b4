//! `residuald dead-letters` on a real Apache Kafka: what comes back is what went, once, whatever happens in between.

use std::collections::HashMap;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::cluster::{Cluster, cluster};
use crate::common::kafka::{Note, committed, ends, produce};
use crate::common::process::{Daemon, Ended, ended, residuald, signal};
use crate::common::{PATIENCE, parse, sample, wait_for};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};

const PARTITIONS: i32 = 3;
/// Twenty transactions: enough to be killed in the middle.
const MANY: usize = 20_000;

/// Topics of a test's own: `in`, `dead` and `other`, each with `prefix`.
struct Topics {
    cluster: &'static Cluster,
    prefix: &'static str,
}

impl Topics {
    fn create(prefix: &'static str) -> Option<Topics> {
        let cluster = cluster()?;
        let topics = Topics { cluster, prefix };
        let names = ["in", "dead", "other"].map(|topic| topics.name(topic));
        cluster.create_topics(&names, PARTITIONS);
        Some(topics)
    }

    fn name(&self, topic: &str) -> String {
        format!("{}-{topic}", self.prefix)
    }

    fn brokers(&self) -> &str {
        &self.cluster.brokers
    }

    fn produce(&self, topic: &str, notes: &[Note]) {
        produce(self.brokers(), &self.name(topic), notes);
    }

    fn command(&self, verb: &str, flags: &[&str]) -> Command {
        let mut command = residuald();
        let topic = self.name("dead");
        command
            .args(["dead-letters", verb, "--topic", &topic])
            .args(["--brokers", self.brokers()])
            .args(flags);
        command
    }

    fn run(&self, verb: &str, flags: &[&str]) -> Ended {
        ended(&mut self.command(verb, flags))
    }

    /// Of a run that must end well.
    fn replay(&self, flags: &[&str]) -> Value {
        let all = [flags, &["--json"]].concat();
        let ended = self.run("replay", &all);
        ended.with_code(0);
        parse(ended.stdout.as_bytes())
    }

    /// The letters, and the line with the counts.
    fn list(&self, flags: &[&str]) -> (Vec<Value>, Value) {
        let all = [flags, &["--json"]].concat();
        let ended = self.run("list", &all);
        ended.with_code(0);
        let mut lines: Vec<Value> = ended.stdout.lines().map(|l| parse(l.as_bytes())).collect();
        let counts = lines.pop().expect("a line with the counts");
        lines.sort_by_key(|l| (l["partition"].as_i64(), l["offset"].as_i64()));
        (lines, counts)
    }

    /// What a consumer of committed records sees: partition, timestamp, key, headers and value of each.
    fn committed(&self, topic: &str) -> Vec<String> {
        self.await_markers(topic);
        let output = Command::new("kcat")
            .args(["-b", self.brokers(), "-C", "-t", &self.name(topic)])
            .args(["-o", "beginning", "-e", "-q"])
            .args(["-f", "%p %T %K:%k %h %s\n"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kcat: {said}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// A commit is done before its end is in every partition; until then consumers see nothing behind its beginning.
    fn await_markers(&self, topic: &str) {
        let everything: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", self.brokers())
            .set("isolation.level", "read_uncommitted")
            .create()
            .unwrap();
        wait_for("the end of all transactions", || {
            let visible = ends(self.brokers(), &self.name(topic));
            let are_equal = visible.iter().all(|(&partition, &end)| {
                let watermarks =
                    everything.fetch_watermarks(&self.name(topic), partition, PATIENCE);
                watermarks.unwrap().1 == end
            });
            are_equal.then_some(())
        });
    }

    /// Offsets that consumers of committed records have got past so far.
    fn written(&self, topic: &str) -> i64 {
        ends(self.brokers(), &self.name(topic)).values().sum()
    }

    /// A replay at work, once it has begun to write.
    fn replay_under_way(&self) -> Child {
        let before = self.written("in");
        let mut command = self.command("replay", &["--json"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        wait_for("a replay to write", || {
            (self.written("in") > before + 500).then_some(())
        });
        child
    }

    /// `count` letters, each with a value of its own, as a daemon would write them.
    fn make_dead_letters(&self, count: usize) {
        let topic = self.name("in");
        let letters: Vec<Note> = (0..count)
            .map(|i| Note {
                partition: i as i32 % PARTITIONS,
                headers: error_headers(&topic, i as i32 % PARTITIONS, i as i64),
                ..Note::new(&format!("key-{i}"), format!("letter {i}"))
            })
            .collect();
        self.produce("dead", &letters);
    }

    /// Asserts that each of `make_dead_letters`'s letters is in the target once.
    fn each_is_there_once(&self, count: usize) {
        let mut seen: HashMap<String, usize> = HashMap::new();
        for line in self.committed("in") {
            let (_, value) = line.split_once("letter ").expect("a letter");
            *seen.entry(value.to_owned()).or_default() += 1;
        }
        let twice: Vec<_> = seen.iter().filter(|(_, n)| **n != 1).take(5).collect();
        assert_eq!(twice, [], "sent more than once");
        assert_eq!(seen.len(), count, "some are missing");
    }
}

fn header(name: &str, value: &str) -> (String, Option<Vec<u8>>) {
    (name.to_owned(), Some(value.as_bytes().to_vec()))
}

fn error_headers(topic: &str, partition: i32, offset: i64) -> Vec<(String, Option<Vec<u8>>)> {
    vec![
        header("__connect.errors.topic", topic),
        header("__connect.errors.partition", &partition.to_string()),
        header("__connect.errors.offset", &offset.to_string()),
        header(
            "__connect.errors.exception.class.name",
            "residuald.decode.missing",
        ),
        header("__connect.errors.exception.message", "a field is absent"),
    ]
}

fn end_of(mut child: Child) -> Ended {
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().unwrap();
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        took: PATIENCE,
    }
}

#[test]
fn letters_of_a_daemon_come_back_as_they_were_and_once() {
    let Some(topics) = Topics::create("daemon") else {
        return;
    };
    let good = sample(30);
    let records: Vec<Note> = (0..60)
        .map(|i| Note {
            partition: i % PARTITIONS,
            offset: 0,
            // Some have no key, some an empty one.
            key: match i % 5 {
                0 => None,
                1 => Some(Vec::new()),
                _ => Some(format!("card {i}").into_bytes()),
            },
            payload: Some(match i % 2 {
                0 => good[i as usize / 2].clone().into_bytes(),
                _ if i % 3 == 0 => format!("{{\"amount\": {i}}}").into_bytes(),
                _ => format!("not json {i}").into_bytes(),
            }),
            headers: vec![header("traceparent", &format!("00-{i}")), header("own", "")],
            timestamp_ms: Some(1_767_225_600_000 + i64::from(i)),
        })
        .collect();
    topics.produce("in", &records);
    let settings = [
        format!("kafka.topics={}", topics.name("in")),
        format!("output.anomalies_topic={}", topics.name("other")),
        format!("output.dead_letter_topic={}", topics.name("dead")),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let daemon = Daemon::ready(topics.brokers(), &settings);
    daemon.await_count("dead_letters", 30);
    daemon.drains();
    let bad: Vec<String> = topics
        .committed("in")
        .into_iter()
        .filter(|l| !l.contains("card_id"))
        .collect();
    assert_eq!(bad.len(), 30);

    let (letters, counts) = topics.list(&["--payload"]);
    assert_eq!((letters.len(), &counts["letters"]), (30, &json!(30)));
    assert_eq!(counts["replayed"], 0);
    let name = topics.name("in");
    let kind =
        |reason, letters| json!({"reason": reason, "source_topic": name, "letters": letters});
    assert_eq!(
        counts["by"],
        json!([kind("malformed", 20), kind("missing", 10)])
    );
    for letter in &letters {
        let source = &letter["source"];
        let (partition, offset) = (
            source["partition"].as_i64().unwrap(),
            source["offset"].as_i64().unwrap(),
        );
        let at = records
            .iter()
            .filter(|r| i64::from(r.partition) == partition)
            .nth(offset as usize)
            .unwrap();
        assert_eq!(
            letter["value"].as_str().unwrap().as_bytes(),
            at.payload.as_ref().unwrap()
        );
    }
    let (few, counts) = topics.list(&["--reason", "missing", "--limit", "3"]);
    assert_eq!((few.len(), &counts["letters"]), (3, &json!(10)));
    assert!(few.iter().all(|letter| letter["reason"] == "missing"));

    let would = topics.replay(&["--dry-run"]);
    assert_eq!(would["replayed"], 30, "{would}");
    assert_eq!(would["dry_run"], true);
    assert_eq!(topics.written("in"), 60, "a dry run changes nothing");

    let first = topics.replay(&["--reason", "missing"]);
    assert_eq!(
        (&first["replayed"], &first["to"]),
        (&json!(10), &json!({ (topics.name("in")): 10 }))
    );
    let rest = topics.replay(&[]);
    assert_eq!(
        (&rest["replayed"], &rest["replayed_before"]),
        (&json!(20), &json!(10))
    );
    let again = topics.replay(&["--reason", "missing,malformed"]);
    assert_eq!(
        (&again["replayed"], &again["replayed_before"]),
        (&json!(0), &json!(30))
    );

    // What is new in the topic is what was bad in it: timestamps, keys, headers and values. The partition follows from
    // the key; without one (a length of -1) it is the old one.
    let after = topics.committed("in");
    assert_eq!(after.len(), 90);
    let sorted = |lines: Vec<String>| {
        let strip = |line: String| match line.split_once(' ') {
            Some((_, rest)) if !rest.contains(" -1: ") => rest.to_owned(),
            _ => line,
        };
        let mut lines: Vec<String> = lines.into_iter().map(strip).collect();
        lines.sort();
        lines
    };
    let twice: Vec<String> = bad.iter().chain(&bad).cloned().collect();
    let bad_after: Vec<String> = after
        .into_iter()
        .filter(|l| !l.contains("card_id"))
        .collect();
    assert_eq!(sorted(bad_after), sorted(twice));
    assert_eq!(bad.iter().filter(|l| l.contains(" -1: ")).count(), 6);

    let (letters, counts) = topics.list(&[]);
    assert_eq!(counts["replayed"], 30);
    let name = topics.name("in");
    assert!(
        letters
            .iter()
            .all(|letter| letter["replayed_to"] == json!([name]))
    );
    let text = topics.run("list", &["--limit", "30", "--payload"]);
    text.with_code(0);
    println!("{}", text.stdout);
    for words in [
        " malformed ",
        "  (replayed to daemon-in)\n    not json ",
        "\n30 letters, 30 of them replayed\n",
    ] {
        assert!(
            text.stdout.contains(words),
            "{words} is not in {}",
            text.stdout
        );
    }
    // Another target is another matter.
    let other = topics.name("other");
    let elsewhere = topics.replay(&["--to-topic", &other]);
    assert_eq!(elsewhere["to"], json!({ (other.as_str()): 30 }));
    assert_eq!(topics.replay(&["--to-topic", &other])["replayed"], 0);
    // By offsets, and none of what is beyond them.
    let (letters, _) = topics.list(&["--from", "1:2", "--to", "1:5"]);
    let places = letters
        .iter()
        .map(|l| (l["partition"].as_i64(), l["offset"].as_i64()));
    let expected = (2..5).map(|offset| (Some(1), Some(offset)));
    assert_eq!(places.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    assert!(committed(topics.brokers(), "residuald-history", &topics.name("dead")).is_empty());
}

#[test]
fn a_replay_that_is_killed_again_and_again_sends_each_letter_once() {
    let Some(topics) = Topics::create("killed") else {
        return;
    };
    topics.make_dead_letters(MANY);
    for _ in 0..3 {
        let mut child = topics.replay_under_way();
        child.kill().unwrap();
        assert_eq!(end_of(child).code, None, "killed in the middle");
    }
    let ended = topics.replay(&[]);
    println!("after three kills: {ended}");
    let count = |name: &str| ended[name].as_u64().unwrap() as usize;
    assert!(count("replayed") > 0 && count("replayed_before") > 0);
    assert_eq!(count("replayed") + count("replayed_before"), MANY);
    topics.each_is_there_once(MANY);
    assert_eq!(topics.replay(&[])["replayed"], 0);
    assert_eq!(topics.list(&["--limit", "0"]).1["replayed"], MANY);
}

#[test]
fn of_two_replays_the_later_one_goes_on() {
    let Some(topics) = Topics::create("fenced") else {
        return;
    };
    topics.make_dead_letters(MANY);
    let first = topics.replay_under_way();
    let second = topics.replay(&[]);
    let first = end_of(first);
    let line = first.one_line(69);
    assert!(
        line.contains("another replay of topic `fenced-dead`"),
        "{line}"
    );
    let first = parse(first.stdout.as_bytes());
    assert_eq!(first["replayed"], second["replayed_before"]);
    topics.each_is_there_once(MANY);
}

#[test]
fn an_interrupt_ends_it_between_transactions() {
    let Some(topics) = Topics::create("interrupt") else {
        return;
    };
    topics.make_dead_letters(MANY);
    let child = topics.replay_under_way();
    signal(child.id(), "INT");
    let ended = end_of(child);
    ended.with_code(0);
    let ended = parse(ended.stdout.as_bytes());
    assert_eq!(ended["complete"], false);
    let rest = topics.replay(&[]);
    assert_eq!(rest["replayed_before"], ended["replayed"]);
    topics.each_is_there_once(MANY);
}

#[test]
fn what_others_have_open_is_waited_for() {
    let Some(topics) = Topics::create("open") else {
        return;
    };
    topics.make_dead_letters(30);
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", topics.brokers())
        .set("transactional.id", "somebody-else")
        .create()
        .unwrap();
    producer.init_transactions(PATIENCE).unwrap();
    producer.begin_transaction().unwrap();
    let dead = topics.name("dead");
    let record: BaseRecord<'_, str, str> = BaseRecord::to(&dead).partition(0).payload("late");
    producer.send(record).map_err(|(e, _)| e).unwrap();
    producer.flush(PATIENCE).unwrap();

    let mut command = topics.command("replay", &["--json"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A marker could lie behind what is open: it must not decide before it can see.
    std::thread::sleep(Duration::from_secs(4));
    assert!(child.try_wait().unwrap().is_none(), "it did not wait");
    assert_eq!(topics.written("in"), 0);
    producer.commit_transaction(PATIENCE).unwrap();
    let ended = end_of(child);
    ended.with_code(0);
    assert_eq!(parse(ended.stdout.as_bytes())["replayed"], 30);
    topics.each_is_there_once(30);
}

#[test]
fn what_cannot_be_replayed_is_counted_and_said() {
    let Some(topics) = Topics::create("odd") else {
        return;
    };
    topics.make_dead_letters(2);
    let mut omitted = error_headers(&topics.name("in"), 0, 7);
    omitted.push(header("residuald.omitted", "message too large"));
    let own = error_headers(&topics.name("dead"), 0, 7);
    let absent = error_headers("nowhere", 0, 7);
    let letter = |headers| Note {
        headers,
        ..Note::new("k", "letter")
    };
    topics.produce("dead", &[letter(omitted), letter(vec![]), letter(own)]);
    let replayed = topics.replay(&[]);
    assert_eq!(replayed["replayed"], 2);
    assert_eq!(
        replayed["cannot_be_replayed"],
        json!({"value_omitted": 1, "no_source_topic": 1, "source_is_dead_letter_topic": 1})
    );
    let (letters, counts) = topics.list(&[]);
    assert_eq!((letters.len(), &counts["replayed"]), (5, &json!(2)));
    let shown = topics.run("list", &["--payload"]);
    shown.with_code(0);
    assert!(
        shown.stdout.contains("(source unknown)"),
        "{}",
        shown.stdout
    );
    assert!(
        shown.stdout.contains("(replayed to odd-in)"),
        "{}",
        shown.stdout
    );
    // A target for all takes those, too, that name none.
    let other = topics.name("other");
    assert_eq!(topics.replay(&["--to-topic", &other])["replayed"], 4);

    topics.produce("dead", &[letter(absent)]);
    let ended = topics.run("replay", &[]);
    assert!(
        ended
            .one_line(69)
            .contains("topic `nowhere` does not exist")
    );
    let dead = topics.name("dead");
    topics.run("replay", &["--to-topic", &dead]).one_line(64);
    let ended = topics.run("list", &["--from", "7:0"]);
    assert!(ended.one_line(64).contains("has no partition 7"));
    topics.run("list", &["--from", "lately"]).with_code(64);
    let ended = topics.run("list", &["-X", "no.such.setting=1"]);
    assert!(ended.one_line(78).contains("no.such.setting"));
    let nowhere = [
        "dead-letters",
        "list",
        "--topic",
        "nowhere",
        "--brokers",
        topics.brokers(),
    ];
    ended_with(&nowhere, 69, "topic `nowhere` does not exist");

    let mut marker = letter(vec![header("residuald.replayed", "")]);
    marker.key = None;
    topics.produce("dead", &[marker]);
    let ended = topics.run("replay", &[]);
    assert!(ended.one_line(65).contains("cannot be read"));
}

#[test]
fn a_topic_that_takes_no_markers_is_said_and_nothing_is_sent() {
    let Some(topics) = Topics::create("compact") else {
        return;
    };
    let compacted = "compact-dead-compacted";
    let policy = [("cleanup.policy", "compact")];
    topics.cluster.create_topic_with(compacted, 1, &policy);
    let letter = Note {
        headers: error_headers(&topics.name("in"), 0, 7),
        ..Note::new("k", "letter")
    };
    produce(topics.brokers(), compacted, &[letter]);
    let replay = [
        "dead-letters",
        "replay",
        "--topic",
        compacted,
        "--brokers",
        topics.brokers(),
    ];
    ended_with(&replay, 65, "is it compacted?");
    assert_eq!(topics.committed("in"), Vec::<String>::new());
}

fn ended_with(arguments: &[&str], code: i32, words: &str) {
    let ended = crate::common::process::run(arguments);
    let line = ended.one_line(code);
    assert!(line.contains(words), "{line}");
}

#[test]
fn letters_that_are_discarded_stay_and_are_not_replayed() {
    let Some(topics) = Topics::create("discard") else {
        return;
    };
    let mut malformed = error_headers(&topics.name("in"), 0, 9);
    malformed[3].1 = Some(b"residuald.decode.malformed".to_vec());
    malformed.push(header("residuald.omitted", "value: too large"));
    topics.make_dead_letters(30);
    let letter = Note {
        headers: malformed,
        ..Note::new("k", "")
    };
    topics.produce("dead", &[letter]);
    let discard = |flags: &[&str]| {
        let ended = topics.run("discard", &[flags, &["--json"]].concat());
        ended.with_code(0);
        parse(ended.stdout.as_bytes())
    };

    // Nobody is there to be asked.
    let ended = topics.run("discard", &["--reason", "malformed"]);
    assert!(ended.one_line(64).contains("--yes"));
    let would = discard(&["--reason", "malformed", "--dry-run"]);
    assert_eq!(
        (&would["discarded"], &would["left"]),
        (&json!(0), &json!(1))
    );
    let done = discard(&["--reason", "malformed", "--yes"]);
    assert_eq!((&done["discarded"], &done["left"]), (&json!(1), &json!(0)));
    let again = discard(&["--reason", "malformed", "--yes"]);
    assert_eq!(
        (&again["discarded"], &again["done_before"]),
        (&json!(0), &json!(1))
    );
    let some = discard(&["--from", "1:0", "--to", "1:4", "--yes"]);
    assert_eq!(some["discarded"], 4);

    let replayed = topics.replay(&[]);
    assert_eq!(
        (&replayed["replayed"], &replayed["discarded"]),
        (&json!(26), &json!(5))
    );
    assert_eq!(topics.committed("in").len(), 26);
    // What was replayed is done already.
    let rest = discard(&["--yes"]);
    assert_eq!(
        (&rest["discarded"], &rest["done_before"]),
        (&json!(0), &json!(31))
    );
    let (letters, counts) = topics.list(&[]);
    assert_eq!((letters.len(), &counts["discarded"]), (31, &json!(5)));
    let marked = letters.iter().filter(|letter| letter["discarded"] == true);
    assert_eq!(marked.count(), 5);
    let shown = topics.run("list", &[]);
    shown.with_code(0);
    let expected = "31 letters, 26 of them replayed, 5 discarded\n";
    assert!(shown.stdout.contains(expected), "{}", shown.stdout);
    assert!(shown.stdout.contains("  (discarded)\n"), "{}", shown.stdout);
    let text = topics.run("discard", &["--yes"]);
    text.with_code(0);
    assert!(
        text.stdout
            .contains("0 discarded, 31 replayed or discarded before")
    );
    // For every target.
    let other = topics.name("other");
    assert_eq!(topics.replay(&["--to-topic", &other])["replayed"], 26);
}

#[test]
fn a_reason_that_no_letter_has_is_answered_with_those_that_there_are() {
    let Some(topics) = Topics::create("reasons") else {
        return;
    };
    let nothing = topics.run("replay", &["--reason", "nonsense"]);
    let line = nothing.one_line(64);
    assert!(
        line.contains("no letters. Possible reasons are malformed, "),
        "{line}"
    );
    topics.make_dead_letters(3);
    for verb in ["replay", "list", "discard"] {
        let yes: &[&str] = if verb == "discard" { &["--yes"] } else { &[] };
        let ended = topics.run(verb, &[&["--reason", "missing,nonsense"], yes].concat());
        let line = ended.one_line(64);
        let expected = "--reason nonsense: no letter of topic `reasons-dead` has this reason. Its letters have the reasons missing (3)";
        assert!(line.contains(expected), "{verb}: {line}");
        // One that this program gives is no slip.
        let ended = topics.run(verb, &[&["--reason", "malformed"], yes].concat());
        ended.with_code(0);
        assert!(
            ended
                .stderr
                .contains("Its letters have the reasons missing (3)"),
            "{verb}"
        );
    }
    assert_eq!(topics.written("in"), 0);
}
