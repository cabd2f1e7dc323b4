//! The formats of files, and how a file's format is recognised.

use std::io::{self, BufRead, Read};
use std::path::Path;
use std::str::FromStr;

use super::{BoxedRead, arrow};

/// The formats, for messages.
pub const SUPPORTED: &str = ".csv, .tsv, .ndjson, .jsonl, .json (each also .gz), .parquet, .pq, .arrow, .arrows, .feather, .ipc, .npz";

/// Number of bytes in which the first character is searched.
const HEAD: usize = 64 << 10;
/// Length of the longest magic number.
const MAGIC: usize = 8;
const GZIP: &[u8] = b"\x1f\x8b";
/// Formats that are recognised only to name them in an error.
const OTHERS: [(&[u8], &str); 13] = [
    (b"PAR1", "Parquet: give it the extension .parquet"),
    (arrow::MAGIC, "Arrow: give it the extension .arrow"),
    (
        b"PK\x03\x04",
        "a ZIP archive or an Excel workbook: unpack the archive, save the workbook as CSV",
    ),
    (b"\x80\x04", "a Python pickle: write Parquet or CSV"),
    (b"\x80\x05", "a Python pickle: write Parquet or CSV"),
    (
        b"SQLite format 3",
        "an SQLite database: export the table as CSV",
    ),
    (
        b"\x28\xb5\x2f\xfd",
        "compressed with zstd: decompress it first (zstd -d)",
    ),
    (
        b"BZh",
        "compressed with bzip2: decompress it first (bunzip2)",
    ),
    (
        b"\xfd7zXZ",
        "compressed with xz: decompress it first (unxz)",
    ),
    (
        b"Obj\x01",
        "an Avro container file: convert it to Parquet or NDJSON",
    ),
    (b"ORC", "an ORC file: convert it to Parquet"),
    (b"\x89HDF", "an HDF5 file: convert it to Parquet or CSV"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook: save it as CSV"),
];

/// The format of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Csv,
    /// CSV with tabs.
    Tsv,
    /// One value a line, or objects of several lines, or one array of several lines.
    Ndjson,
    /// The same, or one array in one line.
    Json,
    Parquet,
    /// The stream or the file format.
    Arrow,
    Npz,
}

impl Format {
    pub const ALL: [(&str, Format); 7] = [
        ("csv", Format::Csv),
        ("tsv", Format::Tsv),
        ("ndjson", Format::Ndjson),
        ("json", Format::Json),
        ("parquet", Format::Parquet),
        ("arrow", Format::Arrow),
        ("npz", Format::Npz),
    ];

    /// Returns the format that the extension of a file's name tells, and whether the file is compressed with gzip. `None` if the
    /// extension is not that of a supported format.
    pub fn of_name(path: &Path) -> Option<(Format, bool)> {
        let name = path.file_name()?.to_string_lossy().to_lowercase();
        let (plain, gzip) = match name.strip_suffix(".gz") {
            Some(plain) => (plain, true),
            None => (name.as_str(), false),
        };
        let format = match (Path::new(plain).extension()?.to_str()?, gzip) {
            ("csv", _) => Format::Csv,
            ("tsv" | "tab", _) => Format::Tsv,
            ("ndjson" | "jsonl", _) => Format::Ndjson,
            ("json", _) => Format::Json,
            ("parquet" | "pq", false) => Format::Parquet,
            ("arrow" | "arrows" | "feather" | "ipc", false) => Format::Arrow,
            ("npz", false) => Format::Npz,
            _ => return None,
        };
        Some((format, gzip))
    }

    fn name(self) -> &'static str {
        let mut all = Format::ALL.iter();
        all.find(|(_, format)| *format == self)
            .map_or("", |(name, _)| name)
    }

    /// Returns the format that a file's first bytes tell. An error names what the file seems to be.
    fn of_head(head: &[u8]) -> Result<Format, String> {
        let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
        let is_utf16 = head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff");
        if head.starts_with(b"PAR1") {
            return Ok(Format::Parquet);
        }
        if head.starts_with(arrow::MAGIC) || head.starts_with(&arrow::CONTINUATION) {
            return Ok(Format::Arrow);
        }
        if head.starts_with(b"PK\x03\x04") {
            return Ok(Format::Npz);
        }
        if let Some(name) = known(head) {
            return Err(format!("it seems to be {name}"));
        }
        match text.trim_ascii_start().first() {
            None => Err("it is empty, so its format is not known".to_owned()),
            Some(b'{' | b'[') => Ok(Format::Json),
            Some(_) if is_utf16 || !text.contains(&0) => Ok(Format::Csv),
            Some(_) => Err("it is not text, and not of a supported format".to_owned()),
        }
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Format, String> {
        let found = Format::ALL.iter().find(|(name, _)| *name == text);
        let names = Format::ALL.map(|(name, _)| name).join(", ");
        found
            .map(|(_, format)| *format)
            .ok_or_else(|| format!("no format `{text}`: it must be one of {names}"))
    }
}

/// Returns what a file's first bytes seem to be, if that is no text.
pub fn known(head: &[u8]) -> Option<&'static str> {
    let known = OTHERS.iter().find(|(magic, _)| head.starts_with(magic));
    known.map(|(_, name)| *name)
}

/// Looks at a stream that its name says to be text. Returns it decompressed, and whether it was compressed with gzip.
///
/// # Errors
/// Reading fails, or the stream is something else. The inner error says what it seems to be.
pub fn text(input: BoxedRead) -> io::Result<Result<(BoxedRead, bool), String>> {
    let (head, input) = peek(input)?;
    if let Some(name) = known(&head) {
        return Ok(Err(format!("it seems to be {name}")));
    }
    Ok(Ok(match head.starts_with(GZIP) {
        true => (super::file::gunzip(input), true),
        false => (input, false),
    }))
}

/// A stream whose first bytes were looked at.
pub struct Sniffed {
    pub input: BoxedRead,
    pub format: Format,
    pub gzip: bool,
    /// What was recognised.
    pub note: Option<String>,
}

/// Recognises the format by the first bytes, unless it is `declared`. A stream compressed with gzip is decompressed.
///
/// # Errors
/// Reading fails, or the bytes are of no supported format. The inner error says what they seem to be.
pub fn sniff(input: BoxedRead, declared: Option<Format>) -> io::Result<Result<Sniffed, String>> {
    let (mut head, mut input) = peek(input)?;
    let gzip = head.starts_with(GZIP);
    if gzip {
        (head, input) = peek(super::file::gunzip(input))?;
    }
    let format = match declared {
        Some(format) => format,
        None => match Format::of_head(&head) {
            Ok(format) => format,
            Err(problem) => return Ok(Err(problem)),
        },
    };
    let zipped = if gzip { " compressed with gzip" } else { "" };
    let note = match declared {
        None => Some(format!(
            "its name does not tell its format: its content is read as {}{zipped} (--format tells another)",
            format.name()
        )),
        Some(_) => gzip.then(|| "it is compressed with gzip".to_owned()),
    };
    Ok(Ok(Sniffed {
        input,
        format,
        gzip,
        note,
    }))
}

/// Reads the first bytes: enough for a magic number and the first character that is not blank. Returns them and the whole stream.
fn peek(mut input: BoxedRead) -> io::Result<(Vec<u8>, BoxedRead)> {
    let mut head = Vec::new();
    while head.len() < HEAD && (head.len() < MAGIC || head.trim_ascii().is_empty()) {
        let buffer = input.fill_buf()?;
        if buffer.is_empty() {
            break;
        }
        head.extend_from_slice(buffer);
        let read = buffer.len();
        input.consume(read);
    }
    let whole = io::Cursor::new(head.clone()).chain(input);
    Ok((head, Box::new(whole)))
}
