//! `residuald calibrate`: from a file, from pictures and from a topic on a real Apache Kafka; and what it refuses.

mod common;

use std::path::Path;

use common::process::{run, scored};
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

/// The normal records of the sample, of two lines whose scores differ in scale, in two halves.
fn two_lines() -> [Vec<String>; 2] {
    let mut halves = [Vec::new(), Vec::new()];
    let records = sample(20_000).into_iter();
    let normals = records.map(|record| parse(record.as_bytes()));
    for (i, mut record) in normals.filter(|r| r["label"] == 0).enumerate() {
        record["line"] = ["calm", "wild"][i / 2 % 2].into();
        if record["line"] == "wild" {
            for field in ["amount", "amount_over_usual", "sum_24h"] {
                record[field] = (10.0 * record[field].as_f64().unwrap()).into();
            }
        }
        halves[i % 2].push(record.to_string());
    }
    halves
}

#[test]
fn every_segment_flags_the_share_that_was_asked_for_and_one_threshold_for_all_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let [first, second] = two_lines();
    let (file, bundle) = (dir.path().join("first.ndjson"), payments());
    std::fs::write(&file, first.join("\n")).unwrap();
    let calibrate = |from: &Path, name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        let all = ["calibrate", text(from), "--data", text(&file), "--json"];
        let told = run(&[&all[..], &["--out", text(&out)], more].concat());
        told.with_code(0);
        (out, parse(told.stdout.as_bytes()))
    };
    let (all, summary) = calibrate(&bundle, "all", &[]);
    assert_eq!(summary.get("segments"), None);
    let (by_line, summary) = calibrate(&bundle, "by-line", &["--by", "line"]);
    let told = &summary["segments"];
    assert_eq!(told["by"], serde_json::json!({"field": "line"}));
    let counts = (&told["values"], &told["calibrated"], &told["records"]);
    assert_eq!(counts, (&2.into(), &2.into(), &first.len().into()));
    assert_eq!(told["largest"].as_array().unwrap().len(), 2);

    // Of each line in the other half, how many are flagged.
    let rate = 0.01;
    let flagged = |bundle: &Path| {
        let verdicts = scored(&second, bundle, &["--false-alarm-rate", "0.01"]);
        ["calm", "wild"].map(|line| {
            let of = format!("\"line\":\"{line}\"");
            let of: Vec<&Value> = std::iter::zip(&second, &verdicts)
                .filter_map(|(record, verdict)| record.contains(&of).then_some(verdict))
                .collect();
            let flagged = of.iter().filter(|v| !v["severity"].is_null()).count();
            (of.len() as f64, flagged as f64, of[0]["segment"].clone())
        })
    };
    // Four standard deviations of a share that was itself estimated on as many.
    let close = |n: f64, flagged: f64| {
        let deviation = (2.0 * n * rate * (1.0 - rate)).sqrt();
        (flagged - n * rate).abs() <= 4.0 * deviation
    };
    for (n, flagged, segment) in flagged(&all) {
        assert!(
            n > 4000.0 && segment.is_null() && !close(n, flagged),
            "{flagged} of {n}"
        );
    }
    let by_segment = flagged(&by_line);
    for (n, flagged, _) in &by_segment {
        assert!(close(*n, *flagged), "{flagged} of {n}");
    }
    assert_eq!(
        (&by_segment[0].2, &by_segment[1].2),
        (&"calm".into(), &"wild".into())
    );

    // Calibrated again, a bundle keeps its segments unless told otherwise; a key is as good as a field.
    let calibration = |bundle: &Path| json(&bundle.join("calibration.json"));
    let (kept, _) = calibrate(&by_line, "kept", &[]);
    assert_eq!(calibration(&kept), calibration(&by_line));
    let (dropped, _) = calibrate(&by_line, "dropped", &["--no-segments"]);
    assert_eq!(calibration(&dropped), calibration(&all));
    let (by_key, _) = calibrate(&by_line, "by-key", &["--by-key", "--key", "line"]);
    let mut same = calibration(&by_key);
    assert_eq!(same["segments"]["by"], "key");
    same["segments"]["by"] = serde_json::json!({"field": "line"});
    assert_eq!(same, calibration(&by_line));
    let verdicts = scored(&second[..200], &by_key, &["--key", "line"]);
    assert_eq!(verdicts, scored(&second[..200], &by_line, &[]));
    let needs = run(&["score", text(&file), "--bundle", text(&by_key)]);
    assert!(
        needs.one_line(64).contains("--key FIELD"),
        "{}",
        needs.stderr
    );

    let checked = run(&["check", "--bundle", text(&by_line)]);
    assert!(checked.with_code(0).is_empty());
    assert!(
        checked.stdout.contains("2 segments by line are calibrated"),
        "{}",
        checked.stdout
    );
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
    let (sent, topic) = (payments().join("sample.ndjson.gz"), topics.name("in"));
    let produce = [
        "produce",
        text(&sent),
        "--topic",
        &topic,
        "--records",
        "5000",
    ];
    let key = ["--brokers", topics.brokers(), "--key", "merchant.category"];
    run(&[&produce[..], &key].concat()).with_code(0);
    let dir = tempfile::tempdir().unwrap();
    let (file, bundle) = (dir.path().join("records.ndjson"), payments());
    std::fs::write(&file, sample(RECORDS).join("\n")).unwrap();
    let from_topic = [
        "--topic",
        &topic,
        "--brokers",
        topics.brokers(),
        "--to",
        "end",
        "--by-key",
    ];
    let sources = [
        ("topic", &from_topic[..]),
        (
            "file",
            &[
                "--data",
                text(&file),
                "--by-key",
                "--key",
                "merchant.category",
            ],
        ),
    ];
    let made = sources.map(|(name, source)| {
        let out = dir.path().join(name);
        let all = [&["calibrate", text(&bundle), "--out", text(&out)], source].concat();
        run(&all).with_code(0);
        json(&out.join("calibration.json"))
    });
    assert_eq!(made[0]["count"], RECORDS);
    assert!(
        made[0]["segments"]["values"][0]["value"]
            .as_str()
            .unwrap()
            .starts_with("cash")
    );
    for name in ["count", "quantiles", "tail", "segments"] {
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
    let normals = dir.path().join("normals.ndjson");
    std::fs::write(&normals, sample(40).join("\n")).unwrap();
    let by = |bundle, by| {
        [
            "--data",
            text(&normals),
            "--out",
            text(&out),
            bundle,
            "--by",
            by,
        ]
    };
    let (object, id) = (
        by(text(&bundle), "merchant"),
        by(text(&bundle), "payment_id"),
    );
    let pictures = by(text(&surface), "label");
    let cases: [(&[&str], i32, &str); 10] = [
        (&object, 64, "`merchant` cannot be a value"),
        (&id, 65, "by payment_id: no value has 20 normal records"),
        (&pictures, 64, "segments are for tables"),
        (&[&object[..5], &["--by-key"]].concat(), 64, "--key FIELD"),
        (
            &[&object[..5], &["--key", "card_id"]].concat(),
            64,
            "only where the thresholds go by the message key",
        ),
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
