//! `golden.ndjson`: raw records with the scores that the trainer computed. Every load scores them again and compares.

use serde::Deserialize;
use serde_json::value::RawValue;

/// Maximum number of golden records, because every load scores all of them.
const MOST: usize = 10_000;

/// A payload as a producer would send it, and the score that it must get.
#[derive(Debug, Clone, Deserialize)]
pub struct Golden {
    pub record: Box<RawValue>,
    pub score: f32,
}

impl Golden {
    /// Parses one golden record per line.
    ///
    /// # Errors
    /// A message with the number of the bad line or record.
    pub fn parse(text: &str) -> Result<Vec<Golden>, String> {
        let golden: Vec<Golden> = text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty())
            .map(|(number, line)| {
                serde_json::from_str(line).map_err(|e| format!("line {}: {e}", number + 1))
            })
            .take(MOST + 1)
            .collect::<Result<_, _>>()?;
        if golden.len() > MOST {
            return Err(format!(
                "has more than {MOST} golden records: export fewer, because every load scores all of them"
            ));
        }
        let sound = |golden: &Golden| golden.score.is_finite() && golden.score >= 0.0;
        if let Some(at) = golden.iter().position(|golden| !sound(golden)) {
            return Err(format!(
                "the score of golden record {} must be finite and not negative",
                at + 1
            ));
        }
        if golden.is_empty() {
            return Err(
                "has no golden records: export at least one, so that the scores can be verified"
                    .into(),
            );
        }
        Ok(golden)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_sound_and_records_not_too_many() {
        let parse = |text: &str| Golden::parse(text).map(|golden| golden.len());
        assert_eq!(parse("{\"record\": 1, \"score\": 0}\n\n"), Ok(1));
        for score in ["-1", "1e39", "-0.5"] {
            let line = format!("{{\"record\": {{}}, \"score\": {score}}}");
            assert!(parse(&line).unwrap_err().contains("record 1"), "{score}");
        }
        let many = "{\"record\": 1, \"score\": 0}\n".repeat(MOST + 1);
        assert!(parse(&many).unwrap_err().contains("more than"));
        assert!(parse("").is_err());
    }
}
