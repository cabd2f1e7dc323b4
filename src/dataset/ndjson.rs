//! Reads newline-delimited JSON. Each line becomes a payload unchanged, so that invalid lines reach the daemon too.

use std::io::{BufRead, Read};

use super::{BoxedRead, ErrorKind, MAX_RECORD, Numbered};

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

pub struct Lines {
    input: BoxedRead,
    line: u64,
}

impl Lines {
    pub fn new(input: BoxedRead) -> Self {
        Self { input, line: 0 }
    }

    pub fn read_next(&mut self) -> Result<Option<Numbered>, ErrorKind> {
        loop {
            let mut bytes = vec![];
            if (&mut self.input)
                .take(MAX_RECORD + 1)
                .read_until(b'\n', &mut bytes)?
                == 0
            {
                return Ok(None);
            }
            self.line += 1;
            if bytes.len() as u64 > MAX_RECORD && bytes.last() != Some(&b'\n') {
                self.input.skip_until(b'\n')?;
                let reason = format!("the line is longer than {MAX_RECORD} bytes");
                return Err(ErrorKind::Record {
                    unit: "line",
                    number: self.line,
                    reason,
                });
            }
            if self.line == 1 && bytes.starts_with(BYTE_ORDER_MARK) {
                bytes.drain(..BYTE_ORDER_MARK.len());
            }
            if bytes.pop_if(|last| *last == b'\n').is_some() {
                bytes.pop_if(|last| *last == b'\r');
            }
            if !bytes.trim_ascii().is_empty() {
                return Ok(Some((self.line, bytes)));
            }
        }
    }
}
