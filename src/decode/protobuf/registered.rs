//! Compiles the schema of a registry: the text of a .proto file, or a compiled `FileDescriptorProto` in base64, which Confluent's
//! serialisers for Python, Go, .NET and JavaScript register. Its imports may be either.

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

/// The file name of the schema itself in protox. Its imports keep their names.
const MAIN: &str = "the schema";

/// Accepts base64 with or without padding, because registries and their proxies differ.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Compiles a registry's schema with its imports.
///
/// # Errors
/// A message, if the schema is invalid. A panic of the compiler is caught, because it panics on some descriptors that protoc
/// would never write, and a registered schema must not end the process.
pub fn parse(schema: &SchemaText) -> Result<FileDescriptor, String> {
    catch_unwind(AssertUnwindSafe(|| compile(schema)))
        .unwrap_or_else(|_| Err("not a Protobuf schema: the compiler panicked".to_owned()))
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
        file.messages().for_each(|message| touch(&message));
    }
    let file = pool.get_file_by_name(MAIN);
    file.ok_or_else(|| "not a Protobuf schema".to_owned())
}

/// Accesses everything that is used of a message later. prost-reflect panics if a damaged descriptor refers to a message or type
/// that does not exist, and here the panic is caught.
fn touch(message: &MessageDescriptor) {
    message.fields().for_each(|field| drop(field.kind()));
    message
        .oneofs()
        .for_each(|oneof| oneof.fields().for_each(drop));
    message.child_messages().for_each(|child| touch(&child));
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

/// Returns whether `text` is base64 and not a .proto file, which contains at least a semicolon or a brace unless it is empty.
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
        .map_err(|e| format!("`{name}` is base64, but not a FileDescriptorProto: {e}"))?;
    if let Some(syntax) = file.syntax.as_deref()
        && !matches!(syntax, "proto2" | "proto3")
    {
        return Err(format!(
            "`{name}` has the syntax {syntax:?}, which is not supported yet: write it as proto2 or proto3"
        ));
    }
    // Imports use this name, regardless of the name that it was compiled with.
    file.name = Some(name.to_owned());
    Ok(File::from_file_descriptor_proto(file))
}

#[cfg(test)]
mod tests;
