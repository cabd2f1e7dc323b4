//! Rows of features as records of the schema: nested JSON, or flat cells for CSV and Parquet.

use jiff::civil::Date;
use jiff::{SignedDuration, Timestamp};

use super::numbers;
use crate::bundle::generative::About;
use crate::bundle::manifest::{EpochUnit, Feature, FeatureKind, TimePart};
use crate::bundle::path;
use crate::dataset::layout::Layout;
use crate::patch::is_exact_integer;

/// The text for a category that is not in the vocabulary.
pub const UNSEEN: &str = "never seen before";

const HOUR: f64 = 3_600_000.0;
const DAY: SignedDuration = SignedDuration::from_hours(24);

/// One value of a record.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    Null,
    Bool(bool),
    Integer(i64),
    Number(f32),
    Text(String),
}

/// The type of a column, for formats that have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CellType {
    Bool,
    Integer,
    Number,
    Text,
}

/// A field of the record and the features that it is made of.
#[derive(Debug)]
struct Field {
    /// The path as in the schema.
    path: String,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Number {
        feature: usize,
        is_integer: bool,
    },
    Bool(usize),
    Category(usize, Vec<String>),
    Time {
        hour: Option<usize>,
        day: Option<usize>,
        unit: Option<EpochUnit>,
    },
    /// A field that is no feature, by its number.
    Extra(usize, CellType),
}

/// Makes records of rows.
#[derive(Debug)]
pub struct Records {
    fields: Vec<Field>,
    layout: Layout,
    /// Times are in the week that starts on this day.
    start: Date,
    seed: u64,
}

impl Records {
    /// Creates the form of records with these features and further fields after them. Features of one path become one field.
    ///
    /// # Errors
    /// A message, if a further field has the place of a feature.
    pub fn new(
        features: &[Feature],
        about: &About,
        extras: &[(&str, CellType)],
        start: Date,
        seed: u64,
    ) -> Result<Records, String> {
        let mut fields: Vec<Field> = Vec::new();
        for (column, feature) in features.iter().enumerate() {
            let canonical = path::canonical(&feature.path);
            let same = fields
                .iter_mut()
                .find(|field| path::canonical(&field.path) == canonical);
            match same {
                Some(field) => field.source.add(column, &feature.kind),
                None => fields.push(Field {
                    path: feature.path.clone(),
                    source: Source::new(column, &feature.kind, about),
                }),
            }
        }
        for (number, (name, kind)) in extras.iter().enumerate() {
            let keys = path::keys(name)?;
            let clash = fields.iter().find(|field| {
                let other = path::keys_or_parts(&field.path);
                other == keys || path::contains(&other, &keys) || path::contains(&keys, &other)
            });
            if let Some(field) = clash {
                return Err(format!(
                    "the field `{name}` has the place of `{}`: choose another name",
                    field.path
                ));
            }
            fields.push(Field {
                path: (*name).to_owned(),
                source: Source::Extra(number, *kind),
            });
        }
        let keys = fields.iter().map(|field| path::keys_or_parts(&field.path));
        let layout = Layout::of_keys(keys).map_err(|e| e.to_string())?;
        Ok(Records {
            fields,
            layout,
            start,
            seed,
        })
    }

    /// Returns the path and the type of each field.
    pub fn columns(&self) -> impl Iterator<Item = (&str, CellType)> {
        self.fields
            .iter()
            .map(|field| (field.path.as_str(), field.source.cell_type()))
    }

    /// Returns whether records contain a time.
    pub fn have_times(&self) -> bool {
        let mut fields = self.fields.iter();
        fields.any(|field| matches!(field.source, Source::Time { .. }))
    }

    /// Returns the cells of the record of sample `number`, in the order of [`Records::columns`].
    pub fn cells(&self, number: u64, row: &[f32], extras: &[Cell]) -> Vec<Cell> {
        let mut free = numbers(self.seed, number, 1);
        let cells = self.fields.iter().map(|field| match &field.source {
            Source::Number {
                feature,
                is_integer,
            } => number_cell(row[*feature], *is_integer),
            Source::Bool(feature) => match row[*feature] {
                value if value.is_nan() => Cell::Null,
                value => Cell::Bool(value > 0.5),
            },
            Source::Category(feature, vocabulary) => match row[*feature] {
                value if value.is_nan() => Cell::Null,
                value => {
                    let index = (value >= 0.0).then_some(value as usize);
                    let word = index.and_then(|index| vocabulary.get(index));
                    Cell::Text(word.map_or(UNSEEN, String::as_str).to_owned())
                }
            },
            Source::Time { hour, day, unit } => {
                let part = |feature: &Option<usize>| feature.map(|feature| row[feature]);
                self.time(part(hour), part(day), *unit, &mut free)
            }
            Source::Extra(number, _) => extras[*number].clone(),
        });
        cells.collect()
    }

    /// Returns the record as one line of JSON, without the line break.
    pub fn json(&self, cells: &[Cell]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut write = |column: usize, out: &mut Vec<u8>| {
            out.extend_from_slice(cells[column].json().as_bytes());
            Ok(())
        };
        self.layout
            .write(&mut out, &mut write)
            .expect("memory can be written to");
        out
    }

    /// Returns the time with these parts. A part that is not a feature is drawn.
    fn time(
        &self,
        hour: Option<f32>,
        day: Option<f32>,
        unit: Option<EpochUnit>,
        free: &mut fastrand::Rng,
    ) -> Cell {
        if hour.is_some_and(f32::is_nan) || day.is_some_and(f32::is_nan) {
            return Cell::Null;
        }
        let hour = hour.map_or_else(|| free.f64() * 24.0, f64::from);
        let day = day.map_or_else(|| free.i64(0..7), |day| day as i64);
        let first = i64::from(self.start.weekday().to_monday_zero_offset());
        let days = (day - first).rem_euclid(7) as i32;
        let milliseconds = ((hour * HOUR) as i64).clamp(0, 86_399_999);
        let start = self
            .start
            .to_zoned(jiff::tz::TimeZone::UTC)
            .map(|start| start.timestamp());
        let time = start.and_then(|start| {
            start.checked_add(DAY * days + SignedDuration::from_millis(milliseconds))
        });
        let Ok(time) = time else {
            return Cell::Null;
        };
        match unit {
            None => Cell::Text(time.to_string()),
            Some(unit) => Cell::Integer(epoch(time, unit)),
        }
    }
}

fn epoch(time: Timestamp, unit: EpochUnit) -> i64 {
    match unit {
        EpochUnit::Days => time.as_second().div_euclid(86_400),
        EpochUnit::Seconds => time.as_second(),
        EpochUnit::Milliseconds => time.as_millisecond(),
        EpochUnit::Microseconds => time.as_microsecond(),
        EpochUnit::Nanoseconds => i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX),
    }
}

/// Returns the cell for a number. Whole numbers that float32 holds exactly are integers.
fn number_cell(value: f32, is_integer: bool) -> Cell {
    match value {
        value if !value.is_finite() => Cell::Null,
        value if is_integer || is_exact_integer(value) => Cell::Integer(value.round() as i64),
        value => Cell::Number(value),
    }
}

impl Source {
    fn new(feature: usize, kind: &FeatureKind, about: &About) -> Source {
        match kind {
            FeatureKind::Number => Source::Number {
                feature,
                is_integer: about
                    .marginals
                    .get(feature)
                    .is_some_and(|m| m.decimals == Some(0)),
            },
            FeatureKind::Bool => Source::Bool(feature),
            FeatureKind::Categorical { vocabulary } => {
                Source::Category(feature, vocabulary.clone())
            }
            FeatureKind::Timestamp { part, epoch_unit } => {
                let mut time = Source::Time {
                    hour: None,
                    day: None,
                    unit: *epoch_unit,
                };
                time.set(*part, feature);
                time
            }
        }
    }

    /// Adds another feature of the same field. Only the parts of a time are complementary; otherwise the first feature counts.
    fn add(&mut self, feature: usize, kind: &FeatureKind) {
        if let FeatureKind::Timestamp { part, .. } = kind {
            self.set(*part, feature);
        }
    }

    fn set(&mut self, part: TimePart, feature: usize) {
        if let Source::Time { hour, day, .. } = self {
            let place = match part {
                TimePart::HourOfDay => hour,
                TimePart::DayOfWeek => day,
            };
            place.get_or_insert(feature);
        }
    }

    fn cell_type(&self) -> CellType {
        match self {
            Source::Number {
                is_integer: true, ..
            } => CellType::Integer,
            Source::Number { .. } => CellType::Number,
            Source::Bool(_) => CellType::Bool,
            Source::Category(..) | Source::Time { unit: None, .. } => CellType::Text,
            Source::Time { unit: Some(_), .. } => CellType::Integer,
            Source::Extra(_, kind) => *kind,
        }
    }
}

impl Cell {
    fn json(&self) -> String {
        match self {
            Cell::Null => "null".to_owned(),
            Cell::Bool(value) => value.to_string(),
            Cell::Integer(value) => value.to_string(),
            // The shortest text that reads back as the same float32.
            Cell::Number(value) => value.to_string(),
            Cell::Text(text) => serde_json::Value::from(text.as_str()).to_string(),
        }
    }

    /// Returns the text of a CSV cell.
    pub fn text(&self) -> String {
        match self {
            Cell::Null => String::new(),
            Cell::Text(text) => text.clone(),
            other => other.json(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn features() -> Vec<Feature> {
        serde_json::from_value(json!([
            {"name": "hour", "path": "time", "type": "timestamp", "part": "hour_of_day"},
            {"name": "weekday", "path": "time", "type": "timestamp", "part": "day_of_week"},
            {"name": "amount", "path": "amount", "type": "number"},
            {"name": "items", "path": "basket.items", "type": "number", "missing": "impute"},
            {"name": "category", "path": "basket.\"a.b\"", "type": "categorical", "vocabulary": ["x", "y"]},
            {"name": "new", "path": "new", "type": "bool", "missing": "impute"},
        ]))
        .unwrap()
    }

    fn records(extras: &[(&str, CellType)]) -> Result<Records, String> {
        let features = features();
        let about: About = serde_json::from_value(json!({"steps": 1, "golden": [], "marginals": [
            {"quantiles": [0, 24]}, {"quantiles": [0, 6]}, {"quantiles": [0, 9], "decimals": 2}, {"quantiles": [0, 9], "decimals": 0},
            {"shares": [0.5, 0.5]}, {"shares": [0.5, 0.5]}]}))
        .unwrap();
        Records::new(&features, &about, extras, jiff::civil::date(2026, 3, 4), 7)
    }

    #[test]
    fn a_row_becomes_a_record_that_the_schema_reads_as_the_same_row() {
        let records = records(&[("label", CellType::Integer)]).unwrap();
        let row = [13.5, 1.0, 12.34, 3.0, 1.0, f32::NAN];
        let cells = records.cells(0, &row, &[Cell::Integer(1)]);
        let json = String::from_utf8(records.json(&cells)).unwrap();
        let expected = r#"{"time":"2026-03-10T13:30:00Z","amount":12.34,"basket":{"items":3,"a.b":"y"},"new":null,"label":1}"#;
        assert_eq!(json, expected);
        let mut decoded = Vec::new();
        let mut decoder = crate::decode::JsonDecoder::new(&features());
        decoder.decode(json.as_bytes(), &mut decoded).unwrap();
        assert_eq!(decoded[..5], row[..5]);
        assert!(decoded[5].is_nan());
        assert_eq!(
            cells.iter().map(Cell::text).collect::<Vec<_>>(),
            ["2026-03-10T13:30:00Z", "12.34", "3", "y", "", "1"]
        );
        let types: Vec<_> = records.columns().map(|(_, kind)| kind).collect();
        use CellType::{Bool, Integer, Number, Text};
        assert_eq!(types, [Text, Number, Integer, Text, Bool, Integer]);
    }

    #[test]
    fn a_further_field_does_not_replace_a_feature() {
        for name in ["amount", "basket", "time.zone"] {
            assert!(records(&[(name, CellType::Integer)]).is_err(), "{name}");
        }
    }

    #[test]
    fn an_unseen_category_is_no_word_of_the_vocabulary() {
        let records = records(&[]).unwrap();
        let cells = records.cells(0, &[0.0, 0.0, 1.0, 1.0, -1.0, 1.0], &[]);
        assert_eq!(cells[3], Cell::Text(UNSEEN.to_owned()));
    }
}
