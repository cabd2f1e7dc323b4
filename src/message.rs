//! Builds Kafka messages for verdicts and dead letters: key, headers and payload.

mod carried;
mod restored;
mod slim;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::batch::StoredRecord;
use crate::dead_letter::DeadLetter;
pub use crate::dead_letter::OMITTED;
use crate::decode::Reason;
use crate::record::{Origin, OwnedHeader, Place, header};
use crate::verdict::Verdict;
pub use carried::{MOST_LEVELS, unreadable};
pub use restored::restored_message;

/// A message to be sent to Kafka.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    pub about: About,
    pub key: Option<Vec<u8>>,
    pub headers: Vec<OwnedHeader>,
    pub payload: Vec<u8>,
    /// In milliseconds since the Unix epoch. A dead letter keeps the timestamp of its record.
    pub timestamp_ms: Option<i64>,
}

/// The record that a message is about, and the kind of message.
#[derive(Debug, Clone, PartialEq)]
pub struct About {
    pub source: Origin,
    pub kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Verdict,
    DeadLetter(Reason),
    /// An image that a verdict points to.
    Map,
    /// A record with what it lacked filled in.
    Restored,
    /// A record read from a file.
    Record,
}

/// The model, as a verdict names it.
#[derive(Debug, Clone, Serialize)]
pub struct ModelId {
    pub name: String,
    pub version: String,
    pub sha256: String,
}

#[derive(Serialize)]
struct Body<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<&'a str>,
    source: &'a Origin,
    model: &'a ModelId,
    #[serde(flatten)]
    verdict: &'a Verdict<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<&'a RawValue>,
}

/// Returns the id of a verdict, which contains the record's origin and identifies the model.
pub fn verdict_id(model: &ModelId, topic: &str, record: StoredRecord<'_>) -> String {
    id_at(model, topic, record.place())
}

fn id_at(model: &ModelId, topic: &str, place: Place) -> String {
    format!("{topic}-{place}@{}", &model.sha256[..8])
}

/// Builds a message for a record read from a file.
pub fn record_message(key: Option<Vec<u8>>, payload: Vec<u8>) -> Message {
    let source = Origin {
        topic: String::new(),
        partition: 0,
        offset: 0,
        index: None,
    };
    let kind = Kind::Record;
    Message {
        about: About { source, kind },
        key,
        headers: Vec::new(),
        payload,
        timestamp_ms: None,
    }
}

/// Builds a message that contains a map of a verdict as a PNG, with the key `key`.
pub fn media_message(source: Origin, key: &str, png: &[u8], timestamp_ms: Option<i64>) -> Message {
    let kind = Kind::Map;
    Message {
        about: About { source, kind },
        key: Some(key.as_bytes().to_vec()),
        headers: vec![header("content-type", "image/png")],
        payload: png.to_vec(),
        timestamp_ms,
    }
}

/// Builds a verdict as a CloudEvent in binary mode, with the key of its source record. The same record and model always
/// give the same bytes, because the id depends only on the record's origin and the model, and the time is the record's
/// own. `record_json` is the record, if the verdict must contain it.
pub fn verdict_message(
    model: &ModelId,
    topic: &str,
    record: StoredRecord<'_>,
    verdict: &Verdict<'_>,
    record_json: Option<&RawValue>,
) -> Message {
    let source = record.source(topic);
    let id = verdict_id(model, topic, record);
    let time = record.timestamp_ms.and_then(rfc3339);
    let body = Body {
        id: &id,
        time: time.as_deref(),
        source: &source,
        model,
        verdict,
        record: record_json,
    };
    let event_type = match verdict.severity {
        Some(_) => "io.residuald.anomaly.v1",
        None => "io.residuald.score.v1",
    };
    let mut headers = vec![
        header("ce_specversion", "1.0"),
        header("ce_id", &id),
        header("ce_source", &format!("/residuald/{}", model.name)),
        header("ce_type", event_type),
        header("content-type", "application/json"),
    ];
    if let Some(time) = &time {
        headers.push(header("ce_time", time));
    }
    for (name, value) in record.trace.into_iter().flatten() {
        headers.push((name.to_owned(), Some(value.to_vec())));
    }
    let payload = serde_json::to_vec(&body).expect("strings and numbers always serialise");
    let kind = Kind::Verdict;
    Message {
        about: About { source, kind },
        key: record.key.map(<[u8]>::to_vec),
        headers,
        payload,
        timestamp_ms: record.timestamp_ms,
    }
}

/// Builds a dead letter: the key, value, headers and timestamp of the record, and headers that describe the failure.
pub fn dead_letter_message(mut letter: DeadLetter) -> Message {
    let headers = letter.headers_with_failure();
    let kind = Kind::DeadLetter(letter.error.reason);
    Message {
        about: About {
            source: letter.source,
            kind,
        },
        key: letter.key,
        headers,
        payload: letter.payload,
        timestamp_ms: letter.timestamp_ms,
    }
}

/// Formats milliseconds since the Unix epoch as RFC 3339 in UTC. Returns `None` outside the calendar.
fn rfc3339(timestamp_ms: i64) -> Option<String> {
    let time = Timestamp::from_millisecond(timestamp_ms).ok()?;
    Some(format!("{time:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::TopicPartition;
    use crate::decode::RowError;
    use crate::verdict::{
        Attribution, Explanation, Observation, Place, Severity, Shown, Size, TranslationId,
    };

    fn model() -> ModelId {
        ModelId {
            name: "payments".into(),
            version: "3".into(),
            sha256: "9f2c61aa00".into(),
        }
    }

    fn message(include_record: bool) -> Message {
        let record = StoredRecord {
            from: TopicPartition {
                topic: 0,
                partition: 3,
            },
            offset: 120_934,
            index: None,
            timestamp_ms: Some(1_767_225_600_123),
            key: Some(b"card-7"),
            payload: br#"{"amount": 930.0}"#,
            segment: None,
            trace: [Some(("traceparent", b"00-ab-cd-01")), None],
            headers: &[],
        };
        let verdict = Verdict {
            anomaly_score: 7.31,
            p_value: 0.00012,
            anomaly_grade: 1.84,
            threshold: 3.97,
            segment: Some("electronics"),
            severity: Some(Severity::Critical),
            explanation: Explanation::Features {
                relevant_attribution: vec![Attribution {
                    feature: "amount",
                    share: 0.61,
                    observed: Observation::Number(930.0),
                    expected: Observation::Number(42.1),
                    unit: None,
                }],
                feature_imputed: vec!["merchant_age_days"],
                nearest_normal: None,
            },
        };
        let json = serde_json::from_slice(record.payload).unwrap();
        let json = include_record.then_some(json);
        verdict_message(&model(), "payments", record, &verdict, json)
    }

    fn value<'m>(message: &'m Message, name: &str) -> Option<&'m str> {
        let (_, value) = message.headers.iter().find(|(n, _)| n == name)?;
        std::str::from_utf8(value.as_ref()?).ok()
    }

    #[test]
    fn a_verdict_is_the_documented_json() {
        let body: serde_json::Value = serde_json::from_slice(&message(true).payload).unwrap();
        assert_eq!(
            body,
            serde_json::json!({
                "id": "payments-3-120934@9f2c61aa", "time": "2026-01-01T00:00:00.123Z",
                "source": {"topic": "payments", "partition": 3, "offset": 120_934},
                "model": {"name": "payments", "version": "3", "sha256": "9f2c61aa00"},
                "anomaly_score": 7.31, "p_value": 0.00012, "anomaly_grade": 1.84, "threshold": 3.97, "segment": "electronics", "severity": "critical",
                "relevant_attribution": [{"feature": "amount", "share": 0.61, "observed": 930.0, "expected": 42.1}],
                "feature_imputed": ["merchant_age_days"], "record": {"amount": 930.0},
            })
        );
    }

    #[test]
    fn a_verdict_is_a_cloud_event_with_the_trace_and_the_key() {
        let message = message(true);
        assert_eq!(message.key.as_deref(), Some(&b"card-7"[..]));
        for (name, expected) in [
            ("ce_specversion", "1.0"),
            ("ce_id", "payments-3-120934@9f2c61aa"),
            ("ce_source", "/residuald/payments"),
            ("ce_type", "io.residuald.anomaly.v1"),
            ("ce_time", "2026-01-01T00:00:00.123Z"),
            ("content-type", "application/json"),
            ("traceparent", "00-ab-cd-01"),
        ] {
            assert_eq!(value(&message, name), Some(expected), "{name}");
        }
    }

    #[test]
    fn a_verdict_on_an_image_is_the_documented_json() {
        let shown = |place| Shown {
            content_type: "image/png",
            width: 64,
            height: 32,
            place,
        };
        let regions = [crate::image::Region {
            x: 1,
            y: 2,
            width: 3,
            height: 4,
            share: 0.5,
            area: 0.25,
        }];
        let translation = TranslationId {
            model: "day".into(),
            sha256: "77aa".into(),
            steps: 50,
            strength: Some(0.5),
            seed: 3,
        };
        let verdict = Verdict {
            anomaly_score: 2.0,
            p_value: 0.5,
            anomaly_grade: 2.0,
            threshold: 1.0,
            segment: None,
            severity: Some(Severity::Warning),
            explanation: Explanation::Image {
                image: Size {
                    width: 4000,
                    height: 3000,
                },
                regions: &regions,
                heatmap: Some(shown(Place::Data("iVBO".into()))),
                reconstruction: Some(shown(Place::Uri("kafka://media?key=a".into()))),
                translation: Some(&translation),
            },
        };
        let record = StoredRecord {
            from: TopicPartition {
                topic: 0,
                partition: 0,
            },
            offset: 1,
            index: None,
            timestamp_ms: None,
            key: None,
            payload: b"",
            segment: None,
            trace: [None, None],
            headers: &[],
        };
        let message = verdict_message(&model(), "belt", record, &verdict, None);
        let body: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
        assert_eq!(
            body["picture"],
            serde_json::json!({"width": 4000, "height": 3000})
        );
        assert_eq!(
            body["regions"],
            serde_json::json!([{"x": 1, "y": 2, "width": 3, "height": 4, "share": 0.5, "area": 0.25}])
        );
        assert_eq!(
            body["heatmap"],
            serde_json::json!({"content_type": "image/png", "width": 64, "height": 32, "data": "iVBO"})
        );
        assert_eq!(
            body["reconstruction"],
            serde_json::json!({"content_type": "image/png", "width": 64, "height": 32, "uri": "kafka://media?key=a"})
        );
        assert_eq!(
            body["translation"],
            serde_json::json!({"model": "day", "sha256": "77aa", "steps": 50, "strength": 0.5, "seed": 3})
        );
    }

    #[test]
    fn only_a_letter_that_stands_for_a_batch_says_so() {
        for (reason, says_so) in [(Reason::Malformed, false), (Reason::TooLarge, true)] {
            let message = dead_letter_message(DeadLetter {
                source: Origin {
                    topic: "in".to_owned(),
                    partition: 0,
                    offset: 1,
                    index: None,
                },
                timestamp_ms: None,
                key: None,
                payload: Vec::new(),
                headers: Vec::new(),
                error: RowError {
                    reason,
                    detail: "why".into(),
                },
            });
            let omitted = message.headers.iter().any(|(name, _)| name == OMITTED);
            assert_eq!(omitted, says_so, "{reason:?}");
        }
    }

    #[test]
    fn a_dead_letter_keeps_what_came_and_says_why() {
        let letter = DeadLetter {
            source: Origin {
                topic: "payments".into(),
                partition: 1,
                offset: 7,
                index: None,
            },
            timestamp_ms: Some(99),
            key: Some(b"k".to_vec()),
            payload: b"not json".to_vec(),
            headers: vec![
                ("own".into(), None),
                ("__connect.errors.offset".into(), Some(b"1".to_vec())),
            ],
            error: RowError {
                reason: Reason::Malformed,
                detail: "why".into(),
            },
        };
        let message = dead_letter_message(letter);
        assert_eq!(message.payload, b"not json");
        assert_eq!(
            (message.timestamp_ms, message.headers[0].0.as_str()),
            (Some(99), "own")
        );
        for (name, expected) in [
            ("__connect.errors.topic", "payments"),
            ("__connect.errors.partition", "1"),
            ("__connect.errors.offset", "7"),
            ("__connect.errors.stage", "VALUE_CONVERTER"),
            (
                "__connect.errors.exception.class.name",
                "residuald.decode.malformed",
            ),
            ("__connect.errors.exception.message", "why"),
        ] {
            assert_eq!(value(&message, name), Some(expected), "{name}");
        }
    }
}
