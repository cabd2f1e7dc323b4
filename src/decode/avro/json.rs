//! Writes an Avro record as JSON for a verdict: enums by symbol, timestamps in RFC 3339, decimals as numbers, bytes in base64, a
//! union as the value in it. NaN and infinities, which JSON cannot express, are strings.

use std::fmt::Write as _;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use jiff::Timestamp;
use jiff::civil::{Date, Time};

use super::super::wire::Cursor;
use super::super::{RowError, malformed};
use super::{
    AvroSchema, Id, MAX_DEPTH, MAX_EMPTY_ITEMS, Shape, boolean, chosen, decimal, int, too_deep,
    unscaled, uuid,
};

const NANOSECONDS: i128 = 1_000_000_000;

/// Returns a record as JSON of at most `most` bytes.
pub fn to_json(schema: &AvroSchema, payload: &[u8], most: usize) -> Result<String, RowError> {
    let mut writer = Writer {
        schema,
        out: String::new(),
        most,
    };
    let mut cursor = Cursor(payload);
    writer.value(schema.root, &mut cursor, 0)?;
    match cursor.is_empty() {
        true => Ok(writer.out),
        false => Err(malformed("bytes follow the record")),
    }
}

struct Writer<'s> {
    schema: &'s AvroSchema,
    out: String,
    most: usize,
}

impl Writer<'_> {
    fn value(&mut self, id: Id, cursor: &mut Cursor<'_>, depth: usize) -> Result<(), RowError> {
        if depth > MAX_DEPTH {
            return Err(too_deep());
        }
        if self.out.len() > self.most {
            return Err(malformed("the record is too long as JSON"));
        }
        match &self.schema.shapes[id] {
            Shape::Null => self.plain("null"),
            Shape::Boolean => self.plain(boolean(cursor)?),
            Shape::Int => self.plain(int(cursor)?),
            Shape::Long => self.plain(cursor.zigzag()?),
            Shape::Float => {
                let number = f32::from_le_bytes(cursor.array()?);
                // Written as an f32, so that 0.1 does not become 0.10000000149011612.
                match number.is_finite() {
                    true => self.plain(serde_json::json!(number)),
                    false => self.quoted(&number.to_string()),
                }
            }
            Shape::Double => {
                let number = f64::from_le_bytes(cursor.array()?);
                match number.is_finite() {
                    true => self.plain(serde_json::json!(number)),
                    false => self.quoted(&number.to_string()),
                }
            }
            Shape::Text => {
                let length = cursor.zigzag()?;
                let text = String::from_utf8_lossy(cursor.sized(length)?);
                self.quoted(&text);
            }
            Shape::Enum(symbols) => self.quoted(chosen(symbols, cursor, "an enum")?),
            Shape::Uuid => self.quoted(&uuid(cursor)?),
            Shape::Bytes => {
                let length = cursor.zigzag()?;
                self.bytes(cursor.sized(length)?);
            }
            Shape::Fixed(size) => self.bytes(cursor.take(*size)?),
            Shape::Decimal(scale, size) => {
                let unscaled = unscaled(*size, cursor)?;
                match decimal(*scale, unscaled) {
                    Some(digits) => self.plain(digits),
                    None => self.bytes(unscaled),
                }
            }
            Shape::Date => self.date(int(cursor)?),
            Shape::Clock(per_second) => self.time_of_day(cursor.zigzag()?, *per_second),
            Shape::Time(per_second) => self.timestamp(cursor.zigzag()?, *per_second),
            Shape::Array(items) => self.array(*items, cursor, depth)?,
            Shape::Map(values) => self.map(*values, cursor, depth)?,
            Shape::Union(branches) => {
                let branch = chosen(branches, cursor, "a union")?;
                self.value(*branch, cursor, depth + 1)?;
            }
            Shape::Record(fields) => {
                self.out.push('{');
                for (name, field) in fields {
                    self.comma('{');
                    self.quoted(name);
                    self.out.push(':');
                    self.value(*field, cursor, depth + 1)?;
                }
                self.out.push('}');
            }
        }
        Ok(())
    }

    fn array(&mut self, items: Id, cursor: &mut Cursor<'_>, depth: usize) -> Result<(), RowError> {
        self.out.push('[');
        let schema = self.schema;
        schema.blocks(cursor, false, |cursor, count| {
            if schema.empty[items] && count > MAX_EMPTY_ITEMS as u64 {
                return Err(malformed(format!(
                    "{count} items that take no bytes: at most {MAX_EMPTY_ITEMS} are allowed"
                )));
            }
            for _ in 0..count {
                self.comma('[');
                self.value(items, cursor, depth + 1)?;
            }
            Ok(())
        })?;
        self.out.push(']');
        Ok(())
    }

    fn map(&mut self, values: Id, cursor: &mut Cursor<'_>, depth: usize) -> Result<(), RowError> {
        self.out.push('{');
        let schema = self.schema;
        schema.blocks(cursor, false, |cursor, count| {
            for _ in 0..count {
                self.comma('{');
                let length = cursor.zigzag()?;
                self.quoted(&String::from_utf8_lossy(cursor.sized(length)?));
                self.out.push(':');
                self.value(values, cursor, depth + 1)?;
            }
            Ok(())
        })?;
        self.out.push('}');
        Ok(())
    }

    /// Writes a date, or its number of days if it is out of range.
    fn date(&mut self, days: i32) {
        let epoch = Date::constant(1970, 1, 1);
        let span = jiff::Span::new().try_days(days).ok();
        match span.and_then(|days| epoch.checked_add(days).ok()) {
            Some(date) => self.quoted(&date.to_string()),
            None => self.plain(days),
        }
    }

    /// Writes a time of day, or its count of units if it is out of range.
    fn time_of_day(&mut self, count: i64, per_second: i64) {
        let nanoseconds = i128::from(count) * NANOSECONDS / i128::from(per_second);
        let span = i64::try_from(nanoseconds).ok();
        let span = span.and_then(|n| jiff::Span::new().try_nanoseconds(n).ok());
        match span.and_then(|span| Time::midnight().checked_add(span).ok()) {
            Some(time) => self.quoted(&time.to_string()),
            None => self.plain(count),
        }
    }

    /// Writes a timestamp with as many digits as its unit has, or its count of units if it is out of range.
    fn timestamp(&mut self, count: i64, per_second: i64) {
        let nanoseconds = i128::from(count) * NANOSECONDS / i128::from(per_second);
        match Timestamp::from_nanosecond(nanoseconds) {
            Ok(time) => match per_second {
                1_000 => self.quoted(&format!("{time:.3}")),
                1_000_000 => self.quoted(&format!("{time:.6}")),
                _ => self.quoted(&format!("{time:.9}")),
            },
            Err(_) => self.plain(count),
        }
    }

    fn comma(&mut self, opening: char) {
        if !self.out.ends_with(opening) {
            self.out.push(',');
        }
    }

    fn plain(&mut self, value: impl std::fmt::Display) {
        write!(self.out, "{value}").expect("writing to a String does not fail");
    }

    fn quoted(&mut self, text: &str) {
        self.out.push_str(&serde_json::json!(text).to_string());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.quoted(&BASE64_STANDARD.encode(bytes));
    }
}
