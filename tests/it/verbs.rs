//! Verbs that write what a new user needs: settings to begin with, manual pages. What verbs say where they could do nothing, and to nobody.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use crate::common::process::{Ended, ended, http_get, residuald, run, signal};
use crate::common::{parse, payments, root, sample, wait_for};
use ::residuald::kafka::embedded::EmbeddedBroker;

/// `residuald` in `folder`, with `models` in it as in the repository.
fn in_folder(folder: &Path, arguments: &[&str]) -> Ended {
    ended(residuald().current_dir(folder).args(arguments))
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(root().join("models"), folder.path().join("models")).unwrap();
    folder
}

#[test]
fn init_writes_settings_that_check_takes() {
    for (bundle, format, rate) in [
        ("models/payments", "json", "0.001"),
        ("models/surface", "image", "0.0042"),
    ] {
        let folder = folder();
        let init = [
            "init", "--bundle", bundle, "--topic", "^a \"b\"", "--topic", "c",
        ];
        let told = in_folder(
            folder.path(),
            &[&init[..], &["--brokers", "k1:1,k2:2"]].concat(),
        );
        assert!(told.with_code(0).is_empty(), "{}", told.stderr);
        assert!(
            told.stdout
                .contains("residuald check --config residuald.toml"),
            "{}",
            told.stdout
        );

        let check = in_folder(folder.path(), &["check", "--config", "residuald.toml"]);
        check.with_code(0);
        let (_, placed) = check.stdout.split_once("ok: runs on cpu: ").unwrap();
        let (nodes, on) = placed.split_once(' ').unwrap();
        assert!(nodes.parse::<u32>().unwrap() > 50 && on.starts_with("nodes on CPU\n"));
        let config = in_folder(folder.path(), &["config"]);
        config.with_code(0);
        for setting in [
            "kafka.brokers = \"k1:1,k2:2\"",
            "kafka.topics = [\"^a \\\"b\\\"\", \"c\"]",
            &format!("model.bundle = \"{bundle}\""),
            &format!("input.format = \"{format}\""),
            &format!("threshold.false_alarm_rate = {rate}"),
        ] {
            let line = format!("{setting}  # residuald.toml");
            assert!(config.stdout.contains(&line), "{line} in {}", config.stdout);
        }
        let text = std::fs::read_to_string(folder.path().join("residuald.toml")).unwrap();
        let threshold = check.stdout.rsplit_once("above ").unwrap().1;
        let threshold = threshold.split(' ').next().unwrap().parse::<f32>().unwrap();
        assert!(
            text.contains(&format!("score above {threshold:.4} ")),
            "{text}"
        );
    }
}

#[test]
fn init_overwrites_only_when_it_is_told_to() {
    let folder = folder();
    let file = folder.path().join("own.toml");
    std::fs::write(&file, "mine").unwrap();
    let init = [
        "init",
        "--bundle",
        "models/payments",
        "--topic",
        "a",
        "--out",
        "own.toml",
    ];
    let refused = in_folder(folder.path(), &init);
    assert!(refused.one_line(64).contains("--force"));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    in_folder(folder.path(), &[&init[..], &["--force"]].concat()).with_code(0);
    assert!(std::fs::read_to_string(&file).unwrap().contains("[kafka]"));
}

#[test]
fn init_writes_nothing_that_a_start_would_refuse() {
    let folder = folder();
    for (bundle, topic, code, said) in [
        ("models/none", "a", 65, "manifest.json: cannot be read"),
        (
            "models/payments",
            "anomalies",
            78,
            "is in kafka.topics and in [output]",
        ),
        (
            "models/payments",
            "dead-letters",
            78,
            "is in kafka.topics and in [output]",
        ),
    ] {
        let ended = in_folder(
            folder.path(),
            &["init", "--bundle", bundle, "--topic", topic],
        );
        assert!(ended.with_code(code).contains(said), "{}", ended.stderr);
        assert!(!folder.path().join("residuald.toml").exists(), "{topic}");
    }
}

#[test]
fn every_verb_has_a_manual_page() {
    let folder = tempfile::tempdir().unwrap();
    in_folder(folder.path(), &["man", "."]).with_code(0);
    let main = in_folder(folder.path(), &["man"]);
    main.with_code(0);
    let page = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    assert_eq!(page("residuald.1"), main.stdout);
    let help = in_folder(folder.path(), &["--help"]).stdout;
    let (_, verbs) = help.split_once("Commands:\n").unwrap();
    let verbs = verbs.lines().take_while(|line| !line.is_empty());
    let named = verbs.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let named: Vec<_> = named.filter(|verb| !["", "help"].contains(verb)).collect();
    assert!(named.len() > 10, "{help}");
    for verb in named {
        let page = page(&format!("residuald-{verb}.1"));
        assert!(page.contains("\n.SH NOTES\n.nf\nExample"), "{verb}: {page}");
        assert!(
            page.contains(&format!("residuald {}", env!("CARGO_PKG_VERSION"))),
            "{page}"
        );
    }
    assert!(page("residuald-dead-letters-replay.1").contains("replay"));
    let nowhere = in_folder(folder.path(), &["man", "no/such/folder"]);
    assert!(nowhere.one_line(64).contains("no/such/folder"));
}

#[test]
fn where_nobody_reads_the_output_every_verb_ends_quietly() {
    let folder = folder();
    let records = folder.path().join("records.ndjson");
    std::fs::write(&records, sample(3000).join("\n")).unwrap();
    in_folder(
        folder.path(),
        &["init", "--bundle", "models/payments", "--topic", "a"],
    )
    .with_code(0);
    let score = ["score", "records.ndjson", "--bundle", "models/payments"];
    let verbs: [&[&str]; 11] = [
        &["--help"],
        &["score", "--help"],
        &["man"],
        &["completions", "bash"],
        &["config"],
        &["config", "--json"],
        &["check"],
        &[
            "init",
            "--bundle",
            "models/payments",
            "--topic",
            "a",
            "--force",
        ],
        &score,
        &[&score[..], &["--out", "-"]].concat(),
        &[&score[..], &["--json"]].concat(),
    ];
    for verb in verbs {
        let mut child = residuald()
            .current_dir(folder.path())
            .args(verb)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            (output.status.code(), said.as_ref()),
            (Some(0), ""),
            "{verb:?}"
        );
    }
}

#[test]
fn a_demo_ends_with_its_reader_and_goes_on_without_a_log() {
    let demo = |records: &str| {
        let mut command = residuald();
        let bundle = payments();
        command.args([
            "demo",
            "--listen",
            "127.0.0.1:0",
            "--rate",
            "500",
            "--records",
            records,
        ]);
        command.arg("--bundle").arg(bundle);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    // Standard output, after the first line.
    let mut child = demo("100000");
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    lines.read_line(&mut String::new()).unwrap();
    drop(lines);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    // Standard error: what is logged is lost, the work is done.
    let mut child = demo("2000");
    drop(child.stderr.take());
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(0));
}

/// A daemon whose log nobody can read any more, at its most talkative.
#[test]
fn a_daemon_outlives_the_reader_of_its_log() {
    let broker = EmbeddedBroker::start(&[("in", 1), ("anomalies", 1), ("dead", 1)]).unwrap();
    let bundle = payments();
    let mut command = residuald();
    command.arg("run").stderr(Stdio::piped());
    for setting in [
        &format!("kafka.brokers={}", broker.brokers),
        &format!("model.bundle={:?}", bundle),
        "kafka.topics=in",
        "output.dead_letter_topic=dead",
        "http.listen=127.0.0.1:0",
        "telemetry.log_format=json",
        "telemetry.log_level=debug",
    ] {
        command.args(["--set", setting]);
    }
    let mut child = command.spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let address = loop {
        let mut line = String::new();
        assert!(
            log.read_line(&mut line).unwrap() > 0,
            "no address in the log"
        );
        if let Some((_, rest)) = line.split_once("\"address\":\"") {
            break rest.split('"').next().unwrap().to_owned();
        }
    };
    drop(log);
    wait_for("readiness", || {
        (http_get(&address, "/readyz").0 == 200).then_some(())
    });
    signal(child.id(), "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_verb_that_could_use_no_record_says_why_and_ends_with_65() {
    let folder = folder();
    let german = sample(200).into_iter().map(|record| {
        let mut record = parse(record.as_bytes());
        record["amount"] = record["amount"].to_string().replace('.', ",").into();
        record.to_string()
    });
    let mut records: Vec<String> = german.collect();
    records.extend(["{".to_owned(), "{}".to_owned(), "{\u{1b}[2J".to_owned()]);
    let write = |name: &str, lines: &[String]| {
        std::fs::write(folder.path().join(name), lines.join("\n")).unwrap()
    };
    write("none.ndjson", &records);
    let score = ["score", "none.ndjson", "--bundle", "models/payments"];
    let calibrate = [
        "calibrate",
        "models/payments",
        "--data",
        "none.ndjson",
        "--out",
        "made",
    ];
    for verb in [&score[..], &calibrate] {
        let ended = in_folder(folder.path(), verb);
        let line = ended.one_line(65);
        for part in [
            "wrong_type 200 (field `amount`",
            "malformed 2 (",
            "missing 1 (",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
        assert!(!line.contains('\u{1b}'), "{line}");
    }
    let ended = in_folder(folder.path(), &score);
    assert!(
        ended
            .stdout
            .contains("203 could not be scored: wrong_type 200 ("),
        "{}",
        ended.stdout
    );
    let ended = in_folder(folder.path(), &[&score[..], &["--json"]].concat());
    ended.one_line(65);
    let reasons = parse(ended.stdout.as_bytes())["reasons"].clone();
    assert_eq!(
        (&reasons[0]["reason"], &reasons[0]["records"]),
        (&"wrong_type".into(), &200.into())
    );

    // One that can be scored is enough for a success; the reasons are told all the same.
    records.push(sample(1).remove(0));
    write("one.ndjson", &records);
    let ended = in_folder(
        folder.path(),
        &["score", "one.ndjson", "--bundle", "models/payments"],
    );
    ended.with_code(0);
    assert!(
        ended
            .stdout
            .contains("203 could not be scored: wrong_type 200 ("),
        "{}",
        ended.stdout
    );

    // A CSV of another kind: every line but the header has one cell too many.
    let broker = EmbeddedBroker::start(&[("in", 1)]).unwrap();
    let produce = |file: &str, text: &str| {
        std::fs::write(folder.path().join(file), text).unwrap();
        run(&[
            "produce",
            folder.path().join(file).to_str().unwrap(),
            "--topic",
            "in",
            "--brokers",
            &broker.brokers,
        ])
    };
    let ended = produce("bad.csv", "a,b\n1,2,3\n4,5,6\n");
    let line = ended.one_line(65);
    assert!(
        line.contains("none of the 2 records could be sent: malformed 2 ("),
        "{line}"
    );
    assert!(
        produce("empty.csv", "a,b\n")
            .one_line(65)
            .contains("contains no records")
    );
    let ended = produce("some.csv", "a,b\n1,2,3\n4,5\n");
    ended.with_code(0);
    assert!(
        ended.stdout.contains("1 records delivered")
            && ended.stdout.contains("left out: malformed 1 ("),
        "{}",
        ended.stdout
    );

    // Images.
    std::fs::create_dir(folder.path().join("images")).unwrap();
    std::fs::write(folder.path().join("images/0.png"), "no image").unwrap();
    let ended = in_folder(
        folder.path(),
        &["score", "images", "--bundle", "models/surface"],
    );
    assert!(
        ended
            .one_line(65)
            .contains("none of the 1 records could be scored: malformed 1 ("),
        "{}",
        ended.stderr
    );
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    for arguments in [
        &["config"][..],
        &["completions", "bash"],
        &["check", "--bundle", "models/payments"],
    ] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_residuald"));
        command.args(arguments).current_dir(root());
        command.env("RESIDUALD__KAFKA__TOPICS", "t");
        command.env("RESIDUALD__MODEL__BUNDLE", "models/payments");
        command.stdout(
            std::fs::OpenOptions::new()
                .write(true)
                .open("/dev/full")
                .unwrap(),
        );
        let ended = command.output().unwrap();
        let told = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(65), "{arguments:?}: {told}");
        assert!(told.contains("No space left on device"), "{told}");
    }
}
