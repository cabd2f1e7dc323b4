use super::super::*;
use crate::dead_letter::{ERRORS_PREFIX, FailureHeaders};
use crate::decode::RowError;
use crate::image::Region;
use crate::record::Record;
use crate::verdict::{Attribution, Explanation, Observation, Place, Severity, Shown, Size};

const WHY: &str = "too large for topic `t`";

fn source() -> Origin {
    Origin {
        topic: "payments".into(),
        partition: 3,
        offset: 120_934,
        index: None,
    }
}

fn bytes(count: usize) -> Vec<u8> {
    vec![b'x'; count]
}

/// A dead letter of a record with so many bytes in its value, its headers and its key.
fn letter(value: usize, headers: usize, key: usize) -> Message {
    let half = bytes(headers / 2);
    dead_letter_message(DeadLetter {
        source: source(),
        timestamp_ms: None,
        key: Some(bytes(key)),
        payload: bytes(value),
        headers: vec![
            ("ce_id".into(), Some(half.clone())),
            ("own".into(), Some(half)),
        ],
        error: RowError {
            reason: Reason::Malformed,
            detail: "\u{1f600}".repeat(100_000).into(),
        },
    })
}

fn verdict_of(record: &[u8], key: &[u8], trace: &[u8], explanation: Explanation<'_>) -> Message {
    let verdict = Verdict {
        anomaly_score: 7.31,
        p_value: 0.00012,
        anomaly_grade: 1.84,
        threshold: 3.97,
        segment: None,
        severity: Some(Severity::Critical),
        explanation,
    };
    let kept = StoredRecord {
        from: crate::batch::TopicPartition {
            topic: 0,
            partition: 3,
        },
        offset: 120_934,
        index: None,
        timestamp_ms: Some(1_767_225_600_123),
        key: Some(key),
        payload: record,
        segment: None,
        trace: [Some(("traceparent", trace)), None],
        headers: &[],
    };
    let model = ModelId {
        name: "payments".into(),
        version: "3".into(),
        sha256: "9f2c61aa00".into(),
    };
    let record: &RawValue = serde_json::from_slice(record).unwrap();
    verdict_message(&model, "payments", kept, &verdict, Some(record))
}

fn features(name: &str) -> Explanation<'_> {
    Explanation::Features {
        relevant_attribution: vec![Attribution {
            feature: name,
            share: 0.61,
            observed: Observation::Category(name),
            expected: Observation::Number(42.1),
            unit: None,
        }],
        feature_imputed: vec![name; 3],
        nearest_normal: None,
    }
}

fn has(message: &Message, name: &str) -> bool {
    message.headers.iter().any(|(n, _)| n == name)
}

fn text<'m>(message: &'m Message, name: &str) -> &'m str {
    let (_, value) = message.headers.iter().find(|(n, _)| n == name).unwrap();
    std::str::from_utf8(value.as_ref().unwrap()).unwrap()
}

/// What `residuald dead-letters` reads in its headers.
fn read_back(message: &Message) -> FailureHeaders<'_> {
    let headers = message.headers.iter();
    FailureHeaders::of(&Record {
        topic: "dead-letters",
        partition: 1,
        offset: 20,
        index: None,
        timestamp_ms: message.timestamp_ms,
        key: message.key.as_deref(),
        headers: headers
            .map(|(name, value)| (name.as_str(), value.as_deref()))
            .collect(),
        payload: Some(&message.payload),
    })
}

#[test]
fn a_dead_letter_loses_as_little_as_makes_it_fit() {
    for ((value, headers, key), expected) in [
        ((9_000, 10, 10), "value"),
        ((10, 9_000, 10), "headers"),
        ((10, 10, 9_000), "key"),
        ((3_000, 3_000, 9_000), "headers, key"),
        ((9_000, 9_000, 10), "value, headers"),
        ((9_000, 10, 9_000), "value, key"),
        ((9_000, 9_000, 9_000), "value, headers, key"),
    ] {
        let whole = letter(value, headers, key);
        let (slim, names) = whole.slimmed(6_000, WHY);
        assert_eq!(names.join(", "), expected);
        assert!(slim.size() <= 6_000, "{expected}: {}", slim.size());
        assert_eq!(text(&slim, OMITTED), format!("{expected}: {WHY}"));
        assert!(read_back(&slim).omitted && !read_back(&whole).omitted);
        let lacks = |name: &str| names.contains(&name);
        assert_eq!(slim.payload.is_empty(), lacks("value"), "{expected}");
        assert_eq!(slim.key.is_none(), lacks("key"), "{expected}");
        assert_eq!(has(&slim, "own") || has(&slim, "ce_id"), !lacks("headers"));
        for (name, value) in [
            ("topic", "payments"),
            ("partition", "3"),
            ("offset", "120934"),
            ("exception.class.name", "residuald.decode.malformed"),
        ] {
            assert_eq!(text(&slim, &format!("{ERRORS_PREFIX}{name}")), value);
        }
    }
}

#[test]
fn a_reason_is_cut_and_a_record_does_not_speak_of_what_it_lacks() {
    let mut letter = letter(1, 1, 1);
    let reason = text(&letter, "__connect.errors.exception.message");
    assert!(
        reason.len() < 500 && reason.contains("bytes cut"),
        "{reason}"
    );
    assert!(!has(&letter, OMITTED));
    letter.headers.push(header(OMITTED, "a lie"));
    let again = DeadLetter {
        source: source(),
        timestamp_ms: None,
        key: None,
        payload: b"{}".to_vec(),
        headers: letter.headers,
        error: RowError {
            reason: Reason::Missing,
            detail: "absent".into(),
        },
    };
    let empty = DeadLetter {
        payload: Vec::new(),
        ..again.clone()
    };
    let batch = DeadLetter {
        error: RowError {
            reason: Reason::TooLarge,
            detail: "too large".into(),
        },
        ..empty.clone()
    };
    assert!(!has(&dead_letter_message(again), OMITTED));
    assert!(!has(&dead_letter_message(empty), OMITTED));
    // No record lacks its value: this one stands for a batch that was too large.
    let stands_in = dead_letter_message(batch);
    let note = text(&stands_in, OMITTED);
    assert!(note.starts_with("value, headers, key: "), "{note}");
}

#[test]
fn a_verdict_keeps_score_reason_and_place_however_its_record_nests() {
    let nested = format!("{{\"x\": {}1{}}}", "[".repeat(3_000), "]".repeat(3_000));
    let whole = verdict_of(nested.as_bytes(), b"card-7", b"00-ab", features("amount"));
    let (slim, names) = whole.slimmed(2_000, WHY);
    assert_eq!(names, ["record"]);
    let body: serde_json::Value = serde_json::from_slice(&slim.payload).unwrap();
    assert_eq!(body["source"]["offset"], 120_934);
    assert_eq!(body["relevant_attribution"][0]["feature"], "amount");
    assert_eq!(
        (&body["anomaly_score"], body.get("record")),
        (&7.31.into(), None)
    );
    assert_eq!(slim.key.as_deref(), Some(&b"card-7"[..]));
    assert!(has(&slim, "traceparent") && has(&slim, "ce_id"));
}

#[test]
fn a_verdict_loses_what_is_large() {
    let (small, large) = (&b"1"[..], bytes(9_000));
    let name = "n".repeat(9_000);
    for (record, key, trace, feature, expected) in [
        (small, &large[..], small, "f", "key"),
        (small, small, &large[..], "f", "headers"),
        (small, &large[..], &large[..], "f", "headers, key"),
        (
            small,
            small,
            small,
            name.as_str(),
            "feature_imputed, relevant_attribution",
        ),
    ] {
        let whole = verdict_of(record, key, trace, features(feature));
        let (slim, names) = whole.slimmed(4_000, WHY);
        assert_eq!(names.join(", "), expected);
        assert!(slim.size() <= 4_000);
        let body: serde_json::Value = serde_json::from_slice(&slim.payload).unwrap();
        assert_eq!(body["source"]["topic"], "payments", "{expected}");
        assert_eq!(body["anomaly_score"], 7.31, "{expected}");
    }
}

#[test]
fn of_an_image_the_maps_that_it_holds_go_and_those_that_it_points_to_stay() {
    let shown = |place| {
        Some(Shown {
            content_type: "image/png",
            width: 64,
            height: 32,
            place,
        })
    };
    let regions = [Region {
        x: 1,
        y: 2,
        width: 3,
        height: 4,
        share: 0.5,
        area: 0.25,
    }];
    let image = Explanation::Image {
        image: Size {
            width: 4000,
            height: 3000,
        },
        regions: &regions,
        heatmap: shown(Place::Data("iVBO".repeat(2_000))),
        reconstruction: shown(Place::Uri("kafka://media?key=a".into())),
        translation: None,
    };
    let whole = verdict_of(b"1", b"k", b"t", image);
    let (slim, names) = whole.slimmed(4_000, WHY);
    assert_eq!(names, ["heatmap"]);
    let body: serde_json::Value = serde_json::from_slice(&slim.payload).unwrap();
    assert_eq!(body["reconstruction"]["uri"], "kafka://media?key=a");
    assert_eq!(body["regions"].as_array().unwrap().len(), 1);
}

#[test]
fn what_cannot_be_so_small_loses_all_that_it_can() {
    let (slim, names) = letter(9_000, 9_000, 9_000).slimmed(100, WHY);
    assert_eq!(names, ["value", "headers", "key"]);
    assert!(slim.size() > 100);
    let (again, names) = slim.slimmed(100, WHY);
    assert!(names.is_empty());
    assert_eq!(again, slim);
}
