//! Reads one file, or standard input, as payloads.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use flate2::bufread::MultiGzDecoder;

use super::format::{Format, Sniffed, known, sniff, text};
use super::json_objects::{Objects, Shape, shape};
use super::{
    BoxedRead, ErrorKind, Numbered, Progress, Unit, arrow, csv, json_array, json_objects, ndjson,
    npz, parquet,
};

/// Number of bytes by which a file of an unsupported format is recognised.
const HEAD: u64 = 16;
const BUFFER: usize = 64 << 10;
/// Maximum size of standard input in a format that must be kept on disk to be read, in bytes.
const MAX_SPOOLED: u64 = 16 << 30;

/// The path that means standard input.
pub const STDIN: &str = "-";

/// A file that is being read.
pub struct OneFile {
    reader: FormatReader,
    read: Arc<AtomicU64>,
    size: u64,
    notes: Vec<String>,
}

enum FormatReader {
    Csv(Box<csv::Rows>),
    Ndjson(ndjson::Lines),
    JsonObjects(json_objects::Objects),
    JsonArray(json_array::Elements),
    Parquet(Box<parquet::Rows>),
    Arrow(Box<arrow::Rows>),
    Npz(npz::Rows),
}

impl OneFile {
    /// Opens a file. Its format is `declared`, or told by its extension, or by its content if it has no extension.
    ///
    /// # Errors
    /// The format is not supported, the file cannot be opened, or its header or schema cannot be read.
    pub fn open(path: &Path, declared: Option<Format>) -> Result<OneFile, ErrorKind> {
        let read = Arc::new(AtomicU64::new(0));
        let is_stdin = path.as_os_str() == STDIN;
        let of_name = Format::of_name(path);
        let has_extension = path.extension().is_some_and(|extension| extension != "gz");
        if !is_stdin && declared.is_none() && of_name.is_none() && has_extension {
            let mut head = Vec::new();
            let file = File::open(path)?;
            if file.metadata()?.is_file() {
                file.take(HEAD).read_to_end(&mut head)?;
            }
            let seems = known(&head).map(|name| format!(", it seems to be {name}"));
            return Err(ErrorKind::Format(seems.unwrap_or_default()));
        }
        let (source, size, regular): (Source, u64, Option<File>) = if is_stdin {
            (Box::new(io::stdin()), 0, None)
        } else {
            let file = File::open(path)?;
            let facts = file.metadata()?;
            let regular = facts.is_file().then(|| file.try_clone()).transpose()?;
            (Box::new(file), facts.len(), regular)
        };
        let counted = Counted {
            source,
            read: read.clone(),
        };
        let input: BoxedRead = Box::new(BufReader::with_capacity(BUFFER, counted));
        let mut notes = Vec::new();
        let reader = match (of_name, declared, regular) {
            (Some((format, gzip)), None, regular) => {
                let input = match format {
                    _ if gzip => gunzip(input),
                    Format::Csv | Format::Tsv | Format::Ndjson | Format::Json => {
                        let (input, is_zipped) = text(input)?
                            .map_err(|problem| ErrorKind::Format(format!(", {problem}")))?;
                        if is_zipped {
                            notes.push(
                                "it is compressed with gzip, although its name does not say so"
                                    .to_owned(),
                            );
                        }
                        input
                    }
                    _ => input,
                };
                make(format, input, regular)?
            }
            (_, declared, regular) => match sniff(input, declared)? {
                Err(problem) => return Err(ErrorKind::Format(format!(", {problem}"))),
                Ok(Sniffed {
                    input,
                    format,
                    gzip,
                    note,
                }) => {
                    notes.extend(note);
                    make(format, input, regular.filter(|_| !gzip))?
                }
            },
        };
        Ok(OneFile {
            reader,
            read,
            size,
            notes,
        })
    }

    /// Returns the names of the columns as dotted paths. Empty if every record has fields of its own.
    pub fn columns(&self) -> Vec<String> {
        match &self.reader {
            FormatReader::Csv(rows) => rows.columns(),
            FormatReader::Parquet(rows) => rows.columns(),
            FormatReader::Arrow(rows) => rows.columns(),
            FormatReader::Npz(rows) => rows.columns(),
            FormatReader::Ndjson(_) | FormatReader::JsonObjects(_) | FormatReader::JsonArray(_) => {
                vec![]
            }
        }
    }

    pub fn progress(&self) -> Progress {
        match &self.reader {
            FormatReader::Parquet(rows) => rows.progress(),
            FormatReader::Npz(rows) => rows.progress(),
            _ => Progress {
                done: self.read.load(Relaxed),
                total: self.size,
                unit: Unit::Bytes,
            },
        }
    }

    /// Returns what was guessed or changed. It is complete after the last record.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.notes.clone();
        notes.extend(match &self.reader {
            FormatReader::Csv(rows) => rows.notes(),
            FormatReader::Parquet(rows) => rows.notes(),
            FormatReader::Arrow(rows) => rows.notes(),
            FormatReader::Npz(rows) => rows.notes(),
            FormatReader::JsonObjects(_) => vec![
                "its JSON objects take several lines each: read one after the other".to_owned(),
            ],
            FormatReader::Ndjson(_) | FormatReader::JsonArray(_) => vec![],
        });
        notes
    }

    /// Returns what one record is called: a line, a row or an element.
    pub fn unit(&self) -> &'static str {
        match &self.reader {
            FormatReader::Csv(_) | FormatReader::Ndjson(_) | FormatReader::JsonObjects(_) => "line",
            FormatReader::JsonArray(_) => "element",
            FormatReader::Parquet(_) | FormatReader::Arrow(_) | FormatReader::Npz(_) => "row",
        }
    }

    pub fn read_next(&mut self) -> Result<Option<Numbered>, ErrorKind> {
        match &mut self.reader {
            FormatReader::Csv(rows) => rows.read_next(),
            FormatReader::Ndjson(lines) => lines.read_next(),
            FormatReader::JsonObjects(objects) => objects.read_next(),
            FormatReader::JsonArray(elements) => elements.read_next(),
            FormatReader::Parquet(rows) => rows.read_next(),
            FormatReader::Arrow(rows) => rows.read_next(),
            FormatReader::Npz(rows) => rows.read_next(),
        }
    }
}

/// Makes the reader of a format. Formats that are not read from the first to the last byte need a regular file.
fn make(
    format: Format,
    input: BoxedRead,
    regular: Option<File>,
) -> Result<FormatReader, ErrorKind> {
    Ok(match format {
        Format::Csv => FormatReader::Csv(Box::new(csv::Rows::new(input, false)?)),
        Format::Tsv => FormatReader::Csv(Box::new(csv::Rows::new(input, true)?)),
        Format::Ndjson | Format::Json => match shape(input, format == Format::Ndjson)? {
            (Shape::Lines, input) => FormatReader::Ndjson(ndjson::Lines::new(input)),
            (Shape::Objects, input) => FormatReader::JsonObjects(Objects::new(input)),
            (Shape::Array, input) => FormatReader::JsonArray(json_array::Elements::new(input)?),
        },
        Format::Arrow => FormatReader::Arrow(Box::new(arrow::Rows::new(input)?)),
        Format::Parquet => {
            FormatReader::Parquet(Box::new(parquet::Rows::new(on_disk(input, regular)?)?))
        }
        Format::Npz => FormatReader::Npz(npz::Rows::new(on_disk(input, regular)?)?),
    })
}

/// Returns a file that can be read at any place: a regular file itself, or a temporary copy of a stream.
fn on_disk(input: BoxedRead, regular: Option<File>) -> io::Result<File> {
    use std::io::Seek;
    if let Some(mut file) = regular {
        file.rewind()?;
        return Ok(file);
    }
    let mut copy = tempfile::tempfile()?;
    if io::copy(&mut input.take(MAX_SPOOLED + 1), &mut copy)? > MAX_SPOOLED {
        return Err(io::Error::other(format!(
            "it is larger than {MAX_SPOOLED} bytes: give it as a file, not as a stream"
        )));
    }
    copy.rewind()?;
    Ok(copy)
}

/// Decompresses a stream.
pub fn gunzip(input: BoxedRead) -> BoxedRead {
    Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(input)))
}

type Source = Box<dyn Read + Send>;

/// Counts the bytes that are read from the source.
struct Counted {
    source: Source,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.source.read(buffer)?;
        self.read.fetch_add(bytes as u64, Relaxed);
        Ok(bytes)
    }
}
