//! Infers the schema of records, for a person to edit. Each column becomes features or is left out, with a reason.

mod column;
mod observed;
mod times;

use rustc_hash::FxHashMap;
use serde::Serialize;

use self::column::{Guess, Words, guess};
use self::observed::Observed;
use super::scan::{Scalar, scan};
use super::table::Table;
use crate::bundle::manifest::{TimePart, add_missing_values};
use crate::bundle::notation::MissingValue;
use crate::bundle::{Feature, FeatureKind};

/// Maximum number of different fields in all records.
const MOST_COLUMNS: usize = 10_000;

/// What the user wants of the schema.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// Fields that are not features.
    pub leave_out: Vec<String>,
    /// Fields that are features even if they look like ids or only grow.
    pub keep: Vec<String>,
    /// Values that count as missing in every field.
    pub missing: Vec<MissingValue>,
}

/// The inferred schema of a table.
#[derive(Debug, Clone)]
pub struct Inferred {
    pub features: Vec<Feature>,
    /// What was converted or left out, why, and how to change it. One sentence each.
    pub notes: Vec<String>,
    /// Every column, for a table.
    pub columns: Vec<InferredColumn>,
}

/// What becomes of a column.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InferredColumn {
    pub path: String,
    /// How it is read. `None` if it is left out.
    pub read_as: Option<String>,
    /// Why, if there is something to say.
    pub notes: Vec<String>,
    /// The first few different values.
    pub examples: Vec<String>,
    /// Number of records without a value.
    pub missing: u64,
}

/// Infers the features of a table.
///
/// # Errors
/// No column is left, or the records have too many different fields.
pub fn infer(table: &Table, wishes: &Wishes) -> Result<Inferred, String> {
    let inferred = infer_columns(table, wishes)?;
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

/// Infers what becomes of every column, even if none is left.
///
/// # Errors
/// The records have too many different fields.
pub fn infer_columns(table: &Table, wishes: &Wishes) -> Result<Inferred, String> {
    let Wishes {
        leave_out,
        keep,
        missing,
    } = wishes;
    let mut columns = observe(table, missing)?;
    columns.retain(|(path, _)| !leave_out.contains(path));
    let mut words = count_words(table, &columns, missing);
    let mut inferred = Inferred {
        features: Vec::new(),
        notes: Vec::new(),
        columns: Vec::new(),
    };
    let rows = table.len() as u64;
    for (at, (path, observed)) in columns.iter().enumerate() {
        let inside = format!("{path}.");
        let is_parent = columns.iter().any(|(other, _)| other.starts_with(&inside));
        let mut guess = if is_parent {
            Guess::left_out("is a value in some records and an object in others: left out")
        } else {
            guess(path, observed, words.remove(&at), rows, keep.contains(path))
        };
        if observed.repeats > 0 {
            guess.notes.push(format!(
                "occurs more than once in up to {} records, which are refused, because readers disagree on which value counts",
                observed.repeats
            ));
        }
        let notes = guess.notes.iter();
        inferred
            .notes
            .extend(notes.map(|note| format!("`{path}` {note}")));
        inferred.columns.push(InferredColumn {
            path: path.clone(),
            read_as: read_as(&guess.features),
            notes: guess.notes,
            examples: observed.examples.clone(),
            missing: rows - observed.present(),
        });
        inferred.features.extend(guess.features);
    }
    for (path, note) in duplicates(&columns) {
        inferred.notes.push(format!("`{path}` {note}"));
        let column = inferred.columns.iter_mut().find(|c| c.path == path);
        column.into_iter().for_each(|c| c.notes.push(note.clone()));
    }
    add_missing_values(&mut inferred.features, missing);
    Ok(inferred)
}

/// Returns how a column with these features is read. `None` without features.
fn read_as(features: &[Feature]) -> Option<String> {
    let unit = features.first()?.unit.as_deref();
    Some(match &features.first()?.kind {
        FeatureKind::Number => match unit {
            Some(unit) => format!("number in {unit}"),
            None => "number".to_owned(),
        },
        FeatureKind::Bool => "true or false".to_owned(),
        FeatureKind::Categorical { vocabulary } => {
            format!("category, {} values", vocabulary.len())
        }
        FeatureKind::Timestamp { .. } => {
            let parts = features.iter().filter_map(|feature| match &feature.kind {
                FeatureKind::Timestamp { part, .. } => Some(match part {
                    TimePart::HourOfDay => "hour of day",
                    TimePart::DayOfWeek => "day of week",
                }),
                _ => None,
            });
            format!("time: {}", parts.collect::<Vec<_>>().join(", "))
        }
    })
}

/// Returns null for a value that counts as missing.
fn or_null<'v>(value: Scalar<'v>, missing: &[MissingValue]) -> Scalar<'v> {
    let (text, number) = match value {
        Scalar::Text(text) => (Some(text), None),
        Scalar::Unsigned(_) | Scalar::Signed(_) | Scalar::Float(_) => (None, value.number()),
        _ => return value,
    };
    match missing.iter().any(|missing| missing.is(text, number)) {
        true => Scalar::Null,
        false => value,
    }
}

/// Returns every column in the order of its first appearance.
fn observe(table: &Table, missing: &[MissingValue]) -> Result<Vec<(String, Observed)>, String> {
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
            let value = or_null(value, missing);
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
fn count_words(
    table: &Table,
    columns: &[(String, Observed)],
    missing: &[MissingValue],
) -> FxHashMap<usize, Words> {
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
                words.count(or_null(value, missing));
            }
        });
    }
    words
}

/// Returns each column with the same values as an earlier one, and a note.
fn duplicates(columns: &[(String, Observed)]) -> Vec<(String, String)> {
    let mut seen: FxHashMap<(u64, u64), &str> = FxHashMap::default();
    let mut notes = Vec::new();
    for (path, observed) in columns.iter().filter(|(_, observed)| observed.varies()) {
        match seen.get(&observed.fingerprint()) {
            Some(first) => {
                let note = format!(
                    "holds the same values as `{first}`: --drop one of them, or it counts twice"
                );
                notes.push((path.clone(), note));
            }
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
