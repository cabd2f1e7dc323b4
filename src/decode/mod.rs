//! Payload and schema to a row of numbers. The rules, the same as in the trainer:
//!
//! | feature | takes | anything else |
//! | --- | --- | --- |
//! | number | a JSON number within float32 | refused |
//! | bool | `true`, `false`, 1 or 0 | refused |
//! | categorical | a string, or a number or boolean by its text; unknown becomes -1 | refused |
//! | timestamp | an RFC 3339 string, or a number if the schema gives its unit | refused |
//! | absent or `null` | NaN where `missing` is `impute` | refused |
//!
//! Keys that the schema does not name are ignored. A key given twice is refused, because readers disagree on which counts.

mod json;
mod value;

use std::fmt;

pub use json::JsonDecoder;

use crate::bundle::Feature;

/// Reads payloads of one format into rows. One a thread.
#[derive(Debug)]
pub enum Decoder {
    Json(JsonDecoder),
}

/// Why a payload did not become a row.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DecodeError {
    #[error(transparent)]
    Row(#[from] RowError),
    /// Its schema is not known yet: ask again, the record may be good.
    #[error("the schema with id {0} is not known yet")]
    SchemaPending(u32),
}

impl Decoder {
    pub fn json(features: &[Feature]) -> Decoder {
        Decoder::Json(JsonDecoder::new(features))
    }

    /// Appends one row, [features], to `rows`; leaves it as it was on an error.
    ///
    /// # Errors
    /// [`DecodeError`]: the record is bad, or its schema is still on its way.
    pub fn decode(&mut self, payload: &[u8], rows: &mut Vec<f32>) -> Result<(), DecodeError> {
        match self {
            Decoder::Json(decoder) => Ok(decoder.decode(payload, rows)?),
        }
    }
}

/// Why a record cannot be a row. It becomes a dead letter.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{detail}")]
pub struct RowError {
    pub reason: Reason,
    pub detail: String,
}

/// The kinds of bad records; the label of `dead_letters_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Not UTF-8, or not one well-formed JSON object.
    Malformed,
    /// A value of a type that the schema does not allow.
    WrongType,
    /// A number that float32 cannot hold.
    OutOfRange,
    /// A feature is absent and the schema says `reject`.
    Missing,
    /// A key that the schema names is there twice.
    Duplicate,
    /// The scorer gave no finite score.
    Unscorable,
}

impl Reason {
    pub const ALL: [Reason; 6] = [
        Reason::Malformed,
        Reason::WrongType,
        Reason::OutOfRange,
        Reason::Missing,
        Reason::Duplicate,
        Reason::Unscorable,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Malformed => "malformed",
            Reason::WrongType => "wrong_type",
            Reason::OutOfRange => "out_of_range",
            Reason::Missing => "missing",
            Reason::Duplicate => "duplicate",
            Reason::Unscorable => "unscorable",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
