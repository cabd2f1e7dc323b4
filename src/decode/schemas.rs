//! Schemas by id, shared by the decoder, the writer of verdicts and the thread that fetches them. Nothing blocks here: an unknown
//! schema is requested, and the record is decoded again later.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use crossbeam_channel::{Receiver, Sender, unbounded};
use prost_reflect::{FileDescriptor, MessageDescriptor};

use super::avro::AvroSchema;
use super::wire::{self, Cursor};
use super::{DecodeError, Reason, RowError, avro, headers, protobuf};
use crate::bounded;
use crate::bundle::{Feature, Missing};

/// Formats that require a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Avro,
    Protobuf,
}

/// The text of a schema from a registry or a file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SchemaText {
    pub text: String,
    /// Names and texts of its references, including indirect ones.
    pub references: Vec<(String, String)>,
}

/// A schema from a registry. For Protobuf it is a file, which may define several types.
#[derive(Debug)]
pub enum Schema {
    Avro(Arc<AvroSchema>),
    Protobuf(FileDescriptor),
}

impl Schema {
    /// Parses a schema.
    ///
    /// # Errors
    /// A message, if the schema is invalid.
    pub fn parse(format: Format, schema: &SchemaText) -> Result<Schema, String> {
        Ok(match format {
            Format::Avro => Schema::Avro(Arc::new(AvroSchema::parse(schema)?)),
            Format::Protobuf => Schema::Protobuf(protobuf::parse(schema)?),
        })
    }
}

/// The type of a record.
#[derive(Debug, Clone)]
pub enum RecordType {
    Avro(Arc<AvroSchema>),
    Protobuf(MessageDescriptor),
}

impl RecordType {
    /// Reads the type from an .avsc file, a .proto file or a compiled descriptor set. In the latter two, `message` is the name of
    /// the type.
    ///
    /// # Errors
    /// A message, if the file cannot be read or is invalid.
    pub fn open(path: &Path, message: Option<&str>) -> Result<RecordType, String> {
        match message {
            None => {
                let text = bounded::read_text(path, bounded::TEXT).map_err(|e| e.to_string())?;
                let references = Vec::new();
                let schema = AvroSchema::parse(&SchemaText { text, references })?;
                Ok(RecordType::Avro(Arc::new(schema)))
            }
            Some(message) => Ok(RecordType::Protobuf(protobuf::open(path, message)?)),
        }
    }

    /// Returns a message for each required feature that no record of this type can have.
    pub fn lacks(&self, features: &[Feature]) -> Vec<String> {
        let has = |path: &str| match self {
            RecordType::Avro(schema) => schema.has(path),
            RecordType::Protobuf(message) => protobuf::has(message, path),
        };
        features
            .iter()
            .filter(|f| f.missing == Missing::Reject && !has(&f.path))
            .map(|f| format!("no field `{}`, which feature `{}` requires", f.path, f.name))
            .collect()
    }

    /// Returns a record as JSON of at most `most` bytes.
    pub(super) fn to_json(&self, payload: &[u8], most: usize) -> Option<String> {
        match self {
            RecordType::Avro(schema) => avro::to_json(schema, payload, most).ok().or_else(|| {
                let record = headers::foreign(payload)?.record(Some(schema.fingerprint()));
                avro::to_json(schema, &record.ok()?, most).ok()
            }),
            RecordType::Protobuf(message) => protobuf::to_json(message, payload, most),
        }
    }
}

/// The source of a record's type.
#[derive(Debug, Clone)]
pub enum TypeSource {
    /// A schema file. Payloads have no header.
    File(RecordType),
    /// A schema registry. Payloads begin with the id of a schema.
    Registry(Format, Schemas),
}

impl TypeSource {
    /// Returns the type of the record in `payload`, and the record without its header.
    pub(super) fn type_of<'p>(
        &self,
        payload: &'p [u8],
    ) -> Result<(RecordType, &'p [u8]), DecodeError> {
        match self {
            TypeSource::File(record_type) => Ok((record_type.clone(), payload)),
            TypeSource::Registry(format, schemas) => {
                let header = Header::read(*format, payload)?;
                let schema = schemas.get(header.id)?;
                Ok((header.type_in(&schema)?, header.record))
            }
        }
    }
}

/// The header that a registry's serialiser writes before a record, and the record.
pub(super) struct Header<'p> {
    pub id: u32,
    /// Message index in the schema's file. Empty for Avro.
    pub message: Vec<usize>,
    pub record: &'p [u8],
}

impl<'p> Header<'p> {
    pub fn read(format: Format, payload: &'p [u8]) -> Result<Header<'p>, RowError> {
        let mut cursor = Cursor(payload);
        let id = wire::schema_id(&mut cursor)?;
        let message = match format {
            Format::Avro => Vec::new(),
            Format::Protobuf => wire::message_index(&mut cursor)?,
        };
        Ok(Header {
            id,
            message,
            record: cursor.0,
        })
    }

    pub fn type_in(&self, schema: &Schema) -> Result<RecordType, RowError> {
        Ok(match schema {
            Schema::Avro(schema) => RecordType::Avro(schema.clone()),
            Schema::Protobuf(file) => {
                RecordType::Protobuf(protobuf::message_at(file, &self.message)?)
            }
        })
    }
}

/// The known schemas of a registry. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Schemas {
    known: Known,
    wanted: Sender<Ask>,
}

/// The side that fetches schemas and answers requests. Its channel closes when no [`Schemas`] is left.
#[derive(Debug)]
pub struct Wanted {
    known: Known,
    pub asks: Receiver<Ask>,
}

type Known = Arc<RwLock<HashMap<u32, Entry>>>;

/// A request for a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    pub id: u32,
    /// When the newest record that needs the schema was written, in ms since 1970. `None` if unknown.
    pub written_ms: Option<i64>,
}

#[derive(Debug, Clone)]
enum Entry {
    OnItsWay {
        written_ms: Option<i64>,
        /// Why the schema has not arrived yet, if something is wrong.
        problem: Option<String>,
    },
    Known(Arc<Schema>),
    Refused(String),
}

impl Schemas {
    pub fn new() -> (Schemas, Wanted) {
        let known = Known::default();
        let (wanted, asks) = unbounded();
        let schemas = Schemas {
            known: known.clone(),
            wanted,
        };
        (schemas, Wanted { known, asks })
    }

    /// Returns a known schema. Unknown ones must be requested with [`Schemas::ask`].
    pub(super) fn get(&self, id: u32) -> Result<Arc<Schema>, DecodeError> {
        let entry = {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            known.get(&id).cloned()
        };
        match entry {
            Some(Entry::Known(schema)) => Ok(schema),
            Some(Entry::Refused(detail)) => Err(DecodeError::Row(RowError {
                reason: Reason::UnknownSchema,
                detail: detail.into(),
            })),
            Some(Entry::OnItsWay { .. }) | None => Err(DecodeError::SchemaPending(id)),
        }
    }

    /// Requests an unknown schema once, and again for a newer record. `written_ms` is the time when the record was written.
    pub(super) fn ask(&self, id: u32, written_ms: Option<i64>) {
        // A record without a time counts as written now.
        let newness = |written_ms: Option<i64>| written_ms.unwrap_or(i64::MAX);
        let problem = {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            match known.get(&id) {
                None => None,
                Some(Entry::OnItsWay {
                    written_ms: requested,
                    problem,
                }) => {
                    if newness(written_ms) <= newness(*requested) {
                        return;
                    }
                    problem.clone()
                }
                Some(_) => return,
            }
        };
        let entry = Entry::OnItsWay {
            written_ms,
            problem,
        };
        put(&self.known, id, entry);
        // Sending fails only during a shutdown, when the fetching side is gone.
        let _ = self.wanted.send(Ask { id, written_ms });
    }

    /// Describes what a record with this schema is waiting for. `None` if the request was answered or never made.
    pub(super) fn waits_for(&self, id: u32) -> Option<String> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        match known.get(&id)? {
            Entry::OnItsWay { problem: None, .. } => Some(format!("schema {id}")),
            Entry::OnItsWay {
                problem: Some(problem),
                ..
            } => Some(format!("schema {id} ({problem})")),
            Entry::Known(_) | Entry::Refused(_) => None,
        }
    }
}

impl Wanted {
    /// Stores the schema for the records that wait for it, or the reason why it cannot be used.
    pub fn answer(&self, id: u32, schema: Result<Schema, String>) {
        let entry = match schema {
            Ok(schema) => Entry::Known(Arc::new(schema)),
            Err(detail) => Entry::Refused(detail),
        };
        put(&self.known, id, entry);
    }

    /// Stores why there is no answer yet.
    pub fn delay(&self, id: u32, why: &str) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(Entry::OnItsWay { problem, .. }) = known.get_mut(&id) {
            *problem = Some(why.to_owned());
        }
    }

    /// Removes an answer, so that the next record with this id requests the schema again.
    pub fn forget(&self, id: u32) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.remove(&id);
    }
}

fn put(known: &Known, id: u32, entry: Entry) {
    let mut known = known.write().unwrap_or_else(PoisonError::into_inner);
    known.insert(id, entry);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_is_asked_for_once_and_an_answer_can_be_taken_back() {
        let (schemas, wanted) = Schemas::new();
        let asks = || wanted.asks.try_iter().collect::<Vec<_>>();
        let ask = |written_ms| Ask { id: 7, written_ms };
        for written_ms in [Some(5), Some(5), Some(4), Some(6), None, Some(7)] {
            let pending = schemas.get(7).unwrap_err();
            assert_eq!(pending, DecodeError::SchemaPending(7));
            schemas.ask(7, written_ms);
        }
        assert_eq!(asks(), [ask(Some(5)), ask(Some(6)), ask(None)]);
        assert_eq!(schemas.waits_for(7).unwrap(), "schema 7");
        wanted.delay(7, "no answer");
        assert_eq!(schemas.waits_for(7).unwrap(), "schema 7 (no answer)");
        wanted.answer(7, Err("nobody knows it".into()));
        let DecodeError::Row(error) = schemas.get(7).unwrap_err() else {
            panic!("it was answered");
        };
        assert_eq!(error.reason, Reason::UnknownSchema);
        assert_eq!(schemas.waits_for(7), None);
        schemas.ask(7, None);
        assert_eq!(asks(), []);
        wanted.forget(7);
        assert_eq!(schemas.get(7).unwrap_err(), DecodeError::SchemaPending(7));
        schemas.ask(7, Some(1));
        assert_eq!(asks(), [ask(Some(1))]);
        let text = SchemaText {
            text: r#"{"type": "record", "name": "R", "fields": []}"#.into(),
            references: Vec::new(),
        };
        wanted.answer(7, Schema::parse(Format::Avro, &text));
        assert!(schemas.get(7).is_ok());
        drop(schemas);
        assert!(wanted.asks.recv().is_err(), "the fetcher sees the end");
    }
}
