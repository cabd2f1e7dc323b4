//! `residuald check --connect`: reports all problems of the systems around a daemon at once.

use crate::config::{self, Config, SchemaRegistry, SchemaSource};
use crate::kafka::probe::{Findings, probe};
use crate::schema_registry;
use crate::shutdown::Shutdown;

use crate::failure::Failure;

/// Checks the brokers and the schema registry.
///
/// # Errors
/// librdkafka refuses a setting.
pub fn ask(config: &Config) -> Result<Findings, Failure> {
    let outputs = config.output.topics();
    let probed = probe(&config.kafka, &outputs, &Shutdown::default());
    let mut findings = match probed.map_err(Failure::from) {
        Ok(findings) => findings,
        Err(failure) if failure.is_unavailable() => Findings {
            faults: vec![failure.message],
            ..Findings::default()
        },
        Err(failure) => return Err(failure),
    };
    if let Some(registry) = registry(&config.input) {
        match schema_registry::reach(registry) {
            Ok(()) => findings
                .fine
                .push("the schema registry responds".to_owned()),
            Err(problem) => findings
                .faults
                .push(format!("the schema registry does not respond: {problem}")),
        }
    }
    Ok(findings)
}

fn registry(input: &config::InputSettings) -> Option<&SchemaRegistry> {
    use config::InputSettings::{Avro, Protobuf};
    match input {
        Avro(SchemaSource::Registry(registry)) | Protobuf(SchemaSource::Registry(registry), _) => {
            Some(registry)
        }
        _ => None,
    }
}

/// Combines the faults found here with the failure of the start itself, if it failed.
///
/// # Errors
/// There is at least one fault.
pub fn verdict<T>(findings: &Findings, start: Result<T, Failure>) -> Result<T, Failure> {
    let faults = &findings.faults;
    if faults.is_empty() {
        return start;
    }
    let failure = start.err();
    let code = failure.as_ref().map(|failure| failure.code);
    let messages = failure.into_iter().map(|failure| failure.message);
    let all: Vec<String> = messages.chain(faults.iter().cloned()).collect();
    let message = match all.as_slice() {
        [one] => one.clone(),
        several => format!("{} faults:\n  {}", several.len(), several.join("\n  ")),
    };
    Err(match code {
        Some(code) => Failure { code, message },
        None => Failure::unavailable(message),
    })
}
