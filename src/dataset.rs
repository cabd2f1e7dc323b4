//! Reads files of records as the payloads that a producer would send to Kafka.
//!
//! CSV, Parquet, Arrow and NDJSON become a stream of JSON objects, so that `score FILE` and `produce FILE` see the same bytes. The
//! payload contains every column, including the label, because a model ignores what is not in its schema.
//!
//! | in the file | in the payload |
//! | --- | --- |
//! | NDJSON line | its bytes as they are, valid or not; blank lines are skipped |
//! | NDJSON line `null` | nothing: it is a tombstone, which is counted and said |
//! | JSON object of several lines | its bytes as they are |
//! | element of a `.json` file that is one array | its bytes as they are |
//! | CSV cell that is a JSON number | the same digits |
//! | CSV cell such as `+1.5`, `.5` or `5.` | the number; with leading zeros it is a string |
//! | CSV cell empty, or `NA`, `N/A`, `NaN`, `null`, `none`, `inf`, `infinity` in any case, and pandas' others | null |
//! | CSV cell `true`, `false` in any case | bool |
//! | any other CSV cell | string, without the blanks around it |
//! | NPZ number | number; NaN and infinity are null |
//! | number, decimal of Parquet and Arrow | number, the shortest text that reads back the same; NaN and infinity are null |
//! | date, timestamp of Parquet and Arrow | RFC 3339 in UTC; a timestamp without a zone is taken as UTC |
//! | time of day | `hh:mm:ss` with a fraction |
//! | Arrow duration | number of seconds |
//! | bytes that are not UTF-8 | base64, which is said |
//! | date or timestamp outside the years -9999 to 9999 | null, which is said |
//! | Parquet group, list, map; Arrow struct, list, map | object, array, object |
//! | Arrow type that JSON does not have, such as a union | null, which is said |
//! | column named `merchant.category` | nested: `{"merchant": {"category": …}}` |
//! | folder named `day=2026-01-31` between a given folder and its files | the field `day`, as a CSV cell |

pub mod arrow;
mod csv;
mod file;
mod files;
pub mod folder;
pub mod format;
pub mod inference;
mod json_array;
mod json_objects;
mod json_values;
mod labels;
pub mod layout;
mod ndjson;
mod npz;
mod parquet;
mod parquet_header;
mod parquet_input;
mod pick;
pub mod scan;
pub mod table;
mod unwrapped;

use std::io::{self, BufRead};
use std::path::{Path, PathBuf};

use ::parquet::errors::ParquetError;

use file::OneFile;
use files::{Differences, Found, Notes, Source, find};
use format::{Format, SUPPORTED};
use pick::Picker;
use unwrapped::{Skipped, Unwrapped};

use crate::decode::{Skip, Wrapping};

use crate::bundle::path;

/// Maximum size of a CSV or NDJSON record, in bytes. It makes a stray quote or a gzip bomb an error instead of filling the
/// memory.
pub const MAX_RECORD: u64 = 64 << 20;

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
    /// The format of the files. If `None`, their extensions tell it, or their content if they have no extension.
    pub format: Option<Format>,
    /// How each line, row or element contains its records, if it is not one plain record.
    pub wrapping: Option<Wrapping>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            label: None,
            normal: "0".into(),
            key: None,
            format: None,
            wrapping: None,
        }
    }
}

/// The place of a record in its file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Place<'d> {
    /// The file, if the dataset has several.
    pub file: Option<&'d Path>,
    /// What a record is called: `line`, `row` or `element`.
    pub unit: &'static str,
    /// Counted from 1.
    pub number: u64,
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
    /// The text says what the file seems to be, if that is known, after a comma.
    #[error("unsupported file format{0}: it must be one of {SUPPORTED}, or --format must tell it")]
    Format(String),
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

impl ErrorKind {
    /// Returns the number of the record, if the error is about one.
    fn number(&self) -> Option<u64> {
        match self {
            ErrorKind::Record { number, .. } => Some(*number),
            ErrorKind::Csv(error) => error.position().map(|at| at.line()),
            _ => None,
        }
    }
}

/// The records of files, in the order of the files. Iteration ends after a fatal [`Error`].
pub struct Dataset {
    files: Vec<Source>,
    /// The index of the file that is read.
    at: usize,
    current: OneFile,
    options: Options,
    picker: Picker,
    unwrapped: Option<Unwrapped>,
    skipped: Skipped,
    differences: Differences,
    notes: Notes,
    /// Notes about the arguments.
    found: Vec<String>,
    /// The size of each file in bytes.
    sizes: Vec<u64>,
    /// The number of the last record in its file, counted from 1.
    number: u64,
    /// Whether the last file was read to its end.
    at_end: bool,
    ended: bool,
}

/// The number of a line or row, counted from 1, and its payload.
type Numbered = (u64, Vec<u8>);

/// Opens a file, a folder of part files, a pattern such as `part-*.csv`, or standard input for `-`. Its extension determines the
/// format, in upper or lower case. A file without rows is an empty dataset.
///
/// # Errors
/// The format is not supported, the file cannot be opened, or its header or schema cannot be read, has a column twice, or lacks the
/// label or key of `options`.
pub fn open(path: &Path, options: &Options) -> Result<Dataset, Error> {
    open_all(&[path], options)
}

/// Opens several files like [`open`], to be read one after the other.
///
/// # Errors
/// As in [`open`], or there is no path.
pub fn open_all<P: AsRef<Path>>(paths: &[P], options: &Options) -> Result<Dataset, Error> {
    let mut found = Found::default();
    for path in paths {
        let more = find(path.as_ref(), options.format)?;
        found.files.extend(more.files);
        found.notes.extend(more.notes);
    }
    let Some(first) = found.files.first() else {
        return Err(Error {
            path: PathBuf::new(),
            kind: ErrorKind::Folder("no file is given".to_owned()),
        });
    };
    let size = |file: &Source| file.path.metadata().map_or(0, |facts| facts.len());
    let mut differences = Differences::default();
    let current = open_one(first, options, &mut differences)?;
    Ok(Dataset {
        sizes: found.files.iter().map(size).collect(),
        current,
        files: found.files,
        at: 0,
        options: options.clone(),
        picker: Picker::new(options),
        unwrapped: options.wrapping.clone().map(Unwrapped::new),
        skipped: Skipped::default(),
        differences,
        notes: Notes::default(),
        found: found.notes,
        number: 0,
        at_end: false,
        ended: false,
    })
}

/// Opens one file and checks that it has the columns of `options`.
fn open_one(
    source: &Source,
    options: &Options,
    differences: &mut Differences,
) -> Result<OneFile, Error> {
    let path = &source.path;
    let fail = |kind| Error {
        path: path.clone(),
        kind,
    };
    let file = OneFile::open(path, options.format).map_err(fail)?;
    let columns = file.columns();
    differences.take(path, columns.clone());
    for wanted in options.label.iter().chain(&options.key) {
        let is_folder = source.fields.iter().any(|(name, _)| name == wanted);
        if !columns.is_empty()
            && !columns.iter().any(|column| is_column(column, wanted))
            && !is_folder
        {
            let reason = format!(
                "no column `{wanted}`: the columns are {}",
                columns.join(", ")
            );
            return Err(fail(ErrorKind::Columns(reason)));
        }
    }
    Ok(file)
}

/// Returns whether a path names a column. The column's name is split at its dots.
fn is_column(column: &str, path: &str) -> bool {
    column == path || path::keys(path).is_ok_and(|keys| keys.join(".") == column)
}

impl Dataset {
    /// Returns how far the files have been read. Because of buffering, this is ahead of the records returned so far. Several files
    /// are counted in bytes.
    pub fn progress(&self) -> Progress {
        let current = self.current.progress();
        if self.files.len() == 1 {
            return current;
        }
        let size = self.sizes[self.at];
        let share = current.done as f64 / current.total.max(1) as f64;
        let before: u64 = self.sizes[..self.at].iter().sum();
        Progress {
            done: before + (size as f64 * share.min(1.0)) as u64,
            total: self.sizes.iter().sum(),
            unit: Unit::Bytes,
        }
    }

    /// Returns what was left out, guessed or changed so far, one sentence each. It is complete after the last record.
    pub fn notes(&self) -> Vec<String> {
        let mut of_files = self.notes.clone();
        if !self.at_end {
            of_files.take(&self.files[self.at].path, self.current.notes());
        }
        let mut notes = self.found.clone();
        notes.extend(of_files.all());
        let skipped = self.skipped.notes().into_iter();
        notes.extend(skipped.map(|note| match &self.files[..] {
            [only] => format!("{}: {note}", only.path.display()),
            _ => note,
        }));
        notes.extend(self.differences.note());
        notes
    }

    /// Returns the paths of the files, in the order in which they are read.
    pub fn paths(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// Returns the index of the file of the last record, and how far this file has been read.
    pub fn file(&self) -> (usize, Progress) {
        (self.at, self.current.progress())
    }

    /// Returns the place of the last record, whether or not it could be read.
    pub fn place(&self) -> Place<'_> {
        let file = &self.files[self.at].path;
        Place {
            file: (self.files.len() > 1).then_some(file),
            unit: self.current.unit(),
            number: self.number,
        }
    }

    /// Checks the labels. It must be called after the last record.
    ///
    /// # Errors
    /// [`Options::label`] is set, but no record has the label of normal records.
    pub fn check_labels(&self) -> Result<(), Error> {
        match self.picker.fault() {
            None => Ok(()),
            Some(fault) => Err(Error {
                path: self.files[self.at].path.clone(),
                kind: ErrorKind::Columns(fault),
            }),
        }
    }

    fn read_next(&mut self) -> Result<Option<Example>, Error> {
        loop {
            if let Some(unwrapped) = &mut self.unwrapped {
                match unwrapped.take(&mut self.skipped) {
                    Ok(None) => {}
                    Ok(Some(record)) => return self.example(record).map(Some),
                    Err((number, reason)) => return Err(self.wrong(number, reason)),
                }
            }
            let Some((number, payload)) = self.read_payload()? else {
                return Ok(None);
            };
            self.number = number;
            if payload.trim_ascii() == b"null" {
                self.skipped.add(Skip::Tombstone);
                continue;
            }
            match &mut self.unwrapped {
                None => return self.example((number, payload)).map(Some),
                Some(unwrapped) => {
                    let added = unwrapped.add((number, payload), &mut self.skipped);
                    added.map_err(|(number, reason)| self.wrong(number, reason))?;
                }
            }
        }
    }

    /// Returns the next line, row or element, from the next file at the end of one.
    fn read_payload(&mut self) -> Result<Option<Numbered>, Error> {
        loop {
            let read = match self.current.read_next() {
                Ok(read) => read,
                Err(kind) => {
                    self.number = kind.number().unwrap_or(self.number);
                    return Err(self.error(kind));
                }
            };
            if read.is_some() || self.at_end {
                return Ok(read);
            }
            let path = &self.files[self.at].path;
            self.notes.take(path, self.current.notes());
            let Some(next) = self.files.get(self.at + 1) else {
                self.at_end = true;
                return Ok(None);
            };
            self.current = open_one(next, &self.options, &mut self.differences)?;
            self.at += 1;
        }
    }

    fn example(&mut self, (number, payload): Numbered) -> Result<Example, Error> {
        let payload = with_fields(payload, &self.files[self.at].fields);
        let picked = self.picker.pick(&payload);
        let (label, key) = picked.map_err(|reason| self.wrong(number, reason))?;
        Ok(Example {
            payload,
            label,
            key,
        })
    }

    fn wrong(&self, number: u64, reason: String) -> Error {
        self.error(ErrorKind::Record {
            unit: self.current.unit(),
            number,
            reason,
        })
    }

    fn error(&self, kind: ErrorKind) -> Error {
        Error {
            path: self.files[self.at].path.clone(),
            kind,
        }
    }
}

impl Iterator for Dataset {
    type Item = Result<Example, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.read_next();
        self.ended = match &next {
            Ok(example) => example.is_none(),
            Err(error) => error.is_fatal(),
        };
        next.transpose()
    }
}

/// Adds the fields that the names of a file's folders give and that the record does not have itself. A payload that is not an object
/// stays as it is.
fn with_fields(mut payload: Vec<u8>, fields: &[(String, String)]) -> Vec<u8> {
    if fields.is_empty() {
        return payload;
    }
    let Some(end) = payload.trim_ascii_end().len().checked_sub(1) else {
        return payload;
    };
    let is_object = payload.trim_ascii_start().starts_with(b"{") && payload[end] == b'}';
    if !is_object {
        return payload;
    }
    let missing = fields.iter().filter(|(name, _)| !pick::has(&payload, name));
    let missing: Vec<_> = missing.collect();
    payload.truncate(end);
    let mut is_empty = payload.trim_ascii() == b"{";
    for (name, json) in missing {
        let name = serde_json::to_string(name).expect("a string is JSON");
        let comma = if is_empty { "" } else { "," };
        payload.extend_from_slice(format!("{comma}{name}:{json}").as_bytes());
        is_empty = false;
    }
    payload.push(b'}');
    payload
}

type BoxedRead = Box<dyn BufRead + Send>;

#[cfg(test)]
mod tests;
