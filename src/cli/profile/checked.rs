//! Counts what a schema makes of records: refusals, missing values, unseen categories, and values beyond the training's range.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;
use serde_json::{Value, json};

use crate::bundle::{Feature, FeatureKind, path};
use crate::dataset::scan::scan;
use crate::decode::JsonDecoder;

use super::print_table;
use crate::cli::shared::refusals::Refusals;
use crate::text::escaped;

/// Maximum number of different unseen categories that are counted one by one for each feature.
const MOST_COUNTED: usize = 1000;
/// Maximum number of unseen categories or unread columns that are listed.
const MOST_LISTED: usize = 5;
/// Maximum number of unread columns that are remembered.
const MOST_COLUMNS: usize = 10_000;
/// Maximum length of an example in characters.
const LONGEST: usize = 40;

/// The lowest and the highest value of each feature in training, by name.
#[derive(Default)]
pub struct Ranges(HashMap<String, [f32; 2]>);

impl Ranges {
    /// Reads `training.ranges` of a manifest. Anything else than two numbers is ignored.
    pub fn of(ranges: &Value) -> Ranges {
        let all = ranges.as_object().into_iter().flatten();
        let all = all.filter_map(|(name, range)| {
            let range = serde_json::from_value(range.clone()).ok()?;
            Some((name.clone(), range))
        });
        Ranges(all.collect())
    }
}

/// What was found in the records.
pub struct Checked {
    pub rows: u64,
    pub refusals: Refusals,
    columns: Vec<Column>,
    /// The columns of each path.
    by_path: HashMap<String, Vec<usize>>,
    /// Columns that no feature reads.
    unread: BTreeSet<String>,
    decoder: JsonDecoder,
    row: Vec<f32>,
    /// The text of each column in the current record.
    texts: Vec<Option<String>>,
}

#[derive(Serialize)]
struct Column {
    feature: String,
    path: String,
    #[serde(rename = "type")]
    kind: &'static str,
    /// Number of records without a value, among all records that are JSON objects.
    missing: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    unseen: Option<Unseen>,
    #[serde(skip_serializing_if = "Option::is_none")]
    beyond: Option<Beyond>,
}

/// Categories that are not in the vocabulary.
#[derive(Default, Serialize)]
struct Unseen {
    records: u64,
    values: BTreeMap<String, u64>,
}

/// Values beyond the range of the training.
#[derive(Serialize)]
struct Beyond {
    range: [f32; 2],
    records: u64,
    lowest: Option<f32>,
    highest: Option<f32>,
}

impl Checked {
    pub fn new(features: Vec<Feature>, ranges: Ranges) -> Checked {
        let mut by_path: HashMap<String, Vec<usize>> = HashMap::new();
        for (at, feature) in features.iter().enumerate() {
            by_path
                .entry(path::canonical(&feature.path))
                .or_default()
                .push(at);
        }
        let columns = features.iter().map(|feature| Column {
            feature: feature.name.clone(),
            path: feature.path.clone(),
            kind: match feature.kind {
                FeatureKind::Number => "number",
                FeatureKind::Bool => "bool",
                FeatureKind::Categorical { .. } => "categorical",
                FeatureKind::Timestamp { .. } => "timestamp",
            },
            missing: 0,
            unseen: matches!(feature.kind, FeatureKind::Categorical { .. }).then(Unseen::default),
            beyond: ranges.0.get(&feature.name).map(|range| Beyond {
                range: *range,
                records: 0,
                lowest: None,
                highest: None,
            }),
        });
        Checked {
            rows: 0,
            refusals: Refusals::by_flags(),
            columns: columns.collect(),
            by_path,
            unread: BTreeSet::new(),
            decoder: JsonDecoder::new(&features),
            row: Vec::with_capacity(features.len()),
            texts: vec![None; features.len()],
        }
    }

    /// Counts a record that cannot be read from its file.
    pub fn unreadable(&mut self, problem: &str) {
        self.rows += 1;
        self.refusals.add("malformed", problem);
    }

    pub fn take(&mut self, payload: &[u8]) {
        self.rows += 1;
        let Checked {
            columns,
            by_path,
            unread,
            decoder,
            row,
            texts,
            ..
        } = self;
        let mut present = vec![false; columns.len()];
        texts.iter_mut().for_each(|text| *text = None);
        let scanned = scan(payload, |path, value| {
            let Some(reading) = by_path.get(path) else {
                if unread.len() < MOST_COLUMNS && !unread.contains(path) {
                    unread.insert(path.to_owned());
                }
                return;
            };
            let text = value.text();
            for &at in reading {
                present[at] = !matches!(value, crate::dataset::scan::Scalar::Null);
                if columns[at].unseen.is_some() {
                    let text = text.as_deref().unwrap_or_default();
                    texts[at] = Some(text.chars().take(LONGEST).collect());
                }
            }
        });
        row.clear();
        let refused = decoder.decode(payload, row).err();
        for (at, column) in columns.iter_mut().enumerate() {
            let value = row.get(at).copied();
            // A value may spell a missing one.
            let is_missing = !present[at] || value.is_some_and(f32::is_nan);
            column.missing += u64::from(scanned.is_ok() && is_missing);
            if let (Some(value), Some(unseen)) = (value, &mut column.unseen)
                && value == -1.0
            {
                unseen.add(texts[at].take().unwrap_or_default());
            }
            if let (Some(value), Some(beyond)) = (value, &mut column.beyond) {
                beyond.add(value);
            }
        }
        if let Some(error) = refused {
            self.refusals.add(error.reason.as_str(), &error.detail);
        }
    }

    /// Returns the number of records that would not be refused.
    pub fn fitting(&self) -> u64 {
        self.rows - self.refusals.count()
    }

    pub fn json(&self, files: usize) -> Value {
        json!({
            "rows": self.rows,
            "files": files,
            "fitting": self.fitting(),
            "refused": self.refusals.count(),
            "reasons": self.refusals.all(),
            "columns": self.columns,
            "unread": self.unread,
        })
    }

    pub fn print(&self, files: usize) {
        println!(
            "{} records{}: {} fit the schema, {} would be refused",
            self.rows,
            super::of_files(files),
            self.fitting(),
            self.refusals.count()
        );
        if self.refusals.count() > 0 {
            println!("refused: {}", self.refusals);
        }
        let rows = self.columns.iter().map(|column| {
            let missing = column.missing.to_string();
            let cells = [&column.feature, column.kind, &missing, &column.findings()];
            cells.map(|cell| escaped(cell).into_owned())
        });
        print_table(
            ["feature", "type", "missing", ""],
            &rows.collect::<Vec<_>>(),
        );
        if !self.unread.is_empty() {
            let names = self.unread.iter().take(MOST_LISTED);
            let names: Vec<String> = names.map(|name| escaped(name).into_owned()).collect();
            let more = if self.unread.len() > MOST_LISTED {
                ", …"
            } else {
                ""
            };
            println!(
                "{} columns that no feature reads: {}{more}",
                self.unread.len(),
                names.join(", ")
            );
        }
    }
}

impl Column {
    /// Returns what is unusual about the column.
    fn findings(&self) -> String {
        let unseen = self.unseen.as_ref().filter(|unseen| unseen.records > 0);
        let beyond = self.beyond.as_ref().filter(|beyond| beyond.records > 0);
        let unseen = unseen.map(|unseen| {
            let mut values: Vec<_> = unseen.values.iter().collect();
            values.sort_by_key(|(_, records)| std::cmp::Reverse(**records));
            let listed = values.iter().take(MOST_LISTED);
            let listed: Vec<String> = listed.map(|(value, n)| format!("`{value}` {n}")).collect();
            let more = if values.len() > MOST_LISTED {
                ", …"
            } else {
                ""
            };
            format!(
                "{} records with categories that are not in the vocabulary: {}{more}",
                unseen.records,
                listed.join(", ")
            )
        });
        let beyond = beyond.map(|beyond| {
            let [low, high] = beyond.range;
            let extremes = [beyond.lowest, beyond.highest].into_iter().flatten();
            let extremes: Vec<String> = extremes.map(|value| value.to_string()).collect();
            format!(
                "{} records beyond the training's range {low} to {high}, up to {}",
                beyond.records,
                extremes.join(" and ")
            )
        });
        let findings: Vec<String> = unseen.into_iter().chain(beyond).collect();
        findings.join("; ")
    }
}

impl Unseen {
    fn add(&mut self, value: String) {
        self.records += 1;
        if let Some(count) = self.values.get_mut(&value) {
            *count += 1;
        } else if self.values.len() < MOST_COUNTED {
            self.values.insert(value, 1);
        }
    }
}

impl Beyond {
    fn add(&mut self, value: f32) {
        let [low, high] = self.range;
        if value < low {
            self.lowest = Some(self.lowest.map_or(value, |lowest| lowest.min(value)));
        } else if value > high {
            self.highest = Some(self.highest.map_or(value, |highest| highest.max(value)));
        } else {
            return;
        }
        self.records += 1;
    }
}
