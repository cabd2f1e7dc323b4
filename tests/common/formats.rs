//! The sample payments in Avro and Protobuf, by other people's writers. Also for benches/parts.rs.

use apache_avro::Schema;
use apache_avro::types::Value as Avro;
use apache_avro::writer::datum::GenericDatumWriter;
use prost_reflect::prost::Message;
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor};
use serde_json::Value;

pub const AVRO: &str = include_str!("../schemas/payment.avsc");
pub const PROTOBUF: &str = include_str!("../schemas/payment.proto");

/// What a registry's serialiser puts before a record; Protobuf's goes on with a zero for the first message.
pub fn framed(id: u32, record: &[u8]) -> Vec<u8> {
    [&[0], &id.to_be_bytes()[..], record].concat()
}

/// A payment in JSON as one of this schema in Avro.
pub fn avro(schema: &Schema, payment: &str) -> Vec<u8> {
    let mut payment: Value = serde_json::from_str(payment).unwrap();
    let time: jiff::Timestamp = payment["time"].as_str().unwrap().parse().unwrap();
    payment["time"] = time.as_millisecond().into();
    let payment = payment.as_object_mut().unwrap();
    let Schema::Record(record) = schema else {
        panic!("{schema:?}");
    };
    let fields = record.fields.iter().map(|field| {
        let value = payment.remove(&field.name).unwrap_or(Value::Null);
        (field.name.clone(), untyped(value))
    });
    let value = Avro::Record(fields.collect()).resolve(schema).unwrap();
    let writer = GenericDatumWriter::builder(schema).build().unwrap();
    writer.write_value_to_vec(value).unwrap()
}

/// As `resolve` wants it: the schema says what the numbers are.
fn untyped(value: Value) -> Avro {
    match value {
        Value::Null => Avro::Null,
        Value::Bool(b) => Avro::Boolean(b),
        Value::Number(n) => n
            .as_i64()
            .map_or_else(|| Avro::Double(n.as_f64().unwrap()), Avro::Long),
        Value::String(text) => Avro::String(text),
        Value::Array(items) => Avro::Array(items.into_iter().map(untyped).collect()),
        Value::Object(fields) => {
            let fields = fields
                .into_iter()
                .map(|(name, value)| (name, untyped(value)));
            Avro::Map(fields.collect())
        }
    }
}

/// The type of the payments in Protobuf.
pub fn message() -> MessageDescriptor {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/schemas/payment.proto");
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/schemas");
    let set = protox::compile([file], [folder]).unwrap();
    let pool = prost_reflect::DescriptorPool::from_file_descriptor_set(set).unwrap();
    pool.get_message_by_name("shop.Payment").unwrap()
}

/// A payment in JSON as one in Protobuf.
pub fn protobuf(message: &MessageDescriptor, payment: &str) -> Vec<u8> {
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    let mut json = serde_json::Deserializer::from_str(payment);
    let message = DynamicMessage::deserialize_with_options(message.clone(), &mut json, &options);
    message.unwrap().encode_to_vec()
}
