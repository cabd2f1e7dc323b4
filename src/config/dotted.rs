//! librdkafka's names have dots. Without quotes TOML, and so `--set`, takes each dot for a table in a table.

use std::collections::BTreeMap;

use config::{Map, Value, ValueKind};

use super::FLAG;
use super::settings::{ENVIRONMENT, place_of};

/// Names whose last part looks as if it said where a secret is: `a.file` is a name here, not `a = { file = … }`.
const FILES: [&str; 3] = [
    "sasl.oauthbearer.assertion",
    "sasl.oauthbearer.assertion.jwt.template",
    "sasl.oauthbearer.assertion.private.key",
];

/// The settings of a client by librdkafka's names, however they were written; of those in several places what wins.
pub fn entries(table: Map<String, Value>) -> BTreeMap<String, Value> {
    let mut entries = Vec::new();
    flatten("", table, &mut entries);
    entries.sort_by_key(|(_, value)| rank(value));
    let named = entries.into_iter().map(|(name, value)| {
        let name = match place_of(&value) {
            // There a dot is an underscore.
            Some(ENVIRONMENT) => name.replace('_', "."),
            _ => name,
        };
        (name, value)
    });
    named.collect()
}

fn flatten(prefix: &str, table: Map<String, Value>, entries: &mut Vec<(String, Value)>) {
    for (part, value) in table {
        let name = match prefix {
            "" => part,
            _ => format!("{prefix}.{part}"),
        };
        match &value.kind {
            ValueKind::Table(below) if !is_place(&name, below) => {
                flatten(&name, below.clone(), entries);
            }
            _ => entries.push((name, value)),
        }
    }
}

/// Whether this says where the value of `name` is: `{ env = … }` or `{ file = … }`.
fn is_place(name: &str, table: &Map<String, Value>) -> bool {
    let scalar = |key| {
        let value: Option<&Value> = table.get(key);
        value.is_some_and(|value| !matches!(value.kind, ValueKind::Table(_)))
    };
    table.len() == 1 && (scalar("env") || scalar("file") && !FILES.contains(&name))
}

/// The same setting may be in several places in several spellings, which are not merged.
fn rank(value: &Value) -> usize {
    match place_of(value) {
        Some(FLAG) => 2,
        Some(ENVIRONMENT) => 1,
        _ => 0,
    }
}
