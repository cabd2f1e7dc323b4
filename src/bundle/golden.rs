//! `golden.ndjson`: raw records with the score the trainer got, so that a bundle proves itself at load.

use serde::Deserialize;
use serde_json::value::RawValue;

/// One golden record: the payload a producer would send and the score it must get.
#[derive(Debug, Clone, Deserialize)]
pub struct Golden {
    pub record: Box<RawValue>,
    pub score: f32,
}

impl Golden {
    /// Reads one golden record a line.
    ///
    /// # Errors
    /// A sentence that names the line.
    pub fn parse(text: &str) -> Result<Vec<Golden>, String> {
        let golden: Vec<Golden> = text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty())
            .map(|(number, line)| {
                serde_json::from_str(line).map_err(|e| format!("line {}: {e}", number + 1))
            })
            .collect::<Result<_, _>>()?;
        if golden.is_empty() {
            return Err("no golden records: the bundle could not prove itself".into());
        }
        Ok(golden)
    }
}
