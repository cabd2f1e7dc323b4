//! Writes records as NDJSON, CSV or Parquet.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::{
    Compression as ParquetCompression, LogicalType, Repetition, Type as PhysicalType, ZstdLevel,
};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::Type;

use super::new_file::{NewFile, must_be_new};
use crate::dataset::format::Format;
use crate::failure::Failure;
use crate::synthetic::records::{Cell, CellType, Records};

/// Number of rows in a Parquet row group.
const ROW_GROUP: usize = 50_000;

/// A new file of records.
pub enum RecordsFile {
    Ndjson(Box<NewFile>),
    Csv(Box<csv::Writer<NewFile>>),
    Parquet(Box<ParquetFile>),
}

pub struct ParquetFile {
    writer: SerializedFileWriter<NewFile>,
    columns: Vec<CellType>,
    rows: Vec<Vec<Cell>>,
}

impl RecordsFile {
    /// Checks before long work what [`RecordsFile::open`] checks.
    ///
    /// # Errors
    /// The format is unknown, or the file exists and `force` is not given.
    pub fn check(path: &Path, force: bool) -> Result<(), Failure> {
        format(path)?;
        match path.as_os_str() == "-" {
            true => Ok(()),
            false => must_be_new(path, force),
        }
    }

    /// Opens the file, or NDJSON on standard output for `-`. The extension tells the format.
    ///
    /// With `resumes`, records are appended to what an interrupted run has written.
    ///
    /// # Errors
    /// The format is unknown or cannot be resumed, the file exists and `force` is not given, or it cannot be created.
    pub fn open(
        path: &Path,
        records: &Records,
        force: bool,
        resumes: bool,
    ) -> Result<RecordsFile, Failure> {
        let format = format(path)?;
        if resumes && format != Format::Ndjson {
            return Err(Failure::usage(
                "only NDJSON can be resumed: write .ndjson or .ndjson.gz, or leave --resume out",
            ));
        }
        let file = NewFile::open(path, force, resumes)?;
        Ok(match format {
            Format::Parquet => {
                let file = ParquetFile::new(file, records)
                    .map_err(|e| Failure::output(io::Error::from(e)))?;
                RecordsFile::Parquet(Box::new(file))
            }
            Format::Csv | Format::Tsv => {
                let delimiter = if format == Format::Tsv { b'\t' } else { b',' };
                let mut csv = csv::WriterBuilder::new()
                    .delimiter(delimiter)
                    .from_writer(file);
                let header = records.columns().map(|(path, _)| path);
                csv.write_record(header)
                    .map_err(|e| Failure::output(io::Error::from(e)))?;
                RecordsFile::Csv(Box::new(csv))
            }
            _ => RecordsFile::Ndjson(Box::new(file)),
        })
    }

    /// Writes one record.
    ///
    /// # Errors
    /// The disk is full, or nothing reads standard output any more.
    pub fn write(&mut self, records: &Records, cells: Vec<Cell>) -> Result<(), Failure> {
        let written: io::Result<()> = match self {
            RecordsFile::Ndjson(out) => {
                let mut line = records.json(&cells);
                line.push(b'\n');
                io::Write::write_all(out, &line)
            }
            RecordsFile::Csv(out) => {
                let written = out.write_record(cells.iter().map(Cell::text));
                written.map_err(Into::into)
            }
            RecordsFile::Parquet(file) => file.write(cells).map_err(Into::into),
        };
        written.map_err(Failure::output)
    }

    /// Completes the file and gives it its name.
    ///
    /// # Errors
    /// The disk is full, or the file cannot be renamed.
    pub fn finish(self) -> Result<(), Failure> {
        self.close()?.finish()
    }

    /// Completes what was written without giving it its name. Returns its path.
    ///
    /// # Errors
    /// The disk is full.
    pub fn interrupt(self) -> Result<Option<PathBuf>, Failure> {
        self.close()?.interrupt()
    }

    /// Removes what was written.
    pub fn discard(self) {
        if let Ok(file) = self.close() {
            file.discard();
        }
    }

    fn close(self) -> Result<NewFile, Failure> {
        match self {
            RecordsFile::Ndjson(out) => Ok(*out),
            RecordsFile::Csv(out) => {
                let file = out.into_inner();
                file.map_err(|e| Failure::output(e.into_error()))
            }
            RecordsFile::Parquet(file) => {
                let file = file.close();
                file.map_err(|e| Failure::output(io::Error::from(e)))
            }
        }
    }
}

fn format(path: &Path) -> Result<Format, Failure> {
    if path.as_os_str() == "-" {
        return Ok(Format::Ndjson);
    }
    match Format::of_name(path) {
        Some((format @ (Format::Ndjson | Format::Csv | Format::Tsv), _)) => Ok(format),
        Some((Format::Parquet, _)) => Ok(Format::Parquet),
        _ => Err(Failure::usage(format!(
            "{}: records are written to .ndjson, .jsonl, .csv or .tsv, each also .gz, or to .parquet",
            path.display()
        ))),
    }
}

impl ParquetFile {
    fn new(file: NewFile, records: &Records) -> Result<ParquetFile, ParquetError> {
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
        let writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties))?;
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

    fn close(mut self) -> Result<NewFile, ParquetError> {
        if !self.rows.is_empty() {
            self.write_group()?;
        }
        self.writer.into_inner()
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
