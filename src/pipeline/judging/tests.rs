use std::time::Instant;

use serde_json::Value;

use super::*;
use crate::batch::TopicPartition;
use crate::bundle::Calibration;
use crate::bundle::p_value::tests::evenly_spaced;
use crate::record::Record;
use crate::verdict::ThresholdRule;

fn judging(scores_topic: Option<&str>) -> Judging {
    let features = serde_json::json!([{"name": "amount", "path": "amount", "type": "number"}]);
    let calibration = Calibration {
        all: evenly_spaced(999, 999),
        residual_scale: vec![1.0],
        segments: None,
    };
    let topics = Topics::default();
    topics.number("in");
    Judging {
        judge: Judge::new(
            serde_json::from_value(features).unwrap(),
            calibration,
            ThresholdRule::Score(900.5),
        )
        .unwrap(),
        nearest: None,
        model: ModelId {
            name: "m".to_owned(),
            version: "1".to_owned(),
            sha256: "0123456789".to_owned(),
        },
        input: RecordFormat::Json,
        output: config::OutputSettings {
            anomalies_topic: "anomalies".to_owned(),
            scores_topic: scores_topic.map(str::to_owned),
            restored: None,
            dead_letter_topic: "dead".to_owned(),
            include_record: true,
            attributions: 3,
            inline_limit: 0,
            media: None,
        },
        restorer: None,
        topics,
        traces: None,
    }
}

/// A scored batch, one record for each score.
fn batch(scores: &[f32]) -> Batch {
    let from = TopicPartition {
        topic: 0,
        partition: 0,
    };
    let mut batch = Batch::default();
    for (offset, score) in (0..).zip(scores) {
        let record = Record {
            topic: "in",
            partition: 0,
            offset,
            index: None,
            timestamp_ms: Some(1_767_225_600_000),
            key: None,
            headers: Vec::new(),
            payload: Some(br#"{"amount": 1.0}"#),
        };
        batch.rows.push(1.0);
        batch.keep(&record, from, None, Instant::now());
        batch.scores.scores.push(*score);
        batch.scores.residuals.push(0.5);
        batch.scores.reconstructions.push(2.0);
    }
    batch
}

/// Topic and offset of each message.
fn sent(judged: &Judged) -> Vec<(&str, i64)> {
    let messages = judged.messages.iter();
    messages
        .map(|(topic, message)| (topic.as_str(), message.about.source.offset))
        .collect()
}

#[test]
fn anomalies_get_a_verdict_and_the_others_only_count() {
    let judged = judging(None).judge(&batch(&[1.0, 950.0, 900.5])).unwrap();
    assert_eq!(sent(&judged), [("anomalies", 1)]);
    assert_eq!((judged.tally.scored, judged.tally.anomalies.len()), (3, 1));
    let (_, message) = &judged.messages[0];
    let verdict: Value = serde_json::from_slice(&message.payload).unwrap();
    assert_eq!(verdict["anomaly_score"], 950.0);
    assert_eq!(verdict["record"]["amount"], 1.0);
}

#[test]
fn with_a_topic_for_scores_every_record_has_a_verdict_in_it() {
    let judged = judging(Some("scores"))
        .judge(&batch(&[1.0, 950.0]))
        .unwrap();
    let all = [("scores", 0), ("anomalies", 1), ("scores", 1)];
    assert_eq!(sent(&judged), all);
}

#[test]
fn a_record_without_a_sound_score_is_a_dead_letter() {
    let mut batch = batch(&[f32::NAN, 950.0, -1.0, 2.0]);
    batch.refused = vec![(3, "division by zero".to_owned())];
    let judged = judging(None).judge(&batch).unwrap();
    let all = [("dead", 0), ("dead", 2), ("dead", 3), ("anomalies", 1)];
    assert_eq!(sent(&judged), all);
    assert_eq!(judged.tally.dead, [Reason::Unscorable; 3]);
    assert_eq!(judged.tally.scored, 1);
}

#[test]
fn judging_again_says_the_same() {
    let (mut judging, batch) = (judging(Some("scores")), batch(&[1.0, 950.0, f32::NAN]));
    let (first, again) = (
        judging.judge(&batch).unwrap(),
        judging.judge(&batch).unwrap(),
    );
    assert_eq!(first.messages, again.messages);
}
