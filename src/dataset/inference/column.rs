//! Infers the features of one column, or the reason why it has none.

use rustc_hash::FxHashMap;

use super::observed::{Observed, Range};
use super::times::TimeFormat;
use crate::bundle::manifest::{EpochUnit, TimePart};
use crate::bundle::notation::{MissingValue, Notation, NumberFormat};
use crate::bundle::{Feature, FeatureKind, Missing};
use crate::dataset::scan::Scalar;

/// Maximum number of categories of a feature. Rarer ones count as unseen.
const MOST_CATEGORIES: usize = 100;
/// Maximum number of different texts of a column that are counted.
const MOST_WORDS: usize = 100_000;
/// A column with no more values than this is not taken for an id.
const FEW: u64 = 20;
/// If more than this share of a column's later values will be unseen categories, a note says so.
const MUCH_UNSEEN: f64 = 0.1;
/// If there are fewer other texts than this share of the numbers, a note says that the column is not read as numbers.
const STRAYS: f64 = 1.0;

/// The features of a column and the notes about it.
#[derive(Debug, Default)]
pub struct Guess {
    pub features: Vec<Feature>,
    pub notes: Vec<String>,
}

impl Guess {
    pub fn left_out(note: impl Into<String>) -> Guess {
        Guess {
            features: vec![],
            notes: vec![note.into()],
        }
    }

    fn noted(mut self, note: Option<String>) -> Guess {
        self.notes.extend(note);
        self
    }
}

/// The number of occurrences of each text in a column.
#[derive(Debug, Default)]
pub struct Words {
    counts: FxHashMap<String, u64>,
    total: u64,
}

impl Words {
    pub fn count(&mut self, value: Scalar<'_>) {
        let Some(text) = value.text() else {
            return;
        };
        self.total += 1;
        if let Some(count) = self.counts.get_mut(&*text) {
            *count += 1;
        } else if self.counts.len() < MOST_WORDS {
            self.counts.insert(text.into_owned(), 1);
        }
    }

    /// Returns the most frequent texts, with ties in alphabetical order.
    fn vocabulary(&self) -> Vec<String> {
        let mut ordered: Vec<(&String, &u64)> = self.counts.iter().collect();
        ordered.sort_unstable_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
        let frequent = ordered.into_iter().take(MOST_CATEGORIES);
        frequent.map(|(text, _)| text.clone()).collect()
    }

    fn looks_like_an_id(&self, vocabulary: &[String]) -> bool {
        self.total > FEW && self.unseen_share(vocabulary) > 0.5
    }

    /// Returns the expected share of later values that are not in the vocabulary: those that it leaves out for room, and those that
    /// are new. The latter is the share of values that occur once (Good 1953, eq. 2).
    fn unseen_share(&self, vocabulary: &[String]) -> f64 {
        let covered: u64 = vocabulary.iter().map(|word| self.counts[word]).sum();
        let once = self.counts.values().filter(|count| **count == 1).count() as u64;
        (self.total - covered).max(once) as f64 / self.total.max(1) as f64
    }
}

/// Infers the features of the column at `path` in a table of `rows` records. With `keep`, it becomes a feature even if it looks
/// useless.
pub fn guess(
    path: &str,
    observed: &Observed,
    words: Option<Words>,
    rows: u64,
    keep: bool,
) -> Guess {
    let strings = &observed.strings;
    let column = ColumnName { path, keep };
    let present = observed.present();
    if is_pandas_index(path) && !keep {
        return Guess::left_out(format!(
            "is the index of a pandas frame, which has no name: left out (--keep {path} takes it)"
        ));
    }
    if observed.nested > 0 {
        return Guess::left_out(match observed.nested == present {
            true => "holds arrays or empty objects: left out",
            false => "holds arrays or objects in some records and plain values in others: left out",
        });
    }
    if present == 0 {
        return Guess::left_out("holds no value: left out");
    }
    let missing = if present < rows {
        Missing::Impute
    } else {
        Missing::Reject
    };
    if observed.bools > 0 && observed.bools == present {
        return Guess {
            features: vec![column.feature(FeatureKind::Bool, missing, Notation::default())],
            notes: vec![],
        };
    }
    if observed.bools == 0 {
        if observed.texts == 0 {
            return column.number(&observed.range, missing, Notation::default(), None);
        }
        // If every string spells a missing value, the column is a category like any other.
        let spelled = observed.texts - strings.missing;
        let notation = Notation {
            missing_values: strings
                .spellings
                .iter()
                .cloned()
                .map(MissingValue::Text)
                .collect(),
            ..Notation::default()
        };
        let is_missing = if strings.missing > 0 {
            Missing::Impute
        } else {
            missing
        };
        if let Some(number_format) = number_format(observed, spelled) {
            let notation = Notation {
                number_format: Some(number_format),
                ..notation
            };
            let note = column.about_text_numbers(observed, number_format);
            return column
                .number(
                    &observed.range,
                    is_missing,
                    notation,
                    strings.unit.as_ref().map(|(unit, _)| unit.as_str()),
                )
                .noted(note);
        }
        if observed.numbers > 0 && spelled == 0 {
            let note = column.about_missing(observed);
            return column
                .number(&observed.range, is_missing, notation, None)
                .noted(note);
        }
        if observed.numbers == 0 && spelled > 0 {
            if strings.times == spelled {
                return column.times(
                    is_missing,
                    notation,
                    &TimeFormat {
                        pattern: None,
                        has_offset: true,
                        has_clock: true,
                        span: strings.span,
                    },
                );
            }
            if let Some((format, other)) = strings.patterns.all_of(spelled) {
                return column.other_times(is_missing, notation, &format, other);
            }
            if strings.booleans == spelled {
                let notation = Notation {
                    true_values: vec!["true".to_owned()],
                    false_values: vec!["false".to_owned()],
                    ..notation
                };
                return Guess {
                    features: vec![column.feature(FeatureKind::Bool, is_missing, notation)],
                    notes: vec![],
                };
            }
        }
    }
    column.categories(observed, words.unwrap_or_default(), missing)
}

/// Returns the format in which every string is a number, apart from spellings of a missing value. Codes with leading zeros are not
/// numbers.
fn number_format(observed: &Observed, spelled: u64) -> Option<NumberFormat> {
    let strings = &observed.strings;
    if spelled == 0 || strings.codes > 0 {
        return None;
    }
    if strings.hexadecimal == spelled && observed.numbers == 0 {
        return Some(NumberFormat::Hexadecimal);
    }
    if strings.with_point == spelled {
        return Some(NumberFormat::DecimalPoint);
    }
    (strings.with_comma == spelled).then_some(NumberFormat::DecimalComma)
}

struct ColumnName<'c> {
    path: &'c str,
    keep: bool,
}

impl ColumnName<'_> {
    fn feature(&self, kind: FeatureKind, missing: Missing, notation: Notation) -> Feature {
        self.named(&self.name(), kind, missing, notation)
    }

    fn named(
        &self,
        name: &str,
        kind: FeatureKind,
        missing: Missing,
        notation: Notation,
    ) -> Feature {
        Feature {
            name: name.to_owned(),
            path: self.path.to_owned(),
            kind,
            missing,
            unit: None,
            notation,
        }
    }

    fn name(&self) -> String {
        self.path.replace('.', "_")
    }

    fn number(
        &self,
        range: &Range,
        missing: Missing,
        notation: Notation,
        unit: Option<&str>,
    ) -> Guess {
        if !range.varies {
            return Guess::left_out("is constant: left out");
        }
        let epoch = epoch_unit(range).filter(|_| range.only_grows() || self.sounds_like_a_time());
        if let Some(epoch_unit) = epoch.filter(|_| !self.keep) {
            let (unit, a_second) = match epoch_unit {
                EpochUnit::Days => ("days", 1.0 / 86_400.0),
                EpochUnit::Seconds => ("seconds", 1.0),
                EpochUnit::Milliseconds => ("milliseconds", 1e3),
                EpochUnit::Microseconds => ("microseconds", 1e6),
                EpochUnit::Nanoseconds => ("nanoseconds", 1e9),
            };
            let hours = (range.max - range.min) / a_second / 3600.0;
            let mut guess = self.parts(missing, &notation, Some(epoch_unit), true, hours);
            guess.notes.insert(
                0,
                format!(
                    "looks like a time in {unit} since 1970: read as its parts (--keep {} takes it as a number)",
                    self.path
                ),
            );
            return guess;
        }
        if range.only_grows() && !self.keep {
            return Guess::left_out(format!(
                "only grows from row to row, so every later value would be new: left out (--keep {} takes it as a number)",
                self.path
            ));
        }
        if range.never_falls() && !self.keep {
            return Guess::left_out(format!(
                "never falls from row to row, so the table is sorted by it or it is part of a date, and later values would be new: left out (--keep {} takes it as a number)",
                self.path
            ));
        }
        if self.sounds_like_a_month() && range.min >= 1.0 && range.max <= 12.0 && !self.keep {
            let seen = range.max - range.min + 1.0;
            if seen < 12.0 {
                return Guess::left_out(format!(
                    "looks like a month, {seen} of 12, so records of the others would all be new: left out (--keep {} takes it as a number)",
                    self.path
                ));
            }
        }
        if range.min as f32 == range.max as f32 {
            return Guess::left_out(
                "differs only in digits that a model's 32-bit numbers do not have, like a long id: left out; subtract an offset in the data if the difference matters",
            );
        }
        let mut feature = self.feature(FeatureKind::Number, missing, notation);
        feature.unit = unit.map(str::to_owned);
        Guess {
            features: vec![feature],
            notes: vec![],
        }
    }

    fn sounds_like_a_time(&self) -> bool {
        let name = self
            .path
            .rsplit('.')
            .next()
            .unwrap_or_default()
            .to_lowercase();
        ["time", "timestamp", "date", "datetime", "epoch"]
            .iter()
            .any(|word| name.contains(word))
            || name == "ts"
            || name.ends_with("_ts")
            || name.ends_with("_at")
    }

    fn sounds_like_a_month(&self) -> bool {
        let name = self.path.rsplit('.').next().unwrap_or_default();
        let name = name.to_lowercase();
        ["month", "mon", "mnth"].contains(&name.as_str()) || name.ends_with("_month")
    }

    fn times(&self, missing: Missing, notation: Notation, format: &TimeFormat) -> Guess {
        let hours = format.span.hours();
        let is_date = format.has_clock && format.span.is_midnight() && !self.keep;
        let has_clock = format.has_clock && !is_date;
        let mut guess = self.parts(missing, &notation, None, has_clock, hours);
        if is_date {
            guess.notes.push(format!(
                "is always at midnight, like a date: its hour of the day is left out (--keep {} takes it)",
                self.path
            ));
        }
        guess
    }

    fn other_times(
        &self,
        missing: Missing,
        notation: Notation,
        format: &TimeFormat,
        other: Option<&str>,
    ) -> Guess {
        if let (Some(pattern), Some(other)) = (format.pattern, other) {
            return Guess::left_out(format!(
                "holds times that {pattern} and {other} both read: left out; give the schema the right one as time_format"
            ));
        }
        let notation = Notation {
            time_format: format.pattern.map(str::to_owned),
            time_zone: (!format.has_offset).then(|| "UTC".to_owned()),
            ..notation
        };
        let mut guess = self.times(missing, notation, format);
        if !format.has_offset && format.has_clock {
            guess.notes.push(
                "holds times without an offset: read as UTC; change time_zone in the schema if they are local".to_owned(),
            );
        }
        guess
    }

    /// Returns features for the hour of the day, if the times have a clock, and for the day of the week. Leaves out those of which
    /// `hours` show only a part, because a model would take every other one for an anomaly.
    fn parts(
        &self,
        missing: Missing,
        notation: &Notation,
        epoch_unit: Option<EpochUnit>,
        has_clock: bool,
        hours: f64,
    ) -> Guess {
        let parts = [
            (TimePart::HourOfDay, "hour_of_day", "hour of the day", 23.0),
            (
                TimePart::DayOfWeek,
                "day_of_week",
                "day of the week",
                6.0 * 24.0,
            ),
        ];
        let mut guess = Guess::default();
        for (part, suffix, what, needed) in parts {
            if part == TimePart::HourOfDay && !has_clock {
                continue;
            }
            if hours < needed && !self.keep {
                let how = match epoch_unit {
                    None => format!("--keep {} takes it", self.path),
                    Some(_) => "an edited schema can have it".to_owned(),
                };
                guess.notes.push(format!(
                    "covers only {hours:.1} hours, so records of other times would all be new: its {what} is left out ({how})"
                ));
                continue;
            }
            let name = format!("{}_{suffix}", self.name());
            let kind = FeatureKind::Timestamp { part, epoch_unit };
            let feature = self.named(&name, kind, missing, notation.clone());
            guess.features.push(feature);
        }
        guess
    }

    fn categories(&self, observed: &Observed, words: Words, missing: Missing) -> Guess {
        if words.counts.len() < 2 {
            return Guess::left_out("is constant: left out");
        }
        if let Some((unit, count)) = &observed.strings.measured
            && *count == observed.strings.others
            && observed.bools == 0
            && words.looks_like_an_id(&words.vocabulary())
            && !self.keep
        {
            return Guess::left_out(format!(
                "holds numbers with the unit {unit}, which number_format does not read: left out; write the numbers alone, or --keep {} takes the texts as a category",
                self.path
            ));
        }
        let vocabulary = words.vocabulary();
        let different = words.counts.len();
        let note = self.about_strays(observed);
        if words.looks_like_an_id(&vocabulary) && !self.keep {
            return Guess::left_out(format!(
                "looks like an id, {different} different values: left out (--keep {} takes it as a category)",
                self.path
            ))
            .noted(note);
        }
        let unseen = words.unseen_share(&vocabulary);
        let unseen = (unseen > MUCH_UNSEEN).then(|| {
            format!(
                "has {different} different values, and about {:.0} % of later ones will not be among the {} that the model knows: --drop {} if it identifies records",
                unseen * 100.0,
                vocabulary.len(),
                self.path
            )
        });
        let kind = FeatureKind::Categorical { vocabulary };
        Guess {
            features: vec![self.feature(kind, missing, Notation::default())],
            notes: vec![],
        }
        .noted(note)
        .noted(unseen)
    }

    /// Returns a note if a few other texts make a column of numbers a category.
    fn about_strays(&self, observed: &Observed) -> Option<String> {
        let strings = &observed.strings;
        let strays = strings.others;
        let numbers = observed.numbers + strings.with_point.max(strings.with_comma);
        let few = strays > 0 && (strays as f64) < STRAYS * numbers as f64;
        few.then(|| {
            format!(
                "holds {numbers} numbers and {strays} other texts such as `{}`, so it is not read as a number: if those texts mean a missing value, list them in missing_values of the schema",
                strings.other.as_deref().unwrap_or_default()
            )
        })
    }

    fn about_text_numbers(&self, observed: &Observed, format: NumberFormat) -> Option<String> {
        let strings = &observed.strings;
        let how = match format {
            NumberFormat::DecimalPoint => "number_format decimal_point",
            NumberFormat::DecimalComma => "number_format decimal_comma",
            NumberFormat::Hexadecimal => "number_format hexadecimal",
        };
        let mut note = match &strings.unit {
            Some((unit, _)) if unit == "%" => {
                format!("holds percentages as text: read as numbers of % ({how})")
            }
            Some((unit, _)) => {
                format!("looks like money in {unit}: read as a number with that unit ({how})")
            }
            None => format!("holds numbers as text: read as numbers ({how})"),
        };
        if let Some(missing) = self.about_missing(observed) {
            note = format!("{note}, and {missing}");
        }
        Some(note)
    }

    fn about_missing(&self, observed: &Observed) -> Option<String> {
        let strings = &observed.strings;
        let spellings: Vec<String> = strings.spellings.iter().map(|s| format!("`{s}`")).collect();
        (strings.missing > 0).then(|| {
            format!(
                "{} of {} values are {}: taken as missing",
                strings.missing,
                observed.present(),
                spellings.join(", ")
            )
        })
    }
}

/// Returns whether pandas gives a level of an index without a name this name in Parquet and Arrow.
fn is_pandas_index(path: &str) -> bool {
    let level = path.strip_prefix("__index_level_");
    let level = level.and_then(|rest| rest.strip_suffix("__"));
    level.is_some_and(|level| level.parse::<u32>().is_ok())
}

/// Returns the unit in which all values are times between 1990 and 2100.
fn epoch_unit(range: &Range) -> Option<EpochUnit> {
    const EARLIEST: f64 = 631_152_000.0;
    const LATEST: f64 = 4_102_444_800.0;
    [
        (EpochUnit::Seconds, 1.0),
        (EpochUnit::Milliseconds, 1e3),
        (EpochUnit::Microseconds, 1e6),
        (EpochUnit::Nanoseconds, 1e9),
    ]
    .into_iter()
    .find(|(_, scale)| range.min >= EARLIEST * scale && range.max <= LATEST * scale)
    .map(|(unit, _)| unit)
}
