//! `google.protobuf.Struct` and `Value`: JSON in Protobuf. They are read by key, as JSON objects are.

use std::collections::HashMap;

use prost_reflect::MessageDescriptor;

use super::super::paths::{Child, Node, Paths, UNSET};
use super::super::value::Value;
use super::super::wire::Cursor;
use super::super::{RowError, malformed};
use super::row::{EIGHT_BYTES, Raw, SIZED, VARINT, raw, tag};

const STRUCT: &str = "google.protobuf.Struct";
const VALUE: &str = "google.protobuf.Value";

// Field numbers of `Value`. All are members of one oneof.
const NULL: u32 = 1;
const NUMBER: u32 = 2;
const TEXT: u32 = 3;
const BOOL: u32 = 4;
const OBJECT: u32 = 5;
const LIST: u32 = 6;

/// What features need of a `Struct` or a `Value`.
#[derive(Debug)]
pub struct Dynamic {
    wanted: Wanted,
    /// Whether the message is a `Value`. Otherwise it is a `Struct`.
    is_value: bool,
}

#[derive(Debug)]
enum Wanted {
    Leaf(Vec<usize>),
    /// By key, which may contain the dots of a path.
    Fields(HashMap<String, Wanted>),
}

/// Returns whether a message type can have any field.
pub fn is_dynamic(message: &MessageDescriptor) -> bool {
    matches!(message.full_name(), STRUCT | VALUE)
}

pub fn is_value(message: &MessageDescriptor) -> bool {
    message.full_name() == VALUE
}

impl Wanted {
    fn of(child: &Child) -> Wanted {
        match child {
            Child::Leaf(columns) => Wanted::Leaf(columns.clone()),
            Child::Node(node) => Wanted::below(node),
        }
    }

    fn below(node: &Node) -> Wanted {
        let keys = node.map_keys().into_iter();
        Wanted::Fields(keys.map(|(key, child)| (key, Wanted::of(child))).collect())
    }

    fn columns(&self) -> Vec<usize> {
        match self {
            Wanted::Leaf(columns) => columns.clone(),
            Wanted::Fields(fields) => fields.values().flat_map(Wanted::columns).collect(),
        }
    }
}

impl Dynamic {
    pub fn value(child: &Child) -> Dynamic {
        Dynamic {
            wanted: Wanted::of(child),
            is_value: true,
        }
    }

    pub fn fields(node: &Node) -> Dynamic {
        Dynamic {
            wanted: Wanted::below(node),
            is_value: false,
        }
    }

    pub fn columns(&self) -> Vec<usize> {
        self.wanted.columns()
    }

    /// Fills columns of `row` from the bytes of a message.
    pub fn fill(
        &self,
        message: &[u8],
        paths: &Paths,
        row: &mut [f32],
        scratch: &mut String,
    ) -> Result<(), RowError> {
        let mut reader = Reader {
            paths,
            row,
            scratch,
        };
        match &self.wanted {
            Wanted::Fields(fields) if !self.is_value => reader.object(fields, message),
            wanted => reader.value(wanted, message),
        }
    }
}

struct Reader<'r> {
    paths: &'r Paths,
    row: &'r mut [f32],
    scratch: &'r mut String,
}

impl Reader<'_> {
    /// Reads a `Struct`. If a key occurs twice, the last value counts. The recursion is as deep as the longest path.
    fn object(&mut self, fields: &HashMap<String, Wanted>, message: &[u8]) -> Result<(), RowError> {
        let mut cursor = Cursor(message);
        while !cursor.is_empty() {
            if let (1, Raw::Sized(entry)) = next(&mut cursor)? {
                let (mut key, mut value) = (&[][..], &[][..]);
                let mut entry = Cursor(entry);
                while !entry.is_empty() {
                    match next(&mut entry)? {
                        (1, Raw::Sized(bytes)) => key = bytes,
                        (2, Raw::Sized(bytes)) => value = bytes,
                        _ => {}
                    }
                }
                let key =
                    std::str::from_utf8(key).map_err(|e| malformed(format!("not UTF-8: {e}")))?;
                if let Some(wanted) = fields.get(key) {
                    self.value(wanted, value)?;
                }
            }
        }
        Ok(())
    }

    /// Reads a `Value`. The last member of its oneof counts. None of them means null.
    fn value(&mut self, wanted: &Wanted, message: &[u8]) -> Result<(), RowError> {
        for column in wanted.columns() {
            self.row[column] = f32::from_bits(UNSET);
        }
        let mut cursor = Cursor(message);
        let mut last = None;
        while !cursor.is_empty() {
            let (number, wire_type) = tag(&mut cursor)?;
            let expected = match number {
                NULL | BOOL => VARINT,
                NUMBER => EIGHT_BYTES,
                TEXT | OBJECT | LIST => SIZED,
                _ => wire_type,
            };
            if wire_type != expected {
                return Err(malformed(format!(
                    "field {number} of a {VALUE} has wire type {wire_type}: the record was not written with this schema"
                )));
            }
            let found = raw(&mut cursor, number, wire_type, 0)?;
            if (NULL..=LIST).contains(&number) {
                last = Some((number, found));
            }
        }
        let value = match (last, wanted) {
            (None | Some((NULL, _)), Wanted::Fields(_)) => return Ok(()),
            (None | Some((NULL, _)), Wanted::Leaf(_)) => None,
            (Some((OBJECT, Raw::Sized(object))), Wanted::Fields(fields)) => {
                return self.object(fields, object);
            }
            (Some(_), Wanted::Fields(_)) => Some(Value::Other("a parent that is not an object")),
            (Some((NUMBER, Raw::Eight(bytes))), _) => Some(Value::Float(f64::from_le_bytes(bytes))),
            (Some((TEXT, Raw::Sized(bytes))), _) => {
                let text = std::str::from_utf8(bytes);
                Some(Value::Text(
                    text.map_err(|e| malformed(format!("not UTF-8: {e}")))?,
                ))
            }
            (Some((BOOL, Raw::Varint(truth))), _) => Some(Value::Bool(truth != 0)),
            (Some((LIST, _)), _) => Some(Value::Other("an array")),
            _ => Some(Value::Other("an object")),
        };
        let columns = wanted.columns();
        self.paths.store(self.row, &columns, value, self.scratch)
    }
}

fn next<'p>(cursor: &mut Cursor<'p>) -> Result<(u32, Raw<'p>), RowError> {
    let (number, wire_type) = tag(cursor)?;
    Ok((number, raw(cursor, number, wire_type, 0)?))
}
