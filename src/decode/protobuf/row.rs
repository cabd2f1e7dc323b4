//! Decodes a Protobuf message directly into the row.

use std::collections::HashMap;

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};

use super::super::paths::{Child, Node, Paths, UNSET};
use super::super::value::Value;
use super::super::wire::Cursor;
use super::super::{RowError, malformed};
use super::structs::{self, Dynamic};

/// Maximum nesting depth of skipped groups. Messages that are read nest only as deep as the longest path.
const MAX_DEPTH: usize = 100;
const MICROSECONDS: i64 = 1_000_000;

/// The steps that read a message: its type and the features, combined once.
#[derive(Debug)]
pub struct ProtobufPlan {
    root: Message,
    /// Number of messages on the paths, including the root.
    messages: usize,
    /// Values of fields that are not on the wire although the message around them is.
    defaults: Vec<Default>,
}

#[derive(Debug)]
struct Message {
    /// Index of the message in the plan.
    id: usize,
    /// Sorted by field number.
    fields: Vec<Field>,
}

#[derive(Debug)]
struct Field {
    number: u32,
    name: String,
    want: Want,
    clears: Clears,
}

/// The columns and messages that a field unsets because they share a oneof with it.
#[derive(Debug, Default)]
struct Clears {
    columns: Vec<usize>,
    messages: Vec<usize>,
}

#[derive(Debug)]
enum Want {
    /// The field is not read, but it unsets the other members of its oneof.
    Nothing,
    Scalar(Scalar, Vec<usize>),
    Message(Message),
    /// A map, by its keys.
    Map(MapReader),
    /// A `google.protobuf.Struct` or `Value`.
    Dynamic(Dynamic),
    /// A well-known wrapper type, which counts as the value in it.
    Wrapper(Scalar, Vec<usize>),
    Timestamp(Vec<usize>),
    Duration(Vec<usize>),
    Other(&'static str, Vec<usize>),
}

/// The entries of a map that features need.
#[derive(Debug)]
struct MapReader {
    key: Scalar,
    /// By key: the index that says whether the map has the key, and how to read its value.
    entries: HashMap<String, (usize, Field)>,
}

#[derive(Debug)]
struct Default {
    message: usize,
    columns: Vec<usize>,
    value: DefaultValue,
}

#[derive(Debug, Clone)]
enum DefaultValue {
    Number,
    Bool,
    Text(String),
    Other(&'static str),
}

#[derive(Debug, Clone)]
enum Scalar {
    Double,
    Float,
    Int32,
    Int64,
    Uint32,
    Uint64,
    Sint32,
    Sint64,
    Fixed32,
    Fixed64,
    Sfixed32,
    Sfixed64,
    Bool,
    Text,
    Bytes,
    Enum(HashMap<i32, String>),
}

// Wire types of the Protobuf encoding.
pub(super) const VARINT: u8 = 0;
pub(super) const EIGHT_BYTES: u8 = 1;
pub(super) const SIZED: u8 = 2;
const GROUP: u8 = 3;
const GROUP_END: u8 = 4;
const FOUR_BYTES: u8 = 5;

impl ProtobufPlan {
    pub fn new(message: &MessageDescriptor, paths: &Paths) -> ProtobufPlan {
        let mut plan = ProtobufPlan {
            root: Message {
                id: 0,
                fields: Vec::new(),
            },
            messages: 0,
            defaults: Vec::new(),
        };
        plan.root = plan.message(message, &paths.root);
        plan
    }

    /// Returns the plan for the fields in `wanted`. The recursion is as deep as the longest path.
    fn message(&mut self, message: &MessageDescriptor, wanted: &Node) -> Message {
        let id = self.messages;
        self.messages += 1;
        let mut fields = Vec::new();
        let mut oneofs: HashMap<String, Vec<u32>> = HashMap::new();
        for (name, child) in &wanted.keys {
            let Some(field) = message.get_field_by_name(name) else {
                continue;
            };
            if let Some(oneof) = field.containing_oneof() {
                let members = oneof.fields().map(|f| f.number());
                oneofs.insert(oneof.full_name().to_owned(), members.collect());
            }
            let want = self.want(&field, child, id);
            fields.push(Field {
                number: field.number(),
                name: name.clone(),
                want,
                clears: Clears::default(),
            });
        }
        for members in oneofs.into_values() {
            join(&mut fields, &members);
        }
        fields.sort_by_key(|field| field.number);
        Message { id, fields }
    }

    fn want(&mut self, field: &FieldDescriptor, child: &Child, message: usize) -> Want {
        let columns = child.columns();
        let want = match (field.kind(), child) {
            (Kind::Message(entry), Child::Node(node)) if field.is_map() => {
                return Want::Map(self.map(&entry, node));
            }
            _ if field.is_map() => Want::Other("a map", columns),
            _ if field.is_list() => Want::Other("a list", columns),
            (_, _) if field.is_group() => Want::Other("a group", columns),
            (Kind::Message(below), child) if structs::is_value(&below) => {
                Want::Dynamic(Dynamic::value(child))
            }
            (Kind::Message(below), Child::Node(node)) if structs::is_dynamic(&below) => {
                Want::Dynamic(Dynamic::fields(node))
            }
            (Kind::Message(below), Child::Node(node)) => Want::Message(self.message(&below, node)),
            (Kind::Message(below), Child::Leaf(_)) => well_known(&below, columns),
            (_, Child::Node(_)) => Want::Other("a parent that is not a message", columns),
            (kind, Child::Leaf(_)) => Want::Scalar(scalar(&kind), columns),
        };
        if !field.supports_presence() {
            let (value, columns) = match &want {
                Want::Scalar(scalar, columns) => (scalar.default(field), columns.clone()),
                Want::Other(what, columns) => (DefaultValue::Other(what), columns.clone()),
                _ => return want,
            };
            self.defaults.push(Default {
                message,
                columns,
                value,
            });
        }
        want
    }

    fn map(&mut self, entry: &MessageDescriptor, wanted: &Node) -> MapReader {
        let (key, value) = (entry.map_entry_key_field(), entry.map_entry_value_field());
        let entries = wanted.map_keys().into_iter().map(|(name, child)| {
            // A key has an index like a message, so that its default value counts only if the map has the key.
            let id = self.messages;
            self.messages += 1;
            let want = self.want(&value, child, id);
            let mut clears = Clears::default();
            want.collect(&mut clears);
            let field = Field {
                number: value.number(),
                name: name.clone(),
                want,
                clears,
            };
            (name, (id, field))
        });
        MapReader {
            entries: entries.collect(),
            key: scalar(&key.kind()),
        }
    }

    /// Fills `row` from one message.
    pub fn fill(
        &self,
        payload: &[u8],
        paths: &Paths,
        row: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), RowError> {
        scratch.present.clear();
        scratch.present.resize(self.messages, false);
        let mut reader = MessageReader {
            paths,
            row,
            scratch,
        };
        reader.message(&self.root, Cursor(payload))?;
        for default in &self.defaults {
            if reader.scratch.present[default.message]
                && reader.row[default.columns[0]].to_bits() == UNSET
            {
                let value = match &default.value {
                    DefaultValue::Number => Value::Unsigned(0),
                    DefaultValue::Bool => Value::Bool(false),
                    DefaultValue::Text(text) => Value::Text(text),
                    DefaultValue::Other(what) => Value::Other(what),
                };
                reader.store(&default.columns, value)?;
            }
        }
        Ok(())
    }
}

/// Makes each member of a oneof unset the others.
fn join(fields: &mut Vec<Field>, members: &[u32]) {
    for &number in members {
        let mut clears = Clears::default();
        for other in fields.iter().filter(|f| members.contains(&f.number)) {
            if other.number != number {
                other.want.collect(&mut clears);
            }
        }
        match fields.iter_mut().find(|field| field.number == number) {
            Some(field) => field.clears = clears,
            None => fields.push(Field {
                number,
                name: String::new(),
                want: Want::Nothing,
                clears,
            }),
        }
    }
}

impl Want {
    fn collect(&self, clears: &mut Clears) {
        match self {
            Want::Nothing => {}
            Want::Message(message) => {
                clears.messages.push(message.id);
                for field in &message.fields {
                    field.want.collect(clears);
                }
            }
            Want::Map(map) => {
                for (id, field) in map.entries.values() {
                    clears.messages.push(*id);
                    field.want.collect(clears);
                }
            }
            Want::Dynamic(dynamic) => clears.columns.extend(dynamic.columns()),
            Want::Scalar(_, columns)
            | Want::Wrapper(_, columns)
            | Want::Timestamp(columns)
            | Want::Duration(columns)
            | Want::Other(_, columns) => clears.columns.extend(columns),
        }
    }
}

fn well_known(message: &MessageDescriptor, columns: Vec<usize>) -> Want {
    let wrapped = match message.full_name() {
        "google.protobuf.Timestamp" => return Want::Timestamp(columns),
        "google.protobuf.Duration" => return Want::Duration(columns),
        "google.protobuf.DoubleValue" => Scalar::Double,
        "google.protobuf.FloatValue" => Scalar::Float,
        "google.protobuf.Int64Value" => Scalar::Int64,
        "google.protobuf.UInt64Value" => Scalar::Uint64,
        "google.protobuf.Int32Value" => Scalar::Int32,
        "google.protobuf.UInt32Value" => Scalar::Uint32,
        "google.protobuf.BoolValue" => Scalar::Bool,
        "google.protobuf.StringValue" => Scalar::Text,
        "google.protobuf.BytesValue" => Scalar::Bytes,
        _ => return Want::Other("a message", columns),
    };
    Want::Wrapper(wrapped, columns)
}

fn scalar(kind: &Kind) -> Scalar {
    match kind {
        Kind::Double => Scalar::Double,
        Kind::Float => Scalar::Float,
        Kind::Int32 => Scalar::Int32,
        Kind::Int64 => Scalar::Int64,
        Kind::Uint32 => Scalar::Uint32,
        Kind::Uint64 => Scalar::Uint64,
        Kind::Sint32 => Scalar::Sint32,
        Kind::Sint64 => Scalar::Sint64,
        Kind::Fixed32 => Scalar::Fixed32,
        Kind::Fixed64 => Scalar::Fixed64,
        Kind::Sfixed32 => Scalar::Sfixed32,
        Kind::Sfixed64 => Scalar::Sfixed64,
        Kind::Bool => Scalar::Bool,
        Kind::String => Scalar::Text,
        Kind::Bytes => Scalar::Bytes,
        Kind::Enum(symbols) => Scalar::Enum(
            symbols
                .values()
                .map(|value| (value.number(), value.name().to_owned()))
                .collect(),
        ),
        Kind::Message(_) => unreachable!("the caller handles messages"),
    }
}

impl Scalar {
    fn wire_type(&self) -> u8 {
        match self {
            Scalar::Double | Scalar::Fixed64 | Scalar::Sfixed64 => EIGHT_BYTES,
            Scalar::Float | Scalar::Fixed32 | Scalar::Sfixed32 => FOUR_BYTES,
            Scalar::Text | Scalar::Bytes => SIZED,
            _ => VARINT,
        }
    }

    fn default(&self, field: &FieldDescriptor) -> DefaultValue {
        match (self, field.kind()) {
            (Scalar::Bool, _) => DefaultValue::Bool,
            (Scalar::Text, _) => DefaultValue::Text(String::new()),
            (Scalar::Bytes, _) => DefaultValue::Other("bytes"),
            (Scalar::Enum(_), Kind::Enum(symbols)) => {
                DefaultValue::Text(symbols.default_value().name().to_owned())
            }
            _ => DefaultValue::Number,
        }
    }

    /// Converts a raw value. `unknown_symbol` stores the number of an enum value that the schema does not define, as a string.
    fn read<'v>(
        &'v self,
        raw: Raw<'v>,
        unknown_symbol: &'v mut String,
    ) -> Result<Value<'v>, RowError> {
        Ok(match (self, raw) {
            (Scalar::Double, Raw::Eight(bytes)) => Value::Float(f64::from_le_bytes(bytes)),
            (Scalar::Fixed64, Raw::Eight(bytes)) => Value::Unsigned(u64::from_le_bytes(bytes)),
            (Scalar::Sfixed64, Raw::Eight(bytes)) => Value::Signed(i64::from_le_bytes(bytes)),
            (Scalar::Float, Raw::Four(bytes)) => Value::Float(f64::from(f32::from_le_bytes(bytes))),
            (Scalar::Fixed32, Raw::Four(bytes)) => {
                Value::Unsigned(u64::from(u32::from_le_bytes(bytes)))
            }
            (Scalar::Sfixed32, Raw::Four(bytes)) => {
                Value::Signed(i64::from(i32::from_le_bytes(bytes)))
            }
            // Narrow types use the low bits, as every Protobuf reader does.
            (Scalar::Int32, Raw::Varint(n)) => Value::Signed(i64::from(n as i32)),
            (Scalar::Int64, Raw::Varint(n)) => Value::Signed(n as i64),
            (Scalar::Uint32, Raw::Varint(n)) => Value::Unsigned(u64::from(n as u32)),
            (Scalar::Uint64, Raw::Varint(n)) => Value::Unsigned(n),
            (Scalar::Sint32, Raw::Varint(n)) => {
                let n = n as u32;
                Value::Signed(i64::from((n >> 1) as i32 ^ -((n & 1) as i32)))
            }
            (Scalar::Sint64, Raw::Varint(n)) => Value::Signed((n >> 1) as i64 ^ -((n & 1) as i64)),
            (Scalar::Bool, Raw::Varint(n)) => Value::Bool(n != 0),
            (Scalar::Enum(symbols), Raw::Varint(n)) => match symbols.get(&(n as i32)) {
                Some(symbol) => Value::Text(symbol),
                None => {
                    *unknown_symbol = (n as i32).to_string();
                    Value::Text(unknown_symbol)
                }
            },
            (Scalar::Text, Raw::Sized(bytes)) => Value::Text(
                std::str::from_utf8(bytes).map_err(|e| malformed(format!("not UTF-8: {e}")))?,
            ),
            (Scalar::Bytes, Raw::Sized(_)) => Value::Other("bytes"),
            _ => unreachable!("the caller compares the wire type"),
        })
    }
}

/// The value of a field as it is on the wire.
#[derive(Clone, Copy)]
pub(super) enum Raw<'p> {
    Varint(u64),
    Eight([u8; 8]),
    Sized(&'p [u8]),
    Four([u8; 4]),
    Group,
}

/// Buffers that decoding reuses.
#[derive(Debug, Default)]
pub struct Scratch {
    pub text: String,
    symbol: String,
    /// For each message of the plan, whether it was on the wire.
    present: Vec<bool>,
}

struct MessageReader<'r> {
    paths: &'r Paths,
    row: &'r mut [f32],
    scratch: &'r mut Scratch,
}

impl MessageReader<'_> {
    fn message(&mut self, message: &Message, mut cursor: Cursor<'_>) -> Result<(), RowError> {
        self.scratch.present[message.id] = true;
        // Writers keep their fields in order, so the next field is tried first.
        let mut expected = 0;
        while !cursor.is_empty() {
            let (number, wire_type) = tag(&mut cursor)?;
            let raw = raw(&mut cursor, number, wire_type, 0)?;
            let at = match message.fields.get(expected) {
                Some(field) if field.number == number => expected,
                _ => match message.fields.binary_search_by_key(&number, |f| f.number) {
                    Ok(at) => at,
                    Err(_) => continue,
                },
            };
            expected = at + 1;
            self.field(&message.fields[at], raw, wire_type)?;
        }
        Ok(())
    }

    /// Reads one entry of a map. If a key occurs twice, the last value counts.
    fn entry(&mut self, map: &MapReader, entry: &[u8]) -> Result<(), RowError> {
        let key = last_of(entry, 1, map.key.wire_type())?;
        let key = key.unwrap_or(match map.key.wire_type() {
            VARINT => Raw::Varint(0),
            EIGHT_BYTES => Raw::Eight([0; 8]),
            FOUR_BYTES => Raw::Four([0; 4]),
            _ => Raw::Sized(&[]),
        });
        let found = match map.key.read(key, &mut String::new())? {
            Value::Text(key) => map.entries.get(key),
            Value::Bool(key) => map.entries.get(if key { "true" } else { "false" }),
            Value::Unsigned(key) => map.entries.get(&key.to_string()),
            Value::Signed(key) => map.entries.get(&key.to_string()),
            _ => None,
        };
        let Some((id, field)) = found else {
            return Ok(());
        };
        for &column in &field.clears.columns {
            self.row[column] = f32::from_bits(UNSET);
        }
        for &message in &field.clears.messages {
            self.scratch.present[message] = false;
        }
        self.scratch.present[*id] = true;
        let mut cursor = Cursor(entry);
        while !cursor.is_empty() {
            let (number, wire_type) = tag(&mut cursor)?;
            let value = raw(&mut cursor, number, wire_type, 0)?;
            if number == field.number {
                self.field(field, value, wire_type)?;
            }
        }
        // A message without fields may be left out of its entry.
        if let Want::Message(below) = &field.want {
            self.scratch.present[below.id] = true;
        }
        Ok(())
    }

    fn field(&mut self, field: &Field, raw: Raw<'_>, wire_type: u8) -> Result<(), RowError> {
        let wrong_wire_type = || {
            let name = &field.name;
            malformed(format!(
                "field `{name}` has wire type {wire_type}: the record was not written with this schema"
            ))
        };
        for &column in &field.clears.columns {
            self.row[column] = f32::from_bits(UNSET);
        }
        for &message in &field.clears.messages {
            self.scratch.present[message] = false;
        }
        match (&field.want, raw) {
            (Want::Nothing, _) => Ok(()),
            (Want::Scalar(scalar, columns), _) => {
                if wire_type != scalar.wire_type() {
                    return Err(wrong_wire_type());
                }
                self.scalar(scalar, columns, raw)
            }
            (Want::Message(below), Raw::Sized(bytes)) => self.message(below, Cursor(bytes)),
            (Want::Map(map), Raw::Sized(bytes)) => self.entry(map, bytes),
            (Want::Dynamic(dynamic), Raw::Sized(bytes)) => {
                dynamic.fill(bytes, self.paths, self.row, &mut self.scratch.text)
            }
            (Want::Wrapper(scalar, columns), Raw::Sized(bytes)) => {
                let last = last_of(bytes, 1, scalar.wire_type())?;
                let last = last.unwrap_or(match scalar.wire_type() {
                    VARINT => Raw::Varint(0),
                    EIGHT_BYTES => Raw::Eight([0; 8]),
                    FOUR_BYTES => Raw::Four([0; 4]),
                    _ => Raw::Sized(&[]),
                });
                self.scalar(scalar, columns, last)
            }
            (Want::Timestamp(columns), Raw::Sized(bytes)) => {
                let (seconds, nanos) = seconds_and_nanos(bytes)?;
                let micros = seconds.saturating_mul(MICROSECONDS);
                self.store(
                    columns,
                    Value::Time(micros.saturating_add(i64::from(nanos).div_euclid(1000))),
                )
            }
            (Want::Duration(columns), Raw::Sized(bytes)) => {
                let (seconds, nanos) = seconds_and_nanos(bytes)?;
                self.store(
                    columns,
                    Value::Float(seconds as f64 + f64::from(nanos) / 1e9),
                )
            }
            (Want::Other(what, columns), _) => self.store(columns, Value::Other(what)),
            _ => Err(wrong_wire_type()),
        }
    }

    fn scalar(&mut self, scalar: &Scalar, columns: &[usize], raw: Raw<'_>) -> Result<(), RowError> {
        let Scratch { text, symbol, .. } = &mut *self.scratch;
        let value = scalar.read(raw, symbol)?;
        self.paths.store(self.row, columns, Some(value), text)
    }

    fn store(&mut self, columns: &[usize], value: Value<'_>) -> Result<(), RowError> {
        let scratch = &mut self.scratch.text;
        self.paths.store(self.row, columns, Some(value), scratch)
    }
}

pub(super) fn tag(cursor: &mut Cursor<'_>) -> Result<(u32, u8), RowError> {
    let tag = cursor.varint()?;
    match u32::try_from(tag) {
        Ok(tag) if tag >> 3 > 0 => Ok((tag >> 3, (tag & 7) as u8)),
        _ => Err(malformed(format!("{tag} is not a valid field tag"))),
    }
}

/// Reads the value after a tag. Groups are skipped.
pub(super) fn raw<'p>(
    cursor: &mut Cursor<'p>,
    number: u32,
    wire_type: u8,
    depth: usize,
) -> Result<Raw<'p>, RowError> {
    if depth > MAX_DEPTH {
        return Err(malformed(format!(
            "the record is nested deeper than {MAX_DEPTH} levels"
        )));
    }
    Ok(match wire_type {
        VARINT => Raw::Varint(cursor.varint()?),
        EIGHT_BYTES => Raw::Eight(cursor.array()?),
        FOUR_BYTES => Raw::Four(cursor.array()?),
        SIZED => {
            let length = cursor.varint()?;
            Raw::Sized(cursor.sized(length)?)
        }
        GROUP => loop {
            let (inner, wire_type) = tag(cursor)?;
            if wire_type == GROUP_END {
                if inner != number {
                    return Err(malformed("the end of a group has no matching start"));
                }
                break Raw::Group;
            }
            raw(cursor, inner, wire_type, depth + 1)?;
        },
        other => return Err(malformed(format!("{other} is not a valid wire type"))),
    })
}

/// Returns the value of a field in a small message. If the field occurs several times, the last value counts.
fn last_of(message: &[u8], wanted: u32, as_type: u8) -> Result<Option<Raw<'_>>, RowError> {
    let mut cursor = Cursor(message);
    let mut last = None;
    while !cursor.is_empty() {
        let (number, wire_type) = tag(&mut cursor)?;
        let value = raw(&mut cursor, number, wire_type, 0)?;
        if number == wanted {
            if wire_type != as_type {
                return Err(malformed(format!(
                    "a field of a well-known type has wire type {wire_type}: the record was not written with this schema"
                )));
            }
            last = Some(value);
        }
    }
    Ok(last)
}

fn seconds_and_nanos(message: &[u8]) -> Result<(i64, i32), RowError> {
    let read = |number| {
        last_of(message, number, VARINT).map(|last| match last {
            Some(Raw::Varint(n)) => n,
            _ => 0,
        })
    };
    Ok((read(1)? as i64, read(2)? as i32))
}
