//! Decodes an Avro record directly into the row.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::paths::{Child, Node, Paths, UNSET};
use super::super::value::Value;
use super::super::wire::Cursor;
use super::super::{RowError, malformed};
use super::{AvroSchema, Id, Shape, boolean, chosen, decimal, int, text, unscaled, uuid};

const MICROSECONDS: i64 = 1_000_000;

/// The steps that read a record: the schema and the features, combined once.
#[derive(Debug)]
pub struct AvroPlan {
    schema: Arc<AvroSchema>,
    root: Step,
}

#[derive(Debug)]
enum Step {
    Skip(Id),
    Read(Id, Vec<usize>),
    Record(Vec<Step>),
    /// A map, by its keys: the type of its values, and the columns and the step of each key that features need.
    Map(Id, HashMap<String, (Vec<usize>, Step)>),
    Union(Vec<Step>),
    /// A null. The features below it are missing.
    Missing(Vec<usize>),
    /// A feature's path continues below a value that has no fields.
    NoRecord(Id, Vec<usize>),
}

impl AvroPlan {
    pub fn new(schema: Arc<AvroSchema>, paths: &Paths) -> AvroPlan {
        let root = node(&schema, schema.root, &paths.root);
        AvroPlan { schema, root }
    }

    /// Fills `row` from one record, which must end at the end of the payload.
    pub fn fill(
        &self,
        payload: &[u8],
        paths: &Paths,
        row: &mut [f32],
        scratch: &mut String,
    ) -> Result<(), RowError> {
        let mut cursor = Cursor(payload);
        let mut reader = RecordReader {
            schema: &self.schema,
            paths,
            row,
            scratch,
        };
        reader.step(&self.root, &mut cursor)?;
        match cursor.0.len() {
            0 => Ok(()),
            left => Err(malformed(format!(
                "{left} bytes follow the record: it was not written with this schema"
            ))),
        }
    }
}

/// Returns the step for a value with fields in `wanted`. The recursion is as deep as the longest path.
fn node(schema: &AvroSchema, id: Id, wanted: &Node) -> Step {
    match &schema.shapes[id] {
        Shape::Record(fields) => Step::Record(
            fields
                .iter()
                .map(|(name, field)| match wanted.child(name) {
                    None => Step::Skip(*field),
                    Some(Child::Node(below)) => node(schema, *field, below),
                    Some(Child::Leaf(columns)) => leaf(schema, *field, columns),
                })
                .collect(),
        ),
        Shape::Map(values) => {
            let keys = wanted.map_keys().into_iter().map(|(key, child)| {
                let step = match child {
                    Child::Node(below) => node(schema, *values, below),
                    Child::Leaf(columns) => leaf(schema, *values, columns),
                };
                (key, (child.columns(), step))
            });
            Step::Map(*values, keys.collect())
        }
        Shape::Union(branches) => {
            Step::Union(branches.iter().map(|b| node(schema, *b, wanted)).collect())
        }
        Shape::Null => Step::Missing(wanted.columns()),
        _ => Step::NoRecord(id, wanted.columns()),
    }
}

fn leaf(schema: &AvroSchema, id: Id, columns: &[usize]) -> Step {
    match &schema.shapes[id] {
        Shape::Union(branches) => {
            Step::Union(branches.iter().map(|b| leaf(schema, *b, columns)).collect())
        }
        Shape::Null => Step::Missing(columns.to_vec()),
        _ => Step::Read(id, columns.to_vec()),
    }
}

struct RecordReader<'r> {
    schema: &'r AvroSchema,
    paths: &'r Paths,
    row: &'r mut [f32],
    scratch: &'r mut String,
}

impl RecordReader<'_> {
    fn step(&mut self, step: &Step, cursor: &mut Cursor<'_>) -> Result<(), RowError> {
        match step {
            Step::Skip(id) => self.schema.skip(*id, cursor, 0),
            Step::Read(id, columns) => self.read(*id, columns, cursor),
            Step::Record(steps) => steps.iter().try_for_each(|step| self.step(step, cursor)),
            Step::Map(values, keys) => self.map(*values, keys, cursor),
            Step::Union(steps) => {
                let step = chosen(steps, cursor, "a union")?;
                self.step(step, cursor)
            }
            Step::Missing(columns) => self.store(columns, None),
            Step::NoRecord(id, columns) => {
                self.pass("a parent that is not a record", *id, columns, cursor)
            }
        }
    }

    /// Reads the values of the keys that features need. If a key occurs twice, the last value counts, as in every reader of Avro.
    fn map(
        &mut self,
        values: Id,
        keys: &HashMap<String, (Vec<usize>, Step)>,
        cursor: &mut Cursor<'_>,
    ) -> Result<(), RowError> {
        let schema = self.schema;
        schema.blocks(cursor, false, |cursor, count| {
            for _ in 0..count {
                match keys.get(text(cursor)?) {
                    None => schema.skip(values, cursor, 0)?,
                    Some((columns, step)) => {
                        for &column in columns {
                            self.row[column] = f32::from_bits(UNSET);
                        }
                        self.step(step, cursor)?;
                    }
                }
            }
            Ok(())
        })
    }

    fn store(&mut self, columns: &[usize], value: Option<Value<'_>>) -> Result<(), RowError> {
        self.paths.store(self.row, columns, value, self.scratch)
    }

    fn read(&mut self, id: Id, columns: &[usize], cursor: &mut Cursor<'_>) -> Result<(), RowError> {
        let uuid_text;
        let value = match &self.schema.shapes[id] {
            Shape::Boolean => Value::Bool(boolean(cursor)?),
            Shape::Int => Value::Signed(i64::from(int(cursor)?)),
            Shape::Long => Value::Signed(cursor.zigzag()?),
            Shape::Float => Value::Float(f64::from(f32::from_le_bytes(cursor.array()?))),
            Shape::Double => Value::Float(f64::from_le_bytes(cursor.array()?)),
            Shape::Text => Value::Text(text(cursor)?),
            Shape::Enum(symbols) => Value::Text(chosen(symbols, cursor, "an enum")?),
            Shape::Uuid => {
                uuid_text = uuid(cursor)?;
                Value::Text(&uuid_text)
            }
            Shape::Date => Value::Date(int(cursor)?),
            Shape::Clock(per_second) => Value::Clock(microseconds(cursor.zigzag()?, *per_second)),
            Shape::Time(per_second) => Value::Time(microseconds(cursor.zigzag()?, *per_second)),
            Shape::Decimal(scale, size) => {
                let unscaled = unscaled(*size, cursor)?;
                match decimal(*scale, unscaled).map(|digits| digits.parse()) {
                    Some(Ok(number)) => Value::Float(number),
                    _ => Value::Other("a decimal of more than 128 bits"),
                }
            }
            Shape::Bytes | Shape::Fixed(_) => return self.pass("bytes", id, columns, cursor),
            Shape::Array(_) => return self.pass("an array", id, columns, cursor),
            Shape::Map(_) => return self.pass("a map", id, columns, cursor),
            Shape::Record(_) => return self.pass("a record", id, columns, cursor),
            Shape::Null | Shape::Union(_) => {
                unreachable!("nulls and unions have steps of their own")
            }
        };
        self.store(columns, Some(value))
    }

    /// Skips something that is not a value. A feature refuses it, and a segment ignores it.
    fn pass(
        &mut self,
        what: &'static str,
        id: Id,
        columns: &[usize],
        cursor: &mut Cursor<'_>,
    ) -> Result<(), RowError> {
        self.store(columns, Some(Value::Other(what)))?;
        self.schema.skip(id, cursor, 0)
    }
}

/// Converts to microseconds. It saturates far outside the range that a feature accepts.
fn microseconds(count: i64, per_second: i64) -> i64 {
    match per_second > MICROSECONDS {
        true => count.div_euclid(per_second / MICROSECONDS),
        false => count.saturating_mul(MICROSECONDS / per_second),
    }
}
