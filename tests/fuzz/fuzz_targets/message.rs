//! Verdicts and dead letters built from records with arbitrary keys, payloads and headers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use residuald::batch::{StoredRecord, TopicPartition};
use residuald::dead_letter::{DeadLetter, Entry, ReplayRecord, discarded};
use residuald::decode::{Reason, RecordFormat, RowError};
use residuald::message::{ModelId, dead_letter_message, verdict_message};
use residuald::record::{Header, Origin, Record};
use residuald::verdict::{Explanation, Severity, Verdict};

/// Takes the bytes up to the first zero byte off the front of `rest`.
fn part<'d>(rest: &mut &'d [u8]) -> &'d [u8] {
    let end = rest.iter().position(|b| *b == 0).unwrap_or(rest.len());
    let taken = &rest[..end];
    *rest = rest.get(end + 1..).unwrap_or(&[]);
    taken
}

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    let head = part(&mut rest);
    let (key, trace, name) = (part(&mut rest), part(&mut rest), part(&mut rest));
    let payload = rest;
    let mut numbers = [0; 16];
    for (number, byte) in numbers.iter_mut().zip(head) {
        *number = *byte;
    }
    let offset = i64::from_le_bytes(numbers[..8].try_into().unwrap());
    let timestamp_ms = i64::from_le_bytes(numbers[8..].try_into().unwrap());

    let model = ModelId {
        name: "m".into(),
        version: "1".into(),
        sha256: "0123456789".into(),
    };
    let record = StoredRecord {
        from: TopicPartition {
            topic: 0,
            partition: 1,
        },
        offset,
        timestamp_ms: Some(timestamp_ms),
        key: Some(key),
        payload,
        segment: None,
        trace: [Some(("traceparent", trace)), None],
        headers: &[],
    };
    let verdict = Verdict {
        anomaly_score: 1.5,
        p_value: 0.01,
        anomaly_grade: 1.1,
        threshold: 1.0,
        segment: std::str::from_utf8(key).ok(),
        severity: Some(Severity::Warning),
        explanation: Explanation::Features {
            relevant_attribution: Vec::new(),
            feature_imputed: Vec::new(),
            nearest_normal: None,
        },
    };
    let json = RecordFormat::Json.to_json(payload);
    let message = verdict_message(&model, "topic", record, &verdict, json.as_deref());
    let text = std::str::from_utf8(&message.payload).expect("a verdict is UTF-8");
    assert!(text.starts_with("{\"id\":\"topic-1-"));
    assert_eq!(text.contains("\"record\":"), json.is_some());
    let (slim, _) = message.slimmed(0, "too large");
    assert!(slim.payload.len() <= message.payload.len());

    let letter = DeadLetter {
        source: Origin {
            topic: "topic".into(),
            partition: 1,
            offset,
            index: None,
        },
        timestamp_ms: Some(timestamp_ms),
        key: Some(key.to_vec()),
        payload: payload.to_vec(),
        headers: vec![(
            String::from_utf8_lossy(name).into_owned(),
            Some(trace.to_vec()),
        )],
        error: RowError {
            reason: Reason::Malformed,
            detail: String::from_utf8_lossy(trace).into_owned().into(),
        },
    };
    let message = dead_letter_message(letter);
    assert_eq!(message.payload, payload);
    let errors = message.headers.iter();
    let errors = errors.filter(|(name, _)| name.starts_with("__connect.errors."));
    assert_eq!(errors.count(), 6);
    assert_eq!(message.key.as_deref(), Some(key));
    message.slimmed(0, "too large");

    // Read it back as a dead letter or a marker, with the daemon's headers and with arbitrary ones.
    let ours: Vec<Header<'_>> = message
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_deref()))
        .collect();
    let text = String::from_utf8_lossy(name);
    let headers = [
        ours,
        vec![(&text, Some(trace))],
        vec![("residuald.replayed", Some(trace))],
    ];
    for (headers, key) in headers.into_iter().zip([Some(key), Some(key), None]) {
        let record = Record {
            topic: "dead-letters",
            partition: 0,
            offset,
            index: None,
            timestamp_ms: Some(timestamp_ms),
            key,
            headers,
            payload: Some(payload),
        };
        match Entry::of(&record) {
            Ok(Entry::Letter(letter)) => drop(ReplayRecord::of(&record, &letter, "topic", 3)),
            Ok(Entry::Marker(marker)) => drop(marker.replay_record("dead-letters", 0)),
            Ok(Entry::Discarded(offsets)) => drop(discarded("dead-letters", 0, &offsets)),
            Err(_) => {}
        }
    }
});
