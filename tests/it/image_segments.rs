//! Images judged by segment, with the bundle `gray` of `images/make.py`: a camera with much noise does not hide what the other sees.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::{DynamicImage, GrayImage, ImageFormat, Luma};
use residuald::kafka::embedded::EmbeddedBroker;
use serde_json::{Value, json};

use crate::common::kafka::{Note, produce, read_all};
use crate::common::process::{Daemon, run, scored};
use crate::common::{parse, root, score_of};

/// Normal images of each camera.
const NORMAL: u32 = 40;

/// A gray image that differs from middle gray by up to `most` levels.
fn image(most: u32, number: u32) -> String {
    let seen = GrayImage::from_fn(32, 32, |x, y| {
        let spread = (x * 31 + y * 17 + number * (x + 1) * y) % (most - number % 4);
        Luma([128 + spread as u8])
    });
    let mut png = std::io::Cursor::new(Vec::new());
    let written = DynamicImage::from(seen).write_to(&mut png, ImageFormat::Png);
    written.unwrap();
    STANDARD.encode(png.into_inner())
}

fn record(camera: &str, most: u32, number: u32) -> String {
    json!({"at": {"camera": camera}, "image": image(most, number)}).to_string()
}

/// Images of a camera with little noise and of one with much.
fn normals() -> Vec<String> {
    let of_each = |number| [record("still", 10, number), record("noisy", 60, number)];
    (0..NORMAL).flat_map(of_each).collect()
}

/// An image that stands out for the first camera only, from both cameras and from an unknown one.
fn to_judge() -> [String; 3] {
    ["still", "noisy", "new"].map(|camera| record(camera, 40, 0))
}

fn calibrated(out: &Path, arguments: &[&str]) -> Value {
    let gray = root().join("tests/images/gray");
    let fixed = [
        "calibrate",
        gray.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
    ];
    run(&[&fixed, arguments].concat()).with_code(0);
    let text = std::fs::read(out.join("calibration.json")).unwrap();
    parse(&text)
}

/// Segment, score, threshold and severity of each verdict.
fn parts(verdicts: &[Value]) -> BTreeSet<String> {
    let shown =
        |v: &Value| json!([v["segment"], score_of(v), v["threshold"], v["severity"]]).to_string();
    verdicts.iter().map(shown).collect()
}

#[test]
fn each_camera_has_its_threshold_from_a_file_a_topic_and_in_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let normals = normals();
    std::fs::write(path("normals.ndjson"), normals.join("\n")).unwrap();
    let file = path("normals.ndjson");
    let by = ["--by", "at.camera"];
    let of_file = calibrated(
        &path("of-file"),
        &[&["--data", file.to_str().unwrap()], &by[..]].concat(),
    );

    let topics = ["normals", "in", "anomalies", "scores", "dead"];
    let broker = EmbeddedBroker::start(&topics.map(|topic| (topic, 1))).unwrap();
    let notes: Vec<Note> = normals.iter().map(|n| Note::new("k", n.as_str())).collect();
    produce(&broker.brokers, "normals", &notes);
    let topic = ["--topic", "normals", "--brokers", &broker.brokers];
    let of_topic = calibrated(&path("of-topic"), &[&topic, &by[..]].concat());
    assert_eq!(of_file["segments"], of_topic["segments"]);
    let values = of_file["segments"]["values"].as_array().unwrap();
    let named: Vec<(&Value, &Value)> = values.iter().map(|v| (&v["value"], &v["count"])).collect();
    assert_eq!(
        named,
        [
            (&json!("noisy"), &json!(NORMAL)),
            (&json!("still"), &json!(NORMAL))
        ]
    );

    let bundle = path("of-file");
    let rule = ["--false-alarm-rate", "0.05"];
    let in_file = scored(&to_judge(), &bundle, &rule);
    let severities: BTreeMap<&str, &Value> = ["still", "noisy", "new"]
        .into_iter()
        .zip(in_file.iter().map(|v| &v["severity"]))
        .collect();
    assert!(!severities["still"].is_null());
    assert!(severities["noisy"].is_null());
    assert!(severities["new"].is_null());
    assert!(in_file[2]["segment"].is_null());
    // The regions are those above the camera's own threshold.
    assert_ne!(in_file[0]["regions"], json!([]));

    let notes: Vec<Note> = to_judge()
        .iter()
        .map(|n| Note::new("k", n.as_str()))
        .collect();
    produce(&broker.brokers, "in", &notes);
    let settings = [
        format!("model.bundle={bundle:?}"),
        "threshold.false_alarm_rate=0.05".to_owned(),
        "output.scores_topic=scores".to_owned(),
    ];
    let daemon = Daemon::ready(&broker.brokers, &settings.each_ref().map(String::as_str));
    daemon.await_count("scored", 3);
    daemon.is_balanced();
    daemon.drains();
    let read = |topic| -> Vec<Value> {
        let notes = read_all(&broker.brokers, topic).into_iter();
        notes.map(|note| parse(&note.payload.unwrap())).collect()
    };
    assert_eq!(parts(&read("scores")), parts(&in_file));
    let anomalies = read("anomalies");
    assert_eq!(anomalies.len(), 1);
    assert_eq!(anomalies[0]["segment"], "still");
    assert_eq!(anomalies[0]["regions"], in_file[0]["regions"]);
}

#[test]
fn the_key_may_be_the_camera_of_bare_images_and_a_camera_given_twice_is_refused() {
    let topics = ["normals", "in", "anomalies", "scores", "dead"];
    let broker = EmbeddedBroker::start(&topics.map(|topic| (topic, 1))).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let bare = |camera: &str, most, number| {
        Note::new(camera, STANDARD.decode(image(most, number)).unwrap())
    };
    let of_each = |number| [bare("still", 10, number), bare("noisy", 60, number)];
    let normals: Vec<Note> = (0..NORMAL).flat_map(of_each).collect();
    produce(&broker.brokers, "normals", &normals);
    let bundle = dir.path().join("by-key");
    let topic = [
        "--topic",
        "normals",
        "--brokers",
        &broker.brokers,
        "--by-key",
    ];
    calibrated(&bundle, &topic);
    produce(
        &broker.brokers,
        "in",
        &[bare("still", 40, 0), bare("noisy", 40, 0)],
    );
    let model = format!("model.bundle={bundle:?}");
    let settings = [
        model.as_str(),
        "threshold.false_alarm_rate=0.05",
        "output.scores_topic=scores",
    ];
    let daemon = Daemon::ready(&broker.brokers, &settings);
    daemon.await_count("scored", 2);
    daemon.drains();
    let anomalies = read_all(&broker.brokers, "anomalies");
    assert_eq!(anomalies.len(), 1);
    assert_eq!(anomalies[0].key.as_deref(), Some(b"still".as_slice()));

    let twice =
        record("still", 10, 1).replacen("\"camera\"", "\"camera\": \"noisy\", \"camera\"", 1);
    let by_field = dir.path().join("by-field");
    let lines: Vec<String> = (0..NORMAL)
        .map(|number| record("still", 10, number))
        .collect();
    let file = dir.path().join("normals.ndjson");
    std::fs::write(&file, lines.join("\n")).unwrap();
    calibrated(
        &by_field,
        &["--data", file.to_str().unwrap(), "--by", "at.camera"],
    );
    let lines = scored(&[record("still", 10, 1), twice], &by_field, &[]);
    let by_record: BTreeMap<u64, &Value> = lines
        .iter()
        .map(|line| (line["record"].as_u64().unwrap(), line))
        .collect();
    assert_eq!(by_record[&1]["segment"], "still");
    assert_eq!(by_record[&2]["reason"], "duplicate");
}
