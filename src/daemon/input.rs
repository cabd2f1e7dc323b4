//! Opens the configured input format, for the daemon and for `check`.

use std::path::Path;
use std::time::Duration;

use crate::bundle::{self, Bundle, Feature, Pixels, SegmentId};
use crate::config::{self, Config, ImageSettings, SchemaRegistry, SchemaSource};
use crate::decode::{
    DecodeError, Decoder, Format, Reason, RecordFormat, RecordType, RowError, TypeSource,
    features_of_changes,
};
use crate::image::{BitDepth, FIELD, ImageReader, Limits};
use crate::metrics::Metrics;
use crate::schema_registry;
use crate::shutdown::Shutdown;

use crate::failure::Failure;

/// How often decoding is retried while its schema is being fetched.
const RETRY_AFTER: Duration = Duration::from_millis(20);

/// Opens the configured input format. If the schemas come from a registry, starts a thread that fetches them.
pub fn open(config: &Config, bundle: &Bundle, metrics: &Metrics) -> Result<RecordFormat, Failure> {
    if let Some(input) = open_here(config, bundle)? {
        return Ok(input);
    }
    let registry = |registry: &SchemaRegistry, format| {
        let schemas = schema_registry::start(registry, format, metrics.clone());
        let schemas = schemas.map_err(Failure::config)?;
        Ok(typed(config, TypeSource::Registry(format, schemas)))
    };
    match &config.input {
        config::InputSettings::Avro(SchemaSource::Registry(at)) => registry(at, Format::Avro),
        config::InputSettings::Protobuf(SchemaSource::Registry(at), _) => {
            registry(at, Format::Protobuf)
        }
        _ => Ok(RecordFormat::Json),
    }
}

/// Opens the input format for a verb that reads a topic. The format is JSON if there are no settings.
pub fn of_topic(config: Option<&Config>, bundle: &Bundle) -> Result<RecordFormat, Failure> {
    match config {
        // A command-line verb does not export these metrics.
        Some(config) => open(config, bundle, &Metrics::new(1.0)),
        None => Ok(RecordFormat::Json),
    }
}

/// Opens the input format and checks it against the bundle. Returns `None` if the format needs a schema registry.
pub fn open_here(config: &Config, bundle: &Bundle) -> Result<Option<RecordFormat>, Failure> {
    use config::InputSettings::{Avro, Image, Json, OfBundle, Protobuf};
    let (asked, kind) = (&config.input, &bundle.manifest.input);
    match (asked, kind) {
        (_, bundle::ModelInput::Image(_)) if config.wrapping.is_some() => Err(Failure::config(
            "input.envelope, input.unwrap and input.allow_nan: the bundle reads images. Remove them, and set input.image_field to the path of the image, for example data_base64 for a CloudEvent",
        )),
        (OfBundle | Image, bundle::ModelInput::Image(pixels)) => {
            let reader = images_by(*pixels, &config.images);
            Ok(Some(RecordFormat::Images(reader)))
        }
        (Json, bundle::ModelInput::Image(_)) => Err(Failure::config(
            "input.format = \"json\": the bundle reads images. Remove the setting, or set \"image\", which also accepts images in JSON",
        )),
        (Avro(_) | Protobuf(..), bundle::ModelInput::Image(_)) => Err(Failure::config(
            "input.format: the bundle reads images, which come bare or in JSON, not in Avro or Protobuf. Remove the setting, or set \"image\"",
        )),
        (Image, bundle::ModelInput::Tabular { .. }) => Err(Failure::config(
            "input.format = \"image\": the bundle reads tables. Remove the setting, or set model.bundle to a bundle of kind image",
        )),
        (OfBundle | Json, bundle::ModelInput::Tabular { .. }) => {
            let wrapping = config.wrapping.clone();
            Ok(Some(
                wrapping.map_or(RecordFormat::Json, RecordFormat::Wrapped),
            ))
        }
        (Avro(_) | Protobuf(..), bundle::ModelInput::Tabular { features }) => {
            let record_type = match config.wrapping {
                None => open_file(asked, features)?,
                Some(_) => open_file(asked, &features_of_changes(features))?,
            };
            Ok(record_type.map(|t| typed(config, TypeSource::File(t))))
        }
    }
}

/// Returns the format of records with types. With an envelope, which can only be Debezium's, they are change events.
fn typed(config: &Config, source: TypeSource) -> RecordFormat {
    match config.wrapping {
        None => RecordFormat::Typed(source),
        Some(_) => RecordFormat::Changes(source),
    }
}

/// Returns the reader of images with these settings.
pub fn images_by(pixels: Pixels, settings: &ImageSettings) -> ImageReader {
    let ImageSettings {
        field,
        limits,
        bit_depth,
    } = settings;
    ImageReader::new(pixels, field, *limits).with_depth(BitDepth::new(*bit_depth))
}

/// Returns the reader of images to use without settings.
pub fn images(pixels: Pixels) -> ImageReader {
    ImageReader::new(pixels, FIELD, Limits::default())
}

/// Decodes a payload and returns the record's segment. While the schema is being fetched, waits until a stop is
/// requested.
///
/// # Errors
/// When the payload cannot be decoded to a row, or has nothing to score. Never [`DecodeError::SchemaPending`].
pub fn decode(
    decoder: &mut Decoder,
    payload: &[u8],
    key: Option<&[u8]>,
    rows: &mut Vec<f32>,
    stop: &Shutdown,
) -> Result<Option<SegmentId>, DecodeError> {
    decode_written(decoder, payload, (key, None), rows, stop)
}

/// Like [`decode`], for a record with a timestamp. Does not wait for a missing schema if the record is old, because the
/// registry should have had the schema for a long time.
///
/// # Errors
/// When the payload cannot be decoded to a row, or has nothing to score. Never [`DecodeError::SchemaPending`].
pub fn decode_written(
    decoder: &mut Decoder,
    payload: &[u8],
    (key, written_ms): (Option<&[u8]>, Option<i64>),
    rows: &mut Vec<f32>,
    stop: &Shutdown,
) -> Result<Option<SegmentId>, DecodeError> {
    loop {
        return match decoder.decode(payload, key, rows) {
            Err(DecodeError::SchemaPending(_)) if !stop.is_requested() => {
                decoder.ask_for_schema(payload, written_ms);
                std::thread::sleep(RETRY_AFTER);
                continue;
            }
            Err(pending @ DecodeError::SchemaPending(_)) => Err(DecodeError::Row(RowError {
                reason: Reason::UnknownSchema,
                detail: pending.to_string().into(),
            })),
            decoded => decoded,
        };
    }
}

/// Opens the schema file that the settings name, if any, and checks it against the features.
fn open_file(
    settings: &config::InputSettings,
    features: &[Feature],
) -> Result<Option<RecordType>, Failure> {
    let (path, message) = match settings {
        config::InputSettings::Avro(SchemaSource::File(path)) => (path.as_path(), None),
        config::InputSettings::Protobuf(SchemaSource::File(path), message) => {
            (path.as_path(), message.as_deref())
        }
        _ => return Ok(None),
    };
    let record_type = RecordType::open(path, message).map_err(|problem| fault(path, &problem))?;
    let lacks = record_type.lacks(features);
    if !lacks.is_empty() {
        let problem = format!(
            "with this schema, every record would become a dead letter:\n  {}",
            lacks.join("\n  ")
        );
        return Err(fault(path, &problem));
    }
    Ok(Some(record_type))
}

fn fault(path: &Path, problem: &str) -> Failure {
    Failure::config(format!("input.schema_file = {path:?}: {problem}"))
}
