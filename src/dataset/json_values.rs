//! Writes values of columnar files as JSON.

use std::io;

use base64::prelude::{BASE64_STANDARD, Engine};
use jiff::Timestamp;
use jiff::tz::Offset;
use serde::Serialize;

use super::ErrorKind;

/// Counts values that JSON does not have, by what became of them.
#[derive(Default)]
pub struct Changes {
    as_base64: u64,
    too_far: u64,
    infinite: u64,
}

impl Changes {
    /// Returns one sentence for each kind of change.
    pub fn notes(&self) -> Vec<String> {
        let Changes {
            as_base64,
            too_far,
            infinite,
        } = self;
        let base64 = format!("{as_base64} values are bytes that are not UTF-8: written as base64");
        let null = format!("{too_far} dates lie outside the years -9999 to 9999: written as null");
        let no_number =
            format!("{infinite} numbers are infinite, which JSON does not have: written as null");
        let notes = [
            (*as_base64, base64),
            (*too_far, null),
            (*infinite, no_number),
        ];
        let changed = notes.into_iter().filter(|(count, _)| *count > 0);
        changed.map(|(_, note)| note).collect()
    }
}

impl Changes {
    /// Counts a number if it is infinite. NaN is a missing value.
    pub fn count(&mut self, number: f64) {
        self.infinite += u64::from(number.is_infinite());
    }
}

/// Writes a float as JSON. NaN and infinities become null.
pub fn float<T: Serialize + Copy + Into<f64>>(
    out: &mut Vec<u8>,
    value: T,
    changes: &mut Changes,
) -> Result<(), ErrorKind> {
    changes.count(value.into());
    json(out, &value)
}

/// Writes a value as JSON. Non-finite floats become null, the default of serde_json.
pub fn json<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) -> Result<(), ErrorKind> {
    Ok(serde_json::to_writer(out, value).map_err(io::Error::from)?)
}

/// Writes bytes as a string, in base64 if they are not UTF-8.
pub fn binary(out: &mut Vec<u8>, bytes: &[u8], changes: &mut Changes) -> Result<(), ErrorKind> {
    match str::from_utf8(bytes) {
        Ok(text) => json(out, text),
        Err(_) => {
            changes.as_base64 += 1;
            json(out, &BASE64_STANDARD.encode(bytes))
        }
    }
}

/// Writes a time as RFC 3339 in UTC.
pub fn timestamp(
    out: &mut Vec<u8>,
    time: Result<Timestamp, jiff::Error>,
    changes: &mut Changes,
) -> Result<(), ErrorKind> {
    match time {
        Ok(time) => json(out, &time.to_string()),
        Err(_) => too_far(out, changes),
    }
}

/// Writes a time of day, in nanoseconds since midnight.
pub fn time(out: &mut Vec<u8>, nanoseconds: i64, changes: &mut Changes) -> Result<(), ErrorKind> {
    match Timestamp::from_nanosecond(nanoseconds.into()) {
        Ok(time) => json(out, &Offset::UTC.to_datetime(time).time().to_string()),
        Err(_) => too_far(out, changes),
    }
}

/// Writes a duration in seconds.
pub fn seconds(out: &mut Vec<u8>, count: i64, per_second: f64) -> Result<(), ErrorKind> {
    json(out, &(count as f64 / per_second))
}

fn too_far(out: &mut Vec<u8>, changes: &mut Changes) -> Result<(), ErrorKind> {
    changes.too_far += 1;
    json(out, &())
}

/// Writes the items of an array or object, with commas between them.
pub fn sequence<T>(
    out: &mut Vec<u8>,
    [open, close]: [u8; 2],
    items: impl IntoIterator<Item = T>,
    mut write: impl FnMut(&mut Vec<u8>, T) -> Result<(), ErrorKind>,
) -> Result<(), ErrorKind> {
    out.push(open);
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(out, item)?;
    }
    out.push(close);
    Ok(())
}
