//! Builds the messages of restored records of tables.

use std::collections::{BTreeMap, HashMap};

use crate::batch::{Batch, Incomplete, Restored};
use crate::bundle::Feature;
use crate::clip::clip;
use crate::decode::RecordFormat;
use crate::imputation::{FIELD, Imputation, Imputed, edits};
use crate::kafka::Topics;
use crate::message::{Message, ModelId, restored_message};
use crate::metrics::{
    DENOISED, FAILED, FILLED, LEFT_MISSING, Metrics, SKIP_UNDELIVERABLE, UNCHANGED,
};
use crate::patch::{has_field, set};
use crate::record::{Origin, OwnedHeader};

use super::restored_images::ImageRestorer;

/// Features that have counters of their own. Those behind them are counted together.
const MOST_COUNTED: usize = 100;
/// The label of the others.
const OTHERS: &str = "(others)";

/// Builds the messages of one model's restored records or images.
pub enum Restorer {
    Records(RecordRestorer),
    Images(ImageRestorer),
}

impl Restorer {
    /// The topic of the messages.
    pub fn topic(&self) -> &str {
        match self {
            Restorer::Records(restorer) => &restorer.topic,
            Restorer::Images(restorer) => &restorer.topic,
        }
    }

    /// Returns the messages of the batch's records `scored` and of its dead letters that only lack something. Building them again gives the
    /// same messages.
    pub fn messages(&self, batch: &Batch, scored: &[usize]) -> (Vec<Message>, RestoredTally) {
        match self {
            Restorer::Records(restorer) => restorer.messages(batch, scored),
            Restorer::Images(restorer) => restorer.messages(batch, scored),
        }
    }
}

/// Builds the messages of one model's restored records.
pub struct RecordRestorer {
    /// The topic of the messages.
    pub topic: String,
    pub features: Vec<Feature>,
    pub input: RecordFormat,
    pub model: ModelId,
    /// The names of topics, by [`crate::batch::TopicPartition::topic`].
    pub topics: Topics,
}

/// What became of the records of a batch.
#[derive(Debug, Default, PartialEq)]
pub struct RestoredTally {
    pub unchanged: u64,
    pub filled: u64,
    pub denoised: u64,
    pub failed: u64,
    /// Records that the topic refuses, even without their value.
    pub undeliverable: u64,
    /// Records whose own field [`FIELD`] was replaced.
    pub replaced: u64,
    /// The numbers of values that were filled in and that were left missing, by feature.
    pub values: BTreeMap<String, [u64; 2]>,
    /// The numbers of images that lost something, by its name.
    pub lost: BTreeMap<&'static str, u64>,
}

impl RestoredTally {
    /// Adds the outcomes to the metrics.
    pub fn count(&self, metrics: &Metrics) {
        for (outcome, records) in [
            (UNCHANGED, self.unchanged),
            (FILLED, self.filled),
            (DENOISED, self.denoised),
            (FAILED, self.failed),
            (SKIP_UNDELIVERABLE, self.undeliverable),
        ] {
            let counter = metrics.restored_records.with_label_values(&[outcome]);
            counter.inc_by(records);
        }
        let replaced = metrics.omitted_parts.with_label_values(&[FIELD]);
        replaced.inc_by(self.replaced);
        for (part, images) in &self.lost {
            let lost = metrics.omitted_parts.with_label_values(&[*part]);
            lost.inc_by(*images);
        }
        for (feature, counts) in &self.values {
            for (outcome, values) in [FILLED, LEFT_MISSING].into_iter().zip(counts) {
                let labels = [feature.as_str(), outcome];
                let counter = metrics.restored_values.with_label_values(&labels);
                counter.inc_by(*values);
            }
        }
    }
}

/// A record as it is published.
struct Text {
    payload: Vec<u8>,
    /// The part that is left out of the message, and why.
    omitted: Option<(&'static str, String)>,
}

impl Text {
    fn complete(payload: Vec<u8>) -> Text {
        Text {
            payload,
            omitted: None,
        }
    }
}

impl RecordRestorer {
    /// Returns one message for each of the batch's records `scored`, and for each dead letter that only lacks something, in the order of
    /// each partition. Building them again gives the same messages.
    pub fn messages(&self, batch: &Batch, scored: &[usize]) -> (Vec<Message>, RestoredTally) {
        let mut tally = RestoredTally::default();
        let restored: HashMap<Incomplete, &Restored> =
            batch.restored.iter().map(|r| (r.of, r)).collect();
        let mut messages = Vec::with_capacity(scored.len() + batch.dead_letters.len());
        for &i in scored {
            let record = batch.record(i);
            let restored = restored.get(&Incomplete::Record(i)).copied();
            let source = record.source(&self.topics[record.from.topic]);
            let about = (record.key.map(<[u8]>::to_vec), record.timestamp_ms);
            let (headers, payload) = (record.headers.to_vec(), record.payload);
            messages.push(self.message(source, about, headers, payload, restored, &mut tally));
        }
        let before = messages.len();
        for (i, letter) in batch.dead_letters.iter().enumerate() {
            let restored = restored.get(&Incomplete::DeadLetter(i)).copied();
            if restored.is_none() {
                continue;
            }
            let about = (letter.key.clone(), letter.timestamp_ms);
            let (source, headers) = (letter.source.clone(), letter.headers.clone());
            let payload = &letter.payload;
            messages.push(self.message(source, about, headers, payload, restored, &mut tally));
        }
        if messages.len() > before {
            messages.sort_by(|a, b| place(a).cmp(&place(b)));
        }
        (messages, tally)
    }

    fn message(
        &self,
        source: Origin,
        about: (Option<Vec<u8>>, Option<i64>),
        mut headers: Vec<OwnedHeader>,
        payload: &[u8],
        restored: Option<&Restored>,
        tally: &mut RestoredTally,
    ) -> Message {
        let Text { payload, omitted } = self.text(payload, restored, tally);
        if self.input.is_typed() {
            for (name, value) in &mut headers {
                if name.eq_ignore_ascii_case("content-type") {
                    *value = Some(b"application/json".to_vec());
                }
            }
        }
        let seed = restored.map(|restored| ("residuald.seed", restored.seed.to_string()));
        let done = seed.into_iter().collect();
        let mut message = restored_message(&self.model, source, about, headers, payload, done);
        if let Some((part, why)) = omitted {
            message.omit(&[part], &why);
        }
        message
    }

    /// Returns the record with what was filled in, and counts it.
    fn text(&self, payload: &[u8], restored: Option<&Restored>, tally: &mut RestoredTally) -> Text {
        let Some(json) = self.input.to_text(payload) else {
            tally.failed += 1;
            return Text {
                payload: Vec::new(),
                omitted: Some(("value", "it is too long in JSON".to_owned())),
            };
        };
        let imputation = match restored.map(|restored| &restored.outcome) {
            None => {
                tally.unchanged += 1;
                return Text::complete(json.into_owned().into_bytes());
            }
            Some(Ok(imputation)) => imputation,
            Some(Err(why)) => return failed(json.into_owned(), why, tally),
        };
        let replaces = has_field(&json, FIELD);
        match set(&json, edits(&self.features, imputation)) {
            Err(e) => failed(json.into_owned(), &e.to_string(), tally),
            Ok(filled) => {
                tally.filled += 1;
                tally.replaced += u64::from(replaces);
                self.count(imputation, tally);
                let why = "the record came with a field of this name, which was replaced";
                Text {
                    payload: filled.into_bytes(),
                    omitted: replaces.then(|| (FIELD, why.to_owned())),
                }
            }
        }
    }

    fn count(&self, imputation: &Imputation, tally: &mut RestoredTally) {
        for (column, imputed) in imputation {
            let label = match *column < MOST_COUNTED {
                true => &self.features[*column].name,
                false => OTHERS,
            };
            let is_left_missing = matches!(imputed, Imputed::Absent { .. });
            if !tally.values.contains_key(label) {
                tally.values.insert(label.to_owned(), [0, 0]);
            }
            if let Some(counts) = tally.values.get_mut(label) {
                counts[usize::from(is_left_missing)] += 1;
            }
        }
    }
}

/// The message of a record in which nothing could be filled in.
fn failed(json: String, why: &str, tally: &mut RestoredTally) -> Text {
    tally.failed += 1;
    Text {
        payload: json.into_bytes(),
        omitted: Some((FIELD, format!("nothing could be filled in: {}", clip(why)))),
    }
}

fn place(message: &Message) -> (&str, i32, i64, Option<u32>) {
    let source = &message.about.source;
    (&source.topic, source.partition, source.offset, source.index)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::json;

    use super::*;
    use crate::batch::TopicPartition;
    use crate::decode::{Reason, RowError};
    use crate::record::Record;

    fn restorer() -> RecordRestorer {
        let topics = Topics::default();
        topics.number("in");
        let features = json!([
            {"name": "a", "path": "a", "type": "number"},
            {"name": "b", "path": "b.c", "type": "number", "missing": "impute"},
        ]);
        RecordRestorer {
            topic: "restored".to_owned(),
            features: serde_json::from_value(features).unwrap(),
            input: RecordFormat::Json,
            model: ModelId {
                name: "m".to_owned(),
                version: "1".to_owned(),
                sha256: "0123456789".to_owned(),
            },
            topics,
        }
    }

    const FROM: TopicPartition = TopicPartition {
        topic: 0,
        partition: 0,
    };

    fn record(offset: i64, payload: &'static str) -> Record<'static> {
        Record {
            topic: "in",
            partition: 0,
            offset,
            index: None,
            timestamp_ms: Some(5),
            key: Some(b"k"),
            headers: vec![("own", Some(b"1")), ("residuald.seed", Some(b"old"))],
            payload: Some(payload.as_bytes()),
        }
    }

    fn keep(batch: &mut Batch, record: &Record<'_>, row: [f32; 2]) {
        batch.rows.extend(row);
        batch.keep(record, FROM, None, Instant::now());
        batch.keep_headers(record);
    }

    fn number(value: f32) -> Imputed {
        let (low, high) = (value - 1.0, value + 1.0);
        Imputed::Number { value, low, high }
    }

    fn fill(batch: &mut Batch, outcomes: Vec<Result<Imputation, String>>) {
        let all: Vec<_> = batch.incomplete().map(|(of, _)| of).collect();
        let all = all.into_iter().zip(outcomes);
        let seed = 7;
        batch.restored = all
            .map(|(of, outcome)| Restored { of, seed, outcome })
            .collect();
    }

    fn texts(messages: &[Message]) -> Vec<(i64, &str)> {
        let messages = messages.iter().map(|message| {
            let text = std::str::from_utf8(&message.payload).unwrap();
            (message.about.source.offset, text)
        });
        messages.collect()
    }

    fn header<'m>(message: &'m Message, name: &str) -> Option<&'m str> {
        let (_, value) = message.headers.iter().find(|(n, _)| n == name)?;
        value.as_deref().map(|v| std::str::from_utf8(v).unwrap())
    }

    #[test]
    fn records_are_published_as_they_came_with_what_was_filled_in_and_in_order() {
        let mut batch = Batch::default();
        let whole = " {\"a\":1.0, \"b\" : {\"c\":2}}\n";
        keep(&mut batch, &record(0, whole), [1.0, 2.0]);
        let lacking = record(1, r#"{"x": [1], "b": {"c": 3}}"#);
        let error = RowError {
            reason: Reason::Missing,
            detail: "a".into(),
        };
        batch.push_dead_letter(&lacking, FROM, error.clone(), Instant::now());
        batch.last_dead_letter_is_incomplete(&[f32::NAN, 3.0]);
        batch.push_dead_letter(&record(2, "{}"), FROM, error, Instant::now());
        keep(
            &mut batch,
            &record(3, r#"{"a": 4, "imputed": 1}"#),
            [4.0, f32::NAN],
        );
        batch.last_is_incomplete();
        fill(
            &mut batch,
            vec![Ok(vec![(0, number(5.5))]), Ok(vec![(1, number(6.0))])],
        );
        let (messages, tally) = restorer().messages(&batch, &[0, 1]);
        let expected = [
            (0, whole),
            (
                1,
                r#"{"x":[1],"b":{"c": 3},"a":5.5,"imputed":{"a":{"high":6.5,"low":4.5,"value":5.5}}}"#,
            ),
            (
                3,
                r#"{"a":4,"imputed":{"b":{"high":7,"low":5,"value":6}},"b":{"c":6}}"#,
            ),
        ];
        assert_eq!(texts(&messages), expected);
        let counts = (tally.unchanged, tally.filled, tally.failed, tally.replaced);
        assert_eq!(counts, (1, 2, 0, 1));
        assert_eq!(tally.values["a"], [1, 0]);
        let [complete, required, own] = &messages[..] else {
            panic!("{messages:?}");
        };
        assert_eq!(
            (complete.key.as_deref(), complete.timestamp_ms),
            (Some(&b"k"[..]), Some(5))
        );
        assert_eq!(header(complete, "own"), Some("1"));
        assert_eq!(header(complete, "residuald.seed"), None);
        assert_eq!(header(complete, "residuald.id"), Some("in-0-0@01234567"));
        assert_eq!(header(required, "residuald.offset"), Some("1"));
        assert_eq!(header(required, "residuald.seed"), Some("7"));
        let omitted = header(own, "residuald.omitted").unwrap();
        assert!(omitted.starts_with("imputed: "), "{omitted}");
        // Again, for a transaction that was aborted.
        assert_eq!(restorer().messages(&batch, &[0, 1]), (messages, tally));
    }

    #[test]
    fn a_record_without_values_is_published_as_it_came_and_says_why() {
        let mut batch = Batch::default();
        keep(&mut batch, &record(0, r#"{"a": 1}"#), [1.0, f32::NAN]);
        batch.last_is_incomplete();
        let error = RowError {
            reason: Reason::Missing,
            detail: "a".into(),
        };
        let lacking = record(1, r#"{"b": {"c": 2}}"#);
        batch.push_dead_letter(&lacking, FROM, error, Instant::now());
        batch.last_dead_letter_is_incomplete(&[f32::NAN, 2.0]);
        let failed = || Err("the denoiser returned NaN".to_owned());
        fill(&mut batch, vec![failed(), failed()]);
        let (messages, tally) = restorer().messages(&batch, &[0]);
        let expected = [(0, r#"{"a": 1}"#), (1, r#"{"b": {"c": 2}}"#)];
        assert_eq!(texts(&messages), expected);
        assert_eq!(tally.failed, 2);
        let omitted = header(&messages[0], "residuald.omitted").unwrap();
        assert!(omitted.contains("returned NaN"), "{omitted}");
    }

    #[test]
    fn records_that_are_not_bare_json_become_json() {
        let text = |payload: &[u8]| {
            let mut tally = RestoredTally::default();
            let text = restorer().text(payload, None, &mut tally);
            String::from_utf8(text.payload).unwrap()
        };
        let framed = b"\x00\x00\x00\x00\x07{\"a\": 1 }\n";
        assert_eq!(text(framed), "{\"a\": 1 }\n");
        assert_eq!(text(b"{\"a\": 1, \"x\": NaN}"), r#"{"a": 1, "x": null}"#);
    }

    #[test]
    fn features_beyond_the_first_share_a_counter() {
        let mut restorer = restorer();
        let one = restorer.features[1].clone();
        restorer.features = vec![one; MOST_COUNTED + 5];
        let mut tally = RestoredTally::default();
        let absent = Imputed::Absent { share: 1.0 };
        restorer.count(
            &vec![
                (0, number(1.0)),
                (MOST_COUNTED, absent),
                (MOST_COUNTED + 1, absent),
            ],
            &mut tally,
        );
        assert_eq!(tally.values["b"], [1, 0]);
        assert_eq!(tally.values[OTHERS], [0, 2]);
    }

    #[test]
    fn a_message_that_is_too_large_leaves_out_its_value_last_but_one() {
        let mut batch = Batch::default();
        keep(
            &mut batch,
            &record(0, r#"{"a": 1, "b": {"c": 2}}"#),
            [1.0, 2.0],
        );
        let (mut messages, _) = restorer().messages(&batch, &[0]);
        let mut message = messages.remove(0);
        message.payload = vec![b' '; 10_000];
        let (slim, left_out) = message.slimmed(2_000, "too large");
        assert_eq!(left_out, ["value"]);
        assert_eq!(header(&slim, "own"), Some("1"));
        assert_eq!(header(&slim, "residuald.offset"), Some("0"));
        assert_eq!(slim.key.as_deref(), Some(&b"k"[..]));
    }
}
