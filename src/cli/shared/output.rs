//! The output of verbs that write many lines: a file, or standard output with terminal control characters escaped.

use std::fs::File;
use std::io::{self, BufWriter, StdoutLock, Write};
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::text::escaped_lines;

/// A writer that escapes control characters. It works on whole lines, because a write may end inside a character. Escaping does
/// not change the meaning of JSON.
pub struct EscapedWriter<W: Write> {
    out: W,
    line: Vec<u8>,
}

pub fn stdout() -> EscapedWriter<StdoutLock<'static>> {
    EscapedWriter::new(io::stdout().lock())
}

impl<W: Write> EscapedWriter<W> {
    pub fn new(out: W) -> EscapedWriter<W> {
        EscapedWriter {
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

impl<W: Write> Write for EscapedWriter<W> {
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

impl<W: Write> Drop for EscapedWriter<W> {
    fn drop(&mut self) {
        let _ = self.flush();
    }
}

/// A file whose errors name it.
struct Named<W> {
    out: W,
    path: PathBuf,
}

impl<W: Write> Named<W> {
    fn named(&self, error: &io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("{}: {error}", self.path.display()))
    }
}

impl<W: Write> Write for Named<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes).map_err(|error| self.named(&error))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush().map_err(|error| self.named(&error))
    }
}

/// Opens the file of `--out`, if it is given. `-` is standard output.
pub fn out(path: Option<&Path>) -> Result<Option<Box<dyn Write>>, Failure> {
    Ok(match path {
        None => None,
        Some(path) if path.as_os_str() == "-" => Some(Box::new(stdout())),
        Some(path) => {
            let file = File::create(path);
            let file = file.map_err(|e| Failure::data(format!("{}: {e}", path.display())))?;
            Some(Box::new(Named {
                out: BufWriter::new(file),
                path: path.to_owned(),
            }))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_in_two_writes_is_whole_and_an_escape_is_shown() {
        let mut out = Vec::new();
        let mut safe = EscapedWriter::new(&mut out);
        let (first, second) = "gr\u{fc}n \u{1b}[2J\nend".as_bytes().split_at(3);
        safe.write_all(first).unwrap();
        safe.write_all(second).unwrap();
        drop(safe);
        assert_eq!(String::from_utf8(out).unwrap(), "gr\u{fc}n \\u001b[2J\nend");
    }
}
