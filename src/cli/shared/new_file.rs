//! A file of text or bytes that gets its name only when it is complete. Until then it is called NAME.part.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Stdout, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;

use super::output::EscapedWriter;
use crate::failure::Failure;

pub struct NewFile {
    /// `None` for standard output.
    place: Option<Place>,
    out: Out,
}

struct Place {
    path: PathBuf,
    part: PathBuf,
}

enum Out {
    Plain(BufWriter<File>),
    Gzip(Box<GzEncoder<BufWriter<File>>>),
    Stdout(EscapedWriter<Stdout>),
}

/// # Errors
/// The file exists and `force` is not given.
pub fn must_be_new(path: &Path, force: bool) -> Result<(), Failure> {
    match path.exists() && !force {
        false => Ok(()),
        true => Err(Failure::usage(format!(
            "{} exists: choose another name, or replace it with --force",
            path.display()
        ))),
    }
}

impl NewFile {
    /// Opens the file, or standard output for `-`. A name that ends in .gz is compressed. With `appends`, it goes on after what an
    /// interrupted run has written.
    ///
    /// # Errors
    /// The file exists and `force` is not given, or it cannot be created.
    pub fn open(path: &Path, force: bool, appends: bool) -> Result<NewFile, Failure> {
        if path.as_os_str() == "-" {
            let out = Out::Stdout(EscapedWriter::new(io::stdout()));
            return Ok(NewFile { place: None, out });
        }
        must_be_new(path, force)?;
        let part = part_of(path);
        let mut options = OpenOptions::new();
        let options = options
            .create(true)
            .write(true)
            .append(appends)
            .truncate(!appends);
        let file = options.open(&part).map(BufWriter::new);
        let file = file.map_err(|e| Failure::data(format!("{}: {e}", part.display())))?;
        let out = match path.extension().is_some_and(|extension| extension == "gz") {
            true => Out::Gzip(Box::new(GzEncoder::new(file, Compression::default()))),
            false => Out::Plain(file),
        };
        let path = path.to_owned();
        Ok(NewFile {
            place: Some(Place { path, part }),
            out,
        })
    }

    /// Completes the file and gives it its name.
    ///
    /// # Errors
    /// The disk is full, or the file cannot be renamed.
    pub fn finish(mut self) -> Result<(), Failure> {
        self.complete()?;
        match self.place {
            Some(Place { path, part }) => {
                let renamed = fs::rename(part, &path);
                renamed.map_err(|e| Failure::data(format!("{}: {e}", path.display())))
            }
            None => Ok(()),
        }
    }

    /// Completes what was written without giving it its name, so that a later run can go on. Returns its path.
    ///
    /// # Errors
    /// The disk is full.
    pub fn interrupt(mut self) -> Result<Option<PathBuf>, Failure> {
        self.complete()?;
        Ok(self.place.map(|place| place.part))
    }

    /// Removes what was written.
    pub fn discard(self) {
        if let Some(place) = self.place {
            let _ = fs::remove_file(place.part);
        }
    }

    fn complete(&mut self) -> Result<(), Failure> {
        let completed = match &mut self.out {
            Out::Plain(out) => out.flush(),
            Out::Gzip(out) => out.try_finish().and_then(|()| out.get_mut().flush()),
            Out::Stdout(out) => out.flush(),
        };
        completed.map_err(|e| Failure::output(self.named(e)))
    }

    fn named(&self, e: io::Error) -> io::Error {
        match &self.place {
            Some(place) => io::Error::new(e.kind(), format!("{}: {e}", place.part.display())),
            None => e,
        }
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match &mut self.out {
            Out::Plain(out) => out.write(bytes),
            Out::Gzip(out) => out.write(bytes),
            Out::Stdout(out) => out.write(bytes),
        };
        written.map_err(|e| self.named(e))
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = match &mut self.out {
            Out::Plain(out) => out.flush(),
            Out::Gzip(out) => out.flush(),
            Out::Stdout(out) => out.flush(),
        };
        flushed.map_err(|e| self.named(e))
    }
}

/// Returns the complete lines that an interrupted run has written: their number and the first one. Cuts off an incomplete last line.
/// `None` if there is no such file, or no line in it.
///
/// # Errors
/// The file cannot be read or cut.
pub fn written(path: &Path) -> Result<Option<(u64, Vec<u8>)>, Failure> {
    let part = part_of(path);
    let failed = |e: io::Error| {
        Failure::data(format!(
            "{}: cannot be resumed ({e}): remove it, or leave --resume out",
            part.display()
        ))
    };
    if !part.exists() {
        return Ok(None);
    }
    let is_compressed = path.extension().is_some_and(|extension| extension == "gz");
    let file = File::open(&part).map_err(failed)?;
    let input: Box<dyn Read> = match is_compressed {
        true => Box::new(MultiGzDecoder::new(BufReader::new(file))),
        false => Box::new(file),
    };
    let mut input = BufReader::new(input);
    let (mut lines, mut bytes) = (0, 0);
    let (mut line, mut first) = (Vec::new(), Vec::new());
    loop {
        line.clear();
        let read = input.read_until(b'\n', &mut line).map_err(failed)?;
        if line.last() != Some(&b'\n') {
            break;
        }
        if lines == 0 {
            first.clone_from(&line);
        }
        lines += 1;
        bytes += read as u64;
    }
    if !is_compressed {
        let file = OpenOptions::new().write(true).open(&part).map_err(failed)?;
        file.set_len(bytes).map_err(failed)?;
    }
    Ok((lines > 0).then_some((lines, first)))
}

fn part_of(path: &Path) -> PathBuf {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    part.into()
}
