//! `residuald calibrate`: from a file, from images and from a topic on a real Apache Kafka; and what it refuses.

use std::path::Path;

use crate::common::process::{run, scored};
use crate::common::topics::{RECORDS, Topics};
use crate::common::{parse, payments, root, sample, score_of};
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
        // One of the lines is new to the bundle, and normal.
        let normal = ["--contamination", "0", "--json"];
        let all = ["calibrate", text(from), "--data", text(&file)];
        let all = [&all[..], &normal].concat();
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
fn images_are_calibrated_on_as_well() {
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

/// Labels of the stream, and what `bundle` flags of it: recall, and false alarms a normal record.
fn judged(stream: &Path, bundle: &Path, flags: &[&str]) -> (f64, f64) {
    let score = ["score", text(stream), "--bundle", text(bundle)];
    let told = run(&[&score[..], &["--label", "label", "--json"], flags].concat());
    told.with_code(0);
    let labelled = parse(told.stdout.as_bytes())["labelled"].clone();
    let count = |name: &str| labelled[name].as_f64().unwrap();
    let normal = count("false_positives") + count("true_negatives");
    (count("recall"), count("false_positives") / normal)
}

#[test]
fn anomalies_in_a_stream_do_not_hide_others_like_them() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = payments();
    let stream = bundle.join("sample.ndjson.gz");
    let calibrate = |name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        let all = ["calibrate", text(&bundle), "--data", text(&stream)];
        let told = run(&[&all[..], &["--out", text(&out)], more].concat());
        told.with_code(0);
        (out, told.stdout)
    };
    let (before, _) = judged(&stream, &bundle, &[]);
    assert!((0.64..0.67).contains(&before), "{before}");

    // 1.6 % of the stream is fraud: nobody says so, and it is left out.
    let (out, told) = calibrate("robust", &[]);
    assert!(told.contains("360 records (1.80 %)"), "{told}");
    assert!(
        told.contains(
            "are left out as likely anomalies: the old threshold flags 12.2 times its rate"
        ),
        "{told}"
    );
    let (recall, false_alarms) = judged(&stream, &out, &[]);
    assert!(recall > 0.9 * before, "{recall}, before {before}");
    assert!(false_alarms < 0.002, "{false_alarms}");
    // New segments begin with what all records are like: much better than with all of them, which leaves a recall of 0.02.
    let (by, _) = calibrate("by", &["--by", "merchant.category"]);
    let (recall, false_alarms) = judged(&stream, &by, &[]);
    assert!(recall > 0.2, "{recall}");
    assert!(false_alarms < 0.004, "{false_alarms}");
    // Normal records are not taken for anomalies because a segment scores higher than others.
    let normal = dir.path().join("normal.ndjson");
    let normals = sample(6000).into_iter();
    let normals = normals.filter(|r| parse(r.as_bytes())["label"] == 0);
    let normals: Vec<String> = normals.collect();
    std::fs::write(&normal, normals.join("\n")).unwrap();
    let kept = dir.path().join("kept");
    run(&[
        "calibrate",
        text(&bundle),
        "--data",
        text(&normal),
        "--by",
        "merchant.category",
        "--out",
        text(&kept),
    ])
    .with_code(0);
    assert_eq!(json(&kept.join("calibration.json"))["count"], normals.len());
    // Calibrated again on the same stream nothing creeps.
    let twice = dir.path().join("twice");
    let command = [
        "calibrate",
        text(&out),
        "--data",
        text(&stream),
        "--out",
        text(&twice),
    ];
    run(&command).with_code(0);
    let (recall, false_alarms) = judged(&stream, &twice, &[]);
    assert!(
        recall > 0.9 * before && false_alarms < 0.002,
        "{recall} {false_alarms}"
    );

    // What is asked for is done: all kept, a share left out, the labelled left out.
    let (out, told) = calibrate("all", &["--contamination", "0"]);
    assert!(
        told.contains("0 records (0.00 %) with the highest scores"),
        "{told}"
    );
    assert_eq!(json(&out.join("calibration.json"))["count"], 20_000);
    assert!(judged(&stream, &out, &[]).0 < 0.1);
    let (out, told) = calibrate("share", &["--contamination", "0.0164"]);
    assert!(
        told.contains("328 records (1.64 %) with the highest scores"),
        "{told}"
    );
    assert!(judged(&stream, &out, &[]).0 > 0.7);
    let (out, _) = calibrate("labels", &["--label", "label"]);
    assert_eq!(json(&out.join("calibration.json"))["count"], 20_000 - 328);
    let refused = run(&[
        "calibrate",
        text(&bundle),
        "--data",
        text(&stream),
        "--contamination",
        "0.6",
        "--out",
        "x",
    ]);
    assert!(
        refused.with_code(64).contains("0 to 0.5"),
        "{}",
        refused.stderr
    );
}

#[test]
fn a_stream_of_another_kind_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (file, out) = (dir.path().join("two.ndjson"), dir.path().join("made"));
    let [first, _] = two_lines();
    std::fs::write(&file, first.join("\n")).unwrap();
    let bundle = payments();
    let refused = run(&[
        "calibrate",
        text(&bundle),
        "--data",
        text(&file),
        "--out",
        text(&out),
    ]);
    let line = refused.one_line(65);
    assert!(
        line.contains("too many") && line.contains("--contamination"),
        "{line}"
    );
    assert!(!out.exists());
}

#[test]
fn the_new_bundle_has_a_version_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("records.ndjson");
    std::fs::write(&file, sample(2000).join("\n")).unwrap();
    let version = |bundle: &Path| json(&bundle.join("manifest.json"))["version"].clone();
    let calibrated = |from: &Path, name: &str| {
        let out = dir.path().join(name);
        run(&[
            "calibrate",
            text(from),
            "--data",
            text(&file),
            "--out",
            text(&out),
        ])
        .with_code(0);
        out
    };
    let once = calibrated(&payments(), "once");
    let own = version(&once).as_str().unwrap().to_owned();
    let (trained, time) = own.split_once('+').unwrap();
    assert_eq!(
        (trained, time.len()),
        (version(&payments()).as_str().unwrap(), 15),
        "{own}"
    );
    let twice = calibrated(&once, "twice");
    let own = version(&twice).as_str().unwrap().to_owned();
    assert_eq!(own.matches('+').count(), 1, "{own}");
}

#[test]
fn labels_without_the_normal_value_are_refused_with_what_they_hold() {
    let dir = tempfile::tempdir().unwrap();
    let (file, out) = (dir.path().join("records.ndjson"), dir.path().join("made"));
    std::fs::write(&file, sample(2000).join("\n")).unwrap();
    let bundle = payments();
    let labels = ["--label", "label", "--normal", "benign"];
    let calibrate = [
        "calibrate",
        text(&bundle),
        "--data",
        text(&file),
        "--out",
        text(&out),
    ];
    let score = ["score", text(&file), "--bundle", text(&bundle)];
    for command in [&calibrate[..], &score] {
        let refused = run(&[command, &labels].concat());
        let line = refused.one_line(65);
        assert!(
            line.contains("`label` is never `benign`. Its values are `0` (19"),
            "{line}"
        );
        assert!(line.contains("`1` ("), "{line}");
        assert!(refused.stdout.is_empty(), "{}", refused.stdout);
    }
    // A field that no record has is the records' fault.
    let refused = run(&[&score[..], &["--label", "fraud"]].concat());
    let line = refused.one_line(65);
    assert!(
        line.contains("none of the 2000 records could be scored: malformed 2000"),
        "{line}"
    );
    assert!(line.contains("no field `fraud`"), "{line}");
    // Nulls are no labels.
    std::fs::write(
        &file,
        sample(50)
            .join("\n")
            .replace("\"label\":0", "\"label\":null")
            .replace("\"label\": 0", "\"label\": null"),
    )
    .unwrap();
    let refused = run(&[&score[..], &["--label", "label"]].concat());
    assert!(
        refused.one_line(65).contains("null ("),
        "{}",
        refused.stderr
    );
}

#[test]
fn what_a_daemon_has_flagged_is_left_out_of_its_topic() {
    let Some(topics) = Topics::create("calibrate-flagged") else {
        return;
    };
    let daemon = topics.daemon(&["threshold.quantile=0.999"]);
    let sent = topics.produce(&[]).output().unwrap();
    assert!(sent.status.success());
    daemon.await_count("scored", RECORDS as u64);
    let flagged = daemon.count("anomalies") as usize;
    daemon.drains();
    let dir = tempfile::tempdir().unwrap();
    let (bundle, out, topic) = (payments(), dir.path().join("made"), topics.name("in"));
    let verdicts = format!("--exclude-flagged={}", topics.name("anomalies"));
    let told = run(&[
        "calibrate",
        text(&bundle),
        "--topic",
        &topic,
        "--brokers",
        topics.brokers(),
        &verdicts,
        "--out",
        text(&out),
        "--json",
    ]);
    told.with_code(0);
    let summary = parse(told.stdout.as_bytes());
    let left_out = summary["left_out_flagged"].as_u64().unwrap() as usize;
    // But for the false alarms that the threshold makes of the others: 5 of 5,000.
    assert!(
        (flagged - 5..flagged).contains(&left_out),
        "{left_out} of {flagged}"
    );
    assert_eq!(summary["records"], RECORDS - left_out);
    let thresholds = ["before", "after"].map(|side| summary[side]["threshold"].as_f64().unwrap());
    assert!(
        (thresholds[1] / thresholds[0] - 1.0).abs() < 0.1,
        "{thresholds:?}"
    );
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
        let all = ["calibrate", text(&bundle), "--out", text(&out)];
        let all = [&all[..], &["--contamination", "0"], source].concat();
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
    let photographs = root().join("tests/images/files");
    let mut images = by(text(&surface), "surface");
    images[1] = text(&photographs);
    let cases: [(&[&str], i32, &str); 9] = [
        (&object, 64, "`merchant` conflicts with the path of feature"),
        (
            &id,
            65,
            "by payment_id: a segment requires 20 normal records",
        ),
        (
            &images,
            64,
            "a folder of images cannot be calibrated by surface",
        ),
        (&[&object[..5], &["--by-key"]].concat(), 64, "--key FIELD"),
        (
            &[&object[..5], &["--key", "card_id"]].concat(),
            64,
            "only to a bundle that is calibrated by message key",
        ),
        (
            &[text(&bundle), "--data", text(&file), "--out", text(&out)],
            65,
            "no normal record was scored: 2 could not be scored",
        ),
        (
            &[text(&bundle), "--out", text(&out)],
            64,
            "--data FILE or --topic TOPIC",
        ),
        (
            &[text(&bundle), "--data", text(&own), "--out", text(&out)],
            65,
            "the folder holds no file of records",
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
            "is not a bundle",
        ),
    ];
    for (arguments, code, said) in cases {
        let refused = run(&[&["calibrate"], arguments].concat());
        assert!(refused.one_line(code).contains(said), "{}", refused.stderr);
    }
    assert!(!out.exists());
}
