//! Reads Arrow IPC, both the stream and the file format (Feather version 2), one batch at a time. A file is a stream between a
//! magic number and a footer, so both are read from the first to the last byte.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow_array::cast::AsArray;
use arrow_array::types::*;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_buffer::{ArrowNativeType, Buffer};
use arrow_ipc::reader::StreamDecoder;
use arrow_ipc::root_as_message;
use arrow_schema::{ArrowError, DataType, Field, SchemaRef, TimeUnit};
use jiff::Timestamp;

use super::json_values::{Changes, binary, float, json, seconds, sequence, time, timestamp};
use super::layout::{Layout, apart};
use super::{BoxedRead, ErrorKind, Numbered};

/// What a file begins with, padded to eight bytes.
pub const MAGIC: &[u8] = b"ARROW1";
/// What a file of the older format begins with.
const FEATHER_1: &[u8] = b"FEA1";
/// What begins the length of a message.
pub const CONTINUATION: [u8; 4] = [0xff; 4];
/// What ends a stream.
const END: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
/// Maximum size of a message, compressed and decompressed, in bytes.
const MAX_MESSAGE: u64 = 2 << 30;
const MAX_METADATA: u64 = 64 << 20;

pub struct Rows {
    batches: Batches,
    payloads: Payloads,
    batch: Option<RecordBatch>,
    next: usize,
    done: u64,
}

impl Rows {
    pub fn new(mut input: BoxedRead) -> Result<Self, ErrorKind> {
        let head = input.fill_buf()?;
        if head.starts_with(FEATHER_1) {
            let reason = "it is Feather version 1, which is no longer supported: write it again with a current version of pyarrow";
            return Err(ErrorKind::Columns(reason.to_owned()));
        }
        if head.starts_with(MAGIC) {
            input.read_exact(&mut [0; 8])?;
            // Some writers pad the magic number to more than eight bytes.
            while input.fill_buf()?.starts_with(&[0; 8]) {
                input.consume(8);
            }
        }
        let mut batches = Batches {
            input,
            decoder: StreamDecoder::new(),
            pending: Buffer::default(),
            ended: false,
        };
        let batch = guarded(|| batches.next())?;
        let Some(schema) = batches.decoder.schema() else {
            let reason = "not Arrow IPC: it does not begin with a schema";
            return Err(ErrorKind::Columns(reason.to_owned()));
        };
        Ok(Self {
            batches,
            payloads: Payloads::new(schema)?,
            batch,
            next: 0,
            done: 0,
        })
    }

    /// Returns the names of the leaf columns as dotted paths.
    pub fn columns(&self) -> Vec<String> {
        self.payloads.columns()
    }

    pub fn notes(&self) -> Vec<String> {
        self.payloads.notes()
    }

    pub fn read_next(&mut self) -> Result<Option<Numbered>, ErrorKind> {
        let batch = loop {
            match &self.batch {
                None => return Ok(None),
                Some(batch) if self.next < batch.num_rows() => break batch,
                Some(_) => (self.batch, self.next) = (guarded(|| self.batches.next())?, 0),
            }
        };
        let payload = self.payloads.write(batch, self.next)?;
        self.next += 1;
        self.done += 1;
        Ok(Some((self.done, payload)))
    }
}

/// Writes the rows of batches with one schema as JSON objects.
pub struct Payloads {
    schema: SchemaRef,
    /// The names of the columns in the payloads.
    names: Vec<String>,
    /// Columns that got a new name.
    notes: Vec<String>,
    layout: Layout,
    changes: Changes,
    /// Columns whose type has no JSON form, by name.
    unreadable: BTreeMap<String, DataType>,
}

impl Payloads {
    pub fn new(schema: SchemaRef) -> Result<Payloads, ErrorKind> {
        let mut notes = vec![];
        let fields = schema.fields().iter();
        let names = apart(fields.map(|field| field.name().as_str()), &mut notes);
        Ok(Payloads {
            layout: Layout::new(names.iter().map(String::as_str))?,
            names,
            notes,
            schema,
            changes: Changes::default(),
            unreadable: BTreeMap::new(),
        })
    }

    pub fn write(&mut self, batch: &RecordBatch, row: usize) -> Result<Vec<u8>, ErrorKind> {
        let columns = batch.columns();
        let mut writer = Writer {
            changes: &mut self.changes,
            unreadable: &mut self.unreadable,
            name: "",
        };
        let (schema, layout) = (&self.schema, &self.layout);
        let mut payload = vec![];
        guarded(|| {
            Ok(layout.write(&mut payload, &mut |column, out| {
                writer.name = schema.field(column).name();
                writer.write(out, &columns[column], row)
            }))
        })??;
        Ok(payload)
    }

    pub fn columns(&self) -> Vec<String> {
        let mut columns = vec![];
        for (field, name) in self.schema.fields().iter().zip(&self.names) {
            leaves(field, name, &mut columns);
        }
        columns
    }

    pub fn notes(&self) -> Vec<String> {
        let unreadable = self.unreadable.iter().map(|(name, kind)| {
            format!("column `{name}` has the type {kind}, which JSON does not have: its values are written as null")
        });
        let notes = self.notes.iter().cloned().chain(unreadable);
        notes.chain(self.changes.notes()).collect()
    }
}

/// The batches of a stream.
struct Batches {
    input: BoxedRead,
    decoder: StreamDecoder,
    /// What the decoder has not taken yet.
    pending: Buffer,
    ended: bool,
}

impl Batches {
    fn next(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        loop {
            if self.pending.is_empty() {
                if self.ended {
                    return Ok(None);
                }
                let message = next_message(&mut self.input)?;
                self.ended = message.is_none();
                // The decoder finishes a message without a body only when the next one, or the end, arrives.
                self.pending = message.unwrap_or_else(|| END.to_vec()).into();
            }
            if let Some(batch) = self.decoder.decode(&mut self.pending)? {
                return Ok(Some(batch));
            }
        }
    }
}

fn leaves(field: &Field, path: &str, columns: &mut Vec<String>) {
    match field.data_type() {
        DataType::Struct(fields) => {
            for field in fields {
                leaves(field, &format!("{path}.{}", field.name()), columns);
            }
        }
        _ => columns.push(path.to_owned()),
    }
}

/// Turns a panic into an error, because a damaged file can violate the library's assertions. The reader is not used after a panic.
fn guarded<T>(read: impl FnOnce() -> Result<T, ArrowError>) -> Result<T, ErrorKind> {
    let panicked = |_| Err(ArrowError::IpcError("the file is damaged".to_owned()));
    let read = catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(panicked);
    read.map_err(|error| match error {
        ArrowError::IoError(_, error) => ErrorKind::Io(error),
        error => ErrorKind::Io(io::Error::other(error.to_string())),
    })
}

/// Reads one message with its length, metadata and body. `None` at the end of the stream. What the message says about its size is
/// checked before memory is reserved for it.
fn next_message(input: &mut impl BufRead) -> Result<Option<Vec<u8>>, ArrowError> {
    let mut length = [0; 4];
    if input.fill_buf()?.is_empty() {
        return Ok(None);
    }
    input.read_exact(&mut length)?;
    if length == CONTINUATION {
        input.read_exact(&mut length)?;
    }
    let length = u64::from(u32::from_le_bytes(length));
    if length == 0 {
        return Ok(None);
    }
    if length > MAX_METADATA {
        return Err(too_large("its metadata", MAX_METADATA));
    }
    let mut message = CONTINUATION.to_vec();
    message.extend_from_slice(&(length as u32).to_le_bytes());
    let start = message.len();
    read_exactly(input, length, &mut message)?;
    let body = {
        let header = root_as_message(&message[start..])
            .map_err(|error| ArrowError::ParseError(format!("not Arrow IPC: {error}")))?;
        header.bodyLength()
    };
    let body = u64::try_from(body).unwrap_or(u64::MAX);
    if body > MAX_MESSAGE {
        return Err(too_large("a batch", MAX_MESSAGE));
    }
    let body_start = message.len();
    read_exactly(input, body, &mut message)?;
    check_decompressed(&message[start..body_start], &message[body_start..])?;
    Ok(Some(message))
}

fn read_exactly(
    input: &mut impl BufRead,
    length: u64,
    out: &mut Vec<u8>,
) -> Result<(), ArrowError> {
    match input.take(length).read_to_end(out)? as u64 {
        read if read == length => Ok(()),
        _ => Err(ArrowError::IpcError("the file is cut off".to_owned())),
    }
}

/// Checks what the buffers of a compressed message say about their size.
fn check_decompressed(metadata: &[u8], body: &[u8]) -> Result<(), ArrowError> {
    let header = root_as_message(metadata).map_err(|e| ArrowError::ParseError(e.to_string()))?;
    let dictionary = header.header_as_dictionary_batch();
    let batch = header.header_as_record_batch();
    let batch = batch.or_else(|| dictionary.and_then(|dictionary| dictionary.data()));
    let Some(batch) = batch.filter(|batch| batch.compression().is_some()) else {
        return Ok(());
    };
    let mut total: u64 = 0;
    for buffer in batch.buffers().into_iter().flatten() {
        let at = usize::try_from(buffer.offset()).unwrap_or(usize::MAX);
        let prefix = body.get(at..).and_then(|rest| rest.first_chunk::<8>());
        let size = prefix.map_or(0, |bytes| i64::from_le_bytes(*bytes).max(0));
        total = total.saturating_add(size as u64);
    }
    if total > MAX_MESSAGE {
        return Err(too_large("a decompressed batch", MAX_MESSAGE));
    }
    Ok(())
}

fn too_large(what: &str, limit: u64) -> ArrowError {
    ArrowError::MemoryError(format!(
        "{what} is larger than {limit} bytes: write the file in smaller batches"
    ))
}

/// Writes values as JSON.
struct Writer<'w> {
    changes: &'w mut Changes,
    unreadable: &'w mut BTreeMap<String, DataType>,
    /// The column that is written.
    name: &'w str,
}

impl Writer<'_> {
    fn write(&mut self, out: &mut Vec<u8>, array: &ArrayRef, row: usize) -> Result<(), ErrorKind> {
        if array.is_null(row) {
            return json(out, &());
        }
        macro_rules! primitive {
            ($kind:ty) => {
                array.as_primitive::<$kind>().value(row)
            };
        }
        macro_rules! decimal {
            ($kind:ty) => {{
                let text = array.as_primitive::<$kind>().value_as_string(row);
                out.extend_from_slice(text.as_bytes());
                Ok(())
            }};
        }
        match array.data_type() {
            DataType::Null => json(out, &()),
            DataType::Boolean => json(out, &array.as_boolean().value(row)),
            DataType::Int8 => json(out, &primitive!(Int8Type)),
            DataType::Int16 => json(out, &primitive!(Int16Type)),
            DataType::Int32 => json(out, &primitive!(Int32Type)),
            DataType::Int64 => json(out, &primitive!(Int64Type)),
            DataType::UInt8 => json(out, &primitive!(UInt8Type)),
            DataType::UInt16 => json(out, &primitive!(UInt16Type)),
            DataType::UInt32 => json(out, &primitive!(UInt32Type)),
            DataType::UInt64 => json(out, &primitive!(UInt64Type)),
            DataType::Float16 => float(out, primitive!(Float16Type).to_f32(), self.changes),
            DataType::Float32 => float(out, primitive!(Float32Type), self.changes),
            DataType::Float64 => float(out, primitive!(Float64Type), self.changes),
            DataType::Decimal32(..) => decimal!(Decimal32Type),
            DataType::Decimal64(..) => decimal!(Decimal64Type),
            DataType::Decimal128(..) => decimal!(Decimal128Type),
            DataType::Decimal256(..) => decimal!(Decimal256Type),
            DataType::Utf8 => json(out, array.as_string::<i32>().value(row)),
            DataType::LargeUtf8 => json(out, array.as_string::<i64>().value(row)),
            DataType::Utf8View => json(out, array.as_string_view().value(row)),
            DataType::Binary => self.binary(out, array.as_binary::<i32>().value(row)),
            DataType::LargeBinary => self.binary(out, array.as_binary::<i64>().value(row)),
            DataType::BinaryView => self.binary(out, array.as_binary_view().value(row)),
            DataType::FixedSizeBinary(_) => {
                self.binary(out, array.as_fixed_size_binary().value(row))
            }
            DataType::Date32 => {
                let seconds = i64::from(primitive!(Date32Type)) * 86_400;
                timestamp(out, Timestamp::from_second(seconds), self.changes)
            }
            DataType::Date64 => timestamp(
                out,
                Timestamp::from_millisecond(primitive!(Date64Type)),
                self.changes,
            ),
            DataType::Timestamp(unit, _) => {
                let time = match unit {
                    TimeUnit::Second => Timestamp::from_second(primitive!(TimestampSecondType)),
                    TimeUnit::Millisecond => {
                        Timestamp::from_millisecond(primitive!(TimestampMillisecondType))
                    }
                    TimeUnit::Microsecond => {
                        Timestamp::from_microsecond(primitive!(TimestampMicrosecondType))
                    }
                    TimeUnit::Nanosecond => {
                        Timestamp::from_nanosecond(primitive!(TimestampNanosecondType).into())
                    }
                };
                timestamp(out, time, self.changes)
            }
            DataType::Time32(TimeUnit::Second) => {
                self.clock(out, primitive!(Time32SecondType).into(), 1_000_000_000)
            }
            DataType::Time32(_) => {
                self.clock(out, primitive!(Time32MillisecondType).into(), 1_000_000)
            }
            DataType::Time64(TimeUnit::Microsecond) => {
                self.clock(out, primitive!(Time64MicrosecondType), 1_000)
            }
            DataType::Time64(_) => self.clock(out, primitive!(Time64NanosecondType), 1),
            DataType::Duration(TimeUnit::Second) => {
                seconds(out, primitive!(DurationSecondType), 1e0)
            }
            DataType::Duration(TimeUnit::Millisecond) => {
                seconds(out, primitive!(DurationMillisecondType), 1e3)
            }
            DataType::Duration(TimeUnit::Microsecond) => {
                seconds(out, primitive!(DurationMicrosecondType), 1e6)
            }
            DataType::Duration(TimeUnit::Nanosecond) => {
                seconds(out, primitive!(DurationNanosecondType), 1e9)
            }
            DataType::Dictionary(..) => {
                let dictionary = array.as_any_dictionary();
                match key(dictionary.keys(), row) {
                    Some(key) => self.write(out, dictionary.values(), key),
                    None => json(out, &()),
                }
            }
            DataType::Struct(fields) => {
                let columns = array.as_struct().columns();
                sequence(
                    out,
                    *b"{}",
                    fields.iter().zip(columns),
                    |out, (field, column)| {
                        json(out, field.name())?;
                        out.push(b':');
                        self.write(out, column, row)
                    },
                )
            }
            DataType::List(_) => self.list(out, &array.as_list::<i32>().value(row)),
            DataType::LargeList(_) => self.list(out, &array.as_list::<i64>().value(row)),
            DataType::FixedSizeList(..) => self.list(out, &array.as_fixed_size_list().value(row)),
            DataType::ListView(_) => self.list(out, &array.as_list_view::<i32>().value(row)),
            DataType::LargeListView(_) => self.list(out, &array.as_list_view::<i64>().value(row)),
            DataType::Map(..) => {
                let entries = array.as_map().value(row);
                let (keys, values) = (entries.column(0), entries.column(1));
                sequence(out, *b"{}", 0..entries.len(), |out, entry| {
                    self.key(out, keys, entry)?;
                    out.push(b':');
                    self.write(out, values, entry)
                })
            }
            other => {
                self.unreadable
                    .entry(self.name.to_owned())
                    .or_insert_with(|| other.clone());
                json(out, &())
            }
        }
    }

    fn binary(&mut self, out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), ErrorKind> {
        binary(out, bytes, self.changes)
    }

    fn clock(&mut self, out: &mut Vec<u8>, value: i64, nanoseconds: i64) -> Result<(), ErrorKind> {
        time(out, value.saturating_mul(nanoseconds), self.changes)
    }

    fn list(&mut self, out: &mut Vec<u8>, items: &ArrayRef) -> Result<(), ErrorKind> {
        sequence(out, *b"[]", 0..items.len(), |out, item| {
            self.write(out, items, item)
        })
    }

    /// Writes a key of a map as a string.
    fn key(&mut self, out: &mut Vec<u8>, keys: &ArrayRef, entry: usize) -> Result<(), ErrorKind> {
        let mut text = vec![];
        self.write(&mut text, keys, entry)?;
        match text.first() {
            Some(b'"') => out.extend_from_slice(&text),
            _ => json(out, &String::from_utf8_lossy(&text))?,
        }
        Ok(())
    }
}

/// Returns the index of a dictionary's value.
fn key(keys: &dyn Array, row: usize) -> Option<usize> {
    macro_rules! index {
        ($kind:ty) => {
            keys.as_primitive::<$kind>().value(row).to_usize()
        };
    }
    match keys.data_type() {
        DataType::Int8 => index!(Int8Type),
        DataType::Int16 => index!(Int16Type),
        DataType::Int32 => index!(Int32Type),
        DataType::Int64 => index!(Int64Type),
        DataType::UInt8 => index!(UInt8Type),
        DataType::UInt16 => index!(UInt16Type),
        DataType::UInt32 => index!(UInt32Type),
        DataType::UInt64 => index!(UInt64Type),
        _ => None,
    }
}
