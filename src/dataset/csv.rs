//! Reads CSV with a header line as in RFC 4180: quotes, quoted line breaks and CRLF. A byte order mark is allowed.

use std::io::{self, Read};

use csv::{ReaderBuilder, StringRecord};
use serde_json::value::RawValue;

use super::layout::Layout;
use super::{BoxedRead, ErrorKind, MAX_RECORD, Numbered};

pub struct Rows {
    reader: csv::Reader<Budget>,
    layout: Layout,
    header: StringRecord,
    record: StringRecord,
}

impl Rows {
    pub fn new(input: BoxedRead) -> Result<Self, ErrorKind> {
        let mut reader = ReaderBuilder::new().from_reader(Budget {
            input,
            left: MAX_RECORD,
        });
        let header = reader.headers()?.clone();
        Ok(Self {
            layout: Layout::new(&header)?,
            reader,
            header,
            record: StringRecord::new(),
        })
    }

    /// Returns the column names, which may be dotted paths. Empty if the file is empty.
    pub fn columns(&self) -> Vec<String> {
        self.header.iter().map(String::from).collect()
    }

    pub fn read_next(&mut self) -> Result<Option<Numbered>, ErrorKind> {
        self.reader.get_mut().left = MAX_RECORD;
        if !self.reader.read_record(&mut self.record)? {
            return Ok(None);
        }
        let line = self.record.position().map_or(0, |at| at.line());
        let mut payload =
            Vec::with_capacity(2 * self.record.as_slice().len() + 16 * self.record.len());
        self.layout.write(&mut payload, &mut |column, out| {
            write_cell(self.record.get(column).unwrap_or_default(), out)
        })?;
        Ok(Some((line, payload)))
    }
}

/// Writes a cell as JSON. Its text, without surrounding spaces, determines the type. Strings keep their spaces.
fn write_cell(cell: &str, out: &mut Vec<u8>) -> Result<(), ErrorKind> {
    let text = cell.trim_ascii();
    let is = |names: &[&str]| names.iter().any(|name| text.eq_ignore_ascii_case(name));
    let bare = text.strip_prefix(['-', '+']).unwrap_or(text);
    if is(&["", "na", "null"])
        || ["nan", "inf", "infinity"]
            .iter()
            .any(|n| bare.eq_ignore_ascii_case(n))
    {
        out.extend_from_slice(b"null");
    } else if is(&["true", "false"]) {
        out.extend(text.bytes().map(|b| b.to_ascii_lowercase()));
    } else if is_number(text) {
        out.extend_from_slice(text.as_bytes());
    } else {
        serde_json::to_writer(out, cell).map_err(io::Error::from)?;
    }
    Ok(())
}

/// Returns whether `text` is a JSON number (RFC 8259, section 6), of any size.
fn is_number(text: &str) -> bool {
    text.starts_with(|c: char| c == '-' || c.is_ascii_digit())
        && serde_json::from_str::<&RawValue>(text).is_ok()
}

/// A reader that fails after `left` bytes, so that one record cannot fill the memory.
struct Budget {
    input: BoxedRead,
    left: u64,
}

impl Read for Budget {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.input.read(buffer)?;
        let too_long = || io::Error::other(format!("a record is longer than {MAX_RECORD} bytes"));
        self.left = self.left.checked_sub(bytes as u64).ok_or_else(too_long)?;
        Ok(bytes)
    }
}
