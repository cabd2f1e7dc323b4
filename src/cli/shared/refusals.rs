//! Counts the records that a verb could not use, by reason and with an example for each.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::decode::SetBy;
use crate::failure::Failure;
use crate::text::escaped;

/// Maximum number of reasons that are shown as text.
const MOST_SHOWN: usize = 3;
/// Maximum length of an example in characters. It may quote a record.
const LONGEST: usize = 200;
/// How much of it is left of its end, where a hint is.
const END: usize = 120;

#[derive(Debug, Default)]
pub struct Refusals {
    kinds: BTreeMap<&'static str, Kind>,
    /// Whether the verb's flags say how records are read, and not the daemon's settings.
    by_flags: bool,
}

#[derive(Debug)]
struct Kind {
    records: u64,
    /// The error of the first record with this reason.
    example: String,
}

/// One reason with its records and example, for JSON.
#[derive(Serialize)]
pub struct Refusal<'r> {
    reason: &'static str,
    records: u64,
    example: &'r str,
}

impl Refusals {
    /// Returns an empty count for records that the verb's flags say how to read.
    pub fn by_flags() -> Refusals {
        Refusals {
            by_flags: true,
            ..Refusals::default()
        }
    }

    pub fn add(&mut self, reason: &'static str, detail: &str) {
        let detail = match self.by_flags {
            true => SetBy::Flags.named(detail),
            false => detail.into(),
        };
        let kind = self.kinds.entry(reason).or_insert_with(|| Kind {
            records: 0,
            example: cut(&escaped(&detail)),
        });
        kind.records += 1;
    }

    /// Adds those of another count.
    pub fn merge(&mut self, other: Refusals) {
        for (reason, found) in other.kinds {
            match self.kinds.get_mut(reason) {
                Some(kind) => kind.records += found.records,
                None => drop(self.kinds.insert(reason, found)),
            }
        }
    }

    /// Returns the number of records.
    pub fn count(&self) -> u64 {
        self.kinds.values().map(|kind| kind.records).sum()
    }

    /// Returns the number of records by reason.
    pub fn by_reason(&self) -> BTreeMap<&'static str, u64> {
        let all = self.kinds.iter();
        all.map(|(reason, kind)| (*reason, kind.records)).collect()
    }

    /// Returns all reasons, the most frequent first.
    pub fn all(&self) -> Vec<Refusal<'_>> {
        let all = self.kinds.iter();
        let mut all: Vec<Refusal<'_>> = all
            .map(|(&reason, kind)| Refusal {
                reason,
                records: kind.records,
                example: &kind.example,
            })
            .collect();
        all.sort_by_key(|refusal| std::cmp::Reverse(refusal.records));
        all
    }
}

/// Formats the three most frequent reasons, each with an example.
impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.all();
        for (i, refusal) in all.iter().take(MOST_SHOWN).enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            let Refusal {
                reason,
                records,
                example,
            } = refusal;
            write!(f, "{comma}{reason} {records} ({example})")?;
        }
        let others: u64 = all
            .iter()
            .skip(MOST_SHOWN)
            .map(|refusal| refusal.records)
            .sum();
        match others {
            0 => Ok(()),
            others => write!(f, ", other reasons {others}"),
        }
    }
}

fn cut(text: &str) -> String {
    let characters: Vec<char> = text.chars().collect();
    match characters.len() > LONGEST {
        true => {
            let (start, end) = (LONGEST - END, characters.len() - END);
            let [start, end] = [&characters[..start], &characters[end..]];
            start.iter().chain(&['…']).chain(end).collect()
        }
        false => text.to_owned(),
    }
}

/// Checks that at least one record was scored.
///
/// # Errors
/// No record was scored, which must not end as a success.
pub fn some_scored(scored: usize, refusals: &Refusals) -> Result<(), Failure> {
    match scored {
        0 => Err(Failure::data(format!(
            "none of the {} records could be scored: {refusals}",
            refusals.count()
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_most_frequent_are_told_with_an_example() {
        let mut refusals = Refusals::default();
        for (reason, detail, records) in [
            ("malformed", "not JSON\u{1b}[2J", 2),
            ("missing", "field `a`", 5),
            ("wrong_type", &format!("{}; set it", "x".repeat(1000)), 3),
            ("duplicate", "", 1),
        ] {
            (0..records).for_each(|_| refusals.add(reason, detail));
        }
        let long = format!("{}…{}; set it", "x".repeat(80), "x".repeat(112));
        assert_eq!(
            refusals.to_string(),
            format!(
                "missing 5 (field `a`), wrong_type 3 ({long}), malformed 2 (not JSON\\u001b[2J), other reasons 1"
            )
        );
        assert_eq!((refusals.count(), refusals.all().len()), (11, 4));
    }
}
