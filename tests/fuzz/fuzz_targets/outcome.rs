//! Keys, headers, values and reasons of any size, published under a small size limit. A message fits the limit unless every
//! optional part is already left out, and it always names its source record and what was omitted.
#![no_main]

use libfuzzer_sys::fuzz_target;
use residuald::batch::{StoredRecord, TopicPartition};
use residuald::dead_letter::DeadLetter;
use residuald::decode::{Reason, RecordFormat, RowError};
use residuald::message::{
    MOST_LEVELS, Message, ModelId, OMITTED, dead_letter_message, unreadable, verdict_message,
};
use residuald::record::Origin;
use residuald::verdict::{Attribution, Explanation, Observation, Severity, Verdict};

const WHY: &str = "too large for topic `t`";
/// The longest reason in bytes, after truncation.
const LONGEST_REASON: usize = 500;

/// Takes sizes from `sizes` and fills values of these sizes by repeating `contents`.
struct Sizes<'d> {
    sizes: &'d [u8],
    contents: &'d [u8],
}

impl Sizes<'_> {
    fn number(&mut self) -> usize {
        let (taken, rest) = self.sizes.split_at(self.sizes.len().min(2));
        self.sizes = rest;
        taken
            .iter()
            .fold(0, |sum, byte| sum << 8 | usize::from(*byte))
    }

    fn bytes(&mut self) -> Vec<u8> {
        let size = self.number() % 1_200;
        self.contents.iter().cycle().take(size).copied().collect()
    }

    fn text(&mut self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }
}

fuzz_target!(|data: &[u8]| {
    let (sizes, contents) = data.split_at(data.len().min(18));
    let mut from = Sizes { sizes, contents };
    let limit = from.number() % 3_000;
    let (key, payload) = (from.bytes(), from.bytes());
    let (name, value) = (from.text(), from.bytes());
    let reason = from.text();
    check_letter(limit, &key, &payload, (name, value.clone()), &reason);
    let levels = from.number() % 200;
    check_verdict(limit, &key, &value, &from.text(), levels, &reason);
});

fn check_letter(limit: usize, key: &[u8], payload: &[u8], header: (String, Vec<u8>), reason: &str) {
    let (name, value) = header;
    let whole = dead_letter_message(DeadLetter {
        source: Origin {
            topic: "topic".into(),
            partition: 1,
            offset: 7,
            index: None,
        },
        timestamp_ms: None,
        key: Some(key.to_vec()),
        payload: payload.to_vec(),
        headers: vec![(name, Some(value)), (OMITTED.into(), None)],
        error: RowError {
            reason: Reason::Malformed,
            detail: reason.into(),
        },
    });
    let (slim, names) = whole.slimmed(limit, WHY);
    check_slimmed(&whole, &slim, &names, limit);
    let lacks = |name: &str| names.contains(&name);
    assert!(slim.payload == if lacks("value") { &b""[..] } else { payload });
    if slim.size() > limit {
        assert!(slim.payload.is_empty() && slim.key.is_none_or(|key| key.is_empty()));
        let ours = |name: &str| name.starts_with("__connect.errors.") || name == OMITTED;
        assert!(slim.headers.iter().all(|(name, _)| ours(name)));
    }
    for (name, expected) in [
        ("topic", "topic"),
        ("partition", "1"),
        ("offset", "7"),
        ("exception.class.name", "residuald.decode.malformed"),
    ] {
        let said = text(&slim.headers, &format!("__connect.errors.{name}"));
        assert_eq!(said, Some(expected));
    }
    let said = text(&slim.headers, "__connect.errors.exception.message").unwrap();
    assert!(said.len() <= LONGEST_REASON && said.is_empty() == reason.is_empty());
}

fn check_verdict(
    limit: usize,
    key: &[u8],
    trace: &[u8],
    content: &str,
    levels: usize,
    category: &str,
) {
    let json = serde_json::json!({ "text": content }).to_string();
    let json = format!("{}{json}{}", "[".repeat(levels), "]".repeat(levels));
    let record = StoredRecord {
        from: TopicPartition {
            topic: 0,
            partition: 1,
        },
        offset: 7,
        timestamp_ms: Some(1),
        key: Some(key),
        payload: json.as_bytes(),
        segment: None,
        trace: [Some(("traceparent", trace)), None],
        headers: &[],
    };
    let verdict = Verdict {
        anomaly_score: 1.5,
        p_value: 0.01,
        anomaly_grade: 1.1,
        threshold: 1.0,
        segment: Some(category),
        severity: Some(Severity::Warning),
        explanation: Explanation::Features {
            relevant_attribution: vec![Attribution {
                feature: "f",
                share: 1.0,
                observed: Observation::Category(category),
                expected: Observation::Unseen,
                unit: None,
            }],
            feature_imputed: vec!["g"],
            nearest_normal: None,
        },
    };
    let model = ModelId {
        name: "m".into(),
        version: "1".into(),
        sha256: "0123456789".into(),
    };
    let carried = RecordFormat::Json
        .to_json(json.as_bytes())
        .expect("valid JSON");
    let deep = unreadable(carried.get()).is_some();
    assert_eq!(deep, levels + 1 > MOST_LEVELS);
    // At any nesting depth: a record that is left out must not be parsed.
    let whole = verdict_message(&model, "topic", record, &verdict, Some(&*carried));
    let (slim, names) = whole.slimmed(limit, WHY);
    check_slimmed(&whole, &slim, &names, limit);
    if !deep || names.contains(&"record") {
        let body: serde_json::Value = serde_json::from_slice(&slim.payload).unwrap();
        assert_eq!(body["anomaly_score"], 1.5);
        assert_eq!(body["source"]["offset"], 7);
        assert_eq!(body.get("record").is_none(), names.contains(&"record"));
        assert_eq!(
            body.get("relevant_attribution").is_none(),
            names.contains(&"relevant_attribution")
        );
    }
    assert_eq!(text(&slim.headers, "ce_id"), Some("topic-1-7@01234567"));
}

/// Checks that the header `OMITTED` names every part that was left out and that all other parts are unchanged.
fn check_slimmed(whole: &Message, slim: &Message, names: &[&str], limit: usize) {
    assert!(slim.size() <= limit || !names.is_empty() || slim.size() == whole.size());
    assert_eq!(slim.about, whole.about);
    let said = text(&slim.headers, OMITTED);
    match names {
        [] => assert_eq!((said, slim), (None, whole)),
        names => assert_eq!(said, Some(&*format!("{}: {WHY}", names.join(", ")))),
    }
    if !names.contains(&"key") {
        assert_eq!(slim.key, whole.key);
    }
    if !names.contains(&"headers") {
        let kept = whole
            .headers
            .iter()
            .all(|header| slim.headers.contains(header));
        assert!(kept);
    }
}

/// The value of the last header called `name`. Headers of the daemon come after the record's own.
fn text<'m>(headers: &'m [(String, Option<Vec<u8>>)], name: &str) -> Option<&'m str> {
    let (_, value) = headers.iter().rev().find(|(n, _)| n == name)?;
    std::str::from_utf8(value.as_ref()?).ok()
}
