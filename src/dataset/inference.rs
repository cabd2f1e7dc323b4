//! Infers the schema of records, for a person to edit. Each column becomes features or is left out, with a reason.

mod column;
mod observed;
mod times;

use rustc_hash::FxHashMap;

use self::column::{Guess, Words, guess};
use self::observed::Observed;
use super::scan::scan;
use super::table::Table;
use crate::bundle::Feature;

/// Maximum number of different fields in all records.
const MOST_COLUMNS: usize = 10_000;

/// The inferred schema of a table.
#[derive(Debug, Clone)]
pub struct Inferred {
    pub features: Vec<Feature>,
    /// What was converted or left out, why, and how to change it. One sentence each.
    pub notes: Vec<String>,
}

/// Infers the features of a table, without the fields in `leave_out`. Fields in `keep` become features even if they look like ids or
/// only grow.
///
/// # Errors
/// No column is left, or the records have too many different fields.
pub fn infer(table: &Table, leave_out: &[String], keep: &[String]) -> Result<Inferred, String> {
    let mut columns = observe(table)?;
    columns.retain(|(path, _)| !leave_out.contains(path));
    let mut words = count_words(table, &columns);
    let mut inferred = Inferred {
        features: Vec::new(),
        notes: Vec::new(),
    };
    let rows = table.len() as u64;
    for (at, (path, observed)) in columns.iter().enumerate() {
        let inside = format!("{path}.");
        let is_parent = columns.iter().any(|(other, _)| other.starts_with(&inside));
        let guess = if is_parent {
            Guess::left_out("is a value in some records and an object in others: left out")
        } else if path.split('.').any(str::is_empty) {
            Guess::left_out("has an empty name, which no path of a schema can give: left out")
        } else {
            guess(path, observed, words.remove(&at), rows, keep.contains(path))
        };
        inferred.features.extend(guess.features);
        let notes = guess.notes.into_iter();
        inferred
            .notes
            .extend(notes.map(|note| format!("`{path}` {note}")));
    }
    inferred.notes.extend(duplicates(&columns));
    if inferred.features.is_empty() {
        return Err(nothing_to_learn(&inferred.notes));
    }
    if let Some(name) = listed_twice(&inferred.features) {
        return Err(format!(
            "two features would be named `{name}`: rename a column"
        ));
    }
    Ok(inferred)
}

/// Returns every column in the order of its first appearance.
fn observe(table: &Table) -> Result<Vec<(String, Observed)>, String> {
    let mut columns: Vec<(String, Observed)> = Vec::new();
    let mut index: FxHashMap<String, usize> = FxHashMap::default();
    for (row, payload) in table.payloads().enumerate() {
        let mut too_many = false;
        let _ = scan(payload, |path, value| {
            let at = match index.get(path) {
                Some(&at) => at,
                None if columns.len() == MOST_COLUMNS => {
                    too_many = true;
                    return;
                }
                None => {
                    index.insert(path.to_owned(), columns.len());
                    columns.push((path.to_owned(), Observed::default()));
                    columns.len() - 1
                }
            };
            columns[at].1.observe(row as u64, value);
        });
        if too_many {
            return Err(format!(
                "the records have more than {MOST_COLUMNS} different fields: give a schema with those that matter"
            ));
        }
    }
    Ok(columns)
}

/// Counts the texts of the columns that may become categories.
fn count_words(table: &Table, columns: &[(String, Observed)]) -> FxHashMap<usize, Words> {
    let wanted = columns.iter().enumerate();
    let wanted = wanted.filter(|(_, (_, observed))| observed.may_be_categories());
    let index: FxHashMap<&str, usize> = wanted.map(|(at, (path, _))| (path.as_str(), at)).collect();
    let mut words: FxHashMap<usize, Words> =
        index.values().map(|&at| (at, Words::default())).collect();
    if index.is_empty() {
        return words;
    }
    for payload in table.payloads() {
        let _ = scan(payload, |path, value| {
            if let Some(words) = index.get(path).and_then(|at| words.get_mut(at)) {
                words.count(value);
            }
        });
    }
    words
}

/// Returns a note for each column with the same values as an earlier one.
fn duplicates(columns: &[(String, Observed)]) -> Vec<String> {
    let mut seen: FxHashMap<(u64, u64), &str> = FxHashMap::default();
    let mut notes = Vec::new();
    for (path, observed) in columns.iter().filter(|(_, observed)| observed.varies()) {
        match seen.get(&observed.fingerprint()) {
            Some(first) => notes.push(format!(
                "`{path}` holds the same values as `{first}`: --drop one of them, or it counts twice"
            )),
            None => {
                seen.insert(observed.fingerprint(), path);
            }
        }
    }
    notes
}

/// Says why no column became a feature.
fn nothing_to_learn(notes: &[String]) -> String {
    const MOST: usize = 10;
    let more = notes.len().saturating_sub(MOST);
    let more = if more > 0 {
        format!("; and {more} more")
    } else {
        String::new()
    };
    let notes = notes
        .iter()
        .take(MOST)
        .cloned()
        .collect::<Vec<_>>()
        .join("; ");
    format!("no column can be learned from: {notes}{more}")
}

fn listed_twice(features: &[Feature]) -> Option<&str> {
    let mut names: Vec<&str> = features.iter().map(|f| f.name.as_str()).collect();
    names.sort_unstable();
    let twice = names.windows(2).find(|pair| pair[0] == pair[1]);
    twice.map(|pair| pair[0])
}

#[cfg(test)]
mod tests;
