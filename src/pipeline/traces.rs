//! Reports a traced record as four spans: consume, which contains decode, score and publish. The spans use the times of
//! the batch, which are measured anyway, so records without a trace cost nothing.
//!
//! The ids are derived from topic, partition and offset, so that a record that is judged again gets identical ids.

use std::borrow::Cow;
use std::hash::Hasher;
use std::time::{Instant, SystemTime};

use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use sha2::{Digest, Sha512};
use twox_hash::XxHash64;

use super::tally::Tally;
use crate::batch::{Batch, ImageOutcome, StoredRecord};
use crate::config;
use crate::kafka::Topics;
use crate::message::Message;
use crate::metrics::CLEARED;
use crate::otlp::Spans;
use crate::verdict::{Severity, is_score};

const PARENT: &str = "traceparent";
const STATE: &str = "tracestate";
/// The index of the digit in a `traceparent` that holds the sampled flag. Most values are not sampled and need no
/// parsing.
const LAST_OF_FLAGS: usize = 54;

pub struct Traces {
    spans: Spans,
    /// A record without a trace gets one if its hash is below this value.
    below: Option<u64>,
    group_id: String,
    anomalies_topic: String,
    scores_topic: Option<String>,
    dead_letter_topic: String,
    scope: InstrumentationScope,
}

/// The origin of a record.
#[derive(Clone, Copy)]
struct Origin<'a> {
    topic: &'a str,
    partition: i32,
    offset: i64,
    index: Option<u32>,
}

/// The trace of one record, and the ids of its spans.
struct Trace {
    id: TraceId,
    state: TraceState,
    /// The span of the record's producer, if there is one.
    parent: Option<SpanId>,
    consume: SpanId,
    decode: SpanId,
    score: SpanId,
    publish: SpanId,
}

/// The times at which a batch reached each stage.
struct Times {
    opened: SystemTime,
    decoded: SystemTime,
    /// The start and the end of scoring.
    scored: Option<(SystemTime, SystemTime)>,
    published: SystemTime,
    delivered: SystemTime,
}

impl Traces {
    pub fn new(
        spans: Spans,
        sample_ratio: f64,
        group_id: &str,
        output: &config::OutputSettings,
    ) -> Traces {
        Traces {
            spans,
            below: (sample_ratio > 0.0).then_some((sample_ratio * u64::MAX as f64) as u64),
            group_id: group_id.to_owned(),
            anomalies_topic: output.anomalies_topic.clone(),
            scores_topic: output.scores_topic.clone(),
            dead_letter_topic: output.dead_letter_topic.clone(),
            scope: InstrumentationScope::builder("residuald")
                .with_version(env!("CARGO_PKG_VERSION"))
                .build(),
        }
    }

    /// Adds the publish span to a verdict's headers, as the parent of spans made by consumers of the verdict. Returns
    /// whether the record is traced.
    pub fn hand_on(&self, message: &mut Message, topic: &str, record: StoredRecord<'_>) -> bool {
        let headers = record.trace.map(|header| header.map(|(_, value)| value));
        let Some(trace) = self.trace(Origin::of(topic, record), headers) else {
            return false;
        };
        let parent = format!("00-{}-{}-01", trace.id, trace.publish).into_bytes();
        message.headers.retain(|(name, _)| name != PARENT);
        message.headers.push((PARENT.to_owned(), Some(parent)));
        true
    }

    /// Sends the spans of the traced records of a delivered batch.
    pub fn send(&self, batch: &Batch, tally: &Tally, published: Instant, topics: &Topics) {
        let times = Times::of(batch, published);
        let mut verdicts = tally.published.iter().peekable();
        for (i, record) in batch.records().enumerate() {
            let verdict = verdicts.next_if(|published| published.record == i);
            let headers = record.trace.map(|header| header.map(|(_, value)| value));
            let origin = Origin::of(&topics[record.from.topic], record);
            let Some(trace) = self.trace(origin, headers) else {
                continue;
            };
            let dead = match batch.image_outcomes.get(i) {
                Some(ImageOutcome::Dead(error)) => Some(error.reason.as_str()),
                _ => None,
            };
            let score = batch.score_index(i).map(|index| batch.scores[index]);
            self.consume(&trace, origin, &times);
            self.decode(&trace, &times, dead);
            if dead.is_none() {
                self.score(&trace, &times, score);
            }
            if dead.is_some() || score.is_some_and(|score| !is_score(score)) {
                self.publish(&trace, &times, &self.dead_letter_topic, None);
            } else if let Some(verdict) = verdict {
                let scores = self.scores_topic.as_ref();
                let topic = match verdict.severity {
                    None => scores.unwrap_or(&self.anomalies_topic),
                    Some(_) => &self.anomalies_topic,
                };
                self.publish(&trace, &times, topic, verdict.severity);
            }
        }
        for letter in &batch.dead_letters {
            let header = |wanted: &str| {
                let mut headers = letter.headers.iter();
                headers.find(|(name, _)| name == wanted)?.1.as_deref()
            };
            let origin = Origin {
                topic: &letter.source.topic,
                partition: letter.source.partition,
                offset: letter.source.offset,
                index: letter.source.index,
            };
            if let Some(trace) = self.trace(origin, [header(PARENT), header(STATE)]) {
                self.consume(&trace, origin, &times);
                self.decode(&trace, &times, Some(letter.error.reason.as_str()));
                self.publish(&trace, &times, &self.dead_letter_topic, None);
            }
        }
    }

    /// Sends the spans that are still queued.
    pub fn end(&self) {
        self.spans.end();
    }

    /// Returns the trace of a record: its own if it is sampled, or a new one if it has none and is selected by its
    /// hash. Returns `None` if the record is not traced.
    fn trace(&self, origin: Origin<'_>, headers: [Option<&[u8]>; 2]) -> Option<Trace> {
        let parent = match headers[0].and_then(|header| header.get(LAST_OF_FLAGS)) {
            Some(digit) if is_odd(*digit) => parent(headers),
            Some(_) => return None,
            None => None,
        };
        if parent.is_none() && !self.is_drawn(origin) {
            return None;
        }
        let index = origin
            .index
            .map_or(String::new(), |index| format!("#{index}"));
        let origin = format!(
            "{}/{}/{}/{}{index}",
            self.group_id, origin.topic, origin.partition, origin.offset
        );
        let digest = Sha512::digest(origin);
        let (root, spans) = digest.split_at(16);
        let span = |i: usize| {
            let bytes = spans[8 * i..8 * (i + 1)].try_into();
            SpanId::from_bytes(bytes.expect("eight bytes"))
        };
        let own = TraceId::from_bytes(root.try_into().expect("sixteen bytes"));
        Some(Trace {
            id: parent.as_ref().map_or(own, SpanContext::trace_id),
            parent: parent.as_ref().map(SpanContext::span_id),
            state: parent.map_or_else(TraceState::default, |p| p.trace_state().clone()),
            consume: span(0),
            decode: span(1),
            score: span(2),
            publish: span(3),
        })
    }

    fn is_drawn(&self, origin: Origin<'_>) -> bool {
        let Some(below) = self.below else {
            return false;
        };
        // XXH64 has a specification, so every build samples the same records.
        let mut hasher = XxHash64::with_seed(0);
        hasher.write(origin.topic.as_bytes());
        hasher.write(&origin.partition.to_le_bytes());
        hasher.write(&origin.offset.to_le_bytes());
        hasher.finish() <= below
    }

    fn consume(&self, trace: &Trace, origin: Origin<'_>, times: &Times) {
        let mut span = self.span(
            trace,
            "consume",
            trace.consume,
            (times.opened, times.delivered),
        );
        span.span_kind = SpanKind::Consumer;
        span.parent_span_id = trace.parent.unwrap_or(SpanId::INVALID);
        span.parent_span_is_remote = trace.parent.is_some();
        span.attributes = vec![
            KeyValue::new("messaging.system", "kafka"),
            KeyValue::new("messaging.operation.type", "process"),
            KeyValue::new("messaging.consumer.group.name", self.group_id.clone()),
            KeyValue::new("messaging.destination.name", origin.topic.to_owned()),
            KeyValue::new(
                "messaging.destination.partition.id",
                origin.partition.to_string(),
            ),
            KeyValue::new("messaging.kafka.offset", origin.offset),
        ];
        self.spans.send(span);
    }

    fn decode(&self, trace: &Trace, times: &Times, problem: Option<&'static str>) {
        let mut span = self.span(trace, "decode", trace.decode, (times.opened, times.decoded));
        if let Some(problem) = problem {
            span.status = Status::error(problem);
        }
        self.spans.send(span);
    }

    /// Sends the score span. A score of `None` means that the screen cleared the record.
    fn score(&self, trace: &Trace, times: &Times, score: Option<f32>) {
        let Some(scored) = times.scored else {
            return;
        };
        let mut span = self.span(trace, "score", trace.score, scored);
        span.attributes = vec![match score {
            Some(score) => KeyValue::new("residuald.anomaly_score", f64::from(score)),
            None => KeyValue::new("residuald.screen", CLEARED),
        }];
        if score.is_some_and(|score| !is_score(score)) {
            span.status = Status::error("unscorable");
        }
        self.spans.send(span);
    }

    fn publish(&self, trace: &Trace, times: &Times, topic: &str, severity: Option<Severity>) {
        let lasted = (times.published, times.delivered);
        let mut span = self.span(trace, "publish", trace.publish, lasted);
        span.span_kind = SpanKind::Producer;
        span.attributes = vec![
            KeyValue::new("messaging.system", "kafka"),
            KeyValue::new("messaging.operation.type", "send"),
            KeyValue::new("messaging.destination.name", topic.to_owned()),
        ];
        let severity = severity.map(|s| KeyValue::new("residuald.severity", s.as_str()));
        span.attributes.extend(severity);
        self.spans.send(span);
    }

    /// Returns a span that is a child of the consume span.
    fn span(
        &self,
        trace: &Trace,
        name: &'static str,
        id: SpanId,
        (start_time, end_time): (SystemTime, SystemTime),
    ) -> SpanData {
        let sampled = TraceFlags::SAMPLED;
        SpanData {
            span_context: SpanContext::new(trace.id, id, sampled, false, trace.state.clone()),
            parent_span_id: trace.consume,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: Cow::Borrowed(name),
            start_time,
            end_time,
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: self.scope.clone(),
        }
    }
}

impl<'a> Origin<'a> {
    fn of(topic: &'a str, record: StoredRecord<'_>) -> Origin<'a> {
        Origin {
            topic,
            partition: record.from.partition,
            offset: record.offset,
            index: record.index,
        }
    }
}

impl Times {
    /// Returns the times of a batch that is delivered now.
    fn of(batch: &Batch, published: Instant) -> Times {
        let (now, delivered) = (Instant::now(), SystemTime::now());
        let at = |instant: Instant| delivered - now.saturating_duration_since(instant);
        let scored = batch.scoring.map(|(from, to)| (at(from), at(to)));
        let opened = at(batch.opened().unwrap_or(now));
        // Some images of a batch are decoded while others are scored.
        let decoded = match (scored, batch.image_outcomes.is_empty()) {
            (Some((from, _)), false) => from,
            _ => batch.dispatched.map_or(opened, at),
        };
        Times {
            opened,
            decoded,
            scored,
            published: at(published),
            delivered,
        }
    }
}

/// Returns the sampled span of the producer from a record's headers.
fn parent(headers: [Option<&[u8]>; 2]) -> Option<SpanContext> {
    let headers = Headers(headers.map(|header| std::str::from_utf8(header?).ok()));
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &headers);
    let span = context.span().span_context().clone();
    (span.is_valid() && span.is_sampled()).then_some(span)
}

fn is_odd(hex_digit: u8) -> bool {
    char::from(hex_digit)
        .to_digit(16)
        .is_some_and(|digit| digit % 2 == 1)
}

struct Headers<'a>([Option<&'a str>; 2]);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            PARENT => self.0[0],
            STATE => self.0[1],
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec![PARENT, STATE]
    }
}
