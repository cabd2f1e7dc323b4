//! Collects the facts about the values of one column that decide its type.

use std::cmp::Ordering;
use std::hash::{Hash, Hasher};

use jiff::Timestamp;
use rustc_hash::FxHasher;

use super::times::{Patterns, Span};
use crate::bundle::notation::{NumberFormat, unit};
use crate::dataset::scan::Scalar;

/// Spellings of a missing value, if all other values of the column are numbers or times.
const MISSING: [&str; 19] = [
    "", "-", "--", "?", ".", "*", "na", "n/a", "n.a.", "#n/a", "nan", "null", "nil", "none",
    "missing", "unknown", "\\n", "<na>", "nat",
];
/// Maximum number of spellings of a missing value that are remembered.
const MOST_SPELLINGS: usize = 8;
/// Maximum number of different values that are kept as examples.
const MOST_EXAMPLES: usize = 3;
/// Maximum length of an example in characters.
const LONGEST_EXAMPLE: usize = 24;

#[derive(Debug, Clone, Default)]
pub struct Observed {
    pub nulls: u64,
    pub bools: u64,
    pub numbers: u64,
    pub texts: u64,
    /// Arrays and empty objects.
    pub nested: u64,
    pub range: Range,
    pub strings: Strings,
    /// The first few different values as texts.
    pub examples: Vec<String>,
    /// Further values of records that hold the field more than once. Such records are refused, so only their first value is observed.
    pub repeats: u64,
    last_row: Option<u64>,
    hash: u64,
}

/// The numbers of a column in the order of the rows, including numbers in strings.
#[derive(Debug, Clone, Default)]
pub struct Range {
    pub min: f64,
    pub max: f64,
    pub count: u64,
    last: Value,
    /// Whether there are different values.
    pub varies: bool,
    /// The number of values that equal the previous one.
    ties: u64,
    falls: bool,
}

/// The strings of a column.
#[derive(Debug, Clone, Default)]
pub struct Strings {
    /// The number of strings that spell a missing value, and their spellings.
    pub missing: u64,
    pub spellings: Vec<String>,
    /// The number of other strings that are numbers with a decimal point.
    pub with_point: u64,
    pub with_comma: u64,
    pub hexadecimal: u64,
    /// Integers with a leading zero, which are codes.
    pub codes: u64,
    pub booleans: u64,
    /// RFC 3339 times.
    pub times: u64,
    pub span: Span,
    /// The formats that can read the strings that are not RFC 3339 times.
    pub patterns: Patterns,
    /// The first currency or percent sign, and the number of strings with it.
    pub unit: Option<(String, u64)>,
    /// The first string that is neither a number nor a spelling of a missing value.
    pub other: Option<String>,
    pub others: u64,
    /// The first word after a number, and the number of strings that are a number and this word: `5 kg`.
    pub measured: Option<(String, u64)>,
}

impl Observed {
    pub fn observe(&mut self, row: u64, value: Scalar<'_>) {
        if self.last_row.replace(row) == Some(row) {
            self.repeats += 1;
            return;
        }
        self.fingerprint_value(row, value);
        self.keep_example(value);
        match value {
            Scalar::Null => self.nulls += 1,
            Scalar::Bool(_) => self.bools += 1,
            Scalar::Unsigned(v) => self.number(Value::Whole(v.into())),
            Scalar::Signed(v) => self.number(Value::Whole(v.into())),
            Scalar::Float(v) => self.number(Value::Float(v)),
            Scalar::Array | Scalar::Object => self.nested += 1,
            Scalar::Text(text) => {
                self.texts += 1;
                if let Some(number) = self.strings.observe(text) {
                    self.range.extend(number);
                }
            }
        }
    }

    fn keep_example(&mut self, value: Scalar<'_>) {
        if self.examples.len() == MOST_EXAMPLES {
            return;
        }
        let Some(text) = value.text() else {
            return;
        };
        let text: String = text.chars().take(LONGEST_EXAMPLE).collect();
        if !self.examples.contains(&text) {
            self.examples.push(text);
        }
    }

    fn number(&mut self, value: Value) {
        self.numbers += 1;
        self.range.extend(value);
    }

    /// Returns the number of values that are not null.
    pub fn present(&self) -> u64 {
        self.bools + self.numbers + self.texts + self.nested
    }

    pub fn may_be_categories(&self) -> bool {
        self.texts > 0 || (self.bools > 0 && self.numbers > 0)
    }

    pub fn varies(&self) -> bool {
        self.texts > 0 || self.range.varies
    }

    /// Returns a hash of the values and their rows. Different columns have the same hash with a probability of 2^-64.
    pub fn fingerprint(&self) -> (u64, u64) {
        (self.hash, self.present())
    }

    fn fingerprint_value(&mut self, row: u64, value: Scalar<'_>) {
        let mut hasher = FxHasher::default();
        (self.hash, row).hash(&mut hasher);
        match value {
            Scalar::Null => return,
            Scalar::Bool(v) => v.hash(&mut hasher),
            Scalar::Unsigned(v) => Value::Whole(v.into()).hash(&mut hasher),
            Scalar::Signed(v) => Value::Whole(v.into()).hash(&mut hasher),
            Scalar::Float(v) => Value::Float(v).hash(&mut hasher),
            Scalar::Text(v) => v.hash(&mut hasher),
            Scalar::Array => 1_u8.hash(&mut hasher),
            Scalar::Object => 2_u8.hash(&mut hasher),
        }
        self.hash = hasher.finish();
    }
}

/// A number as it is written. A float does not tell long integers apart that differ in their last digits.
#[derive(Debug, Clone, Copy)]
enum Value {
    Whole(i128),
    Float(f64),
}

impl Default for Value {
    fn default() -> Value {
        Value::Float(0.0)
    }
}

impl Value {
    fn float(self) -> f64 {
        match self {
            Value::Whole(v) => v as f64,
            Value::Float(v) => v,
        }
    }

    fn compare(self, other: Value) -> Option<Ordering> {
        match (self, other) {
            (Value::Whole(a), Value::Whole(b)) => Some(a.cmp(&b)),
            _ => self.float().partial_cmp(&other.float()),
        }
    }

    /// Returns the number in a string that `float` was read from.
    fn of_text(text: &str, float: f64) -> Value {
        text.parse().map_or(Value::Float(float), Value::Whole)
    }

    /// Equal numbers have the same hash, however they are written.
    fn hash(self, hasher: &mut FxHasher) {
        self.float().to_bits().hash(hasher);
        if let Value::Whole(v) = self
            && v != v as f64 as i128
        {
            v.hash(hasher);
        }
    }
}

impl Range {
    fn extend(&mut self, value: Value) {
        let float = value.float();
        if self.count == 0 {
            (self.min, self.max) = (float, float);
        } else {
            let order = value.compare(self.last);
            self.falls |= order == Some(Ordering::Less);
            self.ties += u64::from(order == Some(Ordering::Equal));
            self.varies |= order != Some(Ordering::Equal);
        }
        self.min = self.min.min(float);
        self.max = self.max.max(float);
        self.last = value;
        self.count += 1;
    }

    /// Returns whether the values only grow from row to row, like counters, row numbers and times.
    pub fn only_grows(&self) -> bool {
        self.never_falls() && self.ties < self.count / 2
    }

    /// Returns whether the values are in order, like a month in a table that is sorted by time. A flag that changes once does not
    /// count.
    pub fn never_falls(&self) -> bool {
        const FEWEST: u64 = 50;
        let is_flag = self.min == 0.0 && self.max == 1.0 && self.ties + 2 == self.count;
        self.count >= FEWEST && !self.falls && !is_flag
    }
}

impl Strings {
    /// Returns the number in the string, if there is one.
    fn observe(&mut self, text: &str) -> Option<Value> {
        let trimmed = text.trim();
        if MISSING
            .iter()
            .any(|spelling| trimmed.eq_ignore_ascii_case(spelling))
        {
            self.missing += 1;
            if self.spellings.len() < MOST_SPELLINGS && !self.spellings.iter().any(|s| s == trimmed)
            {
                self.spellings.push(trimmed.to_owned());
            }
            return None;
        }
        let is_code = trimmed.len() > 1
            && trimmed.starts_with('0')
            && trimmed.bytes().all(|b| b.is_ascii_digit());
        self.codes += u64::from(is_code);
        let is_boolean = ["true", "false"]
            .iter()
            .any(|b| trimmed.eq_ignore_ascii_case(b));
        self.booleans += u64::from(is_boolean);
        let with_point = NumberFormat::DecimalPoint.parse(trimmed);
        let with_comma = NumberFormat::DecimalComma.parse(trimmed);
        self.with_point += u64::from(with_point.is_some());
        self.with_comma += u64::from(with_comma.is_some());
        let prefixed = trimmed.starts_with("0x") || trimmed.starts_with("0X");
        let hexadecimal = NumberFormat::Hexadecimal
            .parse(trimmed)
            .filter(|_| prefixed);
        self.hexadecimal += u64::from(hexadecimal.is_some());
        let number = with_point.or(with_comma).or(hexadecimal);
        if number.is_some() {
            self.take_unit(trimmed);
        } else {
            self.others += 1;
            self.take_measure(trimmed);
            if self.other.is_none() {
                self.other = Some(trimmed.chars().take(40).collect());
            }
            match text.parse::<Timestamp>() {
                Ok(time) => {
                    self.times += 1;
                    self.span.extend(time.as_microsecond());
                }
                Err(_) => self.patterns.observe(trimmed),
            }
        }
        number.map(|number| Value::of_text(trimmed, number))
    }

    fn take_measure(&mut self, text: &str) {
        let number = text.trim_end_matches(char::is_alphabetic);
        let word = &text[number.len()..];
        let is_measure = !word.is_empty()
            && NumberFormat::DecimalPoint
                .parse(number.trim_end())
                .is_some();
        match &mut self.measured {
            Some((first, count)) => *count += u64::from(is_measure && first == word),
            None if is_measure => self.measured = Some((word.to_owned(), 1)),
            None => {}
        }
    }

    fn take_unit(&mut self, text: &str) {
        let text = text
            .trim_start_matches(['-', '+', '\u{2212}', '('])
            .trim_start();
        let Some((found, _)) = unit(text.trim_end_matches(')')) else {
            return;
        };
        match &mut self.unit {
            Some((first, count)) => *count += u64::from(first == found),
            None => self.unit = Some((found.to_owned(), 1)),
        }
    }
}
