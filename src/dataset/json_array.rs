//! Reads a file that is one JSON array. Its elements are the payloads, byte for byte.

use std::io::{self, BufRead};

use super::{BoxedRead, ErrorKind, MAX_RECORD, Numbered};

pub struct Elements {
    input: BoxedRead,
    read: u64,
    ended: bool,
}

impl Elements {
    /// The input starts with an array.
    pub fn new(mut input: BoxedRead) -> io::Result<Elements> {
        input.skip_until(b'[')?;
        Ok(Elements {
            input,
            read: 0,
            ended: false,
        })
    }

    pub fn read_next(&mut self) -> Result<Option<Numbered>, ErrorKind> {
        if self.ended {
            return Ok(None);
        }
        let mut element = Vec::new();
        let mut scanner = Scanner::default();
        loop {
            let buffer = self.input.fill_buf()?;
            if buffer.is_empty() {
                return Err(broken("the array does not end"));
            }
            let (taken, end) = scanner.scan(buffer);
            element.extend_from_slice(&buffer[..taken]);
            let used = taken + usize::from(end.is_some());
            self.input.consume(used);
            if element.len() as u64 > MAX_RECORD {
                return Err(broken(&format!(
                    "an element is longer than {MAX_RECORD} bytes"
                )));
            }
            match end {
                None => {}
                Some(b',') => return self.element(&element).map(Some),
                Some(_) => {
                    self.ended = true;
                    self.expect_end()?;
                    let is_empty = element.trim_ascii().is_empty() && self.read == 0;
                    return if is_empty {
                        Ok(None)
                    } else {
                        self.element(&element).map(Some)
                    };
                }
            }
        }
    }

    fn element(&mut self, element: &[u8]) -> Result<Numbered, ErrorKind> {
        self.read += 1;
        let payload = element.trim_ascii();
        if payload.is_empty() {
            return Err(broken(&format!(
                "element {} is empty: a comma too many stands before or after it",
                self.read
            )));
        }
        let complete = serde_json::from_slice::<serde::de::IgnoredAny>(payload);
        if let Err(error) = complete {
            return Err(broken(&format!("element {}: {error}", self.read)));
        }
        Ok((self.read, payload.to_vec()))
    }

    fn expect_end(&mut self) -> Result<(), ErrorKind> {
        loop {
            let buffer = self.input.fill_buf()?;
            if buffer.is_empty() {
                return Ok(());
            }
            if !buffer.trim_ascii().is_empty() {
                return Err(broken("text follows the array"));
            }
            let len = buffer.len();
            self.input.consume(len);
        }
    }
}

fn broken(reason: &str) -> ErrorKind {
    ErrorKind::Io(io::Error::other(format!("not one JSON array: {reason}")))
}

/// Finds the comma or bracket that ends an element.
#[derive(Default)]
struct Scanner {
    depth: usize,
    quoted: bool,
    escaped: bool,
}

impl Scanner {
    /// Returns the number of bytes in `buffer` that belong to the element, and the byte that ended it.
    fn scan(&mut self, buffer: &[u8]) -> (usize, Option<u8>) {
        for (at, &byte) in buffer.iter().enumerate() {
            if self.quoted {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.quoted = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.quoted = true,
                b'{' | b'[' => self.depth += 1,
                b',' | b']' if self.depth == 0 => return (at, Some(byte)),
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
        (buffer.len(), None)
    }
}
