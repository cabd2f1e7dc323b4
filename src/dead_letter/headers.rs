//! The headers of a dead letter: written by residuald, read by `residuald dead-letters`.

use std::borrow::Cow;

use super::DeadLetter;
use crate::decode::Reason;
use crate::record::{OwnedHeader, Record, header};

/// The prefix of the headers of Kafka Connect's dead letter queue (KIP-298).
pub const ERRORS_PREFIX: &str = "__connect.errors.";
/// The header of a message that leaves something out: what, and why.
pub const OMITTED: &str = "residuald.omitted";

impl DeadLetter {
    /// Takes its headers out and adds those of Kafka Connect's dead letter queue. They replace the headers of an earlier
    /// failure, so a record that fails twice names the last one. A record cannot claim that something was left out of it.
    pub fn headers_with_failure(&mut self) -> Vec<OwnedHeader> {
        let mut headers = std::mem::take(&mut self.headers);
        headers.retain(|(name, _)| !name.starts_with(ERRORS_PREFIX) && name != OMITTED);
        let reason = self.error.reason.as_str();
        let stage = match self.error.reason {
            Reason::Unscorable => "TRANSFORMATION",
            _ => "VALUE_CONVERTER",
        };
        for (name, value) in [
            ("topic", self.source.topic.clone()),
            ("partition", self.source.partition.to_string()),
            ("offset", self.source.offset.to_string()),
            ("stage", stage.to_owned()),
            ("exception.class.name", format!("residuald.decode.{reason}")),
            ("exception.message", self.error.detail.to_string()),
        ] {
            headers.push(header(&format!("{ERRORS_PREFIX}{name}"), &value));
        }
        if self.payload.is_empty() && self.error.reason == Reason::TooLarge {
            // An empty value is not too large: this letter stands for a batch and must not be replayed in its place.
            let note = "value, headers, key: the batch is too large to be read";
            headers.push(header(OMITTED, note));
        }
        headers
    }
}

/// What the headers of a dead letter say about its failure. Other producers than residuald may say less.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FailureHeaders<'m> {
    pub topic: Option<Cow<'m, str>>,
    pub partition: Option<i32>,
    pub offset: Option<i64>,
    /// The last part of the exception's name: `missing` of `residuald.decode.missing`.
    pub reason: Option<Cow<'m, str>>,
    pub message: Option<Cow<'m, str>>,
    /// Whether its value, headers or key were left out. A timestamp that the topic refuses does not count: a replay sets a new one.
    pub omitted: bool,
}

impl<'m> FailureHeaders<'m> {
    pub fn of(record: &Record<'m>) -> FailureHeaders<'m> {
        let said = |name: &str| {
            let value = last_header(record, &format!("{ERRORS_PREFIX}{name}"))??;
            Some(String::from_utf8_lossy(value))
        };
        let number = |name| said(name)?.parse::<i64>().ok();
        let omitted = last_header(record, OMITTED);
        FailureHeaders {
            topic: said("topic").filter(|topic| !topic.is_empty()),
            partition: number("partition").and_then(|p| p.try_into().ok()),
            offset: number("offset"),
            reason: said("exception.class.name").map(last_part),
            message: said("exception.message"),
            omitted: omitted.is_some_and(lacks_more_than_its_time),
        }
    }
}

/// The last header of this name: the last failure counts.
pub(super) fn last_header<'m>(record: &Record<'m>, name: &str) -> Option<Option<&'m [u8]>> {
    let mut named = record.headers.iter().rev();
    named.find(|(n, _)| *n == name).map(|(_, value)| *value)
}

fn last_part(name: Cow<'_, str>) -> Cow<'_, str> {
    match name {
        Cow::Borrowed(name) => Cow::Borrowed(name.rsplit('.').next().unwrap_or(name)),
        Cow::Owned(name) => Cow::Owned(name.rsplit('.').next().unwrap_or(&name).to_owned()),
    }
}

/// Whether a note of what was left out (`value, headers: why; timestamp: why`) names more than the timestamp.
fn lacks_more_than_its_time(note: Option<&[u8]>) -> bool {
    let note = String::from_utf8_lossy(note.unwrap_or_default());
    note.split("; ").any(|part| {
        let names = part.split_once(": ").map(|(names, _)| names);
        names != Some("timestamp")
    })
}
