//! Reads CSV with a header line as in RFC 4180: quotes, quoted line breaks and CRLF. Fields may be separated by comma, semicolon, tab
//! or pipe. The text is UTF-8, or UTF-16 with a byte order mark.

use std::collections::HashSet;
use std::io::{self, BufRead, Read};

use csv::{ReaderBuilder, StringRecord};
use encoding_rs_io::DecodeReaderBytesBuilder;
use serde_json::value::RawValue;

use super::layout::{Layout, apart};
use super::{BoxedRead, ErrorKind, MAX_RECORD, Numbered};

/// Number of bytes in which the separator is searched.
const HEAD: usize = 64 << 10;
/// Supported separators. If a header has several equally often, the first of these wins.
const SEPARATORS: [u8; 4] = *b",;\t|";
/// Cells that mean a missing value, in any case. The list is that of pandas.
const MISSING: [&str; 9] = [
    "", "na", "n/a", "#n/a", "#na", "#n/a n/a", "null", "none", "<na>",
];
/// Further cells that mean a missing value, with or without a sign.
const NOT_FINITE: [&str; 5] = ["nan", "inf", "infinity", "1.#ind", "1.#qnan"];

pub struct Rows {
    reader: csv::Reader<Budget>,
    layout: Layout,
    header: Vec<String>,
    record: StringRecord,
    notes: Vec<String>,
    missing: Missing,
}

/// Cells with a text that was read as a missing value.
#[derive(Default)]
struct Missing {
    cells: u64,
    /// The first of these texts.
    example: String,
}

impl Rows {
    pub fn new(mut input: BoxedRead, tabs: bool) -> Result<Self, ErrorKind> {
        let mut notes = Vec::new();
        if input.fill_buf()?.starts_with(b"\xff\xfe") || input.fill_buf()?.starts_with(b"\xfe\xff")
        {
            notes.push("it is in UTF-16".to_owned());
        }
        // Decodes UTF-16 by its byte order mark. Invalid UTF-8 is passed through, so that the error can name its line.
        let mut decoder = DecodeReaderBytesBuilder::new();
        let decoder = decoder
            .bom_override(true)
            .utf8_passthru(true)
            .strip_bom(true);
        let mut input = decoder.build(input);
        let head = head(&mut input)?;
        let separator = if tabs { b'\t' } else { separator(&head) };
        if separator != b',' && !tabs {
            notes.push(format!(
                "its fields are separated by {:?}",
                char::from(separator)
            ));
        }
        let mut reader = ReaderBuilder::new()
            .delimiter(separator)
            .from_reader(Budget {
                input: Box::new(io::Cursor::new(head).chain(input)),
                left: MAX_RECORD,
            });
        let header = names(reader.headers()?, &mut notes);
        let header = apart(header.iter().map(String::as_str), &mut notes);
        Ok(Self {
            layout: Layout::new(header.iter().map(String::as_str))?,
            reader,
            header,
            record: StringRecord::new(),
            notes,
            missing: Missing::default(),
        })
    }

    /// Returns the column names, which may be dotted paths. Empty if the file is empty.
    pub fn columns(&self) -> Vec<String> {
        self.header.clone()
    }

    /// Returns what was recognised and changed. It is complete after the last record.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.notes.clone();
        let Missing { cells, example } = &self.missing;
        if *cells > 0 {
            notes.push(format!(
                "{cells} cells such as `{example}` are read as missing values"
            ));
        }
        notes
    }

    pub fn read_next(&mut self) -> Result<Option<Numbered>, ErrorKind> {
        self.reader.get_mut().left = MAX_RECORD;
        if !self.reader.read_record(&mut self.record)? {
            return Ok(None);
        }
        let line = self.record.position().map_or(0, |at| at.line());
        let mut payload =
            Vec::with_capacity(2 * self.record.as_slice().len() + 16 * self.record.len());
        let missing = &mut self.missing;
        self.layout.write(&mut payload, &mut |column, out| {
            write_cell(self.record.get(column).unwrap_or_default(), out, missing)
        })?;
        Ok(Some((line, payload)))
    }
}

/// Returns a text as the JSON that a cell with this text becomes.
pub fn cell(text: &str) -> Result<String, ErrorKind> {
    let mut json = Vec::new();
    write_cell(text, &mut json, &mut Missing::default())?;
    Ok(String::from_utf8_lossy(&json).into_owned())
}

/// Reads the file's first bytes: all of its first line, unless that is too long.
fn head(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = vec![0; HEAD];
    let mut filled = 0;
    while filled < HEAD && !head[..filled].contains(&b'\n') {
        match input.read(&mut head[filled..])? {
            0 => break,
            bytes => filled += bytes,
        }
    }
    head.truncate(filled);
    Ok(head)
}

/// Returns the separator that occurs most often in the first line, outside quotes.
fn separator(head: &[u8]) -> u8 {
    let mut counts = [0_u32; SEPARATORS.len()];
    let mut quoted = false;
    for &byte in head {
        match byte {
            b'"' => quoted = !quoted,
            b'\n' if !quoted => break,
            _ if quoted => {}
            _ => {
                if let Some(at) = SEPARATORS.iter().position(|s| *s == byte) {
                    counts[at] += 1;
                }
            }
        }
    }
    let most = counts.iter().max().copied().unwrap_or_default();
    let at = counts.iter().position(|count| *count == most);
    SEPARATORS[at.unwrap_or_default()]
}

/// Returns the header's names without surrounding spaces. A column without a name, or with the name of an earlier one, gets a new name.
fn names(header: &StringRecord, notes: &mut Vec<String>) -> Vec<String> {
    let given: HashSet<&str> = header.iter().map(str::trim).collect();
    let mut taken: HashSet<String> = HashSet::new();
    let mut names = Vec::with_capacity(header.len());
    for (column, name) in header.iter().enumerate() {
        let name = name.trim();
        let unnamed = name.is_empty();
        let base = if unnamed {
            format!("unnamed_{}", column + 1)
        } else {
            name.to_owned()
        };
        let mut unique = base.clone();
        let mut number = 1;
        while taken.contains(&unique) || (unique != name && given.contains(unique.as_str())) {
            number += 1;
            unique = format!("{base}_{number}");
        }
        if unnamed {
            notes.push(format!(
                "column {} has no name: it is called `{unique}`",
                column + 1
            ));
        } else if unique != name {
            notes.push(format!(
                "column {} is a second `{name}`: it is called `{unique}`",
                column + 1
            ));
        }
        taken.insert(unique.clone());
        names.push(unique);
    }
    names
}

/// Writes a cell as JSON. Its text, without surrounding spaces, determines the type.
fn write_cell(cell: &str, out: &mut Vec<u8>, missing: &mut Missing) -> Result<(), ErrorKind> {
    let text = cell.trim();
    let is = |names: &[&str], text: &str| names.iter().any(|name| text.eq_ignore_ascii_case(name));
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if is(&MISSING, text) || is(&NOT_FINITE, unsigned) {
        if !text.is_empty() {
            if missing.cells == 0 {
                missing.example = text.to_owned();
            }
            missing.cells += 1;
        }
        out.extend_from_slice(b"null");
    } else if is(&["true", "false"], text) {
        out.extend(text.bytes().map(|b| b.to_ascii_lowercase()));
    } else if is_number(text) {
        out.extend_from_slice(text.as_bytes());
    } else if let Some(number) = as_number(text).filter(|number| is_number(number)) {
        out.extend_from_slice(number.as_bytes());
    } else {
        serde_json::to_writer(out, text).map_err(io::Error::from)?;
    }
    Ok(())
}

/// Returns whether `text` is a JSON number (RFC 8259, section 6), of any size.
fn is_number(text: &str) -> bool {
    text.starts_with(|c: char| c == '-' || c.is_ascii_digit())
        && serde_json::from_str::<&RawValue>(text).is_ok()
}

/// Converts numbers such as `+1.5`, `.5` and `5.` to JSON's notation.
fn as_number(text: &str) -> Option<String> {
    let (sign, unsigned) = match text.as_bytes().first()? {
        b'-' => ("-", &text[1..]),
        b'+' => ("", &text[1..]),
        _ => ("", text),
    };
    let (mantissa, exponent) = match unsigned.find(['e', 'E']) {
        Some(at) => unsigned.split_at(at),
        None => (unsigned, ""),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
    if whole.is_empty() && (fraction.is_empty() || !mantissa.contains('.')) {
        return None;
    }
    let whole = if whole.is_empty() { "0" } else { whole };
    let fraction = if fraction.is_empty() { "0" } else { fraction };
    Some(match mantissa.contains('.') {
        true => format!("{sign}{whole}.{fraction}{exponent}"),
        false => format!("{sign}{whole}{exponent}"),
    })
}

/// A reader that fails after `left` bytes, so that one record cannot fill the memory.
struct Budget {
    input: Box<dyn Read + Send>,
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
