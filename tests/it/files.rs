//! Files of records as arguments of verbs: folders, patterns, standard input, Arrow; and `profile`.

use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::{Value, json};

use crate::common::process::{residuald, run};
use crate::common::{parse, payments, sample};

/// The JSON that a verb prints.
fn report(arguments: &[&str]) -> Value {
    let ended = run(arguments);
    ended.with_code(0);
    parse(ended.stdout.as_bytes())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// 300 payments in three part files as Spark writes them.
fn parts() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (number, records) in sample(300).chunks(100).enumerate() {
        let path = folder.path().join(format!("part-{number:05}.json"));
        std::fs::write(path, records.join("\n")).unwrap();
    }
    std::fs::write(folder.path().join("_SUCCESS"), "").unwrap();
    std::fs::write(folder.path().join(".part-00000.json.crc"), "crc").unwrap();
    folder
}

fn with_stdin(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = residuald()
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_folder_a_pattern_and_standard_input_are_scored_like_one_file() {
    let folder = parts();
    let bundle = payments();
    let one = folder.path().join("all.ndjson");
    let all = sample(300).join("\n");
    let score = [
        "--bundle",
        text(&bundle),
        "--label",
        "label",
        "--json",
        "--top",
        "0",
    ];
    let of = |files: &[&str]| {
        let mut found = report(&[&["score"], files, &score[..]].concat());
        found["seconds"] = Value::Null;
        found
    };
    let expected = {
        let elsewhere = tempfile::tempdir().unwrap();
        let path = elsewhere.path().join("all.ndjson");
        std::fs::write(&path, &all).unwrap();
        of(&[text(&path)])
    };
    assert_eq!(expected["scored"], 300);
    assert_eq!(of(&[text(folder.path())]), expected);
    let pattern = folder.path().join("part-*.json");
    assert_eq!(of(&[text(&pattern)]), expected);
    let each: Vec<_> = (0..3)
        .map(|i| folder.path().join(format!("part-0000{i}.json")))
        .collect();
    let each: Vec<&str> = each.iter().map(|path| text(path)).collect();
    assert_eq!(of(&each), expected);

    let piped = with_stdin(&[&["score", "-"], &score[..]].concat(), all.as_bytes());
    let mut found = parse(&piped.stdout);
    found["seconds"] = Value::Null;
    assert_eq!(found, expected);
    let said = String::from_utf8(piped.stderr).unwrap();
    assert!(said.contains("its content is read as json"), "{said}");

    let ended = run(&[&["score", text(folder.path())], &score[..]].concat());
    assert!(
        ended.stderr.contains("2 files or folders are not data"),
        "{}",
        ended.stderr
    );
    std::fs::write(&one, "").unwrap();
    let absent = folder.path().join("absent-*.csv");
    let ended = run(&[&["score", text(&absent)], &score[..]].concat());
    ended.with_code(65);
    assert!(
        ended.stderr.contains("no file of records matches"),
        "{}",
        ended.stderr
    );
}

#[test]
fn records_that_fail_tell_their_line_and_a_full_disk_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut records = sample(3);
    records.insert(1, "not json".to_owned());
    for name in ["a.ndjson", "b.ndjson"] {
        std::fs::write(folder.path().join(name), records.join("\n\n")).unwrap();
    }
    let out = folder.path().join("out");
    let bundle = payments();
    let a = folder.path().join("a.ndjson");
    run(&[
        "score",
        text(&a),
        "--bundle",
        text(&bundle),
        "--out",
        text(&out),
    ])
    .with_code(0);
    let failed = |out: &Path| -> Vec<Value> {
        let lines = std::fs::read_to_string(out).unwrap();
        let lines = lines.lines().map(|line| parse(line.as_bytes()));
        lines.filter(|line| line.get("error").is_some()).collect()
    };
    let lines = failed(&out);
    assert_eq!(
        (&lines[0]["record"], &lines[0]["line"], lines.len()),
        (&json!(2), &json!(3), 1)
    );
    let pattern = folder.path().join("?.ndjson");
    run(&[
        "score",
        text(&pattern),
        "--bundle",
        text(&bundle),
        "--out",
        text(&out),
    ])
    .with_code(0);
    let lines = failed(&out);
    assert_eq!(
        (&lines[1]["record"], &lines[1]["line"], lines.len()),
        (&json!(6), &json!(3), 2)
    );
    assert!(lines[1]["file"].as_str().unwrap().ends_with("b.ndjson"));

    let full = run(&[
        "score",
        text(&a),
        "--bundle",
        text(&bundle),
        "--out",
        "/dev/full",
    ]);
    full.with_code(65);
    assert!(full.stderr.contains("/dev/full: "), "{}", full.stderr);
}

#[test]
fn profile_says_what_a_bundle_would_refuse() {
    let folder = tempfile::tempdir().unwrap();
    let mut records: Vec<Value> = sample(50).iter().map(|r| parse(r.as_bytes())).collect();
    records[0]["amount"] = json!("much");
    records[1]["amount"] = Value::Null;
    records[2]["amount"] = Value::Null;
    records[3]["entry_mode"] = json!("telepathy");
    records[4]["merchant"]["age_days"] = Value::Null;
    records[5]["colour"] = json!("red");
    let lines: Vec<String> = records.iter().map(Value::to_string).collect();
    let path = folder.path().join("a.ndjson");
    std::fs::write(&path, lines.join("\n")).unwrap();
    let bundle = payments();
    let found = report(&["profile", text(&path), "--bundle", text(&bundle), "--json"]);
    assert_eq!(
        (&found["rows"], &found["fitting"]),
        (&json!(50), &json!(47))
    );
    let reasons = found["reasons"].as_array().unwrap();
    let reasons: Vec<_> = reasons
        .iter()
        .map(|r| {
            (
                r["reason"].as_str().unwrap(),
                r["records"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(reasons, [("missing", 2), ("wrong_type", 1)]);
    let column = |name: &str| {
        let columns = found["columns"].as_array().unwrap();
        columns
            .iter()
            .find(|c| c["feature"] == name)
            .unwrap()
            .clone()
    };
    assert_eq!(column("amount")["missing"], 2);
    assert!(column("merchant_age_days")["missing"].as_u64().unwrap() >= 1);
    assert_eq!(
        column("entry_mode")["unseen"],
        json!({"records": 1, "values": {"telepathy": 1}})
    );
    let unread = found["unread"].as_array().unwrap();
    assert!(unread.contains(&json!("colour")) && !unread.contains(&json!("merchant.category")));

    let shown = run(&["profile", text(&path), "--bundle", text(&bundle)]);
    shown.with_code(0);
    for said in [
        "47 fit the schema, 3 would be refused",
        "missing 2 (field `amount`",
        "`telepathy` 1",
    ] {
        assert!(shown.stdout.contains(said), "{said} in {}", shown.stdout);
    }

    std::fs::write(&path, "{}\n{}\n").unwrap();
    let refused = run(&["profile", text(&path), "--bundle", text(&bundle)]);
    refused.with_code(65);
    assert!(
        refused
            .stderr
            .contains("all 2 records would be refused: missing 2"),
        "{}",
        refused.stderr
    );
}

#[test]
fn profile_without_a_schema_shows_what_becomes_of_columns() {
    let folder = tempfile::tempdir().unwrap();
    let rows = (0..60).map(|i| {
        format!(
            "{i},{}.5,{},x{}\n",
            i * 7 % 11,
            if i % 9 == 0 { "n.a." } else { "3" },
            i % 3
        )
    });
    let csv = format!("row,amount,count,kind\n{}", rows.collect::<String>());
    let path = folder.path().join("a.csv");
    std::fs::write(&path, csv).unwrap();
    let found = report(&["profile", text(&path), "--json"]);
    let columns = found["columns"].as_array().unwrap();
    let read: Vec<_> = columns.iter().map(|c| c["read_as"].as_str()).collect();
    assert_eq!(
        read,
        [None, Some("number"), None, Some("category, 3 values")]
    );
    assert!(
        columns[0]["notes"][0]
            .as_str()
            .unwrap()
            .contains("only grows")
    );
    let shown = run(&["profile", text(&path)]);
    shown.with_code(0);
    assert!(
        shown.stdout.contains("row     left out"),
        "{}",
        shown.stdout
    );

    let schema = folder.path().join("schema.json");
    let features = json!([
        {"name": "count", "path": "count", "type": "number", "missing": "impute"},
        {"name": "amount", "path": "amount", "type": "number"},
    ]);
    let text_of = |missing: Value| {
        json!({"kind": "tabular", "missing_values": missing, "features": features}).to_string()
    };
    std::fs::write(&schema, text_of(json!([]))).unwrap();
    let found = report(&["profile", text(&path), "--schema", text(&schema), "--json"]);
    assert_eq!(found["fitting"], 53);
    std::fs::write(&schema, text_of(json!(["n.a.", 3]))).unwrap();
    let found = report(&["profile", text(&path), "--schema", text(&schema), "--json"]);
    assert_eq!(
        (&found["fitting"], &found["columns"][0]["missing"]),
        (&json!(60), &json!(60))
    );
}
