//! Reads Parquet through the record API, one row group at a time.

use std::collections::HashMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow_ipc::convert::try_schema_from_ipc_buffer;
use arrow_schema::DataType;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use jiff::Timestamp;
use parquet::basic::{LogicalType, TimeUnit};
use parquet::errors::ParquetError;
use parquet::file::metadata::FileMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::{ReaderIter, TreeBuilder};
use parquet::record::{Field, Row};
use parquet::schema::types::{SchemaDescPtr, Type};

use super::json_values::{Changes, binary, float, json, seconds, sequence, time, timestamp};
use super::layout::{Layout, apart};
use super::parquet_input::{CheckedGroup, Pages};
use super::{ErrorKind, Numbered, Progress, Unit};

pub struct Rows {
    file: SerializedFileReader<File>,
    pages: Arc<Pages>,
    schema: SchemaDescPtr,
    layout: Layout,
    /// The names of the top-level columns in the payloads.
    names: Vec<String>,
    /// For each of them, how many units are a second, if it holds durations.
    durations: Vec<Option<f64>>,
    /// Columns that got a new name, and those with durations.
    notes: Vec<String>,
    next_group: usize,
    group: Option<ReaderIter>,
    done: u64,
    total: u64,
    changes: Changes,
}

impl Rows {
    pub fn new(file: File) -> Result<Self, ErrorKind> {
        let pages = Arc::new(Pages(file.try_clone()?));
        let file = guarded(|| SerializedFileReader::new(file))?;
        let metadata = file.metadata().file_metadata();
        let schema = metadata.schema_descr_ptr();
        let mut notes = vec![];
        let columns = schema.root_schema().get_fields().iter();
        let durations = durations_of(metadata).unwrap_or_default();
        let names = apart(columns.clone().map(|column| column.name()), &mut notes);
        let durations = columns.map(|column| {
            let unit = durations.get(column.name())?;
            notes.push(format!(
                "`{}` holds durations: read as seconds, as they are in Arrow",
                column.name()
            ));
            Some(*unit)
        });
        let durations = durations.collect();
        let layout = Layout::new(names.iter().map(String::as_str))?;
        let total = metadata.num_rows().try_into().unwrap_or(0);
        Ok(Self {
            file,
            pages,
            schema,
            layout,
            names,
            durations,
            notes,
            next_group: 0,
            group: None,
            done: 0,
            total,
            changes: Changes::default(),
        })
    }

    /// Returns the names of the leaf columns as dotted paths.
    pub fn columns(&self) -> Vec<String> {
        let leaves = 0..self.schema.num_columns();
        let leaves = leaves.map(|leaf| {
            let column = self.schema.column(leaf);
            let inner = &column.path().parts()[1..];
            let top = &self.names[self.schema.get_column_root_idx(leaf)];
            std::iter::once(top)
                .chain(inner)
                .cloned()
                .collect::<Vec<_>>()
                .join(".")
        });
        leaves.collect()
    }

    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.notes.clone();
        notes.extend(self.changes.notes());
        notes
    }

    pub fn progress(&self) -> Progress {
        Progress {
            done: self.done,
            total: self.total,
            unit: Unit::Rows,
        }
    }

    pub fn read_next(&mut self) -> Result<Option<Numbered>, ErrorKind> {
        let Some(row) = guarded(|| self.next_row())? else {
            return Ok(None);
        };
        self.done += 1;
        let columns: Vec<&Field> = row.get_column_iter().map(|(_, value)| value).collect();
        let types = self.schema.root_schema().get_fields();
        let (changes, durations) = (&mut self.changes, &self.durations);
        let mut payload = vec![];
        self.layout.write(&mut payload, &mut |column, out| {
            let value = columns.get(column).unwrap_or(&&Field::Null);
            if let (Some(Some(per_second)), Field::Long(count)) = (durations.get(column), value) {
                return seconds(out, *count, *per_second);
            }
            write_field(out, value, Some(&types[column]), changes)
        })?;
        Ok(Some((self.done, payload)))
    }

    fn next_row(&mut self) -> Result<Option<Row>, ParquetError> {
        loop {
            if let Some(row) = self.group.as_mut().and_then(Iterator::next) {
                return row.map(Some);
            }
            if self.next_group == self.file.num_row_groups() {
                return Ok(None);
            }
            let group = CheckedGroup {
                group: self.file.get_row_group(self.next_group)?,
                pages: self.pages.clone(),
            };
            self.group = Some(TreeBuilder::new().as_iter(self.schema.clone(), &group)?);
            self.next_group += 1;
        }
    }
}

/// Returns how many units of each column with durations are a second. Parquet has no such type, so it writes integers, and Arrow
/// keeps its own types beside them.
fn durations_of(metadata: &FileMetaData) -> Option<HashMap<String, f64>> {
    let mut facts = metadata.key_value_metadata()?.iter();
    let schema = facts.find(|fact| fact.key == "ARROW:schema")?;
    let schema = BASE64_STANDARD.decode(schema.value.as_ref()?).ok()?;
    let schema = try_schema_from_ipc_buffer(&schema).ok()?;
    let durations = schema.fields().iter().filter_map(|field| {
        let per_second = match field.data_type() {
            DataType::Duration(arrow_schema::TimeUnit::Second) => 1e0,
            DataType::Duration(arrow_schema::TimeUnit::Millisecond) => 1e3,
            DataType::Duration(arrow_schema::TimeUnit::Microsecond) => 1e6,
            DataType::Duration(arrow_schema::TimeUnit::Nanosecond) => 1e9,
            _ => return None,
        };
        Some((field.name().clone(), per_second))
    });
    Some(durations.collect())
}

/// Turns a panic into an error, because a damaged file can violate the record API's assertions. The reader is not used after a
/// panic.
fn guarded<T>(read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ErrorKind> {
    let panicked =
        |_| ParquetError::General("the file is damaged or has a type that cannot be read".into());
    Ok(catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|panic| Err(panicked(panic)))?)
}

/// Writes a value as JSON. Only the column's type distinguishes nanoseconds from plain integers. It is not passed on into lists
/// and maps, because a model's schema cannot address their items.
fn write_field(
    out: &mut Vec<u8>,
    value: &Field,
    column: Option<&Type>,
    changes: &mut Changes,
) -> Result<(), ErrorKind> {
    match value {
        Field::Null => json(out, &()),
        Field::Bool(v) => json(out, v),
        Field::Byte(v) => json(out, v),
        Field::Short(v) => json(out, v),
        Field::Int(v) => json(out, v),
        Field::Long(v) => {
            match column.and_then(|column| column.get_basic_info().logical_type_ref()) {
                Some(LogicalType::Timestamp(t)) if t.unit == TimeUnit::NANOS => {
                    timestamp(out, Timestamp::from_nanosecond((*v).into()), changes)
                }
                Some(LogicalType::Time(t)) if t.unit == TimeUnit::NANOS => time(out, *v, changes),
                _ => json(out, v),
            }
        }
        Field::UByte(v) => json(out, v),
        Field::UShort(v) => json(out, v),
        Field::UInt(v) => json(out, v),
        Field::ULong(v) => json(out, v),
        Field::Float16(v) => float(out, v.to_f32(), changes),
        Field::Float(v) => float(out, *v, changes),
        Field::Double(v) => float(out, *v, changes),
        Field::Decimal(_) => {
            out.extend_from_slice(value.to_string().trim_end_matches('.').as_bytes());
            Ok(())
        }
        Field::Str(v) => json(out, v),
        Field::Bytes(v) => binary(out, v.data(), changes),
        Field::Date(days) => timestamp(
            out,
            Timestamp::from_second(i64::from(*days) * 86_400),
            changes,
        ),
        Field::TimeMillis(v) => time(out, i64::from(*v) * 1_000_000, changes),
        Field::TimeMicros(v) => time(out, v.saturating_mul(1_000), changes),
        Field::TimestampMillis(v) => timestamp(out, Timestamp::from_millisecond(*v), changes),
        Field::TimestampMicros(v) => timestamp(out, Timestamp::from_microsecond(*v), changes),
        Field::Group(row) => {
            let types = column.map_or(&[][..], |column| column.get_fields());
            let fields = row.get_column_iter().enumerate();
            sequence(out, *b"{}", fields, |out, (index, (name, value))| {
                json(out, name)?;
                out.push(b':');
                write_field(out, value, types.get(index).map(|t| &**t), changes)
            })
        }
        Field::ListInternal(list) => sequence(out, *b"[]", list.elements(), |out, item| {
            write_field(out, item, None, changes)
        }),
        Field::MapInternal(map) => sequence(out, *b"{}", map.entries(), |out, (name, value)| {
            match name {
                Field::Str(name) => json(out, name)?,
                other => json(out, &other.to_string())?,
            }
            out.push(b':');
            write_field(out, value, None, changes)
        }),
    }
}
