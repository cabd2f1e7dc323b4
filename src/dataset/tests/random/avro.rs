//! The same records as Avro messages. There are no files of Avro: in the daemon the messages come from Kafka.

use std::collections::BTreeMap;

use apache_avro::types::Value as Avro;
use apache_avro::writer::datum::GenericDatumWriter;
use apache_avro::{Decimal, Schema};
use serde_json::{Value, json};

use super::{Cell, Column, Drawn, Kind, decimal_comma};
use crate::bundle::Feature;
use crate::decode::{
    Decoder, Format, JsonDecoder, RecordFormat, RecordType, SchemaText, TypeSource,
};
use jiff::Timestamp;

/// How a field writes its values.
#[derive(Clone, Copy)]
enum Type {
    Double,
    Long,
    Boolean,
    Text,
    /// Two digits behind the point.
    Decimal,
    Micros,
    LocalMicros,
    Nanos,
}

struct Field<'d> {
    column: &'d Column,
    /// The keys that lead to the field. Each is a name in Avro, which allows fewer characters than a column's name.
    keys: Vec<String>,
    kind: Type,
    /// Where null is in the field's union, if the field may be null.
    null_at: Option<usize>,
}

impl Field<'_> {
    fn schema(&self) -> Value {
        let logical = |base: &str, logical: &str| json!({"type": base, "logicalType": logical});
        let schema = match self.kind {
            Type::Double => json!("double"),
            Type::Long => json!("long"),
            Type::Boolean => json!("boolean"),
            Type::Text => json!("string"),
            Type::Decimal => {
                json!({"type": "bytes", "logicalType": "decimal", "precision": 20, "scale": 2})
            }
            Type::Micros => logical("long", "timestamp-micros"),
            Type::LocalMicros => logical("long", "local-timestamp-micros"),
            Type::Nanos => logical("long", "timestamp-nanos"),
        };
        match self.null_at {
            None => schema,
            Some(0) => json!(["null", schema]),
            Some(_) => json!([schema, "null"]),
        }
    }

    fn value(&self, row: usize) -> Avro {
        let time = |micros: i64| Timestamp::from_microsecond(micros).unwrap();
        let value = match (&self.column.cells[row], self.kind) {
            (Cell::Missing, _) => {
                let at = self
                    .null_at
                    .expect("a field with missing cells is nullable");
                return Avro::Union(at as u32, Box::new(Avro::Null));
            }
            (Cell::Number(v), Type::Double) => Avro::Double(*v),
            (Cell::Number(v), Type::Long) => Avro::Long(*v as i64),
            (Cell::Number(v), Type::Decimal) => {
                let cents = (v * 100.0).round() as i64;
                Avro::Decimal(Decimal::from(cents.to_be_bytes()))
            }
            (Cell::Number(v), _) => Avro::String(decimal_comma(*v)),
            (Cell::Bool(v), _) => Avro::Boolean(*v),
            (Cell::Text(v), _) => Avro::String(v.clone()),
            (Cell::Time(v), Type::Micros) => Avro::TimestampMicros(*v),
            (Cell::Time(v), Type::LocalMicros) => Avro::LocalTimestampMicros(*v),
            (Cell::Time(v), Type::Nanos) => Avro::TimestampNanos(v * 1000),
            (Cell::Time(v), _) => Avro::String(time(*v).to_string()),
        };
        match self.null_at {
            None => value,
            Some(at) => Avro::Union(1 - at as u32, Box::new(value)),
        }
    }
}

/// Draws how each column is written.
fn fields<'d>(drawn: &'d Drawn, random: &mut fastrand::Rng) -> Vec<Field<'d>> {
    let is_name = |key: &str| {
        let mut letters = key.chars();
        letters.next().is_some_and(|c| c.is_ascii_alphabetic())
            && letters.all(|c| c.is_ascii_alphanumeric())
    };
    let columns = drawn.columns.iter().enumerate();
    let fields = columns.map(|(at, column)| {
        let keys: Vec<String> = column.name.split('.').map(str::to_owned).collect();
        let types: &[Type] = match column.kind {
            Kind::Number => &[Type::Double],
            Kind::Integer => &[Type::Long, Type::Double],
            Kind::DecimalComma => &[Type::Text, Type::Decimal],
            Kind::Bool => &[Type::Boolean],
            Kind::Category => &[Type::Text],
            Kind::Time => &[Type::Text, Type::Micros, Type::LocalMicros, Type::Nanos],
        };
        let is_nullable = column.cells.contains(&Cell::Missing) || random.bool();
        Field {
            column,
            keys: match keys.iter().all(|key| is_name(key)) {
                true => keys,
                false => vec![format!("c{at}")],
            },
            kind: types[random.usize(..types.len())],
            null_at: is_nullable.then(|| random.usize(..2)),
        }
    });
    fields.collect()
}

/// Returns the fields of the record at `depth`, by the first of their other keys.
fn by_key<'f, 'd>(fields: &[&'f Field<'d>], depth: usize) -> BTreeMap<&'f str, Vec<&'f Field<'d>>> {
    let mut by_key: BTreeMap<&str, Vec<&Field<'_>>> = BTreeMap::new();
    for field in fields {
        by_key.entry(&field.keys[depth]).or_default().push(field);
    }
    by_key
}

fn schema(fields: &[&Field<'_>], depth: usize, name: &str) -> Value {
    let below = by_key(fields, depth).into_iter().map(|(key, fields)| {
        let is_leaf = fields[0].keys.len() == depth + 1;
        let inner = match is_leaf {
            true => fields[0].schema(),
            false => schema(&fields, depth + 1, &format!("{name}_{key}")),
        };
        json!({"name": key, "type": inner})
    });
    json!({"type": "record", "name": name, "fields": below.collect::<Vec<_>>()})
}

fn record(fields: &[&Field<'_>], depth: usize, row: usize) -> Avro {
    let below = by_key(fields, depth).into_iter().map(|(key, fields)| {
        let is_leaf = fields[0].keys.len() == depth + 1;
        let value = match is_leaf {
            true => fields[0].value(row),
            false => record(&fields, depth + 1, row),
        };
        (key.to_owned(), value)
    });
    Avro::Record(below.collect())
}

/// Returns the rows that the daemon decodes from Avro, and those that it decodes from the JSON in its verdicts.
pub fn rows(drawn: &Drawn, random: &mut fastrand::Rng) -> (Vec<f32>, Vec<f32>) {
    let fields = fields(drawn, random);
    let mut features = drawn.features();
    for Feature { path, .. } in &mut features {
        let mut fields = fields.iter();
        let field = fields.find(|field| field.column.path() == *path);
        *path = field.expect("each feature has a column").keys.join(".");
    }
    let fields: Vec<&Field<'_>> = fields.iter().collect();
    let schema = schema(&fields, 0, "Row");
    let text = SchemaText {
        text: schema.to_string(),
        references: Vec::new(),
    };
    let parsed = crate::decode::Schema::parse(Format::Avro, &text).unwrap();
    let crate::decode::Schema::Avro(parsed) = parsed else {
        unreachable!("the schema is Avro")
    };
    let format = RecordFormat::Typed(TypeSource::File(RecordType::Avro(parsed)));
    let mut avro = Decoder::new(&features, format.clone(), None);
    let mut json = JsonDecoder::new(&features);
    let schema = Schema::parse(&schema).unwrap();
    let writer = GenericDatumWriter::builder(&schema).build().unwrap();
    let (mut decoded, mut shown) = (Vec::new(), Vec::new());
    for row in 0..drawn.rows {
        let message = writer.write_value_to_vec(record(&fields, 0, row)).unwrap();
        avro.decode(&message, None, &mut decoded).unwrap();
        let record = format.to_json(&message).unwrap();
        json.decode(record.get().as_bytes(), &mut shown).unwrap();
    }
    (decoded, shown)
}
