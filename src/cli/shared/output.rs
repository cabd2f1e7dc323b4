//! Where a verb writes many lines: a file, or standard output with terminal control characters escaped.

use std::fs::File;
use std::io::{self, BufWriter, StdoutLock, Write};
use std::path::Path;

use crate::failure::Failure;
use crate::text::escaped_lines;

/// Escapes control characters. Works on whole lines, because a write may end inside a character. JSON keeps its meaning.
pub struct Safe<W: Write> {
    out: W,
    line: Vec<u8>,
}

pub fn stdout() -> Safe<StdoutLock<'static>> {
    Safe::new(io::stdout().lock())
}

impl<W: Write> Safe<W> {
    fn new(out: W) -> Safe<W> {
        Safe {
            out,
            line: Vec::new(),
        }
    }

    fn write_line(&mut self) -> io::Result<()> {
        let text = String::from_utf8_lossy(&self.line);
        let written = self.out.write_all(escaped_lines(&text).as_bytes());
        self.line.clear();
        written
    }
}

impl<W: Write> Write for Safe<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                self.write_line()?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.write_line()?;
        self.out.flush()
    }
}

impl<W: Write> Drop for Safe<W> {
    fn drop(&mut self) {
        let _ = self.flush();
    }
}

/// Opens the file of `--out`, if given.
pub fn out(path: Option<&Path>) -> Result<Option<Box<dyn Write>>, Failure> {
    Ok(match path {
        None => None,
        Some(path) if path.as_os_str() == "-" => Some(Box::new(stdout())),
        Some(path) => {
            let file = File::create(path);
            let file = file.map_err(|e| Failure::data(format!("{}: {e}", path.display())))?;
            Some(Box::new(BufWriter::new(file)))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_in_two_writes_is_whole_and_an_escape_is_shown() {
        let mut out = Vec::new();
        let mut safe = Safe::new(&mut out);
        let (first, second) = "gr\u{fc}n \u{1b}[2J\nend".as_bytes().split_at(3);
        safe.write_all(first).unwrap();
        safe.write_all(second).unwrap();
        drop(safe);
        assert_eq!(String::from_utf8(out).unwrap(), "gr\u{fc}n \\u001b[2J\nend");
    }
}
