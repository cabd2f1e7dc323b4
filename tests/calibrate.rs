//! `residuald calibrate`: from a file, from pictures and from a topic on a real Apache Kafka; and what it refuses.

mod common;

use std::path::Path;

use common::process::{ended, run, scored};
use common::topics::{RECORDS, Topics};
use common::{parse, payments, root, sample, score_of};
use serde_json::Value;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn json(path: &Path) -> Value {
    parse(&std::fs::read(path).unwrap())
}

#[test]
fn a_file_of_normal_records_gives_the_calibration_of_their_scores() {
    let dir = tempfile::tempdir().unwrap();
    let (file, out) = (dir.path().join("records.ndjson"), dir.path().join("made"));
    let records = sample(4000);
    let broken = "{\"amount\": \"much\"}".to_owned();
    std::fs::write(&file, [&records[..], &[broken]].concat().join("\n")).unwrap();
    let (bundle, normals): (_, Vec<String>) = (
        payments(),
        records
            .iter()
            .filter(|record| parse(record.as_bytes())["label"] == 0)
            .cloned()
            .collect(),
    );
    let calibrate = ["calibrate", text(&bundle), "--data", text(&file)];
    let more = [
        "--label",
        "label",
        "--out",
        text(&out),
        "--version",
        "1.1",
        "--json",
    ];
    let told = run(&[&calibrate[..], &more].concat());
    told.with_code(0);
    let summary = parse(told.stdout.as_bytes());
    assert_eq!(summary["records"], normals.len());
    assert_eq!(summary["left_out"], records.len() - normals.len());
    assert_eq!(summary["cannot_be_scored"], 1);

    let mut scores: Vec<f32> = scored(&normals, &bundle, &[])
        .iter()
        .map(score_of)
        .collect();
    scores.sort_by(f32::total_cmp);
    let made = json(&out.join("calibration.json"));
    let tail: Vec<f32> = made["tail"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s.as_f64().unwrap() as f32)
        .collect();
    assert_eq!(tail, scores, "fewer than 10,000 are all kept");
    let manifest = json(&out.join("manifest.json"));
    assert_eq!(manifest["version"], "1.1");
    assert_eq!(manifest["calibration"]["records"], normals.len());

    // A threshold means what it says of the records it comes from; the model is the same.
    let ended = run(&[
        "score",
        text(&file),
        "--bundle",
        text(&out),
        "--false-alarm-rate",
        "0.01",
        "--label",
        "label",
        "--json",
    ]);
    ended.with_code(0);
    let labelled = &parse(ended.stdout.as_bytes())["labelled"];
    let flagged = labelled["false_positives"].as_u64().unwrap() as usize;
    assert_eq!(flagged, (normals.len() + 1) / 100 - 1);
    let (old, new) = (
        scored(&normals[..50], &bundle, &[]),
        scored(&normals[..50], &out, &[]),
    );
    for (old, new) in old.iter().zip(&new) {
        assert_eq!(score_of(old).to_bits(), score_of(new).to_bits());
    }

    let again = run(&[&calibrate[..], &more].concat());
    assert!(again.one_line(64).contains("--force"), "{}", again.stderr);
    run(&[&calibrate[..], &more, &["--force"]].concat()).with_code(0);
    assert_eq!(json(&out.join("calibration.json")), made);
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 2, "nothing is left beside the bundle");
}

#[test]
fn pictures_are_calibrated_on_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let surface = root().join("models/surface");
    let out = dir.path().join("made");
    let stream = surface.join("sample.ndjson.gz");
    let told = run(&[
        "calibrate",
        text(&surface),
        "--data",
        text(&stream),
        "--label",
        "label",
        "--out",
        text(&out),
    ]);
    assert!(told.with_code(0).is_empty());
    assert!(
        told.stdout.contains("391 normal records scored"),
        "{}",
        told.stdout
    );
    assert_eq!(json(&out.join("calibration.json"))["count"], 391);
}

#[test]
fn a_topic_gives_what_its_records_give_as_a_file() {
    let Some(topics) = Topics::create("calibrate") else {
        return;
    };
    ended(&mut topics.produce(&[])).with_code(0);
    let dir = tempfile::tempdir().unwrap();
    let (file, bundle) = (dir.path().join("records.ndjson"), payments());
    std::fs::write(&file, sample(RECORDS).join("\n")).unwrap();
    let topic = topics.name("in");
    let from_topic = [
        "--topic",
        &topic,
        "--brokers",
        topics.brokers(),
        "--to",
        "end",
    ];
    let sources = [
        ("topic", &from_topic[..]),
        ("file", &["--data", text(&file)]),
    ];
    let made = sources.map(|(name, source)| {
        let out = dir.path().join(name);
        let all = [&["calibrate", text(&bundle), "--out", text(&out)], source].concat();
        run(&all).with_code(0);
        json(&out.join("calibration.json"))
    });
    assert_eq!(made[0]["count"], RECORDS);
    for name in ["count", "quantiles", "tail"] {
        assert_eq!(made[0][name], made[1][name], "{name}");
    }
    // Sums in another order.
    let scales = |of: &Value| -> Vec<f64> {
        let scales = of["residual_scale"].as_array().unwrap().iter();
        scales.map(|scale| scale.as_f64().unwrap()).collect()
    };
    for (topic, file) in scales(&made[0]).into_iter().zip(scales(&made[1])) {
        assert!((topic - file).abs() <= 1e-6 * file, "{topic} {file}");
    }
}

#[test]
fn what_cannot_be_calibrated_is_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let (file, out) = (dir.path().join("bad.ndjson"), dir.path().join("made"));
    std::fs::write(&file, "{}\n{\"amount\": 1}\n").unwrap();
    let (bundle, surface) = (payments(), root().join("models/surface"));
    let own = dir.path().join("own");
    std::fs::create_dir(&own).unwrap();
    let cases: [(&[&str], i32, &str); 5] = [
        (
            &[text(&bundle), "--data", text(&file), "--out", text(&out)],
            65,
            "no normal record could be scored: 2 could not",
        ),
        (
            &[text(&bundle), "--out", text(&out)],
            64,
            "--data FILE, or --topic TOPIC",
        ),
        (
            &[
                text(&bundle),
                "--data",
                text(dir.path()),
                "--out",
                text(&out),
            ],
            64,
            "a folder is for pictures",
        ),
        (
            &[text(&surface), "--topic", "t", "--out", text(&out)],
            64,
            "calibrate --topic reads tables",
        ),
        (
            &[
                text(&bundle),
                "--data",
                text(&file),
                "--out",
                text(&own),
                "--force",
            ],
            64,
            "is no bundle",
        ),
    ];
    for (arguments, code, said) in cases {
        let refused = run(&[&["calibrate"], arguments].concat());
        assert!(refused.one_line(code).contains(said), "{}", refused.stderr);
    }
    assert!(!out.exists());
}
