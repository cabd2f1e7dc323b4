//! Bad input, bad bundles, bad settings: a stated outcome and one clear line each, never a panic.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use crate::common::bundle::Copy;
use crate::common::kafka::{Note, produce, read_all};
use crate::common::process::{Daemon, Ended, ended, residuald, run};
use crate::common::{parse, payments, sample};
use residuald::kafka::embedded::EmbeddedBroker;
use serde_json::Value;

// --- Records ---------------------------------------------------------------------------------

/// A good record with `edit` made to it.
fn edited(edit: impl FnOnce(&mut Value)) -> String {
    let mut record = parse(sample(1)[0].as_bytes());
    edit(&mut record);
    record.to_string()
}

/// A good record with the text of one field's value replaced by anything.
fn with_amount(literal: &str) -> Vec<u8> {
    let marked = edited(|record| record["amount"] = "AMOUNT".into());
    marked.replace("\"AMOUNT\"", literal).into_bytes()
}

fn remove(record: &mut Value, field: &str) {
    record.as_object_mut().unwrap().remove(field);
}

/// What does not become a row: a name, the payload and the reason.
fn bad_records() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let good = sample(1).remove(0);
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let mut latin1 = with_amount("1");
    latin1.extend_from_slice(b"\xff");
    vec![
        ("not-json", b"not json".to_vec(), "malformed"),
        (
            "truncated",
            good.as_bytes()[..good.len() / 2].to_vec(),
            "malformed",
        ),
        (
            "two-objects",
            format!("{good}{good}").into_bytes(),
            "malformed",
        ),
        ("an-array", b"[1, 2, 3]".to_vec(), "malformed"),
        ("a-number", b"42".to_vec(), "malformed"),
        ("null", b"null".to_vec(), "malformed"),
        ("spaces", b"   ".to_vec(), "malformed"),
        (
            "confluent-avro",
            b"\x00\x00\x00\x00\x07\x02abc".to_vec(),
            "malformed",
        ),
        ("invalid-utf8", latin1, "malformed"),
        (
            "control-character",
            with_amount("1, \"x\": \"\u{0}\""),
            "malformed",
        ),
        ("nan", with_amount("NaN"), "malformed"),
        ("infinity", with_amount("Infinity"), "malformed"),
        ("1e400", with_amount("1e400"), "malformed"),
        ("1e39", with_amount("1e39"), "out_of_range"),
        (
            "a-string-for-a-number",
            with_amount("\"120.0\""),
            "wrong_type",
        ),
        (
            "an-object-for-a-number",
            with_amount("{\"value\": 1}"),
            "wrong_type",
        ),
        ("a-boolean-for-a-number", with_amount("true"), "wrong_type"),
        (
            "a-number-for-a-time",
            edited(|r| r["time"] = 1_767_225_600.into()).into_bytes(),
            "wrong_type",
        ),
        (
            "no-time",
            edited(|r| r["time"] = "yesterday".into()).into_bytes(),
            "wrong_type",
        ),
        (
            "a-scalar-for-an-object",
            edited(|r| r["merchant"] = 5.into()).into_bytes(),
            "malformed",
        ),
        (
            "missing",
            edited(|r| remove(r, "amount")).into_bytes(),
            "missing",
        ),
        ("null-field", with_amount("null"), "missing"),
        ("twice", with_amount("1, \"amount\": 2"), "duplicate"),
        (
            "another-schema",
            br#"{"temperature": 21.5}"#.to_vec(),
            "missing",
        ),
        ("empty-object", b"{}".to_vec(), "missing"),
        ("deep", format!("{{\"x\": {deep}}}").into_bytes(), "missing"),
        ("deep-in-a-field", with_amount(&deep), "wrong_type"),
        (
            "deep-unclosed",
            "{\"x\":".repeat(100_000).into_bytes(),
            "malformed",
        ),
    ]
}

/// What is odd and still becomes a row.
fn odd_records() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        (
            "unknown-category",
            edited(|r| r["entry_mode"] = "telepathy".into()).into_bytes(),
        ),
        (
            "unknown-key",
            edited(|r| r["new"] = "field".into()).into_bytes(),
        ),
        ("largest-float32", with_amount("3.4e38")),
        ("smallest-number", with_amount("1e-300")),
        ("negative-zero", with_amount("-0.0")),
        ("many-digits", with_amount(&"1".repeat(30))),
        (
            "missing-and-imputed",
            edited(|r| remove(r, "distance_from_home_km")).into_bytes(),
        ),
        ("deep-and-ignored", {
            let deep = format!("{}{}", "[".repeat(50_000), "]".repeat(50_000));
            with_amount(&format!("1, \"x\": {deep}"))
        }),
    ]
}

#[test]
fn every_bad_record_is_a_dead_letter_and_the_good_ones_around_it_are_judged() {
    let broker =
        EmbeddedBroker::start(&[("in", 1), ("anomalies", 1), ("scores", 1), ("dead", 1)]).unwrap();
    let (bad, odd) = (bad_records(), odd_records());
    let good = sample(1).remove(0);
    let mut notes = vec![Note::new("good", good.as_str())];
    for (name, payload, _) in &bad {
        let own = ("own".to_owned(), Some(b"header".to_vec()));
        notes.push(Note {
            headers: vec![own, ("empty".to_owned(), None)],
            timestamp_ms: Some(1_767_225_600_123),
            ..Note::new(name, payload.clone())
        });
        notes.push(Note::new("good", good.as_str()));
    }
    notes.extend(
        odd.iter()
            .map(|(name, payload)| Note::new(name, payload.clone())),
    );
    let tombstone = Note {
        payload: None,
        ..Note::new("tombstone", "")
    };
    notes.extend([tombstone, Note::new("empty", "")]);
    notes.push(Note {
        key: None,
        ..Note::new("", good.as_str())
    });
    produce(&broker.brokers, "in", &notes);

    let daemon = Daemon::ready(&broker.brokers, &["output.scores_topic=scores"]);
    let scored = bad.len() + 1 + odd.len() + 1;
    daemon.await_count("skipped", 2);
    daemon.await_count("dead_letters", bad.len() as u64);
    daemon.await_count("scored", scored as u64);
    daemon.is_balanced();

    let dead = read_all(&broker.brokers, "dead");
    assert_eq!(dead.len(), bad.len());
    for (i, (letter, (name, payload, reason))) in dead.iter().zip(&bad).enumerate() {
        check_dead_letter(letter, name, payload, reason, 2 * i + 1);
    }
    for reason in [
        "malformed",
        "wrong_type",
        "out_of_range",
        "missing",
        "duplicate",
        "unscorable",
    ] {
        let series = format!("residuald_dead_letters_total{{reason=\"{reason}\"}}");
        let expected = bad.iter().filter(|(.., r)| *r == reason).count();
        assert_eq!(daemon.metric(&series), expected as f64, "{reason}");
    }
    daemon.drains();
    let scores = read_all(&broker.brokers, "scores");
    assert_eq!(scores.len(), scored);
    let keys: Vec<_> = scores.iter().map(|note| note.key.as_deref()).collect();
    for (name, _) in &odd {
        assert!(
            keys.contains(&Some(name.as_bytes())),
            "{name} was not judged"
        );
    }
    assert_eq!(keys.last(), Some(&None), "a record without a key stays so");
}

fn check_dead_letter(letter: &Note, name: &str, payload: &[u8], reason: &str, offset: usize) {
    assert_eq!(letter.key.as_deref(), Some(name.as_bytes()));
    assert_eq!(letter.payload.as_deref(), Some(payload), "{name}");
    assert_eq!(letter.timestamp_ms, Some(1_767_225_600_123), "{name}");
    for (header, expected) in [
        ("own", "header"),
        ("__connect.errors.topic", "in"),
        ("__connect.errors.partition", "0"),
        ("__connect.errors.offset", &offset.to_string()),
        ("__connect.errors.stage", "VALUE_CONVERTER"),
        (
            "__connect.errors.exception.class.name",
            &format!("residuald.decode.{reason}"),
        ),
    ] {
        assert_eq!(letter.header(header), Some(expected), "{name}: {header}");
    }
    assert!(
        letter.headers.contains(&("empty".to_owned(), None)),
        "{name}"
    );
    let why = letter.header("__connect.errors.exception.message").unwrap();
    assert!((5..500).contains(&why.len()), "{name}: {why}");
}

// --- Bundles ---------------------------------------------------------------------------------

/// `check` refuses the bundle with 65 and names the file; returns what it says.
fn refused(bundle: impl AsRef<Path>, file: &str) -> String {
    let dir = bundle.as_ref().to_str().unwrap();
    let ended = run(&["check", "--bundle", dir]);
    let said = ended.with_code(65);
    assert!(said.contains("refused"), "{said}");
    assert!(said.contains(&format!("\n  {file}: ")), "{file} in {said}");
    said.to_owned()
}

#[test]
fn the_shipped_bundle_passes_and_so_does_a_copy() {
    run(&["check", "--bundle", payments().to_str().unwrap()]).with_code(0);
    run(&["check", "--bundle", Copy::new().path.to_str().unwrap()]).with_code(0);
}

#[test]
fn a_missing_file_is_named() {
    for file in [
        "manifest.json",
        "model.onnx",
        "calibration.json",
        "golden.ndjson",
    ] {
        let bundle = Copy::new();
        fs::remove_file(bundle.file(file)).unwrap();
        refused(&bundle, file);
    }
    refused("no/such/folder", "manifest.json");
}

#[test]
fn a_flipped_bit_is_found_in_every_file() {
    for file in ["model.onnx", "calibration.json", "golden.ndjson"] {
        let bundle = Copy::new();
        bundle.flip_a_bit(file);
        assert!(refused(&bundle, file).contains("was altered after export"));
    }
}

#[test]
fn all_faults_are_named_at_once() {
    let bundle = Copy::new();
    bundle.flip_a_bit("model.onnx");
    bundle.flip_a_bit("calibration.json");
    fs::remove_file(bundle.file("golden.ndjson")).unwrap();
    for file in ["model.onnx", "calibration.json", "golden.ndjson"] {
        refused(&bundle, file);
    }
}

#[test]
fn a_schema_with_a_feature_fewer_does_not_fit_the_graph() {
    let bundle = Copy::new();
    let pop = |list: &mut Value| list.as_array_mut().unwrap().pop().unwrap();
    bundle.edit("manifest.json", |m| drop(pop(&mut m["input"]["features"])));
    bundle.edit("calibration.json", |c| drop(pop(&mut c["residual_scale"])));
    let said = refused(&bundle, "model.onnx");
    for tensor in ["input `x`", "output `residual`", "output `reconstruction`"] {
        assert!(said.contains(tensor), "{tensor} in {said}");
    }
}

#[test]
fn a_model_that_is_no_onnx_graph_is_refused() {
    for (model, why) in [
        (&b""[..], "ONNX Runtime refuses it"),
        (b"not an ONNX graph", "is not an ONNX model"),
        (&[0xff; 4096], "is not an ONNX model"),
    ] {
        let bundle = Copy::new();
        bundle.write("model.onnx", model);
        let said = refused(&bundle, "model.onnx");
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn a_truncated_model_with_the_right_hash_is_refused() {
    let bundle = Copy::new();
    let model = bundle.read("model.onnx");
    bundle.write("model.onnx", &model[..model.len() / 2]);
    refused(&bundle, "model.onnx");
}

#[test]
fn a_graph_of_a_later_opset_is_refused() {
    let bundle = Copy::new();
    let mut model = bundle.read("model.onnx");
    let at = opset_byte(&model);
    assert!((18..=25).contains(&model[at]), "opset {}", model[at]);
    model[at] = 99;
    bundle.write("model.onnx", &model);
    let said = refused(&bundle, "model.onnx");
    assert!(said.to_lowercase().contains("opset"), "{said}");
}

/// Where ModelProto.opset_import (field 8) has the version (field 2) of the default domain.
fn opset_byte(model: &[u8]) -> usize {
    let mut at = 0;
    while at < model.len() {
        let tag = varint(model, &mut at);
        match (tag >> 3, tag & 7) {
            (_, 0) => _ = varint(model, &mut at),
            (field, 2) => {
                let length = varint(model, &mut at);
                let import = &model[at..at + length];
                if field == 8 && import.len() <= 4 && import[import.len() - 2] == 0x10 {
                    return at + length - 1;
                }
                at += length;
            }
            other => panic!("field {other:?} in a ModelProto"),
        }
    }
    panic!("the model imports no opset");
}

fn varint(bytes: &[u8], at: &mut usize) -> usize {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = bytes[*at];
        *at += 1;
        value |= usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return value;
        }
        shift += 7;
    }
}

#[test]
fn a_golden_record_that_scores_differently_refuses_the_bundle() {
    let bundle = Copy::new();
    let golden = String::from_utf8(bundle.read("golden.ndjson")).unwrap();
    let mut lines: Vec<String> = golden.lines().map(str::to_owned).collect();
    let mut third = parse(lines[2].as_bytes());
    third["score"] = (third["score"].as_f64().unwrap() * 1.001).into();
    lines[2] = third.to_string();
    bundle.write("golden.ndjson", lines.join("\n").as_bytes());
    let said = refused(&bundle, "golden.ndjson");
    assert!(said.contains("record 3 scores"), "{said}");
}

#[test]
fn normal_records_that_do_not_fit_refuse_the_bundle() {
    let lines = |bundle: &Copy| String::from_utf8(bundle.read("normals.ndjson")).unwrap();
    let bundle = Copy::new();
    let few: String = lines(&bundle)
        .lines()
        .rev()
        .take(3)
        .collect::<Vec<_>>()
        .join("\n");
    bundle.write("normals.ndjson", few.as_bytes());
    let said = refused(&bundle, "nearest.onnx");
    assert!(
        said.contains("returns the number of a record that does not exist"),
        "{said}"
    );

    let bundle = Copy::new();
    let broken = lines(&bundle).replacen("\"amount\"", "\"amuont\"", 1);
    bundle.write("normals.ndjson", broken.as_bytes());
    let said = refused(&bundle, "normals.ndjson");
    assert!(said.contains("record 1 does not fit the schema"), "{said}");

    let bundle = Copy::new();
    bundle.write("nearest.onnx", &bundle.read("model.onnx"));
    let said = refused(&bundle, "nearest.onnx");
    assert!(said.contains("output `nearest`"), "{said}");

    let bundle = Copy::new();
    bundle.edit("manifest.json", |manifest| {
        let files = manifest["files"].as_object_mut().unwrap();
        files.remove("nearest.onnx");
    });
    refused(&bundle, "normals.ndjson");
}

#[test]
fn a_screen_that_does_not_fit_refuses_the_bundle() {
    let bundle = Copy::new();
    bundle.edit("screen.json", |screen| {
        screen["golden"].as_array_mut().unwrap().pop();
        screen["probes"]["score"].as_array_mut().unwrap().pop();
    });
    let said = refused(&bundle, "screen.json");
    assert!(said.contains("golden records"), "{said}");
    assert!(said.contains("probes has 12000 values"), "{said}");

    let bundle = Copy::new();
    bundle.edit("screen.json", |screen| screen["golden"][3] = 99.into());
    let said = refused(&bundle, "screen.onnx");
    assert!(said.contains("golden record 4 here, 99"), "{said}");

    let bundle = Copy::new();
    bundle.write("screen.onnx", &bundle.read("model.onnx"));
    let said = refused(&bundle, "screen.onnx");
    assert!(said.contains("output `screen`"), "{said}");

    let bundle = Copy::new();
    bundle.edit("manifest.json", |manifest| {
        let files = manifest["files"].as_object_mut().unwrap();
        files.remove("screen.onnx");
    });
    refused(&bundle, "screen.json");
}

#[test]
fn a_screen_is_checked_before_the_start() {
    let check = |settings: &[&str]| {
        let bundle = format!("model.bundle={:?}", payments());
        let all = [&["kafka.topics=in", &bundle], settings].concat();
        let flags = all.into_iter().flat_map(|setting| ["--set", setting]);
        run(&["check"].into_iter().chain(flags).collect::<Vec<_>>())
    };
    let ok = check(&["screen.mode=on"]);
    let said = &ok.stdout;
    assert!(said.contains("the screen clears 8"), "{said}{}", ok.stderr);
    let said = check(&["screen.mode=on", "output.scores_topic=scores"])
        .with_code(78)
        .to_owned();
    assert!(said.contains("screen.mode = \"audit\""), "{said}");
    let said = check(&["screen.mode=audit", "screen.missed_share=0.00001"])
        .with_code(78)
        .to_owned();
    assert!(said.contains("requires 99999"), "{said}");

    let without = Copy::new();
    without.edit("manifest.json", |manifest| {
        let files = manifest["files"].as_object_mut().unwrap();
        files.retain(|name, _| !name.starts_with("screen"));
    });
    let bundle = format!("model.bundle={:?}", without.path);
    let said = check(&["screen.mode=on", &bundle]).with_code(78).to_owned();
    assert!(said.contains("has no screen"), "{said}");
}

#[test]
fn a_bundle_from_another_time_or_elsewhere_is_refused() {
    let newer = Copy::new();
    newer.edit("manifest.json", |m| m["format"] = 99.into());
    assert!(refused(&newer, "manifest.json").contains("format 99"));

    let escaping = Copy::new();
    escaping.edit("manifest.json", |m| {
        m["files"]["../../etc/passwd"] = "00".into()
    });
    refused(&escaping, "../../etc/passwd");

    let not_json = Copy::new();
    fs::write(not_json.file("manifest.json"), "{").unwrap();
    refused(&not_json, "manifest.json");

    let unsorted = Copy::new();
    unsorted.edit("calibration.json", |c| {
        c["tail"].as_array_mut().unwrap().reverse()
    });
    refused(&unsorted, "calibration.json");

    let empty = Copy::new();
    empty.write("golden.ndjson", b"");
    refused(&empty, "golden.ndjson");
}

#[test]
fn the_daemon_refuses_a_broken_bundle_too() {
    let bundle = Copy::new();
    bundle.flip_a_bit("model.onnx");
    let ended = run_daemon(&[&format!("model.bundle={:?}", bundle.path)]);
    let said = ended.with_code(65);
    assert!(said.contains("model.onnx: was altered"), "{said}");
}

// --- Settings and surroundings ---------------------------------------------------------------

/// `residuald run` that is expected not to start, on a port where nobody listens.
fn run_daemon(settings: &[&str]) -> Ended {
    ended(daemon(settings).env_remove("RESIDUALD_CONFIG"))
}

fn daemon(settings: &[&str]) -> std::process::Command {
    let bundle = format!("model.bundle={:?}", payments());
    let mut command = residuald();
    command.arg("run");
    let own = [
        "kafka.brokers=127.0.0.1:1",
        "kafka.topics=in",
        "http.listen=127.0.0.1:0",
        &bundle,
    ];
    for setting in own.iter().chain(settings) {
        command.args(["--set", setting]);
    }
    command
}

#[test]
fn every_bad_setting_is_listed_at_once() {
    let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    let text = r#"
        [kafka]
        broker = "typo:9092"
        topics = []
        delivery = "at-most-once"
        drain_timeout = "soon"
        [kafka.consumer]
        "enable.auto.commit" = true
        [kafka.client]
        "sasl.password" = { env = "RESIDUALD_TEST_NO_SUCH_VARIABLE" }
        [inference]
        provider = "tpu"
        workers = -1
        [batch]
        max_records = 0
        [threshold]
        false_alarm_rate = 2
        [http]
        listen = "everywhere"
        [telemetry]
        log_format = "xml"
        [outptu]
        attributions = 3
    "#;
    fs::write(&file, text).unwrap();
    let path = file.path().to_str().unwrap();
    for verb in ["run", "check", "config"] {
        let ended = run(&[verb, "--config", path]);
        let said = ended.with_code(78);
        for fault in [
            "`kafka.broker`, did you mean `kafka.brokers`?",
            "kafka.topics",
            "kafka.delivery",
            "kafka.drain_timeout",
            "`enable.auto.commit` is set by residuald",
            "RESIDUALD_TEST_NO_SUCH_VARIABLE is not set",
            "inference.provider",
            "inference.workers",
            "batch.max_records",
            "threshold.false_alarm_rate",
            "http.listen",
            "telemetry.log_format",
            "outptu.attributions",
            "model.bundle is not set",
        ] {
            assert!(said.contains(fault), "{verb}: {fault} in {said}");
        }
    }
}

#[test]
fn a_config_file_that_is_absent_or_no_toml_is_named() {
    let absent = run(&["run", "--config", "no/such.toml"]);
    assert!(absent.one_line(78).contains("no/such.toml"));
    let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    fs::write(&file, "[kafka\nbrokers = ").unwrap();
    let path = file.path().to_str().unwrap();
    let broken = run(&["run", "--config", path]);
    assert!(broken.with_code(78).contains(path));
}

#[test]
fn a_setting_that_librdkafka_refuses_is_named_and_its_right_values_listed() {
    let ended = run_daemon(&["kafka.consumer.\"no.such.setting\"=secret"]);
    let line = ended.one_line(78);
    assert!(
        line.contains("no.such.setting") && !line.contains("secret"),
        "{line}"
    );
    let ended = run_daemon(&["kafka.client.\"security.protocol\"=tls"]);
    let line = ended.one_line(78);
    for said in ["security.protocol", "\"tls\"", "sasl_plaintext, sasl_ssl"] {
        assert!(line.contains(said), "{said} in {line}");
    }
}

#[test]
fn usage_errors_are_64_and_help_is_0() {
    for arguments in [
        &["frobnicate"][..],
        &["run", "--frobnicate"],
        &["score"],
        &["produce", "x.csv", "--topic", "t", "--rate", "-1"],
        &["score", "x.csv", "--bundle", "b", "--false-alarm-rate", "2"],
        &[],
    ] {
        run(arguments).with_code(64);
    }
    for verb in [
        "run",
        "demo",
        "check",
        "config",
        "score",
        "bench",
        "produce",
        "completions",
        "init",
        "man",
    ] {
        let ended = run(&[verb, "--help"]);
        ended.with_code(0);
        assert!(ended.stdout.contains("Example"), "{verb}: {}", ended.stdout);
    }
    run(&["--version"]).with_code(0);
}

#[test]
fn unreachable_brokers_are_69_within_the_connect_timeout() {
    let ended = run_daemon(&["kafka.connect_timeout=2s"]);
    let line = ended.one_line(69);
    assert!(line.contains("127.0.0.1:1 within 2s"), "{line}");
    assert!(line.contains("onnection refused"), "the reason: {line}");
    assert!(ended.took < Duration::from_secs(6), "{:?}", ended.took);

    let record = tempfile::NamedTempFile::with_suffix(".ndjson").unwrap();
    fs::write(&record, &sample(1)[0]).unwrap();
    let path = record.path().to_str().unwrap();
    let ended = run(&["produce", path, "--topic", "in", "--brokers", "127.0.0.1:1"]);
    assert!(ended.one_line(69).contains("127.0.0.1:1"));
}

#[test]
fn a_host_that_does_not_exist_is_69() {
    let settings = [
        "kafka.connect_timeout=2s",
        "kafka.brokers=no-such-host.invalid:9092",
    ];
    let ended = run_daemon(&settings);
    let line = ended.one_line(69);
    assert!(line.contains("no-such-host.invalid:9092"), "{line}");
    assert!(ended.took < Duration::from_secs(20), "{:?}", ended.took);
}

#[test]
fn an_absent_topic_is_69_and_named() {
    let broker =
        EmbeddedBroker::start(&[("in", 1), ("anomalies", 1), ("dead-letters", 1)]).unwrap();
    let brokers = format!("kafka.brokers={}", broker.brokers);
    let ended = run_daemon(&[&brokers, "kafka.topics=nowhere"]);
    let line = ended.one_line(69);
    assert!(line.contains("topic `nowhere` does not exist"), "{line}");
}

#[test]
fn a_port_that_is_taken_is_78_with_the_address() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = holder.local_addr().unwrap().to_string();
    let ended = run_daemon(&[&format!("http.listen={address}")]);
    let line = ended.one_line(78);
    assert!(line.contains(&address) && line.contains("in use"), "{line}");
}

#[test]
fn a_provider_that_the_library_lacks_is_78_unless_a_fallback_is_allowed() {
    for provider in ["cuda", "tensorrt"] {
        let asked = format!("inference.provider={provider}");
        let ended = run_daemon(&[&asked]);
        let line = ended.one_line(78);
        assert!(
            line.contains(&format!("\"{provider}\" is not available")),
            "{line}"
        );

        let allowed = ["inference.fallback=true", "kafka.connect_timeout=1s"];
        let ended = run_daemon(&[&asked, allowed[0], allowed[1]]);
        ended.one_line(69);
        assert!(
            ended.stderr.contains("falling back to the CPU"),
            "{}",
            ended.stderr
        );
    }
}

#[test]
fn a_threshold_finer_than_the_calibration_is_78_and_says_what_it_needs() {
    for rule in [
        &["threshold.false_alarm_rate=1e-9"][..],
        &[
            "threshold.alerts_per_day=1",
            "threshold.records_per_day=1e12",
        ],
        &["threshold.quantile=0.999999999999"],
    ] {
        let ended = run_daemon(rule);
        let line = ended.one_line(78);
        assert!(line.contains("calibration records"), "{line}");
    }
}

#[test]
fn a_library_that_is_not_there_is_78_and_says_what_to_do() {
    let not_a_library = payments().join("manifest.json");
    for library in [
        "/no/such/libonnxruntime.so",
        not_a_library.to_str().unwrap(),
    ] {
        let ended = ended(daemon(&[]).env("ORT_DYLIB_PATH", library));
        let line = ended.one_line(78);
        assert!(line.contains("make onnxruntime"), "{line}");
    }
}

#[test]
fn files_that_cannot_be_scored_are_65() {
    let bundle = payments();
    let bundle = bundle.to_str().unwrap();
    let ended = run(&["score", "no/such.csv", "--bundle", bundle]);
    assert!(ended.one_line(65).contains("no/such.csv"));
    let empty = tempfile::NamedTempFile::with_suffix(".ndjson").unwrap();
    let path = empty.path().to_str().unwrap();
    run(&["score", path, "--bundle", bundle]).one_line(65);
    fs::write(&empty, "not json\n{}\n").unwrap();
    let ended = run(&["score", path, "--bundle", bundle, "--json"]);
    let line = ended.one_line(65);
    assert!(
        line.contains("none of the 2 records could be scored: malformed 1 ("),
        "{line}"
    );
    let summary = parse(ended.stdout.as_bytes());
    assert_eq!(
        (&summary["records"], &summary["dead_letters"]),
        (&2.into(), &2.into())
    );
}
