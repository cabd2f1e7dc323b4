//! Writes records to a file as NDJSON, CSV or Parquet. The file has its name only when it is complete.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use parquet::basic::{
    Compression as ParquetCompression, LogicalType, Repetition, Type as PhysicalType, ZstdLevel,
};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::Type;

use crate::cli::shared::output::stdout;
use crate::dataset::format::Format;
use crate::failure::Failure;
use crate::synthetic::records::{Cell, CellType, Records};

/// Number of rows in a Parquet row group.
const ROW_GROUP: usize = 50_000;

/// A file that is being written. It is called NAME.part until [`RecordsFile::finish`].
pub struct RecordsFile {
    /// `None` for standard output.
    place: Option<Place>,
    writer: Writer,
}

struct Place {
    path: PathBuf,
    part: PathBuf,
}

enum Writer {
    Ndjson(Box<dyn Write>),
    Csv(Box<csv::Writer<Box<dyn Write>>>),
    Parquet(Box<ParquetFile>),
}

struct ParquetFile {
    writer: SerializedFileWriter<BufWriter<File>>,
    columns: Vec<CellType>,
    rows: Vec<Vec<Cell>>,
}

impl RecordsFile {
    /// Opens the file, or standard output for `-`. The extension tells the format.
    ///
    /// With `resume`, records are appended to what an interrupted run has written; see [`written`].
    ///
    /// # Errors
    /// The format is unknown, the file exists and `force` is not given, or it cannot be created.
    pub fn open(
        path: &Path,
        records: &Records,
        force: bool,
        resume: bool,
    ) -> Result<RecordsFile, Failure> {
        if path.as_os_str() == "-" {
            let writer = Writer::Ndjson(Box::new(stdout()));
            return Ok(RecordsFile {
                place: None,
                writer,
            });
        }
        let named = |e: io::Error| Failure::data(format!("{}: {e}", path.display()));
        let (format, gzip) = format(path)?;
        if path.exists() && !force {
            return Err(Failure::usage(format!(
                "{} exists: choose another name, or replace it with --force",
                path.display()
            )));
        }
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let place = Place {
            path: path.to_owned(),
            part: part.into(),
        };
        let appends = resume && place.part.exists();
        if resume && format != Format::Ndjson {
            return Err(Failure::usage(
                "only NDJSON can be resumed: write .ndjson or .ndjson.gz, or leave --resume out",
            ));
        }
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .append(appends)
            .truncate(!appends)
            .open(&place.part);
        let file = file.map_err(named)?;
        if format == Format::Parquet {
            let writer = ParquetFile::new(file, records).map_err(|e| named(e.into()))?;
            let writer = Writer::Parquet(Box::new(writer));
            return Ok(RecordsFile {
                place: Some(place),
                writer,
            });
        }
        let out: Box<dyn Write> = match gzip {
            true => Box::new(GzEncoder::new(BufWriter::new(file), Compression::default())),
            false => Box::new(BufWriter::new(file)),
        };
        let writer = match format {
            Format::Csv | Format::Tsv => {
                let delimiter = if format == Format::Tsv { b'\t' } else { b',' };
                let mut csv = csv::WriterBuilder::new()
                    .delimiter(delimiter)
                    .from_writer(out);
                let header = records.columns().map(|(path, _)| path);
                csv.write_record(header).map_err(|e| named(e.into()))?;
                Writer::Csv(Box::new(csv))
            }
            _ => Writer::Ndjson(out),
        };
        Ok(RecordsFile {
            place: Some(place),
            writer,
        })
    }

    /// Writes one record.
    ///
    /// # Errors
    /// The disk is full, or nothing reads standard output any more.
    pub fn write(&mut self, records: &Records, cells: Vec<Cell>) -> Result<(), Failure> {
        let written = match &mut self.writer {
            Writer::Ndjson(out) => {
                let mut line = records.json(&cells);
                line.push(b'\n');
                out.write_all(&line)
            }
            Writer::Csv(out) => out
                .write_record(cells.iter().map(Cell::text))
                .map_err(Into::into),
            Writer::Parquet(file) => file.write(cells).map_err(Into::into),
        };
        written.map_err(|e| self.failure(e))
    }

    /// Writes what is buffered, without giving the file its name. A later run can resume it.
    ///
    /// # Errors
    /// The disk is full.
    pub fn interrupt(self) -> Result<Option<PathBuf>, Failure> {
        let place = self.close()?;
        Ok(place.map(|place| place.part))
    }

    /// Completes the file and gives it its name.
    ///
    /// # Errors
    /// The disk is full, or the file cannot be renamed.
    pub fn finish(self) -> Result<(), Failure> {
        match self.close()? {
            Some(Place { path, part }) => {
                let named = |e: io::Error| Failure::data(format!("{}: {e}", path.display()));
                fs::rename(&part, &path).map_err(named)
            }
            None => Ok(()),
        }
    }

    /// Removes what was written.
    pub fn discard(self) {
        if let Some(place) = self.place {
            let _ = fs::remove_file(place.part);
        }
    }

    fn close(self) -> Result<Option<Place>, Failure> {
        let RecordsFile { place, writer } = self;
        let closed = match writer {
            Writer::Ndjson(mut out) => out.flush(),
            Writer::Csv(mut out) => out.flush(),
            Writer::Parquet(file) => file.close().map_err(Into::into),
        };
        match closed {
            Ok(()) => Ok(place),
            Err(e) => Err(failure(place.as_ref(), e)),
        }
    }

    fn failure(&self, e: io::Error) -> Failure {
        failure(self.place.as_ref(), e)
    }
}

fn failure(place: Option<&Place>, e: io::Error) -> Failure {
    match place {
        Some(place) => Failure::data(format!("{}: {e}", place.part.display())),
        None => Failure::output(e),
    }
}

fn format(path: &Path) -> Result<(Format, bool), Failure> {
    let found = Format::of_name(path);
    match found {
        Some((format @ (Format::Ndjson | Format::Csv | Format::Tsv), gzip)) => Ok((format, gzip)),
        Some((Format::Parquet, false)) => Ok((Format::Parquet, false)),
        _ => Err(Failure::usage(format!(
            "{}: records are written to .ndjson, .jsonl, .csv or .tsv, each also .gz, or to .parquet",
            path.display()
        ))),
    }
}

impl ParquetFile {
    fn new(file: File, records: &Records) -> Result<ParquetFile, ParquetError> {
        let mut fields = Vec::new();
        let mut columns = Vec::new();
        for (path, kind) in records.columns() {
            let (physical, logical) = match kind {
                CellType::Bool => (PhysicalType::BOOLEAN, None),
                CellType::Integer => (PhysicalType::INT64, None),
                CellType::Number => (PhysicalType::DOUBLE, None),
                CellType::Text => (PhysicalType::BYTE_ARRAY, Some(LogicalType::String)),
            };
            let field = Type::primitive_type_builder(path, physical)
                .with_logical_type(logical)
                .with_repetition(Repetition::OPTIONAL);
            fields.push(Arc::new(field.build()?));
            columns.push(kind);
        }
        let schema = Type::group_type_builder("record")
            .with_fields(fields)
            .build()?;
        let properties = WriterProperties::builder()
            .set_compression(ParquetCompression::ZSTD(ZstdLevel::default()))
            .build();
        let writer = SerializedFileWriter::new(
            BufWriter::new(file),
            Arc::new(schema),
            Arc::new(properties),
        )?;
        Ok(ParquetFile {
            writer,
            columns,
            rows: Vec::new(),
        })
    }

    fn write(&mut self, cells: Vec<Cell>) -> Result<(), ParquetError> {
        self.rows.push(cells);
        match self.rows.len() {
            ROW_GROUP => self.write_group(),
            _ => Ok(()),
        }
    }

    fn write_group(&mut self) -> Result<(), ParquetError> {
        let mut group = self.writer.next_row_group()?;
        for (index, kind) in self.columns.iter().enumerate() {
            let mut column = group.next_column()?.expect("a column for each field");
            let cells = || self.rows.iter().map(|row| &row[index]);
            let levels: Vec<i16> = cells().map(|cell| i16::from(*cell != Cell::Null)).collect();
            let levels = Some(&levels[..]);
            match kind {
                CellType::Bool => {
                    let values: Vec<bool> = cells()
                        .filter_map(|c| {
                            matches!(c, Cell::Bool(_)).then_some(*c == Cell::Bool(true))
                        })
                        .collect();
                    column
                        .typed::<BoolType>()
                        .write_batch(&values, levels, None)?;
                }
                CellType::Integer => {
                    let values: Vec<i64> = cells().filter_map(integer).collect();
                    column
                        .typed::<Int64Type>()
                        .write_batch(&values, levels, None)?;
                }
                CellType::Number => {
                    let values: Vec<f64> = cells().filter_map(number).collect();
                    column
                        .typed::<DoubleType>()
                        .write_batch(&values, levels, None)?;
                }
                CellType::Text => {
                    let texts = cells().filter(|cell| **cell != Cell::Null);
                    let values: Vec<ByteArray> =
                        texts.map(|cell| cell.text().into_bytes().into()).collect();
                    column
                        .typed::<ByteArrayType>()
                        .write_batch(&values, levels, None)?;
                }
            }
            column.close()?;
        }
        group.close()?;
        self.rows.clear();
        Ok(())
    }

    fn close(mut self) -> Result<(), ParquetError> {
        if !self.rows.is_empty() {
            self.write_group()?;
        }
        self.writer.close().map(drop)
    }
}

fn integer(cell: &Cell) -> Option<i64> {
    match cell {
        Cell::Integer(value) => Some(*value),
        Cell::Number(value) => Some(value.round() as i64),
        _ => None,
    }
}

/// Returns the number as the decimal that its text has: 12.34, not 12.3400001525….
fn number(cell: &Cell) -> Option<f64> {
    match cell {
        Cell::Integer(value) => Some(*value as f64),
        Cell::Number(_) => cell.text().parse().ok(),
        _ => None,
    }
}

/// Returns the complete lines that an interrupted run has written to NAME.part: their number and the first one. Cuts off an incomplete
/// last line. `None` if there is no such file, or no line in it.
///
/// # Errors
/// The file cannot be read or cut.
pub fn written(path: &Path) -> Result<Option<(u64, Vec<u8>)>, Failure> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let named = |e: io::Error| Failure::data(format!("{}: {e}", part.display()));
    if !part.exists() {
        return Ok(None);
    }
    let gzip = format(path)?.1;
    let file = File::open(&part).map_err(named)?;
    let input: Box<dyn Read> = match gzip {
        true => Box::new(MultiGzDecoder::new(BufReader::new(file))),
        false => Box::new(file),
    };
    let mut input = BufReader::new(input);
    let (mut lines, mut bytes) = (0, 0);
    let (mut line, mut first) = (Vec::new(), Vec::new());
    loop {
        line.clear();
        let read = input.read_until(b'\n', &mut line).map_err(|e| {
            Failure::data(format!(
                "{}: cannot be resumed ({e}): remove it, or leave --resume out",
                part.display()
            ))
        })?;
        if line.last() != Some(&b'\n') {
            break;
        }
        if lines == 0 {
            first.clone_from(&line);
        }
        lines += 1;
        bytes += read as u64;
    }
    if !gzip {
        let file = OpenOptions::new().write(true).open(&part).map_err(named)?;
        file.set_len(bytes).map_err(named)?;
    }
    Ok((lines > 0).then_some((lines, first)))
}
