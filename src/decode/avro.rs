//! Avro: parses the schema that a record was written with, and decodes records by it.
//!
//! The `apache-avro` crate parses the schema. Its reader is not used: it builds a tree for each record, and its recursion is as
//! deep as the record's bytes demand, which can overflow the stack and end the process. Here a record goes straight into the row,
//! fields that no feature reads are skipped, and nesting is limited to [`MAX_DEPTH`].

mod json;
mod row;

use std::borrow::Cow;
use std::collections::HashMap;

use apache_avro::Schema;
use apache_avro::rabin::Rabin;
use apache_avro::schema::{InnerDecimalSchema, UuidSchema};
use uuid::Uuid;

use super::schemas::SchemaText;
use super::wire::Cursor;
use super::{RowError, malformed};
use crate::bundle::path::keys_or_parts;

pub use json::to_json;
pub use row::AvroPlan;

/// Maximum nesting depth of a record. Real schemas nest less, but a hostile record of a recursive schema could nest deeper.
const MAX_DEPTH: usize = 100;
/// Maximum number of items that take no bytes, such as nulls. The size of the payload does not bound their number.
const MAX_EMPTY_ITEMS: usize = 65_536;

/// A writer's schema. Types refer to each other by index, so that a recursive schema needs no pointers.
#[derive(Debug)]
pub struct AvroSchema {
    shapes: Vec<Shape>,
    /// For each type, whether its values take no bytes.
    empty: Vec<bool>,
    root: Id,
    /// The fingerprint by which Avro's single-object encoding names the schema.
    fingerprint: [u8; 8],
}

type Id = usize;

#[derive(Debug)]
enum Shape {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    Text,
    Fixed(usize),
    Uuid,
    /// The scale, and the size in bytes if it is fixed. Otherwise the size precedes each value.
    Decimal(usize, Option<usize>),
    Date,
    /// A time of day in this many units per second. An Avro int if it counts milliseconds, otherwise a long.
    Clock(i64),
    /// A timestamp in this many units per second.
    Time(i64),
    Enum(Vec<String>),
    Array(Id),
    Map(Id),
    Union(Vec<Id>),
    Record(Vec<(String, Id)>),
}

impl AvroSchema {
    pub fn parse(schema: &SchemaText) -> Result<AvroSchema, String> {
        let references = schema.references.iter().map(|(_, text)| text);
        let (root, named) = Schema::parse_str_with_list(&schema.text, references)
            .map_err(|e| format!("not an Avro schema: {e}"))?;
        let fingerprint = root.fingerprint::<Rabin>().bytes;
        let mut compiler = Compiler::default();
        for schema in &named {
            compiler.add(schema)?;
        }
        let root = compiler.add(&root)?;
        let shapes: Option<Vec<Shape>> = compiler.shapes.into_iter().collect();
        let shapes =
            shapes.ok_or("a type refers to another type that the schema does not define")?;
        let empty = empty(&shapes);
        Ok(AvroSchema {
            shapes,
            empty,
            root,
            fingerprint: fingerprint.try_into().unwrap_or_default(),
        })
    }

    pub fn fingerprint(&self) -> [u8; 8] {
        self.fingerprint
    }

    /// Returns whether a record of this schema can have a value at `path`. A map can have any key.
    pub fn has(&self, path: &str) -> bool {
        self.can_have(self.root, &keys_or_parts(path))
    }

    fn can_have(&self, id: Id, keys: &[Cow<'_, str>]) -> bool {
        let Some((key, rest)) = keys.split_first() else {
            return true;
        };
        self.branches(id)
            .into_iter()
            .any(|id| match &self.shapes[id] {
                Shape::Map(_) => true,
                Shape::Record(fields) => fields
                    .iter()
                    .find(|(name, _)| *name == **key)
                    .is_some_and(|(_, field)| self.can_have(*field, rest)),
                _ => false,
            })
    }

    fn branches(&self, id: Id) -> Vec<Id> {
        match &self.shapes[id] {
            Shape::Union(branches) => branches.clone(),
            _ => vec![id],
        }
    }

    /// Moves the cursor over one value.
    fn skip(&self, id: Id, cursor: &mut Cursor<'_>, depth: usize) -> Result<(), RowError> {
        if depth > MAX_DEPTH {
            return Err(too_deep());
        }
        match &self.shapes[id] {
            Shape::Null => {}
            Shape::Boolean => {
                cursor.take(1)?;
            }
            Shape::Int | Shape::Long | Shape::Date | Shape::Clock(_) | Shape::Time(_) => {
                cursor.varint()?;
            }
            Shape::Enum(_) => {
                cursor.varint()?;
            }
            Shape::Float => {
                cursor.take(4)?;
            }
            Shape::Double => {
                cursor.take(8)?;
            }
            Shape::Bytes | Shape::Text | Shape::Decimal(_, None) => {
                let length = cursor.zigzag()?;
                cursor.sized(length)?;
            }
            Shape::Fixed(size) | Shape::Decimal(_, Some(size)) => {
                cursor.take(*size)?;
            }
            Shape::Uuid => {
                cursor.take(16)?;
            }
            Shape::Array(items) => self.blocks(cursor, true, |cursor, count| {
                if !self.empty[*items] {
                    for _ in 0..count {
                        self.skip(*items, cursor, depth + 1)?;
                    }
                }
                Ok(())
            })?,
            Shape::Map(values) => self.blocks(cursor, true, |cursor, count| {
                for _ in 0..count {
                    let length = cursor.zigzag()?;
                    cursor.sized(length)?;
                    self.skip(*values, cursor, depth + 1)?;
                }
                Ok(())
            })?,
            Shape::Union(branches) => {
                let branch = chosen(branches, cursor, "a union")?;
                self.skip(*branch, cursor, depth + 1)?;
            }
            Shape::Record(fields) => {
                if !self.empty[id] {
                    for (_, field) in fields {
                        self.skip(*field, cursor, depth + 1)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Calls `items` for each block of an array or map with the number of its items. If `may_jump`, a block that states its size
    /// is skipped as a whole.
    fn blocks<'p>(
        &self,
        cursor: &mut Cursor<'p>,
        may_jump: bool,
        mut items: impl FnMut(&mut Cursor<'p>, u64) -> Result<(), RowError>,
    ) -> Result<(), RowError> {
        loop {
            let count = cursor.zigzag()?;
            match count {
                0 => return Ok(()),
                1.. => items(cursor, count.unsigned_abs())?,
                _ => {
                    let size = cursor.zigzag()?;
                    let mut block = Cursor(cursor.sized(size)?);
                    if !may_jump {
                        items(&mut block, count.unsigned_abs())?;
                    }
                }
            }
        }
    }
}

/// Reads the index of a union's branch or an enum's symbol, and returns that choice.
fn chosen<'c, T>(choices: &'c [T], cursor: &mut Cursor<'_>, of: &str) -> Result<&'c T, RowError> {
    let index = cursor.zigzag()?;
    let choice = usize::try_from(index).ok().and_then(|i| choices.get(i));
    choice.ok_or_else(|| {
        malformed(format!(
            "index {index} is out of range for {of} of {}: the record was not written with this schema",
            choices.len()
        ))
    })
}

fn int(cursor: &mut Cursor<'_>) -> Result<i32, RowError> {
    let number = cursor.zigzag()?;
    i32::try_from(number)
        .map_err(|_| malformed(format!("{number} is out of range for an Avro int")))
}

fn boolean(cursor: &mut Cursor<'_>) -> Result<bool, RowError> {
    match cursor.array()? {
        [0] => Ok(false),
        [1] => Ok(true),
        [other] => Err(malformed(format!("0x{other:02x} is not an Avro boolean"))),
    }
}

fn text<'p>(cursor: &mut Cursor<'p>) -> Result<&'p str, RowError> {
    let length = cursor.zigzag()?;
    std::str::from_utf8(cursor.sized(length)?).map_err(|e| malformed(format!("not UTF-8: {e}")))
}

fn uuid(cursor: &mut Cursor<'_>) -> Result<String, RowError> {
    Ok(Uuid::from_bytes(cursor.array()?).to_string())
}

/// Returns a decimal's bytes, which have a fixed size or are preceded by their length.
fn unscaled<'p>(size: Option<usize>, cursor: &mut Cursor<'p>) -> Result<&'p [u8], RowError> {
    match size {
        Some(size) => cursor.take(size),
        None => {
            let length = cursor.zigzag()?;
            cursor.sized(length)
        }
    }
}

/// Formats a decimal as a number. `None` above 128 bits, which is 38 digits.
pub(super) fn decimal(scale: usize, unscaled: &[u8]) -> Option<String> {
    let negative = unscaled.first().is_some_and(|byte| *byte >= 0x80);
    let mut wide = [if negative { 0xff } else { 0 }; 16];
    wide.get_mut(16_usize.checked_sub(unscaled.len())?..)?
        .copy_from_slice(unscaled);
    let unscaled = i128::from_be_bytes(wide);
    if scale > 38 {
        return Some(format!("{unscaled}e-{scale}"));
    }
    let digits = format!("{:0>1$}", unscaled.unsigned_abs(), scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let sign = if negative { "-" } else { "" };
    Some(match fraction {
        "" => format!("{sign}{whole}"),
        _ => format!("{sign}{whole}.{fraction}"),
    })
}

fn too_deep() -> RowError {
    malformed(format!(
        "the record is nested deeper than {MAX_DEPTH} levels"
    ))
}

#[derive(Default)]
struct Compiler {
    /// `None` while a type is being compiled, because it may refer to itself.
    shapes: Vec<Option<Shape>>,
    named: HashMap<String, Id>,
}

impl Compiler {
    fn add(&mut self, schema: &Schema) -> Result<Id, String> {
        if let Schema::Ref { name } = schema {
            return Ok(self.named(&name.fullname(None)));
        }
        let id = match schema.name() {
            Some(name) => self.named(&name.fullname(None)),
            None => self.reserve(),
        };
        let shape = self.shape(schema)?;
        self.shapes[id] = Some(shape);
        Ok(id)
    }

    fn named(&mut self, name: &str) -> Id {
        match self.named.get(name) {
            Some(id) => *id,
            None => {
                let id = self.reserve();
                self.named.insert(name.to_owned(), id);
                id
            }
        }
    }

    fn reserve(&mut self) -> Id {
        self.shapes.push(None);
        self.shapes.len() - 1
    }

    fn shape(&mut self, schema: &Schema) -> Result<Shape, String> {
        Ok(match schema {
            Schema::Null => Shape::Null,
            Schema::Boolean => Shape::Boolean,
            Schema::Int => Shape::Int,
            Schema::Long => Shape::Long,
            Schema::Float => Shape::Float,
            Schema::Double => Shape::Double,
            Schema::Bytes | Schema::BigDecimal | Schema::Uuid(UuidSchema::Bytes) => Shape::Bytes,
            Schema::String | Schema::Uuid(UuidSchema::String) => Shape::Text,
            Schema::Uuid(UuidSchema::Fixed(_)) => Shape::Uuid,
            Schema::Fixed(fixed) | Schema::Duration(fixed) => Shape::Fixed(fixed.size),
            Schema::Decimal(decimal) => {
                let size = match &decimal.inner {
                    InnerDecimalSchema::Bytes => None,
                    InnerDecimalSchema::Fixed(fixed) => Some(fixed.size),
                };
                Shape::Decimal(decimal.scale, size)
            }
            Schema::Date => Shape::Date,
            Schema::TimeMillis => Shape::Clock(1_000),
            Schema::TimeMicros => Shape::Clock(1_000_000),
            Schema::TimestampMillis | Schema::LocalTimestampMillis => Shape::Time(1_000),
            Schema::TimestampMicros | Schema::LocalTimestampMicros => Shape::Time(1_000_000),
            Schema::TimestampNanos | Schema::LocalTimestampNanos => Shape::Time(1_000_000_000),
            Schema::Enum(symbols) => Shape::Enum(symbols.symbols.clone()),
            Schema::Array(array) => Shape::Array(self.add(&array.items)?),
            Schema::Map(map) => Shape::Map(self.add(&map.types)?),
            Schema::Union(union) => {
                let branches = union.variants().iter().map(|branch| self.add(branch));
                Shape::Union(branches.collect::<Result<_, _>>()?)
            }
            Schema::Record(record) => {
                let fields = record.fields.iter();
                let fields = fields.map(|f| Ok((f.name.clone(), self.add(&f.schema)?)));
                Shape::Record(fields.collect::<Result<_, String>>()?)
            }
            Schema::Ref { name } => {
                return Err(format!("type `{}` is not defined", name.fullname(None)));
            }
        })
    }
}

/// Returns for each type whether its values take no bytes. A record takes none if none of its fields do. A record that contains
/// itself never counts as empty.
fn empty(shapes: &[Shape]) -> Vec<bool> {
    let mut empty = vec![false; shapes.len()];
    loop {
        let mut changed = false;
        for (id, shape) in shapes.iter().enumerate() {
            let now = match shape {
                Shape::Null | Shape::Fixed(0) | Shape::Decimal(_, Some(0)) => true,
                Shape::Record(fields) => fields.iter().all(|(_, field)| empty[*field]),
                _ => false,
            };
            changed |= now && !empty[id];
            empty[id] = now;
        }
        if !changed {
            return empty;
        }
    }
}

#[cfg(test)]
mod tests;
