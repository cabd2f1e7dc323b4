//! Protobuf: finds message types, and decodes messages by them.
//!
//! `protox` compiles schemas and `prost-reflect` describes them. Messages are decoded directly into the row, because building a
//! tree for each record costs several times as much. For verdicts, which are rare, `prost-reflect` writes messages as Protobuf
//! JSON.

mod files;
mod known;
mod registered;
mod row;
mod structs;

use std::borrow::Cow;
use std::path::Path;

use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, FileDescriptor, Kind, MessageDescriptor,
    SerializeOptions,
};
use protox::Compiler;

use crate::bounded;
use crate::bundle::path::keys_or_parts;

use super::{RowError, malformed};

use files::Files;
pub use registered::parse;
pub use row::{ProtobufPlan, Scratch};

/// Returns the message type `name` from a .proto file or a compiled descriptor set.
pub fn open(path: &Path, name: &str) -> Result<MessageDescriptor, String> {
    let pool = match path.extension().and_then(|e| e.to_str()) {
        Some("proto") => {
            let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
            let folder = folder.unwrap_or(Path::new("."));
            let mut compiler = Compiler::with_file_resolver(Files::below(folder));
            compiler.include_imports(true);
            let compiled = compiler.open_file(path).map_err(|e| e.to_string())?;
            DescriptorPool::from_file_descriptor_set(compiled.file_descriptor_set())
                .map_err(|e| e.to_string())?
        }
        _ => {
            let bytes = bounded::read(path, bounded::TEXT).map_err(|e| e.to_string())?;
            DescriptorPool::decode(bytes.as_slice()).map_err(|e| {
                format!("the file is not a compiled descriptor set, which protoc --include_imports -o makes: {e}")
            })?
        }
    };
    pool.get_message_by_name(name).ok_or_else(|| {
        let names: Vec<String> = pool
            .all_messages()
            .filter(|m| !m.is_map_entry() && !m.full_name().starts_with("google.protobuf."))
            .map(|m| m.full_name().to_owned())
            .take(20)
            .collect();
        format!("no message `{name}`: the messages are {}", names.join(", "))
    })
}

/// Returns the message type at the message index in a registry's header.
pub fn message_at(file: &FileDescriptor, index: &[usize]) -> Result<MessageDescriptor, RowError> {
    let none = || {
        malformed(format!(
            "the schema has no message with the index {index:?}"
        ))
    };
    let (first, rest) = index.split_first().ok_or_else(none)?;
    let outermost = file.messages().nth(*first).ok_or_else(none)?;
    rest.iter().try_fold(outermost, |message, i| {
        message.child_messages().nth(*i).ok_or_else(none)
    })
}

/// Returns whether a message of this type can have a value at `path`. A map and a `Struct` can have any key.
pub fn has(message: &MessageDescriptor, path: &str) -> bool {
    can_have(message, &keys_or_parts(path))
}

fn can_have(message: &MessageDescriptor, keys: &[Cow<'_, str>]) -> bool {
    if structs::is_dynamic(message) {
        return true;
    }
    let Some((key, rest)) = keys.split_first() else {
        return true;
    };
    let field = message.get_field_by_name(key);
    if field.as_ref().is_some_and(FieldDescriptor::is_map) {
        return true;
    }
    match field.map(|f| (f.is_list(), f.kind())) {
        None => false,
        Some(_) if rest.is_empty() => true,
        Some((false, Kind::Message(below))) => can_have(&below, rest),
        Some(_) => false,
    }
}

/// Returns a message as Protobuf JSON of at most `most` bytes. Fields have their names from the .proto file, 64-bit integers are
/// numbers, and default values are included.
pub fn to_json(message: &MessageDescriptor, payload: &[u8], most: usize) -> Option<String> {
    let message = DynamicMessage::decode(message.clone(), payload).ok()?;
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .stringify_64_bit_integers(false)
        .skip_default_fields(false);
    let mut out = Bounded {
        text: Vec::new(),
        most,
    };
    let mut serializer = serde_json::Serializer::new(&mut out);
    message
        .serialize_with_options(&mut serializer, &options)
        .ok()?;
    String::from_utf8(out.text).ok()
}

/// A buffer that cannot grow beyond `most` bytes.
struct Bounded {
    text: Vec<u8>,
    most: usize,
}

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.text.len() + bytes.len() > self.most {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
