//! `normals.ndjson`: normal records of the training data, one of which is shown beside an anomaly.

use serde::Deserialize;
use serde_json::value::RawValue;

/// Bytes of an id, at most: it is part of every verdict that names it.
const LONGEST_ID: usize = 1024;

/// A record that stands for those like it.
#[derive(Debug, Clone, Deserialize)]
pub struct Normal {
    /// What the user's systems know it by, where the trainer was told.
    #[serde(default)]
    pub id: Option<String>,
    /// The fields of the schema, as a producer would send them.
    pub record: Box<RawValue>,
}

/// The records, and the graph that says which of them is most like a row.
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
    /// A sentence that names the line.
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
