//! Converts a decoded value to a column of the row.

use std::cell::RefCell;
use std::fmt::Write as _;

use jiff::Timestamp;
use jiff::civil::DateTime;
use rustc_hash::FxHashMap;

use super::segment::Names;
use super::{Reason, RowError};
use crate::bundle::manifest::{EpochUnit, TimePart};
use crate::bundle::notation::{Notation, NumberFormat, TimeReader};
use crate::bundle::{Feature, FeatureKind, SegmentId};

const SECONDS_PER_DAY: i64 = 86_400;
const MICROSECONDS_PER_SECOND: i64 = 1_000_000;
/// Maximum distance of a timestamp from 1970 in microseconds. It is about 30,000 years, beyond every calendar.
const FURTHEST: u64 = 1_000_000_000_000_000_000;
const MICROSECONDS_PER_DAY: i64 = SECONDS_PER_DAY * MICROSECONDS_PER_SECOND;

/// A value from a format's parser.
#[derive(Debug, Clone, Copy)]
pub enum Value<'a> {
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(&'a str),
    /// A timestamp, in microseconds since the Unix epoch.
    Time(i64),
    /// Days since the Unix epoch.
    Date(i32),
    /// A time of day without a date, in microseconds since midnight.
    Clock(i64),
    /// The name of a type that no feature accepts.
    Other(&'static str),
}

impl Value<'_> {
    fn kind(self) -> &'static str {
        match self {
            Value::Bool(_) => "a boolean",
            Value::Unsigned(_) | Value::Signed(_) | Value::Float(_) => "a number",
            Value::Text(_) => "a string",
            Value::Time(_) => "a timestamp",
            Value::Date(_) => "a date",
            Value::Clock(_) => "a time of day",
            Value::Other(name) => name,
        }
    }

    fn as_f64(self) -> Option<f64> {
        match self {
            Value::Unsigned(v) => Some(v as f64),
            Value::Signed(v) => Some(v as f64),
            Value::Float(v) => Some(v),
            _ => None,
        }
    }
}

/// A feature or the segment, prepared for reading values.
#[derive(Debug)]
pub struct Column {
    path: String,
    kind: ColumnKind,
    /// Further spellings, if the feature has any.
    spellings: Option<Box<Spellings>>,
}

#[derive(Debug)]
struct Spellings {
    notation: Notation,
    times: Option<TimeReader>,
}

#[derive(Debug)]
enum ColumnKind {
    Number,
    Bool,
    /// The number of each vocabulary entry. [`rustc_hash`] is safe here, because keys come from the bundle and records cannot
    /// force collisions.
    Categorical(FxHashMap<String, f32>),
    Timestamp(TimePart, Option<EpochUnit>),
    /// Accepts every value. One that cannot be a segment means that the record has no segment.
    Segment(RefCell<Names>),
}

impl Column {
    pub fn new(feature: &Feature) -> Column {
        let kind = match &feature.kind {
            FeatureKind::Number => ColumnKind::Number,
            FeatureKind::Bool => ColumnKind::Bool,
            FeatureKind::Categorical { vocabulary } => {
                ColumnKind::Categorical(categories(vocabulary))
            }
            FeatureKind::Timestamp { part, epoch_unit } => {
                ColumnKind::Timestamp(*part, *epoch_unit)
            }
        };
        let notation = &feature.notation;
        let spellings = (!notation.is_plain()).then(|| {
            Box::new(Spellings {
                notation: notation.clone(),
                times: TimeReader::new(notation),
            })
        });
        Column {
            path: feature.path.clone(),
            kind,
            spellings,
        }
    }

    /// Creates a column that reads the id of a segment, or -1 if there is none.
    pub fn of_segment(path: String, names: Names) -> Column {
        Column {
            path,
            kind: ColumnKind::Segment(RefCell::new(names)),
            spellings: None,
        }
    }

    pub fn segments(&self) -> Option<Names> {
        match &self.kind {
            ColumnKind::Segment(names) => Some(names.borrow().clone()),
            _ => None,
        }
    }

    /// Returns the number for the row, or NaN for a spelling of a missing value. `scratch` is reused to avoid an allocation.
    ///
    /// # Errors
    /// The value has the wrong type, or does not fit into float32.
    pub fn read(&self, value: Value<'_>, scratch: &mut String) -> Result<f32, RowError> {
        if let Some(spellings) = &self.spellings
            && spellings.is_missing(value)
        {
            return Ok(f32::NAN);
        }
        match &self.kind {
            ColumnKind::Number => {
                let number = self
                    .number(value)
                    .ok_or_else(|| self.wrong_type("a number", value))?;
                let narrowed = number as f32;
                if narrowed.is_finite() {
                    Ok(narrowed)
                } else {
                    Err(self.error(
                        Reason::OutOfRange,
                        &format!("{number} does not fit into float32"),
                    ))
                }
            }
            ColumnKind::Bool => match (value, value.as_f64()) {
                (Value::Bool(b), _) => Ok(f32::from(u8::from(b))),
                (_, Some(n)) if n == 0.0 || n == 1.0 => Ok(n as f32),
                (Value::Text(text), _) => self
                    .boolean(text)
                    .ok_or_else(|| self.wrong_type("true or false", value)),
                _ => Err(self.wrong_type("true or false", value)),
            },
            ColumnKind::Categorical(vocabulary) => {
                let text =
                    text(value, scratch).ok_or_else(|| self.wrong_type("a category", value))?;
                Ok(vocabulary.get(text).copied().unwrap_or(-1.0))
            }
            ColumnKind::Timestamp(part, unit) => {
                let micros = match (value, part) {
                    (Value::Date(days), TimePart::DayOfWeek) => {
                        return Ok(weekday(i64::from(days)));
                    }
                    (Value::Clock(micros), TimePart::HourOfDay) => micros,
                    _ => self.microseconds(value, *unit)?,
                };
                Ok(time_part(micros, *part))
            }
            ColumnKind::Segment(names) => {
                let text = text(value, scratch);
                let number = text.and_then(|text| names.borrow_mut().number(text));
                Ok(number.map_or(-1.0, |SegmentId(number)| number as f32))
            }
        }
    }

    fn number(&self, value: Value<'_>) -> Option<f64> {
        match (value, &self.spellings) {
            (Value::Text(text), Some(spellings)) => spellings.notation.number_format?.parse(text),
            _ => value.as_f64(),
        }
    }

    fn boolean(&self, text: &str) -> Option<f32> {
        let notation = &self.spellings.as_ref()?.notation;
        let is_in = |list: &[String]| list.iter().any(|v| v.eq_ignore_ascii_case(text.trim()));
        match (is_in(&notation.true_values), is_in(&notation.false_values)) {
            (true, _) => Some(1.0),
            (_, true) => Some(0.0),
            _ => None,
        }
    }

    fn microseconds(&self, value: Value<'_>, unit: Option<EpochUnit>) -> Result<i64, RowError> {
        let value = match (value, &self.spellings) {
            (Value::Text(text), _) if unit.is_some() => match text.trim().parse() {
                Ok(count) => Value::Float(count),
                Err(_) => value,
            },
            (Value::Text(text), Some(spellings)) => {
                let times = spellings.times.as_ref();
                times
                    .and_then(|times| times.parse(text))
                    .map_or(value, Value::Time)
            }
            _ => value,
        };
        match (value, unit) {
            (Value::Time(micros), _) if micros.unsigned_abs() < FURTHEST => Ok(micros),
            (Value::Time(_), _) => {
                Err(self.error(Reason::OutOfRange, "the timestamp is out of range"))
            }
            (Value::Text(text), _) => text
                .parse::<Timestamp>()
                .map(Timestamp::as_microsecond)
                .map_err(|e| {
                    let key = match text.trim().parse::<DateTime>() {
                        Ok(_) => "time_zone",
                        Err(_) => "time_format",
                    };
                    let problem = format!(
                        "not an RFC 3339 timestamp: {e}. The schema's {key} can say how to read it"
                    );
                    self.error(Reason::WrongType, &problem)
                }),
            (number, Some(unit)) => {
                let count = number
                    .as_f64()
                    .ok_or_else(|| self.wrong_type("a timestamp", value))?;
                let micros = match unit {
                    EpochUnit::Days => count * MICROSECONDS_PER_DAY as f64,
                    EpochUnit::Seconds => count * 1e6,
                    EpochUnit::Milliseconds => count * 1e3,
                    EpochUnit::Microseconds => count,
                    EpochUnit::Nanoseconds => count / 1e3,
                };
                if micros.abs() < FURTHEST as f64 {
                    Ok(micros.floor() as i64)
                } else {
                    Err(self.error(
                        Reason::OutOfRange,
                        &format!("{count} is out of range for a timestamp"),
                    ))
                }
            }
            _ => Err(self.wrong_type("an RFC 3339 timestamp", value)),
        }
    }

    pub fn error(&self, reason: Reason, problem: &str) -> RowError {
        RowError {
            reason,
            detail: format!("field `{}`: {problem}", self.path).into(),
        }
    }

    fn wrong_type(&self, wanted: &str, value: Value<'_>) -> RowError {
        let hint = self.hint(value);
        self.error(
            Reason::WrongType,
            &format!("expected {wanted}, found {}{hint}", value.kind()),
        )
    }

    /// Names the key of the schema that reads a value as it is written.
    fn hint(&self, value: Value<'_>) -> &'static str {
        const BOOLEANS: [&str; 8] = ["true", "false", "yes", "no", "y", "n", "t", "f"];
        let is_number = |text: &str| {
            let formats = [NumberFormat::DecimalPoint, NumberFormat::DecimalComma];
            formats.iter().any(|format| format.parse(text).is_some())
        };
        match (&self.kind, value) {
            (ColumnKind::Number, Value::Text(text)) if is_number(text) => {
                ". The schema's number_format can say how to read it"
            }
            (ColumnKind::Bool, Value::Text(text))
                if BOOLEANS.iter().any(|b| text.trim().eq_ignore_ascii_case(b)) =>
            {
                ". The schema's true_values and false_values can say how to read it"
            }
            (ColumnKind::Timestamp(_, None), value) if value.as_f64().is_some() => {
                ". The schema's epoch_unit can say how to read it"
            }
            _ => "",
        }
    }
}

impl Spellings {
    fn is_missing(&self, value: Value<'_>) -> bool {
        let missing = &self.notation.missing_values;
        let text = match value {
            Value::Text(text) => Some(text),
            _ => None,
        };
        let number = value.as_f64();
        missing.iter().any(|missing| missing.is(text, number))
    }
}

/// Maps each entry to its code. An entry such as `91750.0` is also found by the number's usual spelling, `91750`.
fn categories(vocabulary: &[String]) -> FxHashMap<String, f32> {
    let codes = || {
        (0..)
            .zip(vocabulary)
            .map(|(code, entry)| (entry, code as f32))
    };
    let mut categories: FxHashMap<String, f32> =
        codes().map(|(entry, code)| (entry.clone(), code)).collect();
    for (entry, code) in codes() {
        if let Some(canonical) = canonical_number(entry) {
            categories.entry(canonical).or_insert(code);
        }
    }
    categories
}

/// Returns the usual spelling of a number that is written with a fraction or an exponent.
fn canonical_number(text: &str) -> Option<String> {
    let is_json = serde_json::from_str::<f64>(text).is_ok();
    let number: f64 = text
        .parse()
        .ok()
        .filter(|n: &f64| is_json && n.is_finite())?;
    text.contains(['.', 'e', 'E']).then(|| format!("{number}"))
}

/// Returns a string, number or boolean as text, so that `5411` finds the vocabulary entry "5411". `None` for other values.
fn text<'s>(value: Value<'s>, scratch: &'s mut String) -> Option<&'s str> {
    scratch.clear();
    let written = match value {
        Value::Text(text) => return Some(text),
        Value::Bool(v) => write!(scratch, "{v}"),
        Value::Unsigned(v) => write!(scratch, "{v}"),
        Value::Signed(v) => write!(scratch, "{v}"),
        Value::Float(v) => write!(scratch, "{v}"),
        _ => return None,
    };
    written.expect("writing to a String does not fail");
    Some(scratch)
}

fn time_part(micros: i64, part: TimePart) -> f32 {
    let seconds = micros.div_euclid(MICROSECONDS_PER_SECOND);
    match part {
        TimePart::HourOfDay => {
            let into_day = micros.rem_euclid(MICROSECONDS_PER_DAY);
            (into_day as f64 / 3.6e9) as f32
        }
        TimePart::DayOfWeek => weekday(seconds.div_euclid(SECONDS_PER_DAY)),
    }
}

/// Returns the day of the week. 1 January 1970 was a Thursday, which is day 3.
fn weekday(days: i64) -> f32 {
    (days + 3).rem_euclid(7) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(definition: serde_json::Value) -> Column {
        let mut feature = serde_json::json!({"name": "f", "path": "f"});
        feature
            .as_object_mut()
            .unwrap()
            .extend(definition.as_object().unwrap().clone());
        Column::new(&serde_json::from_value(feature).unwrap())
    }

    fn read(column: &Column, value: Value<'_>) -> Result<f32, Reason> {
        column.read(value, &mut String::new()).map_err(|e| e.reason)
    }

    #[test]
    fn numbers() {
        let number = column(serde_json::json!({"type": "number"}));
        assert_eq!(read(&number, Value::Float(0.1)), Ok(0.1));
        assert_eq!(read(&number, Value::Unsigned(u64::MAX)), Ok(1.844_674_4e19));
        assert_eq!(read(&number, Value::Signed(-7)), Ok(-7.0));
        assert_eq!(read(&number, Value::Float(1e39)), Err(Reason::OutOfRange));
        assert_eq!(read(&number, Value::Text("1.0")), Err(Reason::WrongType));
        assert_eq!(read(&number, Value::Bool(true)), Err(Reason::WrongType));
    }

    #[test]
    fn booleans() {
        let boolean = column(serde_json::json!({"type": "bool"}));
        assert_eq!(read(&boolean, Value::Bool(true)), Ok(1.0));
        assert_eq!(read(&boolean, Value::Unsigned(0)), Ok(0.0));
        assert_eq!(read(&boolean, Value::Float(0.5)), Err(Reason::WrongType));
        assert_eq!(read(&boolean, Value::Text("true")), Err(Reason::WrongType));
    }

    #[test]
    fn categories_match_by_text() {
        let category =
            column(serde_json::json!({"type": "categorical", "vocabulary": ["a", "5411", "true"]}));
        assert_eq!(read(&category, Value::Text("a")), Ok(0.0));
        assert_eq!(read(&category, Value::Unsigned(5411)), Ok(1.0));
        assert_eq!(read(&category, Value::Bool(true)), Ok(2.0));
        assert_eq!(read(&category, Value::Text("unseen")), Ok(-1.0));
        assert_eq!(
            read(&category, Value::Other("an array")),
            Err(Reason::WrongType)
        );
    }

    #[test]
    fn a_category_that_is_a_number_is_found_in_every_spelling() {
        let codes = column(
            serde_json::json!({"type": "categorical", "vocabulary": ["91750.0", "1.50", "02139", "7"]}),
        );
        assert_eq!(read(&codes, Value::Float(91750.0)), Ok(0.0));
        assert_eq!(read(&codes, Value::Unsigned(91750)), Ok(0.0));
        assert_eq!(read(&codes, Value::Text("91750.0")), Ok(0.0));
        assert_eq!(read(&codes, Value::Float(1.5)), Ok(1.0));
        assert_eq!(read(&codes, Value::Text("02139")), Ok(2.0));
        assert_eq!(read(&codes, Value::Unsigned(2139)), Ok(-1.0));
        assert_eq!(read(&codes, Value::Unsigned(7)), Ok(3.0));
    }

    #[test]
    fn further_spellings_are_read_where_the_schema_lists_them() {
        let amount = column(
            serde_json::json!({"type": "number", "number_format": "decimal_point", "missing_values": ["-", 9999]}),
        );
        assert_eq!(read(&amount, Value::Text("$1,234.50")), Ok(1234.5));
        assert_eq!(read(&amount, Value::Float(2.5)), Ok(2.5));
        assert!(read(&amount, Value::Text(" - ")).unwrap().is_nan());
        assert!(read(&amount, Value::Unsigned(9999)).unwrap().is_nan());
        assert_eq!(read(&amount, Value::Text("many")), Err(Reason::WrongType));
        assert_eq!(read(&amount, Value::Text("1e99")), Err(Reason::OutOfRange));

        let paid = column(
            serde_json::json!({"type": "bool", "true_values": ["Y"], "false_values": ["N", "no"]}),
        );
        assert_eq!(read(&paid, Value::Text("y")), Ok(1.0));
        assert_eq!(read(&paid, Value::Text("No")), Ok(0.0));
        assert_eq!(read(&paid, Value::Text("?")), Err(Reason::WrongType));

        let hour = |more: serde_json::Value| {
            let mut definition = serde_json::json!({"type": "timestamp", "part": "hour_of_day"});
            definition
                .as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            column(definition)
        };
        let local = hour(serde_json::json!({"time_zone": "Europe/Berlin"}));
        assert_eq!(read(&local, Value::Text("2026-01-01 02:30:00")), Ok(1.5));
        assert_eq!(
            read(&local, Value::Text("2026-01-01T02:30:00+0000")),
            Ok(2.5)
        );
        let german = hour(serde_json::json!({"time_zone": "UTC", "time_format": "%d.%m.%Y %H:%M"}));
        assert_eq!(read(&german, Value::Text("01.02.2026 06:00")), Ok(6.0));
        assert_eq!(
            read(&german, Value::Text("2026/02/01")),
            Err(Reason::WrongType)
        );
        for (unit, noon) in [("ns", 43_200e9), ("s", 43_200.0), ("d", 0.5)] {
            let epoch = hour(serde_json::json!({"epoch_unit": unit}));
            assert_eq!(read(&epoch, Value::Float(noon)), Ok(12.0));
            assert_eq!(read(&epoch, Value::Text(&noon.to_string())), Ok(12.0));
        }
    }

    #[test]
    fn times_by_type_need_no_unit() {
        let hour = column(serde_json::json!({"type": "timestamp", "part": "hour_of_day"}));
        let day = column(serde_json::json!({"type": "timestamp", "part": "day_of_week"}));
        let number = column(serde_json::json!({"type": "number"}));
        let noon = MICROSECONDS_PER_DAY / 2;
        assert_eq!(
            read(&hour, Value::Time(noon - MICROSECONDS_PER_DAY)),
            Ok(12.0)
        );
        assert_eq!(read(&day, Value::Time(-1)), Ok(2.0));
        assert_eq!(read(&hour, Value::Clock(noon)), Ok(12.0));
        assert_eq!(read(&day, Value::Date(4)), Ok(0.0));
        for (column, value) in [
            (&day, Value::Clock(noon)),
            (&hour, Value::Date(4)),
            (&number, Value::Time(0)),
            (&number, Value::Date(0)),
        ] {
            assert_eq!(read(column, value), Err(Reason::WrongType), "{value:?}");
        }
        assert_eq!(
            read(&number, Value::Float(f64::NAN)),
            Err(Reason::OutOfRange)
        );
        assert_eq!(
            read(&number, Value::Float(f64::NEG_INFINITY)),
            Err(Reason::OutOfRange)
        );
    }

    #[test]
    fn timestamps_are_utc() {
        let hour = column(serde_json::json!({"type": "timestamp", "part": "hour_of_day"}));
        let day = column(
            serde_json::json!({"type": "timestamp", "part": "day_of_week", "epoch_unit": "ms"}),
        );
        assert_eq!(
            read(&hour, Value::Text("2026-01-01T02:30:00+02:00")),
            Ok(0.5)
        );
        assert_eq!(read(&day, Value::Text("2026-01-01T12:00:00Z")), Ok(3.0));
        assert_eq!(read(&day, Value::Unsigned(0)), Ok(3.0));
        assert_eq!(read(&day, Value::Signed(-1)), Ok(2.0));
        assert_eq!(read(&hour, Value::Unsigned(0)), Err(Reason::WrongType));
        assert_eq!(
            read(&hour, Value::Text("yesterday")),
            Err(Reason::WrongType)
        );
        assert_eq!(read(&day, Value::Float(1e300)), Err(Reason::OutOfRange));
    }
}
