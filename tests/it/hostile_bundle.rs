//! Bundles that break every promise: each is refused or dealt with in time, said in words that no terminal obeys, and what was in
//! force goes on.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::common::bundle::{Copy, files};
use crate::common::kafka::{Note, produce, read_all};
use crate::common::process::{Daemon, Ended, ended, residuald, run, signal};
use crate::common::{parse, payments, root, wait_for};
use residuald::kafka::embedded::EmbeddedBroker;
use serde_json::json;

const OK: &str = "residuald_model_reloads_total{status=\"ok\"}";
const FAILED: &str = "residuald_model_reloads_total{status=\"failed\"}";
/// A record of `tests/slow_model` that is never done.
const ENDLESS: &str = r#"{"value": 1, "work": 1e15}"#;

fn check(bundle: &Path) -> Ended {
    run(&["check", "--bundle", bundle.to_str().unwrap()])
}

/// Refused as bad data, with all of these words and no character that steers a terminal.
fn is_refused(bundle: &Path, words: &[&str]) {
    let checked = check(bundle);
    let said = checked.with_code(65);
    for word in words {
        assert!(said.contains(word), "{word} not in {said}");
    }
    let plain = |c: char| !c.is_control() || c == '\n';
    assert!(said.chars().all(plain), "{said:?}");
}

fn broken(graph: &str) -> Copy {
    let bundle = Copy::slow();
    let graph = root().join(format!("tests/hostile_bundle/{graph}.onnx"));
    bundle.write("model.onnx", &fs::read(graph).unwrap());
    bundle
}

/// A message of protobuf's wire format as the field `tag` of another.
fn field(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).unwrap();
    assert!(tag < 16 && length < 128, "one byte each");
    [&[tag << 3 | 2, length], content].concat()
}

/// An initializer with its data elsewhere. Behind a model, protobuf reads it as part of the model's graph.
fn external_initializer(location: &str) -> Vec<u8> {
    let entry = [field(1, b"location"), field(2, location.as_bytes())].concat();
    let tensor = [
        vec![1 << 3, 4, 2 << 3, 1], // four floats
        field(8, b"stolen"),
        field(13, &entry),
        vec![14 << 3, 1],
    ];
    field(7, &field(5, &tensor.concat()))
}

#[test]
fn external_data_is_refused_in_every_graph() {
    for graph in ["model.onnx", "nearest.onnx", "screen.onnx"] {
        let bundle = Copy::new();
        let mut bytes = bundle.read(graph);
        bytes.extend(external_initializer("etc/hostname"));
        bundle.write(graph, &bytes);
        is_refused(&bundle.path, &[graph, "`stolen`", "another file"]);
    }
    // A graph that nobody reads yet is no way in either.
    let bundle = Copy::new();
    bundle.write("other.onnx", &external_initializer("etc/hostname"));
    is_refused(&bundle.path, &["other.onnx", "another file"]);
}

/// In place of the file that is there.
fn make_pipe(path: &Path) {
    fs::remove_file(path).unwrap();
    let made = Command::new("mkfifo").arg(path).status();
    assert!(made.unwrap().success());
}

#[test]
fn only_regular_files_of_bounded_size_are_read() {
    for file in [
        "manifest.json",
        "model.onnx",
        "golden.ndjson",
        "screen.onnx",
    ] {
        let bundle = Copy::new();
        let path = bundle.file(file);
        make_pipe(&path);
        is_refused(&bundle.path, &[file, "a named pipe"]);

        fs::remove_file(&path).unwrap();
        symlink("/dev/zero", &path).unwrap();
        is_refused(&bundle.path, &[file, "a device"]);

        fs::remove_file(&path).unwrap();
        fs::File::create(&path).unwrap().set_len(100 << 30).unwrap();
        is_refused(&bundle.path, &[file, "at most"]);
    }
}

#[test]
fn a_bundle_mounted_as_kubernetes_mounts_it_is_read() {
    let bundle = Copy::slow();
    let mount = tempfile::tempdir().unwrap();
    fs::rename(&bundle.path, mount.path().join("..2026_11_27")).unwrap();
    symlink("..2026_11_27", mount.path().join("..data")).unwrap();
    for file in [
        "manifest.json",
        "model.onnx",
        "calibration.json",
        "golden.ndjson",
    ] {
        symlink(Path::new("..data").join(file), mount.path().join(file)).unwrap();
    }
    check(mount.path()).with_code(0);
}

#[test]
fn what_a_graph_returns_is_checked_at_load() {
    for (graph, words) in [
        ("few_scores", &["model.onnx", "`score`", "shape [8]"][..]),
        (
            "few_residuals",
            &["model.onnx", "`residual`", "shape [8, 2]"],
        ),
        ("few_reconstructions", &["model.onnx", "`reconstruction`"]),
        ("negative", &["golden.ndjson", "the model's score is -16"]),
        ("not_finite", &["golden.ndjson", "cannot be judged"]),
        (
            "residual_not_finite",
            &["golden.ndjson", "a residual of the model is"],
        ),
    ] {
        is_refused(&broken(graph).path, words);
    }
}

#[test]
fn an_output_of_another_name_is_refused() {
    for (graph, output) in [("nearest.onnx", "nearest"), ("screen.onnx", "screen")] {
        let bundle = Copy::new();
        let bytes = bundle.read(graph);
        let mut renamed = bytes.clone();
        for at in 0..bytes.len() - output.len() {
            if bytes[at..].starts_with(output.as_bytes()) {
                renamed[at] = b'_';
            }
        }
        bundle.write(graph, &renamed);
        let missing = format!("output `{output}` is missing");
        is_refused(&bundle.path, &[graph, &missing]);
    }
}

#[test]
fn numbers_beyond_reason_are_refused() {
    type Edit = fn(&mut serde_json::Value);
    let cases: [(&str, Edit, &str); 8] = [
        (
            "calibration.json",
            |c| c["count"] = u64::MAX.into(),
            "count is",
        ),
        (
            "calibration.json",
            |c| c["count"] = (1_u64 << 53).into(),
            "count is",
        ),
        (
            "calibration.json",
            |c| c["residual_scale"][0] = (-1.0).into(),
            "residual_scale",
        ),
        (
            "calibration.json",
            |c| c["tail"][128] = 1e39.into(),
            "tail must be finite",
        ),
        (
            "manifest.json",
            |m| m["golden"]["relative_tolerance"] = 1e39.into(),
            "tolerances",
        ),
        (
            "manifest.json",
            |m| m["name"] = "x".repeat(5000).into(),
            "longer than 256 bytes",
        ),
        (
            "manifest.json",
            |m| m["format"] = u64::from(u32::MAX).into(),
            "format",
        ),
        (
            "manifest.json",
            |m| {
                for i in 0..100 {
                    m["files"][format!("{i}")] = "00".into();
                }
            },
            "103 files",
        ),
    ];
    for (file, edit, said) in cases {
        let bundle = Copy::slow();
        bundle.edit(file, edit);
        is_refused(&bundle.path, &[file, said]);
    }
    let bundle = Copy::slow();
    let golden = "{\"record\": {\"value\": 1, \"work\": 0}, \"score\": 1}\n".repeat(10_001);
    bundle.write("golden.ndjson", golden.as_bytes());
    is_refused(&bundle.path, &["more than 10000 golden records"]);
}

#[test]
fn text_from_a_bundle_cannot_steer_a_terminal() {
    let hostile = "\u{1b}[2J\u{1b}]0;owned\u{7}\u{9b}31m\u{202e}\r";
    let bundle = Copy::slow();
    bundle.edit("manifest.json", |manifest| {
        manifest["files"][hostile] = "\u{1b}[31m".into();
        manifest["name"] = hostile.into();
        manifest["input"]["features"][0]["path"] = format!("{hostile}..").into();
    });
    is_refused(
        &bundle.path,
        &["control characters", "\\u001b[2J", "\\u202e"],
    );

    // Bidirectional marks are no control characters, so they can be in a name; they are shown escaped.
    let bundle = Copy::slow();
    bundle.edit("manifest.json", |manifest| {
        manifest["name"] = "a\u{202e}b".into()
    });
    let checked = check(&bundle.path);
    checked.with_code(0);
    assert!(checked.stdout.contains("a\\u202eb"), "{}", checked.stdout);
}

#[test]
fn a_file_name_with_a_path_is_refused() {
    for name in ["../secret", "/etc/hostname", "sub\\file", "..", ""] {
        let bundle = Copy::slow();
        bundle.edit("manifest.json", |m| m["files"][name] = "00".into());
        is_refused(&bundle.path, &["must be directly in the bundle's folder"]);
    }
}

/// `tests/slow_model` with a golden record that is never done.
fn make_endless(bundle: &Copy) {
    let line = json!({"record": {"value": 1, "work": 1e15}, "score": 1});
    bundle.write("golden.ndjson", format!("{line}\n").as_bytes());
}

#[test]
fn check_of_an_endless_graph_ends_at_its_deadline() {
    let bundle = Copy::slow();
    make_endless(&bundle);
    let model = format!("model.bundle={:?}", bundle.path);
    let settings = [
        "--set",
        &model,
        "--set",
        "kafka.topics=in",
        "--set",
        "model.load_timeout=1s",
    ];
    let checked = run(&[&["check"], &settings[..]].concat());
    let said = checked.with_code(65);
    assert!(said.contains("model.load_timeout"), "{said}");
    assert!(!said.contains("cannot be ended"), "{said}");
}

fn broker() -> EmbeddedBroker {
    EmbeddedBroker::start(&[("in", 1), ("anomalies", 1), ("scores", 1), ("dead", 1)]).unwrap()
}

/// A daemon that judges `bundle`, with settings in the file `settings`, which SIGHUP has read again.
fn daemon(broker: &EmbeddedBroker, bundle: &Copy, file: &Path, more: &[&str]) -> Daemon {
    if !file.exists() {
        fs::write(file, "").unwrap();
    }
    let model = format!("model.bundle={:?}", bundle.path);
    let own = [
        model.as_str(),
        "output.scores_topic=scores",
        "inference.workers=1",
    ];
    let environment = [("RESIDUALD_CONFIG", file.to_str().unwrap())];
    let all = [&own[..], more].concat();
    Daemon::start_in(&environment, &broker.brokers, &all).await_ready()
}

/// SIGHUP, and waits until it is dealt with.
fn reload(daemon: &Daemon, series: &str) {
    let before = daemon.metric(series);
    signal(daemon.pid(), "HUP");
    wait_for(series, || (daemon.metric(series) > before).then_some(()));
}

fn send(broker: &EmbeddedBroker, payloads: &[&str]) {
    let notes: Vec<Note> = payloads.iter().map(|p| Note::new("any", *p)).collect();
    produce(&broker.brokers, "in", &notes);
}

#[test]
fn a_reload_that_hangs_is_given_up_and_the_next_one_works() {
    let (broker, bundle, dir) = (broker(), Copy::slow(), tempfile::tempdir().unwrap());
    let golden = bundle.read("golden.ndjson");
    let file = dir.path().join("settings.toml");
    let daemon = daemon(&broker, &bundle, &file, &["threshold.quantile=0.99"]);
    make_endless(&bundle);
    fs::write(&file, "model.load_timeout = \"1s\"\n").unwrap();
    reload(&daemon, FAILED);
    // However slow the machine is, those below are not refused for being late.
    fs::write(&file, "model.load_timeout = \"10m\"\n").unwrap();

    let pipe = bundle.file("model.onnx");
    make_pipe(&pipe);
    reload(&daemon, FAILED);
    fs::remove_file(&pipe).unwrap();

    let few = root().join("tests/hostile_bundle/few_scores.onnx");
    bundle.write("model.onnx", &fs::read(few).unwrap());
    bundle.write("golden.ndjson", &golden);
    reload(&daemon, FAILED);

    send(&broker, &[r#"{"value": 1, "work": 0}"#]);
    daemon.await_count("scored", 1);
    let whole = root().join("tests/slow_model/model.onnx");
    bundle.write("model.onnx", &fs::read(whole).unwrap());
    bundle.edit("manifest.json", |manifest| {
        manifest["version"] = "2".into();
    });
    reload(&daemon, OK);
    assert_eq!(daemon.status()["model"]["version"], "2");
    let ended = daemon.drains();
    for said in ["model.load_timeout", "a named pipe", "shape [8]"] {
        assert!(
            ended.stderr.contains(said),
            "{said} not in {}",
            ended.stderr
        );
    }
}

#[test]
fn a_stop_does_not_wait_for_a_reload_that_hangs() {
    let (broker, bundle, dir) = (broker(), Copy::slow(), tempfile::tempdir().unwrap());
    let settings = ["model.load_timeout=10m", "threshold.quantile=0.99"];
    let daemon = daemon(
        &broker,
        &bundle,
        &dir.path().join("settings.toml"),
        &settings,
    );
    make_endless(&bundle);
    signal(daemon.pid(), "HUP");
    let tasks = format!("/proc/{}/task", daemon.pid());
    let loads = |task: fs::DirEntry| {
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        name.trim() == "loader"
    };
    wait_for("the loader", || {
        let mut tasks = fs::read_dir(&tasks).unwrap().flatten();
        tasks.any(loads).then_some(())
    });
    let ended = daemon.drains();
    assert!(ended.stderr.contains("reloading settings and bundle"));
}

#[test]
fn a_stop_while_the_first_model_loads_is_taken_at_once() {
    let bundle = Copy::slow();
    make_endless(&bundle);
    let model = format!("model.bundle={:?}", bundle.path);
    let mut command = residuald();
    command.args(["run", "--set", &model, "--set", "kafka.topics=in"]);
    command.args(["--set", "model.load_timeout=10m"]);
    let child = command
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id();
    wait_for("the signals to be caught", || {
        catches(pid, 15).then_some(())
    });
    signal(pid, "TERM");
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(
        said.contains("stopped while the model was loading"),
        "{said}"
    );
}

/// Whether the process has a handler for the signal.
fn catches(pid: u32, number: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let mask = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (number - 1) & 1 == 1)
}

#[test]
fn a_second_signal_ends_a_process_that_scores_for_ever() {
    let (broker, bundle, dir) = (broker(), Copy::slow(), tempfile::tempdir().unwrap());
    let settings = ["kafka.drain_timeout=10m", "threshold.quantile=0.99"];
    let mut daemon = daemon(
        &broker,
        &bundle,
        &dir.path().join("settings.toml"),
        &settings,
    );
    send(&broker, &[ENDLESS]);
    wait_for("the record in flight", || {
        (daemon.count("in_flight") > 0).then_some(())
    });
    signal(daemon.pid(), "TERM");
    wait_for("the drain", || {
        (daemon.get("/readyz").0 == 503).then_some(())
    });
    signal(daemon.pid(), "TERM");
    let ended = daemon.end();
    assert_eq!(ended.code, Some(130), "{}", ended.stderr);
    assert!(ended.stderr.contains("second signal"), "{}", ended.stderr);
}

#[test]
fn a_second_signal_ends_a_process_whose_log_nobody_reads() {
    let broker = broker();
    let mut command = residuald();
    command.arg("run");
    let bundle = format!("model.bundle={:?}", root().join("tests/slow_model"));
    let brokers = format!("kafka.brokers={}", broker.brokers);
    for setting in [
        bundle.as_str(),
        brokers.as_str(),
        "kafka.topics=in",
        "output.dead_letter_topic=dead",
        "threshold.quantile=0.99",
        "http.listen=127.0.0.1:0",
        "telemetry.log_level=trace",
        "kafka.client.\"debug\"=all",
    ] {
        command.args(["--set", setting]);
    }
    let child = command.stderr(std::process::Stdio::piped()).spawn();
    let mut child = child.unwrap();
    let log = child.stderr.as_ref().unwrap();
    // A pipe holds 64 KiB, of which the last write may not fill all.
    wait_for("a full pipe", || {
        let waiting = rustix::io::ioctl_fionread(log).unwrap();
        (waiting > 60 << 10).then_some(())
    });
    signal(child.id(), "TERM");
    wait_for("its end", || {
        // Pending signals of a kind are one: until the first is seen, the next says nothing.
        signal_if_there(child.id());
        child.try_wait().unwrap()
    });
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

fn signal_if_there(pid: u32) {
    let kill = format!("kill -TERM {pid} 2>/dev/null || true");
    Command::new("sh").args(["-c", &kill]).status().unwrap();
}

#[test]
fn a_drain_that_a_graph_holds_up_ends_at_its_deadline() {
    let (broker, bundle, dir) = (broker(), Copy::slow(), tempfile::tempdir().unwrap());
    let settings = ["kafka.drain_timeout=1s", "threshold.quantile=0.99"];
    let daemon = daemon(
        &broker,
        &bundle,
        &dir.path().join("settings.toml"),
        &settings,
    );
    send(&broker, &[ENDLESS]);
    wait_for("the record in flight", || {
        (daemon.count("in_flight") > 0).then_some(())
    });
    let ended = daemon.terminate();
    assert_eq!(ended.code, Some(69), "{}", ended.stderr);
    assert!(ended.stderr.contains("still in flight"), "{}", ended.stderr);
}

#[test]
fn a_record_on_which_the_graph_fails_is_a_dead_letter_and_its_batch_goes_on() {
    let (broker, bundle, dir) = (broker(), broken("few_later"), tempfile::tempdir().unwrap());
    let file = dir.path().join("settings.toml");
    let settings = ["threshold.quantile=0.99", "batch.max_wait=1s"];
    let daemon = daemon(&broker, &bundle, &file, &settings);
    let good = r#"{"value": 1, "work": 0}"#;
    send(&broker, &[good, r#"{"value": 1, "work": 1}"#, good]);
    daemon.await_count("scored", 2);
    daemon.await_count("dead_letters", 1);
    daemon.is_balanced();
    let ended = daemon.drains();
    for said in [
        "the model failed on some records",
        "model.onnx",
        "shape [8]",
    ] {
        assert!(
            ended.stderr.contains(said),
            "{said} not in {}",
            ended.stderr
        );
    }
    let letters = read_all(&broker.brokers, "dead");
    assert_eq!(letters.len(), 1);
    let message = letters[0].headers.iter();
    let message = message.filter(|(name, _)| name == "__connect.errors.exception.message");
    let message: Vec<u8> = message
        .flat_map(|(_, text)| text.clone().unwrap())
        .collect();
    let message = String::from_utf8(message).unwrap();
    assert!(
        message.starts_with("the model failed on this record: model.onnx"),
        "{message}"
    );
}

#[test]
fn a_record_whose_score_is_no_distance_is_a_dead_letter() {
    let (broker, bundle, dir) = (broker(), broken("negative"), tempfile::tempdir().unwrap());
    let golden = json!({"record": {"value": 2, "work": 0}, "score": 2});
    bundle.write("golden.ndjson", format!("{golden}\n").as_bytes());
    let file = dir.path().join("settings.toml");
    let daemon = daemon(&broker, &bundle, &file, &["threshold.quantile=0.99"]);
    send(
        &broker,
        &[r#"{"value": -5, "work": 0}"#, r#"{"value": 5, "work": 0}"#],
    );
    daemon.await_count("scored", 1);
    daemon.await_count("dead_letters", 1);
    daemon.is_balanced();
    daemon.drains();
    assert_eq!(read_all(&broker.brokers, "dead").len(), 1);

    let records = dir.path().join("in.ndjson");
    fs::write(
        &records,
        "{\"value\": -5, \"work\": 0}\n{\"value\": 5, \"work\": 0}\n",
    )
    .unwrap();
    let paths = [&records, &bundle.path].map(|path| path.to_str().unwrap());
    let scored = run(&[
        "score", paths[0], "--bundle", paths[1], "--json", "--score", "1",
    ]);
    scored.with_code(0);
    let summary = parse(scored.stdout.as_bytes());
    assert_eq!(
        (&summary["scored"], &summary["dead_letters"]),
        (&1.into(), &1.into())
    );
}

#[test]
fn a_bundle_of_another_schema_wants_to_be_meant() {
    let (broker, bundle, dir) = (broker(), Copy::slow(), tempfile::tempdir().unwrap());
    let file = dir.path().join("settings.toml");
    let mut daemon = daemon(&broker, &bundle, &file, &["threshold.quantile=0.99"]);
    let replace = |other: &Path| {
        for name in files(bundle.as_ref()) {
            fs::remove_file(bundle.file(&name)).unwrap();
        }
        for name in files(other) {
            fs::copy(other.join(&name), bundle.file(&name)).unwrap();
        }
    };
    replace(&payments());
    reload(&daemon, FAILED);
    assert_eq!(daemon.status()["model"]["name"], "slow_model");
    // A bundle of another kind, for which the threshold would not do either.
    replace(&root().join("models/surface"));
    reload(&daemon, FAILED);
    replace(&payments());
    fs::write(&file, "[model]\nallow_schema_change = true\n").unwrap();
    reload(&daemon, OK);
    assert_eq!(daemon.status()["model"]["name"], "payments");
    signal(daemon.pid(), "TERM");
    let ended = daemon.end();
    let log = ended.with_code(0);
    assert!(log.contains("model.allow_schema_change"), "{log}");
    assert!(
        log.contains("the new bundle reads images, but the current one reads tables"),
        "{log}"
    );
}

#[test]
fn settings_are_read_again_and_what_needs_a_restart_is_named() {
    let (broker, bundle, dir) = (broker(), Copy::slow(), tempfile::tempdir().unwrap());
    let file = dir.path().join("settings.toml");
    fs::write(&file, "threshold.score = 10.0\n").unwrap();
    let daemon = daemon(&broker, &bundle, &file, &[]);
    let threshold = || daemon.status()["threshold"].as_f64().unwrap();
    assert_eq!(threshold(), 10.0);
    assert_eq!(daemon.status()["needs_restart"], json!([]));

    let new = "threshold.score = 3.0\ntelemetry.log_level = \"debug\"\noutput.attributions = 1\nkafka.drain_timeout = \"3s\"\n";
    fs::write(&file, new).unwrap();
    reload(&daemon, OK);
    assert_eq!(threshold(), 3.0);
    assert_eq!(
        daemon.status()["needs_restart"],
        json!(["kafka.drain_timeout"])
    );
    assert_eq!(daemon.get("/log-level").1.trim(), "debug");
    send(&broker, &[r#"{"value": 5, "work": 0}"#]);
    daemon.await_count("anomalies", 1);
    let verdict = read_all(&broker.brokers, "anomalies").remove(0);
    let verdict = parse(verdict.payload.as_ref().unwrap());
    let reasons = verdict["relevant_attribution"].as_array().unwrap();
    assert_eq!(reasons.len(), 1, "{verdict}");

    // A file that is broken changes nothing.
    for broken in [
        "threshold.score = [",
        "threshold.scoer = 1.0\n",
        "threshold.score = -1\n",
    ] {
        fs::write(&file, broken).unwrap();
        reload(&daemon, FAILED);
        assert_eq!(threshold(), 3.0);
    }
    // Nor does a pipe that nobody writes to: it is given up.
    make_pipe(&file);
    reload(&daemon, FAILED);
    fs::remove_file(&file).unwrap();
    fs::write(&file, "threshold.score = 4.0\n").unwrap();
    reload(&daemon, OK);
    assert_eq!(threshold(), 4.0);
    assert_eq!(daemon.status()["needs_restart"], json!([]));
    let ended = daemon.drains();
    for said in [
        "kafka.drain_timeout",
        "only after a restart",
        "threshold.scoer",
    ] {
        assert!(
            ended.stderr.contains(said),
            "{said} not in {}",
            ended.stderr
        );
    }
}

#[test]
fn a_check_of_a_hostile_name_on_the_command_line_is_escaped_too() {
    let ended = ended(residuald().args(["check", "--bundle", "no\u{1b}[2Jsuch"]));
    let said = ended.with_code(65);
    assert!(
        said.contains("\\u001b[2J") && !said.contains('\u{1b}'),
        "{said:?}"
    );
}
