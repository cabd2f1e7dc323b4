//! Decodes a payload by its schema into a row of numbers. For JSON, the trainer applies the same rules:
//!
//! | feature | takes | anything else |
//! | --- | --- | --- |
//! | number | a number within float32, a decimal | refused |
//! | bool | `true`, `false`, 1 or 0 | refused |
//! | categorical | a string, an enum by its symbol, or a number or boolean by its text; unknown becomes -1 | refused |
//! | timestamp | an RFC 3339 string, a timestamp type, or a number if the bundle gives its unit | refused |
//! | absent or null | NaN where `missing` is `impute` | refused |
//!
//! NaN and infinities are refused where a feature reads them: as out of range in Avro and Protobuf, as malformed in JSON, which cannot
//! express them. A time of day has an hour but no weekday. A date
//! has a weekday but no hour. Avro's local timestamps count as UTC. A Protobuf `Duration` is a number of seconds. Bytes, arrays,
//! maps and records are not values.
//!
//! A field is absent if the record's schema lacks it or if it is an Avro null. In Protobuf, a field with presence (a message, an
//! `optional` field, a member of a oneof) is absent if it is not on the wire. A scalar without presence that is not on the wire
//! has its default value.
//!
//! The segment by which a bundle may be calibrated is read like a category: a string, an enum by its symbol, a number or boolean
//! by its text. A record without it, or with a value of another type, has no segment but is still judged.
//!
//! Keys that no feature reads are skipped. A JSON key that occurs twice is refused, because readers disagree on which value
//! counts. If a Protobuf field occurs twice, the last value counts, because its readers agree on that.

mod avro;
mod changes;
mod envelope;
mod headers;
pub(crate) mod json;
mod named;
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

pub use changes::features_of_changes;
use envelope::Content;
pub use envelope::{Envelope, Skip, Split, Unwrap, Wrapping, envelope_likeness, likeness};
pub use json::JsonDecoder;
pub use named::SetBy;
use paths::Paths;
pub use schemas::{Ask, Format, RecordType, Schema, SchemaText, Schemas, TypeSource, Wanted};
use segment::Names;
pub use segment::SegmentReader;
use typed::TypedDecoder;

use crate::bundle::{Feature, SegmentBy, SegmentId};
use crate::clip::Clipped;
use crate::image::{ImageError, ImageReader, Load};

/// Maximum size of a record's JSON in a verdict, in bytes. It is larger than a message may be, because a few bytes of Avro can
/// become much JSON.
const MOST_JSON: usize = 4 << 20;

/// The format of records.
#[derive(Debug, Clone)]
pub enum RecordFormat {
    Json,
    /// JSON whose records are in envelopes or in lists.
    Wrapped(Wrapping),
    Typed(TypeSource),
    /// Debezium's change events with types, of which the state after the change is judged.
    Changes(TypeSource),
    /// Images, which an [`ImageReader`] converts to rows.
    Images(ImageReader),
}

/// Decodes records of one format into rows. Each thread has its own.
#[derive(Debug)]
pub struct Decoder {
    format: Payloads,
    /// The names of the segments, if the message key determines them.
    keys: Option<Names>,
}

#[derive(Debug)]
enum Payloads {
    Json(JsonDecoder),
    Wrapped(Wrapping, JsonDecoder),
    Typed(Box<TypedDecoder>),
    /// Images, with what reads the segment if a field of the JSON around the image determines it.
    Images(ImageReader, Option<JsonDecoder>),
}

/// Why a payload was not decoded into a row.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DecodeError {
    #[error(transparent)]
    Row(#[from] RowError),
    /// The schema is not known yet. Request it with [`Decoder::ask_for_schema`], then try again. The record may be good.
    #[error("the schema with id {0} is not known yet")]
    SchemaPending(u32),
    /// The record is well formed, but it has nothing to score.
    #[error("the record has nothing to score: {}", .0.as_str())]
    Nothing(Skip),
}

impl Decoder {
    /// Creates a decoder. `segment` comes from the calibration.
    pub fn new(
        features: &[Feature],
        input: RecordFormat,
        segment: Option<SegmentReader>,
    ) -> Decoder {
        let keys = segment.as_ref().filter(|s| s.by == SegmentBy::Key);
        let keys = keys.map(|segment| segment.names.clone());
        let format = match input {
            RecordFormat::Json => Payloads::Json(JsonDecoder::segmented(features, segment)),
            RecordFormat::Wrapped(wrapping) => {
                let decoder = JsonDecoder::segmented(features, segment);
                let decoder = decoder.allowing_nan(wrapping.allow_nan);
                Payloads::Wrapped(wrapping, decoder)
            }
            RecordFormat::Typed(source) => {
                Payloads::Typed(Box::new(TypedDecoder::new(features, source, segment)))
            }
            RecordFormat::Changes(source) => Payloads::Typed(Box::new(TypedDecoder::of_changes(
                features, source, segment,
            ))),
            RecordFormat::Images(reader) => {
                let by_field = segment.filter(|s| s.by != SegmentBy::Key);
                Payloads::Images(
                    reader,
                    by_field.map(|s| JsonDecoder::segmented(&[], Some(s))),
                )
            }
        };
        Decoder { format, keys }
    }

    /// Divides a message of several records into messages of one record each. Each of them is decoded on its own.
    ///
    /// # Errors
    /// The message does not have the shape that `input.unwrap` expects, or it has too many records.
    pub fn split(&self, payload: &[u8]) -> Result<Split, RowError> {
        match &self.format {
            Payloads::Wrapped(wrapping, _) => wrapping.split(payload),
            _ => Ok(Split::One),
        }
    }

    /// Appends one row, [features], to `rows`, and returns the record's segment if it has a known one. On an error, `rows` is
    /// unchanged. `key` is the message key. This never waits. Images are decoded in pipeline/images.rs instead.
    ///
    /// # Errors
    /// [`DecodeError`] if the record is bad, has nothing to score, or its schema has not arrived yet.
    pub fn decode(
        &mut self,
        payload: &[u8],
        key: Option<&[u8]>,
        rows: &mut Vec<f32>,
    ) -> Result<Option<SegmentId>, DecodeError> {
        let by_field = match &mut self.format {
            Payloads::Json(decoder) => decoder.decode(payload, rows)?,
            Payloads::Wrapped(wrapping, decoder) => match wrapping.open(payload)? {
                Content::Record(json) => {
                    let decoded = decoder.decode_bare(json.as_bytes(), rows);
                    decoded.map_err(|error| wrapping.explained(error, &json, payload))?
                }
                Content::Nothing(skip) => return Err(DecodeError::Nothing(skip)),
            },
            Payloads::Typed(decoder) => decoder.decode(payload, rows)?,
            Payloads::Images(_, fields) => match fields {
                Some(decoder) if ImageReader::is_json(payload) => segment_of(decoder, payload)?,
                _ => None,
            },
        };
        let Some(names) = &mut self.keys else {
            return Ok(by_field);
        };
        let key = key.and_then(|key| std::str::from_utf8(key).ok());
        Ok(key.and_then(|key| names.number(key)))
    }

    /// Requests the schema of this record if it is not known. `written_ms` is the time when the record was written.
    pub fn ask_for_schema(&self, payload: &[u8], written_ms: Option<i64>) {
        if let Payloads::Typed(decoder) = &self.format {
            decoder.ask_for_schema(payload, written_ms);
        }
    }

    /// Describes what a record with this schema is waiting for. `None` if decoding is worth another try.
    pub fn waits_for_schema(&self, id: u32) -> Option<String> {
        match &self.format {
            Payloads::Typed(decoder) => decoder.waits_for_schema(id),
            _ => None,
        }
    }

    /// Returns the names of the segments in the order of their [`SegmentId`]s.
    pub fn segments(&self) -> Vec<String> {
        let paths = match &self.format {
            Payloads::Json(decoder) | Payloads::Wrapped(_, decoder) => Some(&decoder.paths),
            Payloads::Typed(decoder) => Some(&decoder.paths),
            Payloads::Images(_, decoder) => decoder.as_ref().map(|decoder| &decoder.paths),
        };
        let by_field = paths.and_then(Paths::segments);
        let names = by_field.as_ref().or(self.keys.as_ref());
        names.map(Names::all).unwrap_or_default()
    }

    pub fn reads_images(&self) -> bool {
        matches!(self.format, Payloads::Images(..))
    }

    /// Returns what an image takes while it is in flight. `None` for a table.
    pub fn image_load(&self, payload: &[u8]) -> Option<Load> {
        match &self.format {
            Payloads::Images(reader, _) => Some(reader.load(payload)),
            _ => None,
        }
    }
}

/// Returns the segment of an image in JSON. Whether the image itself can be read is seen later.
fn segment_of(decoder: &mut JsonDecoder, payload: &[u8]) -> Result<Option<SegmentId>, RowError> {
    match decoder.decode(payload, &mut Vec::new()) {
        Err(error) if error.reason == Reason::Duplicate => Err(error),
        read => Ok(read.ok().flatten()),
    }
}

impl RecordFormat {
    /// Returns whether every decoded record of this format can be expressed in JSON.
    pub fn is_json_or_typed(&self) -> bool {
        !matches!(self, RecordFormat::Images(_))
    }

    /// Returns a decoded record as JSON for its verdict, without the data of an image. `None` if the JSON would be invalid or too
    /// large.
    pub fn to_json<'p>(&self, payload: &'p [u8]) -> Option<Cow<'p, RawValue>> {
        match self {
            RecordFormat::Json => {
                let json = json::unframed(payload);
                serde_json::from_slice(json)
                    .map(Cow::Borrowed)
                    .ok()
                    .or_else(|| {
                        let marked = json::nan::marked(std::str::from_utf8(json).ok()?);
                        to_raw(&marked)
                    })
            }
            RecordFormat::Wrapped(wrapping) => match wrapping.open(payload).ok()? {
                Content::Record(json) => to_raw(&json),
                Content::Nothing(_) => None,
            },
            RecordFormat::Typed(source) => {
                let (record_type, record) = source.type_of(payload).ok()?;
                let json = record_type.to_json(record, MOST_JSON)?;
                RawValue::from_string(json).ok().map(Cow::Owned)
            }
            RecordFormat::Changes(source) => {
                let (record_type, record) = source.type_of(payload).ok()?;
                let json = record_type.to_json(record, MOST_JSON)?;
                to_raw(&envelope::field(&json, changes::AFTER)?)
            }
            RecordFormat::Images(reader) => reader.context(payload),
        }
    }
}

impl RecordFormat {
    /// Returns a decoded record as the text of its JSON, byte for byte as it came if it came as JSON. `None` as
    /// [`to_json`](Self::to_json).
    pub fn to_text<'p>(&self, payload: &'p [u8]) -> Option<Cow<'p, str>> {
        Some(match self.to_json(payload)? {
            // With the white space around it.
            Cow::Borrowed(_) if matches!(self, RecordFormat::Json) => {
                Cow::Borrowed(std::str::from_utf8(json::unframed(payload)).ok()?)
            }
            Cow::Borrowed(json) => Cow::Borrowed(json.get()),
            Cow::Owned(json) => Cow::Owned(String::from(Box::<str>::from(json))),
        })
    }

    /// Returns whether records come as something else than JSON.
    pub fn is_typed(&self) -> bool {
        matches!(self, RecordFormat::Typed(_) | RecordFormat::Changes(_))
    }
}

/// Returns JSON with null for NaN and infinities, which are not JSON.
pub fn without_nan(json: &str) -> Cow<'_, str> {
    match json::nan::marked(json) {
        Cow::Borrowed(json) => Cow::Borrowed(json),
        Cow::Owned(marked) => Cow::Owned(json::nan::nulled(&marked).into_owned()),
    }
}

/// Returns marked JSON, with null for NaN and infinities.
fn to_raw<'r>(marked: &str) -> Option<Cow<'r, RawValue>> {
    let json = json::nan::nulled(marked.trim()).into_owned();
    RawValue::from_string(json).ok().map(Cow::Owned)
}

fn malformed(detail: impl Into<Clipped>) -> RowError {
    RowError {
        reason: Reason::Malformed,
        detail: detail.into(),
    }
}

/// Why a record cannot be decoded or scored. It becomes a dead letter.
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
            ImageError::NotString(_) => Reason::WrongType,
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

/// The kinds of bad records. They are the values of the label `reason` of `dead_letters_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The payload is not exactly one well-formed record of its format and schema.
    Malformed,
    /// The schema registry has no schema with the record's id, or none that can be read.
    UnknownSchema,
    /// A value has a type that the schema does not allow.
    WrongType,
    /// A number does not fit into float32.
    OutOfRange,
    /// A feature is absent, and the bundle's `missing` for it is `reject`.
    Missing,
    /// A key that the schema reads occurs twice.
    Duplicate,
    /// An image has more bytes or pixels than the settings allow.
    TooLarge,
    /// The scorer returned no finite score.
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
