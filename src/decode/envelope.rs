//! Finds the records in a JSON message. `input.unwrap` says where a message has several records, and `input.envelope` what
//! surrounds each of them. A message of several records is divided into messages of one record each, which have the same shape.
//! So a dead letter of one record can be replayed, and its siblings are not.

mod avro_json;
mod cloud_events;
mod connect;
mod debezium;
mod likeness;
mod mongo;
mod raw;

use std::borrow::Cow;
use std::str::FromStr;

use serde_json::value::RawValue;

use super::json::{nan, unframed};
use super::{Reason, RowError, malformed};
use raw::{describe, items, object, string};

use likeness::likeness_inside;
pub use likeness::{envelope_likeness, likeness};

/// Maximum number of records in a message, if nothing else is set.
const MOST_RECORDS: usize = 10_000;
/// Maximum size of what surrounds the records of a message, once each record has its own, in bytes.
const MOST_AROUND: usize = 32 << 20;

/// How a JSON message contains its records.
#[derive(Debug, Clone, PartialEq)]
pub struct Wrapping {
    pub unwrap: Unwrap,
    /// What surrounds a record, the outermost first.
    pub envelopes: Vec<Envelope>,
    /// Whether NaN and infinities count as missing. Otherwise a feature refuses them.
    pub allow_nan: bool,
    /// Maximum number of records in a message.
    pub most_records: usize,
}

/// Where the records of a message are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unwrap {
    /// The message is one record.
    No,
    /// The message is a list of records.
    List,
    /// The message is an object with a list of records at this path.
    At(String),
    /// Each line of the message is a record.
    Lines,
}

/// What surrounds a record, or how its values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Envelope {
    /// Kafka Connect's JsonConverter with schemas: `{"schema": …, "payload": …}`.
    Connect,
    /// Debezium's change events: `before`, `after` and `op`, with or without Connect's schema.
    Debezium,
    /// CloudEvents in structured or batch mode.
    CloudEvents,
    /// MongoDB's extended JSON.
    Mongo,
    /// A JSON string that contains JSON.
    JsonString,
    /// Avro's JSON encoding, in which a union's value is an object: `{"double": 1.5}`.
    AvroJson,
}

/// Why a message or a record has nothing to score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    /// No value at all: a deletion in a compacted topic.
    Tombstone,
    /// A row or a document was deleted.
    Delete,
    /// A table or a collection was emptied, dropped or renamed.
    Truncate,
    /// A message in the database's log that is about no row.
    LogMessage,
    /// A list without records.
    EmptyList,
}

impl Skip {
    pub const ALL: [Skip; 5] = [
        Skip::Tombstone,
        Skip::Delete,
        Skip::Truncate,
        Skip::LogMessage,
        Skip::EmptyList,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Skip::Tombstone => "tombstone",
            Skip::Delete => "delete",
            Skip::Truncate => "truncate",
            Skip::LogMessage => "log_message",
            Skip::EmptyList => "empty_list",
        }
    }
}

impl FromStr for Unwrap {
    type Err = String;

    /// Reads `none`, `list`, `lines` or the path of a list. `$.list` is the path of a field with the name `list`.
    fn from_str(text: &str) -> Result<Unwrap, String> {
        Ok(match text {
            "none" => Unwrap::No,
            "list" => Unwrap::List,
            "lines" => Unwrap::Lines,
            path => {
                let path = path.strip_prefix("$.").unwrap_or(path);
                if path.split('.').any(str::is_empty) {
                    return Err(
                        "expected none, list, lines, or the path of a list, for example records"
                            .to_owned(),
                    );
                }
                Unwrap::At(path.to_owned())
            }
        })
    }
}

impl FromStr for Envelope {
    type Err = String;

    fn from_str(name: &str) -> Result<Envelope, String> {
        let known = Envelope::NAMES.iter().find(|(known, _)| *known == name);
        known.map(|(_, envelope)| *envelope).ok_or_else(|| {
            let known = Envelope::NAMES.map(|(known, _)| known).join(", ");
            format!("expected none, or one or more of {known}, the outermost first")
        })
    }
}

impl Envelope {
    pub const NAMES: [(&'static str, Envelope); 6] = [
        ("connect", Envelope::Connect),
        ("debezium", Envelope::Debezium),
        ("cloudevents", Envelope::CloudEvents),
        ("mongo", Envelope::Mongo),
        ("json-string", Envelope::JsonString),
        ("avro-json", Envelope::AvroJson),
    ];

    fn name(self) -> &'static str {
        let mut all = Envelope::NAMES.iter();
        all.find(|(_, envelope)| *envelope == self)
            .map_or("", |(name, _)| name)
    }

    fn open<'p>(self, json: Cow<'p, str>) -> Result<Content<'p>, RowError> {
        match self {
            Envelope::Connect => connect::open(&json),
            Envelope::Debezium => debezium::open(&json),
            Envelope::CloudEvents => cloud_events::open(&json),
            Envelope::Mongo => mongo::open(&json),
            Envelope::JsonString => match string(json.trim()) {
                Some(inner) => Ok(Content::record(inner.into_owned())),
                None => Err(unexpected(
                    "a JSON string that contains JSON",
                    "json-string",
                    &json,
                )),
            },
            Envelope::AvroJson => avro_json::open(&json),
        }
    }

    /// Returns the key of the value in the envelope, and the key beside it that tells what the envelope is. `None` if the value
    /// cannot be a list of records.
    const fn keys(self) -> Option<(&'static str, &'static str)> {
        match self {
            Envelope::Connect => Some(("payload", "schema")),
            Envelope::CloudEvents => Some(("data", "specversion")),
            _ => None,
        }
    }
}

/// What an envelope contains.
#[derive(Debug, PartialEq)]
pub enum Content<'p> {
    /// Plain JSON.
    Record(Cow<'p, str>),
    Nothing(Skip),
}

impl Content<'_> {
    fn record(json: String) -> Content<'static> {
        Content::Record(Cow::Owned(json))
    }
}

/// The records of a message.
#[derive(Debug, PartialEq)]
pub enum Split {
    /// The message is one record.
    One,
    /// Messages of one record each, in order. There is at least one.
    Many(Vec<Vec<u8>>),
    Empty,
}

impl Default for Wrapping {
    /// Each message is one plain record.
    fn default() -> Wrapping {
        Wrapping {
            unwrap: Unwrap::No,
            envelopes: Vec::new(),
            allow_nan: false,
            most_records: MOST_RECORDS,
        }
    }
}

impl Wrapping {
    /// Returns whether each message is one plain record.
    pub fn is_plain(&self) -> bool {
        self.unwrap == Unwrap::No && self.envelopes.is_empty() && !self.allow_nan
    }

    /// Returns whether the messages are Debezium's change events and nothing else.
    pub fn is_debezium_alone(&self) -> bool {
        let is_one = self.unwrap == Unwrap::No && !self.allow_nan;
        is_one && self.envelopes == [Envelope::Debezium]
    }

    /// Returns the plain JSON of the only record of a message. NaN and infinities are null if they are allowed, and otherwise stay
    /// as they are.
    ///
    /// # Errors
    /// The message does not have the expected shape.
    pub fn plain(&self, payload: &[u8]) -> Result<Result<Vec<u8>, Skip>, RowError> {
        Ok(match self.open(payload)? {
            Content::Record(json) if self.allow_nan => Ok(nan::nulled(&json).into_owned().into()),
            Content::Record(json) => Ok(nan::unmarked(&json).into_owned().into()),
            Content::Nothing(skip) => Err(skip),
        })
    }

    /// Divides a message into messages of one record each.
    ///
    /// # Errors
    /// The message does not have the shape that `input.unwrap` expects, or it has too many records.
    pub fn split(&self, payload: &[u8]) -> Result<Split, RowError> {
        let is_one =
            self.unwrap == Unwrap::No && self.envelopes.first() != Some(&Envelope::CloudEvents);
        if is_one {
            return Ok(Split::One);
        }
        let text = text(payload)?;
        let Some(place) = self.place(&text)? else {
            return Ok(Split::One);
        };
        let (records, count) = place.records(&text, self.most_records)?;
        let too_large = |detail: String| RowError {
            reason: Reason::TooLarge,
            detail: detail.into(),
        };
        if count > self.most_records {
            return Err(too_large(format!(
                "the message has {count} records, but input.max_unwrapped is {}: none of them is judged. Raise it, or let the producer send fewer records a message",
                self.most_records
            )));
        }
        if records.is_empty() {
            return Ok(Split::Empty);
        }
        let (before, after) = place.around();
        let around = (before.len() + after.len()) * count;
        if around > MOST_AROUND {
            return Err(too_large(format!(
                "the message has {count} records, and what surrounds them would take {} MiB if each had its own: at most {} MiB are allowed. Let the producer send fewer records a message",
                around >> 20,
                MOST_AROUND >> 20
            )));
        }
        let alone = records.iter().map(|record| {
            [&before, &*nan::unmarked(record), &after]
                .concat()
                .into_bytes()
        });
        Ok(Split::Many(alone.collect()))
    }

    /// Returns the record of a message that has one record.
    ///
    /// # Errors
    /// The message does not have the expected shape.
    pub fn open<'p>(&self, payload: &'p [u8]) -> Result<Content<'p>, RowError> {
        let text = text(payload)?;
        let found = match self.place(&text)? {
            None => None,
            Some(place) => match place.only(&text)? {
                None => return Ok(Content::Nothing(Skip::EmptyList)),
                Some(record) => Some((record, place.opened())),
            },
        };
        let is_alone = found.is_none();
        let (mut content, opened) = match found {
            None => (Content::Record(text), 0),
            Some((record, opened)) => (Content::record(record), opened),
        };
        for (level, envelope) in self.envelopes.iter().enumerate().skip(opened) {
            let Content::Record(json) = content else {
                break;
            };
            content = envelope.open(json)?;
            if let Content::Record(json) = &content
                && json.trim_start().starts_with('[')
            {
                return Err(holds_a_list(*envelope, level == 0 && is_alone));
            }
        }
        Ok(content)
    }

    /// Adds to the error of a record what its envelope has to do with it. `record` is what was in the envelope.
    pub fn explained(&self, error: RowError, record: &str, payload: &[u8]) -> RowError {
        let is_shape = matches!(
            error.reason,
            Reason::Missing | Reason::WrongType | Reason::Malformed
        );
        if let Some(likeness) = likeness_inside(&self.envelopes, record).filter(|_| is_shape) {
            let inside = match self.envelopes.is_empty() {
                true => "",
                false => "inside of the envelope ",
            };
            let detail = format!("{}; {inside}{likeness}", error.detail);
            return RowError {
                detail: detail.into(),
                ..error
            };
        }
        let has_schema = payload.windows(8).any(|bytes| bytes == b"\"schema\"");
        let is_string = error.reason == Reason::WrongType && error.detail.ends_with("a string");
        if has_schema || !is_string || !self.envelopes.contains(&Envelope::Debezium) {
            return error;
        }
        RowError {
            detail: format!(
                "{}. If it is a decimal in base64: without Connect's schema its scale is unknown, so set value.converter.schemas.enable = true or decimal.handling.mode = double in the connector",
                error.detail
            )
            .into(),
            ..error
        }
    }

    fn place<'t>(&'t self, text: &'t str) -> Result<Option<Place<'t>>, RowError> {
        let outermost = self.envelopes.first();
        let is_list = || text.trim_start().starts_with('[');
        Ok(match &self.unwrap {
            Unwrap::No if outermost == Some(&Envelope::CloudEvents) && is_list() => {
                Some(Place::List)
            }
            Unwrap::No => None,
            Unwrap::List => Some(Place::List),
            Unwrap::At(path) => Some(match outermost {
                Some(envelope) => Place::within(*envelope, path, text)?,
                None => Place::At(path),
            }),
            Unwrap::Lines => Some(Place::Lines),
        })
    }
}

#[derive(Clone, Copy)]
enum Place<'w> {
    List,
    At(&'w str),
    Lines,
    /// At a path that leads through the outermost envelope of the message.
    Inside {
        path: &'w str,
        envelope: Envelope,
        /// What is beside the list in the envelope: its key and its JSON.
        beside: (&'static str, &'w str),
    },
}

impl<'w> Place<'w> {
    /// Returns the place at `path`, which leads either to a list of envelopes or into the one envelope of the message.
    fn within(envelope: Envelope, path: &'w str, text: &'w str) -> Result<Place<'w>, RowError> {
        let at = Ok(Place::At(path));
        let Some((key, beside)) = envelope.keys() else {
            return at;
        };
        let rest = path.strip_prefix(key);
        if !rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.')) {
            return at;
        }
        let Some(fields) = object(text)? else {
            return at;
        };
        match fields.get(beside)? {
            Some(value) => Ok(Place::Inside {
                path,
                envelope,
                beside: (beside, value.get()),
            }),
            None => at,
        }
    }

    /// Returns the number of envelopes that are opened with the list.
    fn opened(self) -> usize {
        usize::from(matches!(self, Place::Inside { .. }))
    }

    /// Returns at most `most` records, and how many there are.
    fn records(self, text: &str, most: usize) -> Result<(Vec<&str>, usize), RowError> {
        let list = match self {
            Place::Lines => {
                let lines = || text.lines().filter(|line| !line.trim().is_empty());
                return Ok((lines().take(most).collect(), lines().count()));
            }
            Place::List => text.trim(),
            Place::At(path) | Place::Inside { path, .. } => at(text, path, path)?,
        };
        if !list.starts_with('[') {
            return Err(malformed(format!(
                "input.unwrap = \"list\" expects a list of records, found {}",
                describe(list)
            )));
        }
        items(list, most)
    }

    /// Returns the only record, or `None` if the message is empty.
    fn only(self, text: &str) -> Result<Option<String>, RowError> {
        let record = match &self.records(text, 1)? {
            (_, 0) => return Ok(None),
            (records, 1) => records[0].to_owned(),
            (_, count) => {
                return Err(malformed(format!(
                    "the message has {count} records, and one was expected"
                )));
            }
        };
        match self {
            Place::Inside {
                path,
                envelope: Envelope::Connect,
                beside: (_, schema),
            } => connect::item(schema, path, &record).map(Some),
            _ => Ok(Some(record)),
        }
    }

    /// Returns what is before and after the record in a message that contains only this record.
    fn around(self) -> (String, String) {
        let (path, beside) = match self {
            Place::Lines => return Default::default(),
            Place::List => return ("[".to_owned(), "]".to_owned()),
            Place::At(path) => (path, String::new()),
            Place::Inside {
                path,
                beside: (key, value),
                ..
            } => (path, format!("\"{key}\":{},", nan::unmarked(value))),
        };
        let mut before = String::from("{");
        before.push_str(&beside);
        for (depth, key) in path.split('.').enumerate() {
            before.push_str(if depth > 0 { "{" } else { "" });
            before.push_str(&raw::quoted(key));
            before.push(':');
        }
        before.push('[');
        let depth = path.split('.').count();
        (before, format!("]{}", "}".repeat(depth)))
    }
}

/// Returns the list at `path` below an object. A key with dots is found as well.
fn at<'t>(text: &'t str, path: &str, whole: &str) -> Result<&'t str, RowError> {
    let shape = |found: String| {
        malformed(format!(
            "input.unwrap = \"{whole}\" expects an object with a list at `{whole}`, found {found}"
        ))
    };
    let fields = object(text)?.ok_or_else(|| shape(describe(text)))?;
    if let Some(list) = fields.get(path)? {
        return match list.get().starts_with('[') {
            true => Ok(list.get()),
            false => Err(shape(format!("{} there", describe(list.get())))),
        };
    }
    let below = path.split_once('.');
    let below = below.map(|(key, rest)| fields.get(key).map(|value| (value, rest)));
    match below.transpose()? {
        Some((Some(value), rest)) => at(value.get(), rest, whole),
        _ => Err(shape(describe(text))),
    }
}

/// Returns a message as text in which NaN and infinities are marked.
fn text(payload: &[u8]) -> Result<Cow<'_, str>, RowError> {
    let text = std::str::from_utf8(unframed(payload))
        .map_err(|e| super::json::not_json(payload, format!("not UTF-8: {e}")))?;
    Ok(nan::marked(text))
}

/// Returns the error for an envelope with a list inside of it. `is_outermost`: it is the whole message.
fn holds_a_list(envelope: Envelope, is_outermost: bool) -> RowError {
    malformed(match envelope.keys().filter(|_| is_outermost) {
        Some((key, _)) => {
            format!("`{key}` in the envelope is a list of records: set input.unwrap = \"{key}\"")
        }
        None => "an envelope in the message has a list inside of it, which no setting reads: let the producer send one record a message".to_owned(),
    })
}

/// Describes a record that does not have the shape of its envelope.
fn unexpected(expected: &str, setting: &str, found: &str) -> RowError {
    malformed(format!(
        "input.envelope = \"{setting}\" expects {expected}, found {}",
        describe(found)
    ))
}

/// Returns the value of a field of a JSON object.
pub fn field(json: &str, key: &str) -> Option<String> {
    let fields = object(json).ok()??;
    Some(fields.get(key).ok()??.get().to_owned())
}

/// Returns whether a JSON value is null.
fn is_null(value: &RawValue) -> bool {
    value.get() == "null"
}

#[cfg(test)]
mod tests;
