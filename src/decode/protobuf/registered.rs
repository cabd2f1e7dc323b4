//! A schema as a registry hands it out: the text of a .proto file, or a compiled `FileDescriptorProto` in base64, which is
//! what Confluent's serialisers for Python, Go, .NET and JavaScript register. What it imports may be either.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use prost_reflect::prost::Message as _;
use prost_reflect::prost_types::FileDescriptorProto;
use prost_reflect::{FileDescriptor, MessageDescriptor};
use protox::file::{ChainFileResolver, File, FileResolver, GoogleFileResolver};

use super::super::schemas::SchemaText;
use super::known::Known;

/// The name of the schema itself for protox; its imports keep their names.
const MAIN: &str = "the schema";

/// With or without padding: registries and their proxies differ.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The file of a registry's schema, with its imports.
///
/// # Errors
/// A message that says what is wrong with it. The compiler panics on some descriptors that protoc would never write; a
/// registered schema must not end the process.
pub fn parse(schema: &SchemaText) -> Result<FileDescriptor, String> {
    catch_unwind(AssertUnwindSafe(|| compile(schema)))
        .unwrap_or_else(|_| Err("not a Protobuf schema: the compiler failed at it".to_owned()))
}

fn compile(schema: &SchemaText) -> Result<FileDescriptor, String> {
    let mut resolver = ChainFileResolver::new();
    resolver.add(Registered::new(schema));
    resolver.add(Known);
    resolver.add(GoogleFileResolver::new());
    let mut compiler = protox::Compiler::with_file_resolver(resolver);
    compiler.include_imports(true);
    compiler
        .open_file(MAIN)
        .map_err(|e| format!("not a Protobuf schema: {e}"))?;
    let pool = compiler.descriptor_pool();
    for file in pool.files() {
        file.messages().for_each(|message| look_at(&message));
    }
    let file = pool.get_file_by_name(MAIN);
    file.ok_or_else(|| "not a Protobuf schema".to_owned())
}

/// Looks at all that is used of a message later. prost-reflect panics at a message or type that a damaged descriptor names and
/// does not have; here that is caught.
fn look_at(message: &MessageDescriptor) {
    message.fields().for_each(|field| drop(field.kind()));
    message
        .oneofs()
        .for_each(|oneof| oneof.fields().for_each(drop));
    message.child_messages().for_each(|child| look_at(&child));
}

/// The schema and its references, by the names that imports use.
struct Registered(HashMap<String, String>);

impl Registered {
    fn new(schema: &SchemaText) -> Registered {
        let mut files: HashMap<String, String> = schema.references.iter().cloned().collect();
        files.insert(MAIN.to_owned(), schema.text.clone());
        Registered(files)
    }
}

impl FileResolver for Registered {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        let text = self
            .0
            .get(name)
            .ok_or_else(|| protox::Error::file_not_found(name))?;
        if is_base64(text) {
            return from_base64(name, text).map_err(protox::Error::new);
        }
        File::from_source(name, text)
    }
}

/// Whether this is base64 and not a .proto file: that has at least a semicolon or a brace, unless it is empty.
fn is_base64(text: &str) -> bool {
    let of_base64 = |c: u8| c.is_ascii_alphanumeric() || b"+/=".contains(&c);
    let text = text.trim().as_bytes();
    !text.is_empty()
        && text
            .iter()
            .all(|c| of_base64(*c) || c.is_ascii_whitespace())
}

fn from_base64(name: &str, text: &str) -> Result<File, String> {
    let packed: String = text.split_ascii_whitespace().collect();
    let bytes = BASE64
        .decode(packed)
        .map_err(|e| format!("`{name}` is neither a .proto file nor base64: {e}"))?;
    let mut file = FileDescriptorProto::decode(bytes.as_slice())
        .map_err(|e| format!("`{name}` is base64, but no FileDescriptorProto: {e}"))?;
    if let Some(syntax) = file.syntax.as_deref()
        && !matches!(syntax, "proto2" | "proto3")
    {
        return Err(format!(
            "`{name}` has the syntax {syntax:?}, which cannot be read yet: write it as proto2 or proto3"
        ));
    }
    // The name that imports of it use, whatever it was compiled as.
    file.name = Some(name.to_owned());
    Ok(File::from_file_descriptor_proto(file))
}

#[cfg(test)]
mod tests;
