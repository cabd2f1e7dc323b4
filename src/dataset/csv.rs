//! Reads CSV with a header line as in RFC 4180: quotes, quoted line breaks and CRLF. Fields may be separated by comma, semicolon, tab
//! or pipe. The text is UTF-8, or UTF-16 with a byte order mark.

use std::collections::HashSet;
use std::io::{self, BufRead, Read};

use csv::{ReaderBuilder, StringRecord};
use encoding_rs_io::DecodeReaderBytesBuilder;
use serde_json::value::RawValue;

use crate::bundle::notation::NumberFormat;

use super::layout::{Layout, apart};
use super::{BoxedRead, ErrorKind, MAX_RECORD, Numbered};

/// Number of bytes in which the separator and the decimal sign are searched.
const HEAD: usize = 64 << 10;
/// Supported separators. If a header has several equally often, the first of these wins.
const SEPARATORS: [u8; 4] = *b",;\t|";
/// Cells that mean a missing value, in any case. The list is that of pandas.
const MISSING: [&str; 10] = [
    "", "na", "n/a", "#n/a", "#na", "#n/a n/a", "null", "none", "<na>", "nat",
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
    /// Whether the file has decimal commas, so that a point separates thousands.
    decimal_comma: bool,
    /// Cells that are kept as text for that.
    thousands: Missing,
    /// Number of lines that repeat the header.
    repeated: u64,
}

/// Cells that are not what their text says at first sight: those that mean a missing value, for instance.
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
        let mut head = head(&mut input)?;
        let declared = declared_separator(&head);
        if let Some((_, length)) = declared {
            head.drain(..length);
        }
        let separator = match declared {
            Some((separator, _)) => separator,
            None if tabs => b'\t',
            None => separator(&head),
        };
        if separator != b',' && !tabs {
            notes.push(format!(
                "its fields are separated by {:?}",
                char::from(separator)
            ));
        }
        let decimal_comma = separator != b',' && has_decimal_comma(&head, separator);
        let mut reader = ReaderBuilder::new()
            .delimiter(separator)
            .from_reader(Budget {
                input: Box::new(io::Cursor::new(head).chain(input)),
                left: MAX_RECORD,
            });
        let header = names(reader.headers()?, &mut notes);
        let header = apart(header.iter().map(String::as_str), &mut notes);
        if let Some(number) = mostly_numbers(&header) {
            notes.push(format!(
                "its first line is taken for the header, but looks like a record (`{number}`): if the file has no header, add one"
            ));
        }
        Ok(Self {
            layout: Layout::new(header.iter().map(String::as_str))?,
            reader,
            header,
            record: StringRecord::new(),
            notes,
            missing: Missing::default(),
            decimal_comma,
            thousands: Missing::default(),
            repeated: 0,
        })
    }

    /// Returns the column names, which may be dotted paths. Empty if the file is empty.
    pub fn columns(&self) -> Vec<String> {
        self.header.clone()
    }

    /// Returns what was recognised and changed. It is complete after the last record.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.notes.clone();
        if self.repeated > 0 {
            notes.push(format!(
                "{} lines repeat the header: left out",
                self.repeated
            ));
        }
        let Missing { cells, example } = &self.missing;
        if *cells > 0 {
            notes.push(format!(
                "{cells} cells such as `{example}` are read as missing values"
            ));
        }
        let Missing { cells, example } = &self.thousands;
        if *cells > 0 {
            notes.push(format!(
                "{cells} cells such as `{example}` are kept as text, because the file has decimal commas and the point may separate thousands: number_format in the schema says which"
            ));
        }
        notes
    }

    pub fn read_next(&mut self) -> Result<Option<Numbered>, ErrorKind> {
        loop {
            self.reader.get_mut().left = MAX_RECORD;
            let read = self.reader.read_record(&mut self.record);
            if !read.map_err(|e| explained(e, self.header.len()))? {
                return Ok(None);
            }
            // Files that were put together have it again. A single column may hold its own name as a value.
            if self.record.len() == 1 || *self.reader.headers()? != self.record {
                break;
            }
            self.repeated += 1;
        }
        let line = self.record.position().map_or(0, |at| at.line());
        let mut payload =
            Vec::with_capacity(2 * self.record.as_slice().len() + 16 * self.record.len());
        let (missing, thousands) = (&mut self.missing, &mut self.thousands);
        self.layout.write(&mut payload, &mut |column, out| {
            let cell = self.record.get(column).unwrap_or_default();
            if self.decimal_comma && is_in_thousands(cell.trim()) {
                thousands.count(cell.trim());
                serde_json::to_writer(out, cell.trim()).map_err(io::Error::from)?;
                return Ok(());
            }
            write_cell(cell, out, missing)
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

impl Missing {
    fn count(&mut self, text: &str) {
        if self.cells == 0 {
            text.clone_into(&mut self.example);
        }
        self.cells += 1;
    }
}

/// Says what is wrong with a record. `columns` is the length of the header.
fn explained(error: ::csv::Error, columns: usize) -> ErrorKind {
    let line = error.position().map_or(0, csv::Position::line);
    let reason = match error.kind() {
        csv::ErrorKind::UnequalLengths { len, .. } => format!(
            "{len} fields, but the header has {columns}. If there is a title or a comment above the header, delete it. A field that contains the separator or a line break needs quotes"
        ),
        csv::ErrorKind::Utf8 { .. } => {
            "the text is not UTF-8. If it is Windows-1252 or Latin-1, convert the file: iconv -f WINDOWS-1252 -t UTF-8".to_owned()
        }
        _ => return error.into(),
    };
    ErrorKind::Record {
        unit: "line",
        number: line,
        reason,
    }
}

/// Returns the separator of Excel's first line `sep=;` and the length of this line.
fn declared_separator(head: &[u8]) -> Option<(u8, usize)> {
    let length = head.iter().position(|byte| *byte == b'\n')? + 1;
    let line = head[..length].trim_ascii_end();
    let line = line.strip_prefix(b"\"").unwrap_or(line);
    match line.strip_suffix(b"\"").unwrap_or(line) {
        [b's' | b'S', b'e' | b'E', b'p' | b'P', b'=', separator] => SEPARATORS
            .contains(separator)
            .then_some((*separator, length)),
        // The trimmed tab of `sep=\t`.
        b"sep=" => Some((b'\t', length)),
        _ => None,
    }
}

/// Returns whether a cell is a number with a decimal comma that can be nothing else.
fn has_decimal_comma(head: &[u8], separator: u8) -> bool {
    let cells = head.split(|byte| *byte == separator || *byte == b'\n');
    cells
        .filter_map(|cell| str::from_utf8(cell).ok())
        .any(|cell| {
            let cell = cell.trim().trim_matches('"');
            cell.contains(',')
                && NumberFormat::DecimalComma.parse(cell).is_some()
                && NumberFormat::DecimalPoint.parse(cell).is_none()
        })
}

/// Returns whether a text is a number whose points may separate thousands: 5.012 or -1.234.567.
fn is_in_thousands(text: &str) -> bool {
    let digits = |group: &str| group.bytes().all(|byte| byte.is_ascii_digit());
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let mut groups = unsigned.split('.');
    let first = groups.next().unwrap_or_default();
    let mut rest = groups.peekable();
    (1..=3).contains(&first.len())
        && digits(first)
        && !first.starts_with('0')
        && rest.peek().is_some()
        && rest.all(|group| group.len() == 3 && digits(group))
}

/// Returns the first of the names that is a number, if most names are.
fn mostly_numbers(names: &[String]) -> Option<&str> {
    let numbers = || names.iter().filter(|name| name.parse::<f64>().is_ok());
    (numbers().count() * 2 > names.len()).then(|| numbers().next().map(String::as_str))?
}

/// Reads the file's first bytes.
fn head(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = vec![0; HEAD];
    let mut filled = 0;
    while filled < HEAD {
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
            missing.count(text);
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

/// Returns whether `text` is a JSON number (RFC 8259, section 6) within float64. A larger one would make the whole record unreadable.
fn is_number(text: &str) -> bool {
    text.starts_with(|c: char| c == '-' || c.is_ascii_digit())
        && serde_json::from_str::<&RawValue>(text).is_ok()
        && text.parse::<f64>().is_ok_and(f64::is_finite)
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
