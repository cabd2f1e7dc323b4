//! `normals.ndjson`: normal training records. The nearest one is shown beside an anomaly.

use serde::Deserialize;
use serde_json::value::RawValue;

/// Maximum length of a record's id, in bytes. The id is part of every verdict that refers to the record.
const LONGEST_ID: usize = 1024;

/// A normal record that represents similar ones.
#[derive(Debug, Clone, Deserialize)]
pub struct Normal {
    /// The record's id in the user's systems, if the trainer was given one.
    #[serde(default)]
    pub id: Option<String>,
    /// The fields of the schema, as a producer would send them.
    pub record: Box<RawValue>,
}

/// The normal records of a bundle, and the graph that finds the nearest one to a row.
#[derive(Debug, Clone)]
pub struct Normals {
    pub records: Vec<Normal>,
    /// `nearest.onnx`: `x` float32 [N, F] -> `nearest` int64 [N], indices into `records`.
    pub model: Vec<u8>,
}

impl Normal {
    /// Parses one record per line.
    ///
    /// # Errors
    /// A message with the number of the bad line.
    pub fn parse(text: &str) -> Result<Vec<Normal>, String> {
        let parsed = text.lines().enumerate().map(|(number, line)| {
            let normal: Normal =
                serde_json::from_str(line).map_err(|e| format!("line {}: {e}", number + 1))?;
            match normal.id.as_ref().map_or(0, String::len) {
                length if length > LONGEST_ID => Err(format!(
                    "line {}: the id has {length} bytes, but may have at most {LONGEST_ID}",
                    number + 1
                )),
                _ => Ok(normal),
            }
        });
        let normals: Vec<Normal> = parsed.collect::<Result<_, String>>()?;
        if normals.is_empty() {
            return Err(
                "has no records: leave this file and nearest.onnx out of the bundle".into(),
            );
        }
        Ok(normals)
    }
}
