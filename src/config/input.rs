//! `[input]`: the format of records and the source of their schemas.

use std::path::PathBuf;
use std::time::Duration;

use super::secret::Secret;
use super::settings::Settings;
use crate::bundle::path;
use crate::decode::{Envelope, Unwrap, Wrapping};
use crate::image::Limits;

#[derive(Debug, Clone, PartialEq)]
pub enum InputSettings {
    /// The format that the bundle needs: JSON for a table, images for an image model.
    OfBundle,
    Json,
    Image,
    Avro(SchemaSource),
    /// The second field is the message type, if the schema comes from a file.
    Protobuf(SchemaSource, Option<String>),
}

#[derive(Debug, Clone, PartialEq)]
pub enum SchemaSource {
    File(PathBuf),
    Registry(SchemaRegistry),
}

#[derive(Debug, Clone, PartialEq)]
pub struct SchemaRegistry {
    /// Has no trailing slash and no credentials.
    pub url: String,
    pub authorization: Authorization,
    pub ca_file: Option<PathBuf>,
    pub timeout: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Authorization {
    None,
    Basic { username: String, password: Secret },
    Bearer(Secret),
}

#[derive(Clone, Copy)]
enum Format {
    Json,
    Image,
    Avro,
    Protobuf,
}

impl InputSettings {
    pub(super) fn parse(s: &mut Settings) -> InputSettings {
        let formats = [
            ("json", Format::Json),
            ("avro", Format::Avro),
            ("protobuf", Format::Protobuf),
            ("image", Format::Image),
        ];
        let format = s.choice("input.format", &formats);
        let file = s.optional_text("input.schema_file").map(PathBuf::from);
        let message = s.optional_text("input.message");
        let registry = registry(s);
        match format {
            None | Some(Format::Json | Format::Image) => {
                let name = match format {
                    Some(Format::Image) => "image",
                    _ => "json",
                };
                if file.is_some() || message.is_some() || registry.is_some() {
                    s.problem(format!("input.format = \"{name}\" does not use a schema: remove input.schema_file, input.message and input.schema_registry, or set input.format to avro or protobuf"));
                }
                match format {
                    None => InputSettings::OfBundle,
                    Some(Format::Image) => InputSettings::Image,
                    Some(_) => InputSettings::Json,
                }
            }
            Some(Format::Avro) => {
                if message.is_some() {
                    s.problem("input.message applies only to Protobuf: remove it".into());
                }
                InputSettings::Avro(source(s, "avro", file, registry))
            }
            Some(Format::Protobuf) => {
                match (&file, &message) {
                (Some(_), None) => s.problem(
                    "input.message is not set: set it to the message type in input.schema_file, for instance message = \"shop.Payment\"".into(),
                ),
                (None, Some(_)) => s.problem(
                    "input.message applies only to input.schema_file: remove it, because with a registry each record contains its own message type".into(),
                ),
                _ => {}
            }
                InputSettings::Protobuf(source(s, "protobuf", file, registry), message)
            }
        }
    }
}

fn source(
    s: &mut Settings,
    format: &str,
    file: Option<PathBuf>,
    registry: Option<SchemaRegistry>,
) -> SchemaSource {
    match (file, registry) {
        (Some(_), Some(_)) => {
            s.problem("input.schema_file and input.schema_registry are both set: set only one of them".into());
        }
        (Some(file), None) => return SchemaSource::File(file),
        (None, Some(registry)) => return SchemaSource::Registry(registry),
        (None, None) => s.problem(format!(
            "input.format = \"{format}\" requires schemas: set input.schema_registry.url or input.schema_file"
        )),
    }
    SchemaSource::File(PathBuf::new())
}

fn registry(s: &mut Settings) -> Option<SchemaRegistry> {
    let url = s.url(
        "input.schema_registry.url",
        "http://localhost:8081",
        "set input.schema_registry.username and password instead",
    );
    let username = s.optional_text("input.schema_registry.username");
    let password = s.secret("input.schema_registry.password");
    let token = s.secret("input.schema_registry.token");
    let ca_file = s.optional_text("input.schema_registry.ca_file");
    let timeout = s.duration("input.schema_registry.timeout");
    if timeout.is_zero() {
        s.problem("input.schema_registry.timeout must be above 0".into());
    }
    let any_set = username.is_some() || password.is_some() || token.is_some() || ca_file.is_some();
    let Some(url) = url else {
        if any_set {
            s.problem("input.schema_registry.url is not set, but other settings of the section are: set it, for instance url = \"http://localhost:8081\"".into());
        }
        return None;
    };
    let authorization = match (username, password, token) {
        (None, None, None) => Authorization::None,
        (Some(username), Some(password), None) => Authorization::Basic { username, password },
        (None, None, Some(token)) => Authorization::Bearer(token),
        _ => {
            s.problem(
                "[input.schema_registry]: set both username and password, or only token".into(),
            );
            Authorization::None
        }
    };
    Some(SchemaRegistry {
        url,
        authorization,
        ca_file: ca_file.map(PathBuf::from),
        timeout,
    })
}

/// Reads how a JSON message contains its records. Returns `None` if each message is one plain record.
pub(super) fn wrapping(s: &mut Settings, input: &InputSettings) -> Option<Wrapping> {
    let wrapping = Wrapping {
        unwrap: unwrap(s),
        envelopes: envelopes(s),
        allow_nan: s.boolean("input.allow_nan"),
        most_records: s.integer("input.max_unwrapped", 1, 100_000),
    };
    if wrapping.is_plain() {
        return None;
    }
    let is_typed = matches!(input, InputSettings::Avro(_) | InputSettings::Protobuf(..));
    let fits = match input {
        InputSettings::Json | InputSettings::OfBundle => true,
        _ => is_typed && wrapping.is_debezium_alone(),
    };
    if !fits {
        s.problem("input.envelope, input.unwrap and input.allow_nan apply only to JSON, except that input.envelope may be \"debezium\" with Avro and Protobuf: remove them".into());
    }
    Some(wrapping)
}

fn envelopes(s: &mut Settings) -> Vec<Envelope> {
    let names = s.texts("input.envelope", "set it to \"none\"");
    if names == ["none"] {
        return Vec::new();
    }
    let mut envelopes = Vec::new();
    for name in names {
        match name.parse() {
            Ok(envelope) => envelopes.push(envelope),
            Err(problem) => s.problem(format!("input.envelope = \"{name}\": {problem}")),
        }
    }
    envelopes
}

fn unwrap(s: &mut Settings) -> Unwrap {
    let unwrap = s.text("input.unwrap");
    unwrap.parse().unwrap_or_else(|problem| {
        s.problem(format!("input.unwrap = \"{unwrap}\": {problem}"));
        Unwrap::No
    })
}

/// The encoding and limits of images, for a bundle that reads images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSettings {
    /// Dotted path of the image in a JSON record.
    pub field: String,
    pub limits: Limits,
    /// Number of bits that 16-bit samples use.
    pub bit_depth: u32,
}

impl ImageSettings {
    pub(super) fn parse(s: &mut Settings) -> ImageSettings {
        let field = s.text("input.image_field");
        if let Err(problem) = path::keys(&field) {
            s.problem(format!("input.image_field = {field:?}: {problem}"));
        }
        ImageSettings {
            bit_depth: s.integer("input.bit_depth", 9, 16) as u32,
            field,
            limits: Limits {
                bytes: s.integer("input.max_image_bytes", 1, 1 << 30),
                pixels: s.integer("input.max_pixels", 1, 1 << 32) as u64,
                ..Limits::default()
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::config::tests::{SMALLEST, load};
    use crate::config::{Authorization, InputSettings, SchemaSource};
    use crate::decode::{Envelope, Unwrap};

    #[test]
    fn envelopes_and_lists_are_for_json() {
        let wrapping = |flags: &[&str]| load(SMALLEST, &[], flags).map(|config| config.wrapping);
        assert_eq!(wrapping(&[]), Ok(None));
        let chain = wrapping(&["input.envelope=cloudevents,debezium", "input.unwrap=$.list"]);
        let chain = chain.unwrap().unwrap();
        assert_eq!(chain.envelopes, [Envelope::CloudEvents, Envelope::Debezium]);
        assert_eq!(chain.unwrap, Unwrap::At("list".to_owned()));
        assert_eq!((chain.most_records, chain.allow_nan), (10_000, false));
        assert!(
            wrapping(&["input.allow_nan=true"])
                .unwrap()
                .unwrap()
                .allow_nan
        );
        let avro = [
            "input.format=avro",
            "input.schema_file=s",
            "input.envelope=connect",
        ];
        let changes = [
            "input.format=avro",
            "input.schema_file=s",
            "input.envelope=debezium",
        ];
        assert!(wrapping(&changes).unwrap().unwrap().is_debezium_alone());
        for (flags, expected) in [
            (
                &["input.envelope=debezum"][..],
                "input.envelope = \"debezum\": expected none, or one or more of connect, debezium",
            ),
            (
                &["input.unwrap=a..b"],
                "input.unwrap = \"a..b\": expected none, list, lines, or the path",
            ),
            (&["input.max_unwrapped=0"], "input.max_unwrapped"),
            (&avro, "apply only to JSON"),
        ] {
            let error = wrapping(flags).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_format_has_one_source_of_schemas() {
        let input = |flags: &[&str]| load(SMALLEST, &[], flags).map(|config| config.input);
        assert_eq!(input(&[]), Ok(InputSettings::OfBundle));
        let file = [
            "input.format=protobuf",
            "input.schema_file=p.proto",
            "input.message=a.P",
        ];
        let Ok(InputSettings::Protobuf(SchemaSource::File(path), Some(message))) = input(&file)
        else {
            panic!("{:?}", input(&file));
        };
        assert_eq!((path.to_str(), message.as_str()), (Some("p.proto"), "a.P"));
        let registry = [
            "input.format=avro",
            "input.schema_registry.url=http://registry:8081/",
            "input.schema_registry.username=me",
            "input.schema_registry.password=hunter2",
        ];
        let config = load(SMALLEST, &[], &registry).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
        let InputSettings::Avro(SchemaSource::Registry(registry)) = config.input else {
            panic!("{:?}", config.input);
        };
        assert_eq!(registry.url, "http://registry:8081");
        assert_eq!(registry.timeout, Duration::from_secs(5));
        assert!(matches!(
            registry.authorization,
            Authorization::Basic { .. }
        ));

        let url = "input.schema_registry.url=https://r";
        for (flags, expected) in [
            (&["input.format=avro"][..], "requires schemas"),
            (&["input.format=xml"], "one of json, avro, protobuf"),
            (
                &["input.format=avro", url, "input.schema_file=s"],
                "set only one of them",
            ),
            (
                &["input.format=protobuf", "input.schema_file=s"],
                "input.message is not set",
            ),
            (
                &["input.format=protobuf", url, "input.message=M"],
                "input.message",
            ),
            (&["input.schema_file=s"], "does not use a schema"),
            (
                &[
                    "input.format=avro",
                    "input.schema_registry.url=registry:8081",
                ],
                "http://",
            ),
            (
                &[
                    "input.format=avro",
                    "input.schema_registry.url=http://me:pw@r",
                ],
                "must not contain credentials",
            ),
            (
                &[
                    "input.format=avro",
                    url,
                    "input.schema_registry.username=me",
                ],
                "password",
            ),
            (
                &[
                    "input.format=avro",
                    url,
                    "input.schema_registry.token={ env = \"NOT_SET_ANYWHERE\" }",
                ],
                "NOT_SET_ANYWHERE",
            ),
            (
                &["input.format=avro", url, "input.schema_registry.usrname=me"],
                "did you mean",
            ),
            (
                &["input.format=avro", url, "input.schema_registry.timeout=0s"],
                "timeout",
            ),
        ] {
            let error = input(flags).unwrap_err();
            assert!(error.contains(expected), "{expected}\nnot in\n{error}");
            assert!(!error.contains("pw@"), "{error}");
        }
    }
}
