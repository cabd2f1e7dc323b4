//! Payload and schema to a row of numbers. The rules, for JSON the same as in the trainer:
//!
//! | feature | takes | anything else |
//! | --- | --- | --- |
//! | number | a number within float32, a decimal | refused |
//! | bool | `true`, `false`, 1 or 0 | refused |
//! | categorical | a string, an enum by its symbol, or a number or boolean by its text; unknown becomes -1 | refused |
//! | timestamp | an RFC 3339 string, a timestamp type, or a number if the bundle gives its unit | refused |
//! | absent or null | NaN where `missing` is `impute` | refused |
//!
//! NaN and infinities, which JSON cannot say, are refused as out of range. A time of day has an hour but no weekday, a date a
//! weekday but no hour; Avro's local timestamps count as UTC; a Protobuf `Duration` is a number of seconds.
//! Bytes, arrays, maps and records are not values.
//!
//! Absent is what the record's schema does not have, an Avro null, and in Protobuf what is not on the wire and has presence: messages,
//! `optional` fields, members of a oneof. A Protobuf scalar without presence that is not on the wire is its default.
//!
//! The segment by which a bundle may be calibrated is text as a category is: a string, an enum by its symbol, a number or boolean by its
//! text. A record without it, or with something else there, has none and is judged all the same.
//!
//! Keys that no feature names are skipped. A key given twice in JSON is refused, because readers disagree on which counts; of
//! a Protobuf field given twice the last counts, as its readers agree.

mod avro;
mod json;
mod paths;
mod protobuf;
mod schemas;
mod segment;
mod typed;
mod value;
mod wire;

use std::borrow::Cow;
use std::fmt;

use serde_json::value::RawValue;

pub use json::JsonDecoder;
use paths::Paths;
pub use schemas::{Ask, Format, RecordType, Schema, SchemaText, Schemas, TypeSource, Wanted};
use segment::Names;
pub use segment::SegmentReader;
use typed::TypedDecoder;

use crate::bundle::{Feature, SegmentBy, SegmentId};
use crate::clip::Clipped;
use crate::image::{ImageError, ImageReader};

/// What a record's JSON in a verdict may come to. More than a message may be; a few bytes of Avro can be many of JSON.
const MOST_JSON: usize = 4 << 20;

/// The format of records.
#[derive(Debug, Clone)]
pub enum RecordFormat {
    Json,
    Typed(TypeSource),
    /// A [`ImageReader`] makes rows of them.
    Images(ImageReader),
}

/// Reads records of one format into rows. One per thread.
#[derive(Debug)]
pub struct Decoder {
    format: Payloads,
    /// The names of the segments, where the message key tells them.
    keys: Option<Names>,
}

#[derive(Debug)]
enum Payloads {
    Json(JsonDecoder),
    Typed(Box<TypedDecoder>),
    Images(ImageReader),
}

/// Why a payload did not become a row.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DecodeError {
    #[error(transparent)]
    Row(#[from] RowError),
    /// Its schema is not known yet: ask for it ([`Decoder::ask_for_schema`]), then try again. The record may be good.
    #[error("the schema with id {0} is not known yet")]
    SchemaPending(u32),
}

impl Decoder {
    /// `segment` as in the calibration.
    pub fn new(
        features: &[Feature],
        input: RecordFormat,
        segment: Option<SegmentReader>,
    ) -> Decoder {
        let keys = segment.as_ref().filter(|s| s.by == SegmentBy::Key);
        let keys = keys.map(|segment| segment.names.clone());
        let format = match input {
            RecordFormat::Json => Payloads::Json(JsonDecoder::segmented(features, segment)),
            RecordFormat::Typed(source) => {
                Payloads::Typed(Box::new(TypedDecoder::new(features, source, segment)))
            }
            RecordFormat::Images(reader) => Payloads::Images(reader),
        };
        Decoder { format, keys }
    }

    /// Appends one row, [features], to `rows`; leaves it as it was on an error. Never waits. Images are not decoded
    /// here; see pipeline/images.rs. Returns the segment, if the record has a known one. `key` is the message's.
    ///
    /// # Errors
    /// [`DecodeError`]: the record is bad, or its schema is still on its way.
    pub fn decode(
        &mut self,
        payload: &[u8],
        key: Option<&[u8]>,
        rows: &mut Vec<f32>,
    ) -> Result<Option<SegmentId>, DecodeError> {
        let by_field = match &mut self.format {
            Payloads::Json(decoder) => decoder.decode(payload, rows)?,
            Payloads::Typed(decoder) => decoder.decode(payload, rows)?,
            Payloads::Images(_) => None,
        };
        let Some(names) = &mut self.keys else {
            return Ok(by_field);
        };
        let key = key.and_then(|key| std::str::from_utf8(key).ok());
        Ok(key.and_then(|key| names.number(key)))
    }

    /// Has the schema of this record fetched if it is not known. `written_ms`: when the record was written.
    pub fn ask_for_schema(&self, payload: &[u8], written_ms: Option<i64>) {
        if let Payloads::Typed(decoder) = &self.format {
            decoder.ask_for_schema(payload, written_ms);
        }
    }

    /// What a record with this schema waits for, in words; `None` if it is worth another try.
    pub fn waits_for_schema(&self, id: u32) -> Option<String> {
        match &self.format {
            Payloads::Typed(decoder) => decoder.waits_for_schema(id),
            _ => None,
        }
    }

    /// The names of the segments, in the order of their numbers.
    pub fn segments(&self) -> Vec<String> {
        let paths = match &self.format {
            Payloads::Json(decoder) => Some(&decoder.paths),
            Payloads::Typed(decoder) => Some(&decoder.paths),
            Payloads::Images(_) => None,
        };
        let by_field = paths.and_then(Paths::segments);
        let names = by_field.as_ref().or(self.keys.as_ref());
        names.map(Names::all).unwrap_or_default()
    }

    pub fn reads_images(&self) -> bool {
        matches!(self.format, Payloads::Images(_))
    }

    /// The bytes of the rows that an image will become; `None` for a table.
    pub fn image_bytes(&self, payload: &[u8]) -> Option<usize> {
        match &self.format {
            Payloads::Images(reader) => Some(reader.row_bytes(payload)),
            _ => None,
        }
    }
}

impl RecordFormat {
    /// Whether every record of it that was decoded is one that JSON can say.
    pub fn is_json_or_typed(&self) -> bool {
        !matches!(self, RecordFormat::Images(_))
    }

    /// A record that was decoded as JSON, for its verdict, an image left out; `None` if it cannot be said in JSON of a sensible size.
    pub fn to_json<'p>(&self, payload: &'p [u8]) -> Option<Cow<'p, RawValue>> {
        match self {
            RecordFormat::Json => serde_json::from_slice(payload).ok().map(Cow::Borrowed),
            RecordFormat::Typed(source) => {
                let (record_type, record) = source.type_of(payload).ok()?;
                let json = record_type.to_json(record, MOST_JSON)?;
                RawValue::from_string(json).ok().map(Cow::Owned)
            }
            RecordFormat::Images(reader) => reader.context(payload),
        }
    }
}

fn malformed(detail: impl Into<Clipped>) -> RowError {
    RowError {
        reason: Reason::Malformed,
        detail: detail.into(),
    }
}

/// Why a record cannot be a row. It becomes a dead letter.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{detail}")]
pub struct RowError {
    pub reason: Reason,
    /// It may quote the record, so its length is bounded.
    pub detail: Clipped,
}

impl From<ImageError> for RowError {
    fn from(error: ImageError) -> RowError {
        let reason = match error {
            ImageError::TooLarge { .. }
            | ImageError::TooMuchMemory(_)
            | ImageError::OverShare { .. } => Reason::TooLarge,
            ImageError::Missing(_) => Reason::Missing,
            ImageError::NotText(_) => Reason::WrongType,
            ImageError::Duplicate(_) => Reason::Duplicate,
            ImageError::Unknown
            | ImageError::Broken(_)
            | ImageError::Animated
            | ImageError::Json(_)
            | ImageError::NotBase64 { .. } => Reason::Malformed,
        };
        RowError {
            reason,
            detail: error.to_string().into(),
        }
    }
}

/// The kinds of bad records; the label of `dead_letters_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Not one well-formed record of its format and schema.
    Malformed,
    /// The schema registry has no schema with the record's id, or none that can be read.
    UnknownSchema,
    /// A value of a type that the schema does not allow.
    WrongType,
    /// A number that float32 cannot hold.
    OutOfRange,
    /// A feature is absent and the schema says `reject`.
    Missing,
    /// A key that the schema names is there twice.
    Duplicate,
    /// An image of more bytes or pixels than the settings allow.
    TooLarge,
    /// The scorer gave no finite score.
    Unscorable,
}

impl Reason {
    pub const ALL: [Reason; 8] = [
        Reason::Malformed,
        Reason::UnknownSchema,
        Reason::WrongType,
        Reason::OutOfRange,
        Reason::Missing,
        Reason::Duplicate,
        Reason::TooLarge,
        Reason::Unscorable,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Malformed => "malformed",
            Reason::UnknownSchema => "unknown_schema",
            Reason::WrongType => "wrong_type",
            Reason::OutOfRange => "out_of_range",
            Reason::Missing => "missing",
            Reason::Duplicate => "duplicate",
            Reason::TooLarge => "too_large",
            Reason::Unscorable => "unscorable",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
