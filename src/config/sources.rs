//! Merges the sources of the settings: defaults, a file, the environment and `--set`. Later ones win.

use std::path::Path;

use config::{Environment, File, FileFormat, Value};

use super::LARGEST_FILE;
use super::settings::set_origin;
use super::{ConfigError, DEFAULTS, FLAG, Variables};

/// Merges the sources into one tree.
///
/// # Errors
/// [`ConfigError`] if the file cannot be read, or a flag is not `SECTION.KEY=VALUE`.
pub(super) fn merged(
    file: Option<&Path>,
    variables: Variables,
    flags: &[String],
) -> Result<Value, ConfigError> {
    let mut builder =
        config::Config::builder().add_source(File::from_str(DEFAULTS, FileFormat::Toml));
    if let Some(path) = file {
        must_be_a_file(path)?;
        builder = builder.add_source(File::from(path).format(FileFormat::Toml));
    }
    let environment = Environment::with_prefix("RESIDUALD")
        .prefix_separator("__")
        .separator("__")
        .source(Some(variables.into_iter().collect()));
    builder = builder.add_source(environment);
    for flag in flags {
        builder = builder.add_source(flag_source(flag)?);
    }
    let merged = builder.build().map_err(|e| ConfigError::File {
        path: file.map_or("settings".into(), |p| p.display().to_string()),
        problem: problem(file, e),
    })?;

    Ok(merged.cache)
}

/// Refuses anything but a regular file, because SIGHUP reads the file again and a pipe cannot be read twice.
fn must_be_a_file(path: &Path) -> Result<(), ConfigError> {
    let problem = match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() && metadata.len() <= LARGEST_FILE => return Ok(()),
        Ok(metadata) if metadata.is_file() => format!(
            "has {} bytes, but a settings file may have at most {LARGEST_FILE}: is this the right file?",
            metadata.len()
        ),
        Ok(metadata) if metadata.is_dir() => "is a folder: give the path of a settings file".to_owned(),
        Ok(_) => "is not a regular file, and SIGHUP cannot read a pipe again: save the settings in a file"
            .to_owned(),
        Err(e) => format!("the settings cannot be read: {e}"),
    };
    Err(ConfigError::File {
        path: path.display().to_string(),
        problem,
    })
}

/// Describes what is wrong with the file. The message does not quote the line, because it may contain a secret.
fn problem(file: Option<&Path>, error: config::ConfigError) -> String {
    let config::ConfigError::FileParse { cause, .. } = error else {
        return error.to_string();
    };
    let Some(cause) = cause.downcast_ref::<toml::de::Error>() else {
        return "it is not TOML".into();
    };
    let text = file.and_then(|path| std::fs::read_to_string(path).ok());
    let before = cause.span().zip(text).map(|(span, text)| {
        let end = span.start.min(text.len());
        text.as_bytes()[..end]
            .iter()
            .filter(|b| **b == b'\n')
            .count()
    });
    let line = before.map_or(String::new(), |lines| format!("line {}: ", lines + 1));
    format!("{line}{}", cause.message())
}

/// Parses `section.key=value`. A value that is not valid TOML is taken as a string.
fn flag_source(flag: &str) -> Result<config::Config, ConfigError> {
    let part_of_key = |c: char| c.is_alphanumeric() || "._-\"".contains(c);
    let bad = || ConfigError::Flag {
        key: flag.chars().take_while(|c| part_of_key(*c)).collect(),
    };
    let (key, value) = flag.split_once('=').ok_or_else(bad)?;
    if !key.contains('.') {
        return Err(bad());
    }
    let as_text = serde_json::Value::from(value);
    [format!("{key} = {value}"), format!("{key} = {as_text}")]
        .iter()
        .find_map(|line| {
            let source = File::from_str(line, FileFormat::Toml);
            let parsed = config::Config::builder().add_source(source).build();
            parsed.ok()
        })
        .map(|mut parsed| {
            set_origin(&mut parsed.cache, FLAG);
            parsed
        })
        .ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::Config;
    use crate::config::tests::{SMALLEST, load};

    #[test]
    fn the_settings_are_in_a_regular_file() {
        let dir = tempfile::tempdir().unwrap();
        let load = |path: &Path| {
            Config::load(Some(path), vec![], &[])
                .unwrap_err()
                .to_string()
        };
        assert!(load(dir.path()).contains("is a folder"));
        assert!(load(Path::new("/dev/null")).contains("not a regular file"));
        let large = dir.path().join("large.toml");
        let file = std::fs::File::create(&large).unwrap();
        file.set_len(5 << 30).unwrap();
        assert!(load(&large).contains("5368709120 bytes"));
        let gone = load(&dir.path().join("gone.toml"));
        assert!(
            gone.contains("gone.toml: the settings cannot be read: No such file"),
            "{gone}"
        );
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let text = format!("{SMALLEST}\nbatch.max_records = 2\nkafka.group_id = \"file\"");
        let variables = [
            ("RESIDUALD__BATCH__MAX_RECORDS", "3"),
            ("RESIDUALD__KAFKA__GROUP_ID", "0012"),
        ];
        let flags = [
            "batch.max_records=4",
            "kafka.topics=[\"a\", \"b\"]",
            "model.bundle=some/where",
        ];
        let config = load(&text, &variables, &flags).unwrap();
        assert_eq!(config.batch.max_records, 4);
        assert_eq!(config.kafka.group_id, "0012");
        assert_eq!(config.kafka.topics, ["a", "b"]);
        assert_eq!(config.model.bundle, Path::new("some/where"));
        let origin = |key: &str| {
            let setting = config.effective.iter().find(|e| e.key == key);
            setting.unwrap().origin.clone()
        };
        assert_eq!(origin("batch.max_records"), "--set");
        assert_eq!(origin("kafka.group_id"), "the environment");
        assert_eq!(origin("batch.max_wait"), "default");
    }

    #[test]
    fn a_file_that_is_absent_or_not_toml_is_named() {
        let absent = Config::load(Some(Path::new("/no/such/file.toml")), vec![], &[]);
        assert!(
            absent
                .unwrap_err()
                .to_string()
                .contains("/no/such/file.toml")
        );
        assert!(
            load("not toml", &[], &[])
                .unwrap_err()
                .contains("residuald.toml")
        );
        assert!(
            load(SMALLEST, &[], &["nonsense"])
                .unwrap_err()
                .contains("--set nonsense")
        );
    }
}
