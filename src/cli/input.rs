//! What records are made of, from the settings: for the daemon and for `check`.

use std::path::Path;

use crate::bundle::Feature;
use crate::config::{self, SchemaRegistry, SchemaSource};
use crate::decode::{Format, Input, RecordType, TypeSource};
use crate::metrics::Metrics;
use crate::schema_registry;

use super::failure::Failure;

/// The input, with a thread that fetches schemas if they come from a registry.
pub fn open(
    settings: &config::Input,
    features: &[Feature],
    metrics: &Metrics,
) -> Result<Input, Failure> {
    if let Some(record_type) = open_file(settings, features)? {
        return Ok(Input::Typed(TypeSource::File(record_type)));
    }
    let registry = |registry: &SchemaRegistry, format| {
        let schemas = schema_registry::start(registry, format, metrics.clone());
        let schemas = schemas.map_err(Failure::config)?;
        Ok(Input::Typed(TypeSource::Registry(format, schemas)))
    };
    match settings {
        config::Input::Avro(SchemaSource::Registry(at)) => registry(at, Format::Avro),
        config::Input::Protobuf(SchemaSource::Registry(at), _) => registry(at, Format::Protobuf),
        _ => Ok(Input::Json),
    }
}

/// The schema file, if the settings name one, held against the features.
pub fn open_file(
    settings: &config::Input,
    features: &[Feature],
) -> Result<Option<RecordType>, Failure> {
    let (path, message) = match settings {
        config::Input::Avro(SchemaSource::File(path)) => (path.as_path(), None),
        config::Input::Protobuf(SchemaSource::File(path), message) => {
            (path.as_path(), message.as_deref())
        }
        _ => return Ok(None),
    };
    let record_type = RecordType::open(path, message).map_err(|problem| fault(path, &problem))?;
    let lacks = record_type.lacks(features);
    if !lacks.is_empty() {
        let problem = format!(
            "every record would be a dead letter:\n  {}",
            lacks.join("\n  ")
        );
        return Err(fault(path, &problem));
    }
    Ok(Some(record_type))
}

fn fault(path: &Path, problem: &str) -> Failure {
    Failure::config(format!("input.schema_file = {path:?}: {problem}"))
}
