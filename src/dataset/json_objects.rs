//! Reads JSON objects that take several lines each, one after the other, as `jq` writes them.

use std::io::{self, BufRead, BufReader, Cursor, Read};

use serde::de::IgnoredAny;

use super::{BoxedRead, ErrorKind, MAX_RECORD, Numbered};

/// Number of bytes in which the end of the first object or line is searched.
const HEAD: usize = 64 << 10;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// How a file holds its JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One value a line.
    Lines,
    /// Objects of several lines.
    Objects,
    /// One array of several lines, or of one line that is the whole file.
    Array,
}

/// Tells how a file holds its JSON by its beginning, and returns the whole input. `may_be_lines`: a single line with an array is a
/// record of its own. No more is read than is needed, because the input may be a pipe.
pub fn shape(mut input: BoxedRead, may_be_lines: bool) -> io::Result<(Shape, BoxedRead)> {
    let mut head = Vec::new();
    let shape = loop {
        let buffer = match input.fill_buf() {
            Ok(buffer) => buffer,
            // What was read before the error is given first.
            Err(error) => {
                let shape = shape_of(&head, may_be_lines, true).unwrap_or(Shape::Lines);
                let broken = BufReader::new(Broken(Some(error)));
                return Ok((shape, Box::new(Cursor::new(head).chain(broken))));
            }
        };
        let is_whole = buffer.is_empty() || head.len() >= HEAD;
        if let Some(shape) = shape_of(&head, may_be_lines, is_whole) {
            break shape;
        }
        head.extend_from_slice(buffer);
        let read = buffer.len();
        input.consume(read);
    };
    Ok((shape, Box::new(Cursor::new(head).chain(input))))
}

/// An input that fails.
struct Broken(Option<io::Error>);

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(self
            .0
            .take()
            .unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into()))
    }
}

/// Returns `None` if more of the file must be known.
fn shape_of(head: &[u8], may_be_lines: bool, is_whole: bool) -> Option<Shape> {
    let text = head.strip_prefix(BYTE_ORDER_MARK).unwrap_or(head);
    let text = text.trim_ascii_start();
    let (first, rest) = match text.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&text[..end], text[end..].trim_ascii()),
        None if is_whole && may_be_lines => return Some(Shape::Lines),
        None if is_whole => (text, &b""[..]),
        None => return None,
    };
    let is_complete = serde_json::from_slice::<IgnoredAny>(first).is_ok();
    match text.first() {
        Some(b'[') if is_complete && !rest.is_empty() => Some(Shape::Lines),
        Some(b'[') if is_complete && may_be_lines => Some(Shape::Lines),
        Some(b'[') if is_complete && !is_whole => None,
        Some(b'[') => Some(Shape::Array),
        Some(b'{') if !is_complete && !rest.is_empty() => match Balance::default().end(text) {
            // A line that was cut off makes no object with the next one.
            Some(end) => Some(
                match serde_json::from_slice::<IgnoredAny>(&text[..end]).is_ok() {
                    true => Shape::Objects,
                    false => Shape::Lines,
                },
            ),
            None if !is_whole => None,
            None if rest.starts_with(b"\"") => Some(Shape::Objects),
            None => Some(Shape::Lines),
        },
        Some(b'{') if !is_complete && !is_whole => None,
        _ => Some(Shape::Lines),
    }
}

pub struct Objects {
    input: BoxedRead,
    /// The number of the current line, counted from 1.
    line: u64,
}

impl Objects {
    pub fn new(input: BoxedRead) -> Objects {
        Objects { input, line: 1 }
    }

    /// Returns the next object and the line where it begins. Text that is no object counts as a record of one line.
    pub fn read_next(&mut self) -> Result<Option<Numbered>, ErrorKind> {
        let Some(first) = self.skip_blanks()? else {
            return Ok(None);
        };
        let (line, mut object) = (self.line, Vec::new());
        let mut balance = Balance::default();
        loop {
            let buffer = self.input.fill_buf()?;
            if buffer.is_empty() {
                return Ok(Some((line, object)));
            }
            let end = match first {
                b'{' => balance.end(buffer),
                _ => buffer.iter().position(|byte| *byte == b'\n'),
            };
            let taken = &buffer[..end.unwrap_or(buffer.len())];
            self.line += taken.iter().filter(|byte| **byte == b'\n').count() as u64;
            object.extend_from_slice(taken);
            let taken = taken.len();
            self.input.consume(taken);
            if object.len() as u64 > MAX_RECORD {
                let message = format!("line {line}: the record is longer than {MAX_RECORD} bytes");
                return Err(ErrorKind::Io(io::Error::other(message)));
            }
            if end.is_some() {
                object.truncate(object.trim_ascii_end().len());
                return Ok(Some((line, object)));
            }
        }
    }

    /// Returns the first byte that is not blank, or `None` at the end.
    fn skip_blanks(&mut self) -> io::Result<Option<u8>> {
        loop {
            let buffer = self.input.fill_buf()?;
            let mark = match buffer.starts_with(BYTE_ORDER_MARK) && self.line == 1 {
                true => BYTE_ORDER_MARK.len(),
                false => 0,
            };
            let blank = buffer[mark..]
                .iter()
                .take_while(|b| b.is_ascii_whitespace());
            let blanks = mark + blank.count();
            let lines = buffer[..blanks].iter().filter(|byte| **byte == b'\n');
            self.line += lines.count() as u64;
            let (next, is_end) = (buffer.get(blanks).copied(), buffer.is_empty());
            self.input.consume(blanks);
            if next.is_some() || is_end {
                return Ok(next);
            }
        }
    }
}

/// Finds the end of an object by its brackets.
#[derive(Default)]
struct Balance {
    depth: u64,
    quoted: bool,
    escaped: bool,
}

impl Balance {
    /// Returns the number of bytes up to the end of the object, or `None` if it goes on.
    fn end(&mut self, text: &[u8]) -> Option<usize> {
        for (at, byte) in text.iter().enumerate() {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.quoted => self.escaped = true,
                b'"' => self.quoted = !self.quoted,
                _ if self.quoted => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(at + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }
}
