//! Reads files of records as the payloads that a producer would send to Kafka.
//!
//! CSV, Parquet and NDJSON become a stream of JSON objects, so that `score FILE` and `produce FILE` see the same bytes. The
//! payload contains every column, including the label, because a model ignores what is not in its schema.
//!
//! | in the file | in the payload |
//! | --- | --- |
//! | NDJSON line | its bytes as they are, valid or not; blank lines are skipped |
//! | element of a `.json` file that is one array | its bytes as they are |
//! | CSV cell that is a JSON number | the same digits |
//! | CSV cell such as `+1.5`, `.5` or `5.` | the number; with leading zeros it is a string |
//! | CSV cell empty, or `NA`, `N/A`, `NaN`, `null`, `none`, `inf`, `infinity` in any case, and pandas' others | null |
//! | CSV cell `true`, `false` in any case | bool |
//! | any other CSV cell | string, without the blanks around it |
//! | NPZ number | number; NaN and infinity are null |
//! | Parquet number, decimal | number, the shortest text that reads back the same; NaN and infinity are null |
//! | Parquet date, timestamp | RFC 3339 in UTC; a timestamp without a zone is taken as UTC |
//! | Parquet time of day | `hh:mm:ss` with a fraction |
//! | Parquet bytes that are not UTF-8 | base64, which is said |
//! | Parquet date or timestamp outside the years -9999 to 9999 | null, which is said |
//! | Parquet group, list, map | object, array, object |
//! | column named `merchant.category` | nested: `{"merchant": {"category": …}}` |

mod csv;
pub mod folder;
pub mod inference;
mod json_array;
mod labels;
mod layout;
mod ndjson;
mod npz;
mod parquet;
mod pick;
pub mod scan;
pub mod table;
mod unwrapped;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use ::parquet::errors::ParquetError;
use flate2::bufread::MultiGzDecoder;

use pick::Picker;
use unwrapped::Unwrapped;

use crate::decode::Wrapping;

/// Maximum size of a CSV or NDJSON record, in bytes. It makes a stray quote or a gzip bomb an error instead of filling the
/// memory.
pub const MAX_RECORD: u64 = 64 << 20;

const SUPPORTED: &str = ".csv, .tsv, .ndjson, .jsonl, .json (each also .gz), .parquet, .pq, .npz";

/// One record of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// One JSON object in UTF-8. An NDJSON line is taken as it is, valid or not.
    pub payload: Vec<u8>,
    /// Whether the record is an anomaly. `None` if [`Options::label`] is not set or the record's label is null.
    pub label: Option<bool>,
    /// The Kafka key. `None` if [`Options::key`] is not set or the record's key is null.
    pub key: Option<Vec<u8>>,
}

/// What to extract from each record besides its payload.
#[derive(Debug, Clone)]
pub struct Options {
    /// Dotted path of the field that distinguishes anomalies from normal records.
    pub label: Option<String>,
    /// The label of normal records. Every other label is an anomaly. Numbers and booleans are compared as numbers (`0`, `0.0` and
    /// `false` are equal, and so are `1` and `true`), everything else as strings.
    pub normal: String,
    /// Dotted path of the field whose value becomes the Kafka key.
    pub key: Option<String>,
    /// How each line, row or element contains its records, if it is not one plain record.
    pub wrapping: Option<Wrapping>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            label: None,
            normal: "0".into(),
            key: None,
            wrapping: None,
        }
    }
}

/// How far a [`Dataset`] has been read. Compressed files count compressed bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    pub done: u64,
    pub total: u64,
    pub unit: Unit,
}

/// What a [`Progress`] counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Unit {
    Bytes,
    Rows,
}

/// A file, or a record in it, cannot be read. `Display` yields a complete one-line message.
#[derive(Debug, thiserror::Error)]
#[error("{}: {kind}", path.display())]
pub struct Error {
    pub path: PathBuf,
    pub kind: ErrorKind,
}

/// What is wrong with the file or the record.
#[derive(Debug, thiserror::Error)]
pub enum ErrorKind {
    #[error("unsupported file format: it must be one of {SUPPORTED}")]
    Format,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Csv(#[from] ::csv::Error),
    #[error("{0}")]
    Columns(String),
    #[error("{0}")]
    Parquet(#[from] ParquetError),
    #[error("{0}")]
    Folder(String),
    #[error("reading was stopped")]
    Stopped,
    /// `number` counts lines or rows from 1.
    #[error("{unit} {number}: {reason}")]
    Record {
        unit: &'static str,
        number: u64,
        reason: String,
    },
}

impl Error {
    /// Returns whether iteration ends with this error. If not, one record is lost and iteration continues.
    pub fn is_fatal(&self) -> bool {
        match &self.kind {
            ErrorKind::Record { .. } => false,
            ErrorKind::Csv(error) => error.is_io_error(),
            _ => true,
        }
    }
}

/// The records of one file, in file order. Iteration ends after a fatal [`Error`].
pub struct Dataset {
    path: PathBuf,
    reader: FormatReader,
    picker: Picker,
    unwrapped: Option<Unwrapped>,
    read: Arc<AtomicU64>,
    size: u64,
    ended: bool,
}

enum FormatReader {
    Csv(csv::Rows),
    Ndjson(ndjson::Lines),
    JsonArray(json_array::Elements),
    Parquet(Box<parquet::Rows>),
    Npz(npz::Rows),
}

/// The number of a line or row, counted from 1, and its payload.
type Numbered = (u64, Vec<u8>);

/// Opens a file. Its extension determines the format, in upper or lower case. A file without rows is an empty dataset.
///
/// # Errors
/// The extension is unknown, the file cannot be opened, or its header or schema cannot be read, has a column twice, or lacks the
/// label or key of `options`.
pub fn open(path: &Path, options: &Options) -> Result<Dataset, Error> {
    let read = Arc::new(AtomicU64::new(0));
    let opened = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
    let fail = |kind| Error {
        path: path.into(),
        kind,
    };

    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .to_lowercase();
    let (plain, gzip) = name
        .strip_suffix(".gz")
        .map_or((name.as_str(), false), |plain| (plain, true));
    let extension = Path::new(plain)
        .extension()
        .and_then(|e| e.to_str())
        .unwrap_or_default();
    let make: fn(File, bool, Arc<AtomicU64>) -> Result<FormatReader, ErrorKind> =
        match (extension, gzip) {
            ("csv", _) => |file, gzip, read| {
                let rows = csv::Rows::new(input(file, gzip, read), false)?;
                Ok(FormatReader::Csv(rows))
            },
            ("tsv" | "tab", _) => |file, gzip, read| {
                let rows = csv::Rows::new(input(file, gzip, read), true)?;
                Ok(FormatReader::Csv(rows))
            },
            ("npz", false) => |file, _, _| Ok(FormatReader::Npz(npz::Rows::new(file)?)),
            ("json", _) => |file, gzip, read| {
                let input = input(file, gzip, read);
                Ok(match json_array::Elements::new(input)? {
                    Ok(elements) => FormatReader::JsonArray(elements),
                    Err(lines) => FormatReader::Ndjson(ndjson::Lines::new(lines)),
                })
            },
            ("ndjson" | "jsonl", _) => |file, gzip, read| {
                Ok(FormatReader::Ndjson(ndjson::Lines::new(input(
                    file, gzip, read,
                ))))
            },
            ("parquet" | "pq", false) => {
                |file, _, _| Ok(FormatReader::Parquet(Box::new(parquet::Rows::new(file)?)))
            }
            _ => return Err(fail(ErrorKind::Format)),
        };
    let (size, file) = opened.map_err(|e| fail(e.into()))?;
    let reader = make(file, gzip, read.clone()).map_err(fail)?;

    let columns = match &reader {
        FormatReader::Csv(rows) => rows.columns(),
        FormatReader::Parquet(rows) => rows.columns(),
        FormatReader::Npz(rows) => rows.columns(),
        FormatReader::Ndjson(_) | FormatReader::JsonArray(_) => vec![],
    };
    for wanted in options.label.iter().chain(&options.key) {
        if !columns.is_empty() && !columns.contains(wanted) {
            let reason = format!(
                "no column `{wanted}`: the columns are {}",
                columns.join(", ")
            );
            return Err(fail(ErrorKind::Columns(reason)));
        }
    }
    Ok(Dataset {
        path: path.into(),
        reader,
        picker: Picker::new(options),
        unwrapped: options.wrapping.clone().map(Unwrapped::new),
        read,
        size,
        ended: false,
    })
}

impl Dataset {
    /// Returns how far the file has been read. Because of buffering, this is ahead of the records returned so far.
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

    /// Returns what was guessed or changed, one sentence each. It is complete after the last record.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = match &self.reader {
            FormatReader::Csv(rows) => rows.notes(),
            FormatReader::Parquet(rows) => rows.notes(),
            _ => vec![],
        };
        notes.extend(self.unwrapped.iter().flat_map(Unwrapped::notes));
        let file = self.path.display();
        notes.iter().map(|note| format!("{file}: {note}")).collect()
    }

    /// Checks the labels. It must be called after the last record.
    ///
    /// # Errors
    /// [`Options::label`] is set, but no record has the label of normal records.
    pub fn check_labels(&self) -> Result<(), Error> {
        match self.picker.fault() {
            None => Ok(()),
            Some(fault) => Err(Error {
                path: self.path.clone(),
                kind: ErrorKind::Columns(fault),
            }),
        }
    }

    fn read_next(&mut self) -> Result<Option<Example>, ErrorKind> {
        loop {
            if let Some(unwrapped) = &mut self.unwrapped {
                match unwrapped.take() {
                    Ok(None) => {}
                    Ok(Some(record)) => return self.example(record).map(Some),
                    Err((number, reason)) => return Err(self.wrong(number, reason)),
                }
            }
            let Some(payload) = self.read_payload()? else {
                return Ok(None);
            };
            match &mut self.unwrapped {
                None => return self.example(payload).map(Some),
                Some(unwrapped) => {
                    let added = unwrapped.add(payload);
                    added.map_err(|(number, reason)| self.wrong(number, reason))?;
                }
            }
        }
    }

    fn read_payload(&mut self) -> Result<Option<Numbered>, ErrorKind> {
        match &mut self.reader {
            FormatReader::Csv(rows) => rows.read_next(),
            FormatReader::Ndjson(lines) => lines.read_next(),
            FormatReader::JsonArray(elements) => elements.read_next(),
            FormatReader::Parquet(rows) => rows.read_next(),
            FormatReader::Npz(rows) => rows.read_next(),
        }
    }

    fn example(&mut self, (number, payload): Numbered) -> Result<Example, ErrorKind> {
        let picked = self.picker.pick(&payload);
        let (label, key) = picked.map_err(|reason| self.wrong(number, reason))?;
        Ok(Example {
            payload,
            label,
            key,
        })
    }

    fn wrong(&self, number: u64, reason: String) -> ErrorKind {
        let unit = match &self.reader {
            FormatReader::Csv(_) | FormatReader::Ndjson(_) => "line",
            FormatReader::JsonArray(_) => "element",
            FormatReader::Parquet(_) | FormatReader::Npz(_) => "row",
        };
        ErrorKind::Record {
            unit,
            number,
            reason,
        }
    }
}

impl Iterator for Dataset {
    type Item = Result<Example, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.read_next().map_err(|kind| Error {
            path: self.path.clone(),
            kind,
        });
        self.ended = match &next {
            Ok(example) => example.is_none(),
            Err(error) => error.is_fatal(),
        };
        next.transpose()
    }
}

type BoxedRead = Box<dyn BufRead + Send>;

/// Opens a file for reading text, and decompresses it if `gzip`. The bytes read from disk are added to `read`.
fn input(file: File, gzip: bool, read: Arc<AtomicU64>) -> BoxedRead {
    let file = BufReader::with_capacity(64 << 10, Counted { file, read });
    if gzip {
        Box::new(BufReader::with_capacity(
            64 << 10,
            MultiGzDecoder::new(file),
        ))
    } else {
        Box::new(file)
    }
}

struct Counted {
    file: File,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.file.read(buffer)?;
        self.read.fetch_add(bytes as u64, Relaxed);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests;
