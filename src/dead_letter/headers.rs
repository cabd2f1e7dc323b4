//! The headers of a dead letter: written by residuald, read by `residuald dead-letters`.

use std::borrow::Cow;

use super::DeadLetter;
use crate::decode::Reason;
use crate::record::{OwnedHeader, Record, header};

/// The prefix of the headers of Kafka Connect's dead letter queue (KIP-298).
pub const ERRORS_PREFIX: &str = "__connect.errors.";
/// The header that lists the parts omitted from a message, with the reason.
pub const OMITTED: &str = "residuald.omitted";

impl DeadLetter {
    /// Takes the letter's headers and adds those of Kafka Connect's dead letter queue. They replace the headers of an earlier
    /// failure, so a record that fails twice carries the last one. An [`OMITTED`] header of the source record is dropped, because
    /// nothing was omitted here.
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
            // An empty value cannot be too large, so this letter represents a whole batch. The header prevents its replay.
            let note = "value, headers, key: the batch is too large to be read";
            headers.push(header(OMITTED, note));
        }
        headers
    }
}

/// The failure that a dead letter's headers describe. Letters of other producers may have fewer headers.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FailureHeaders<'m> {
    pub topic: Option<Cow<'m, str>>,
    pub partition: Option<i32>,
    pub offset: Option<i64>,
    /// The last part of the exception's name, for example `missing` for `residuald.decode.missing`.
    pub reason: Option<Cow<'m, str>>,
    pub message: Option<Cow<'m, str>>,
    /// Whether the value, headers or key were omitted. A timestamp that the topic refuses does not count, because a replay sets a
    /// new one.
    pub omitted: bool,
}

impl<'m> FailureHeaders<'m> {
    pub fn of(record: &Record<'m>) -> FailureHeaders<'m> {
        let value_of = |name: &str| {
            let value = last_header(record, &format!("{ERRORS_PREFIX}{name}"))??;
            Some(String::from_utf8_lossy(value))
        };
        let number = |name| value_of(name)?.parse::<i64>().ok();
        let omitted = last_header(record, OMITTED);
        FailureHeaders {
            topic: value_of("topic").filter(|topic| !topic.is_empty()),
            partition: number("partition").and_then(|p| p.try_into().ok()),
            offset: number("offset"),
            reason: value_of("exception.class.name").map(last_part),
            message: value_of("exception.message"),
            omitted: omitted.is_some_and(omits_more_than_timestamp),
        }
    }
}

/// Returns the value of the last header with this name, because only the last failure counts.
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

/// Returns whether the value of an [`OMITTED`] header, such as `value, headers: why; timestamp: why`, lists more than the
/// timestamp.
fn omits_more_than_timestamp(note: Option<&[u8]>) -> bool {
    let note = String::from_utf8_lossy(note.unwrap_or_default());
    note.split("; ").any(|part| {
        let names = part.split_once(": ").map(|(names, _)| names);
        names != Some("timestamp")
    })
}
