//! `normals.ndjson`: normal training records, one of which is shown beside an anomaly.

use serde::Deserialize;
use serde_json::value::RawValue;

/// Longest id, in bytes: it is part of every verdict that names it.
const LONGEST_ID: usize = 1024;

/// A normal record, which represents similar ones.
#[derive(Debug, Clone, Deserialize)]
pub struct Normal {
    /// Its id in the user's systems, if the trainer was given one.
    #[serde(default)]
    pub id: Option<String>,
    /// The schema's fields, as a producer would send them.
    pub record: Box<RawValue>,
}

/// The records, and the graph that finds the nearest one to a row.
#[derive(Debug, Clone)]
pub struct Normals {
    pub records: Vec<Normal>,
    /// `nearest.onnx`: `x` float32 [N, F] -> `nearest` int64 [N], numbers of records.
    pub model: Vec<u8>,
}

impl Normal {
    /// Reads one record a line.
    ///
    /// # Errors
    /// A message that names the line.
    pub fn parse(text: &str) -> Result<Vec<Normal>, String> {
        let parsed = text.lines().enumerate().map(|(number, line)| {
            let normal: Normal =
                serde_json::from_str(line).map_err(|e| format!("line {}: {e}", number + 1))?;
            match normal.id.as_ref().map_or(0, String::len) {
                length if length > LONGEST_ID => Err(format!(
                    "line {}: the id has {length} bytes, it may have {LONGEST_ID}",
                    number + 1
                )),
                _ => Ok(normal),
            }
        });
        let normals: Vec<Normal> = parsed.collect::<Result<_, String>>()?;
        if normals.is_empty() {
            return Err("no records: leave it out of the bundle instead".into());
        }
        Ok(normals)
    }
}
