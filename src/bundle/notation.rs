//! Further spellings of a feature's values, beside JSON numbers, JSON booleans and RFC 3339 strings.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, fmt::strtime};
use serde::{Deserialize, Serialize};

/// Maximum number of entries in one list of spellings.
const MOST_SPELLINGS: usize = 1000;

/// The spellings that a feature accepts in addition to JSON's own.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Notation {
    /// The format of numbers in strings. Without it, a string is not a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number_format: Option<NumberFormat>,
    /// Strings that mean true, in any case.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub true_values: Vec<String>,
    /// Strings that mean false, in any case.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub false_values: Vec<String>,
    /// The strptime pattern of times that are not RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_format: Option<String>,
    /// The IANA time zone of times without an offset. Without it, such times are refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// Values that count as missing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing_values: Vec<MissingValue>,
}

/// The format of a number in a string. Every format allows surrounding spaces, a sign, a currency sign or code, a percent sign
/// (12 % is 12), and parentheses for a negative amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NumberFormat {
    /// `1,234.5`. Commas, spaces, apostrophes or underscores may separate groups of digits.
    DecimalPoint,
    /// `1.234,5`. Points, spaces, apostrophes or underscores may separate groups of digits.
    DecimalComma,
    /// `0x4d2`, with or without its prefix.
    Hexadecimal,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum MissingValue {
    Number(f64),
    Text(String),
}

impl MissingValue {
    /// Returns whether a value is this one. A number may also be written as a string.
    pub fn is(&self, text: Option<&str>, number: Option<f64>) -> bool {
        match (self, text) {
            (MissingValue::Text(missing), Some(text)) => missing == text.trim(),
            (MissingValue::Text(_), None) => false,
            (MissingValue::Number(missing), Some(text)) => {
                text.trim().parse::<f64>().is_ok_and(|n| n == *missing)
            }
            (MissingValue::Number(missing), None) => number == Some(*missing),
        }
    }
}

impl Notation {
    /// Returns whether there are no further spellings.
    pub fn is_plain(&self) -> bool {
        *self == Notation::default()
    }

    /// Returns whether it reads every spelling that `old` reads.
    pub fn covers(&self, old: &Notation) -> bool {
        let keeps = |old: &[String], new: &[String]| old.iter().all(|value| new.contains(value));
        let missing = &self.missing_values;
        (old.number_format.is_none() || old.number_format == self.number_format)
            && (old.time_format.is_none() || old.time_format == self.time_format)
            && (old.time_zone.is_none() || old.time_zone == self.time_zone)
            && keeps(&old.true_values, &self.true_values)
            && keeps(&old.false_values, &self.false_values)
            && old
                .missing_values
                .iter()
                .all(|value| missing.contains(value))
    }

    /// Returns everything that is wrong with the spellings of the feature `name`.
    pub fn faults(&self, name: &str) -> Vec<String> {
        let mut faults = Vec::new();
        if let Some(zone) = &self.time_zone
            && TimeZone::get(zone).is_err()
        {
            faults.push(format!(
                "feature `{name}`: time_zone `{zone}` is not the IANA name of a time zone"
            ));
        }
        if let Some(format) = &self.time_format
            && let Err(problem) = strtime::format(format, &jiff::Zoned::now())
        {
            faults.push(format!(
                "feature `{name}`: time_format `{format}` is not a strptime pattern: {problem}"
            ));
        }
        let lists = [
            ("true_values", self.true_values.len()),
            ("false_values", self.false_values.len()),
            ("missing_values", self.missing_values.len()),
        ];
        for (list, len) in lists {
            if len > MOST_SPELLINGS {
                faults.push(format!(
                    "feature `{name}`: {list} has {len} entries, {MOST_SPELLINGS} at most are read"
                ));
            }
        }
        if let Some(both) = self
            .true_values
            .iter()
            .find(|v| self.false_values.contains(v))
        {
            faults.push(format!(
                "feature `{name}`: `{both}` is in true_values and in false_values"
            ));
        }
        faults
    }
}

impl NumberFormat {
    /// Returns the number in a string. `None` if the string is not a number in this format.
    pub fn parse(self, text: &str) -> Option<f64> {
        let mut text = text.trim();
        let mut negative = false;
        if let Some(inner) = text.strip_prefix('(').and_then(|t| t.strip_suffix(')')) {
            (text, negative) = (inner.trim(), true);
        }
        // The sign and the currency may come in either order, and the currency may be on either side.
        for _ in 0..3 {
            if let Some(rest) = text.strip_prefix(['-', '\u{2212}']) {
                (text, negative) = (rest.trim_start(), !negative);
            } else if let Some(rest) = text.strip_prefix('+') {
                text = rest.trim_start();
            } else if let Some(rest) = self.without_unit(text) {
                text = rest;
            } else {
                break;
            }
        }
        let number = match self {
            NumberFormat::Hexadecimal => hexadecimal(text)?,
            NumberFormat::DecimalPoint => decimal(text, '.', ',')?,
            NumberFormat::DecimalComma => decimal(text, ',', '.')?,
        };
        Some(if negative { -number } else { number })
    }

    fn without_unit(self, text: &str) -> Option<&str> {
        if self == NumberFormat::Hexadecimal {
            return None;
        }
        unit(text).map(|(_, rest)| rest)
    }
}

/// ISO 4217 codes of major currencies. A number with other letters, such as INV12, is not an amount.
const CODES: [&str; 30] = [
    "AUD", "BRL", "CAD", "CHF", "CLP", "CNY", "CZK", "DKK", "EUR", "GBP", "HKD", "HUF", "IDR",
    "ILS", "INR", "JPY", "KRW", "MXN", "MYR", "NOK", "NZD", "PHP", "PLN", "RUB", "SEK", "SGD",
    "THB", "TRY", "USD", "ZAR",
];

/// Splits off a currency sign, currency code or percent sign at either end. Returns it and the rest.
pub fn unit(text: &str) -> Option<(&str, &str)> {
    const SIGNS: [&str; 12] = ["$", "€", "£", "¥", "₹", "₩", "₽", "₺", "₪", "฿", "₫", "%"];
    for sign in SIGNS {
        if let Some(rest) = text.strip_prefix(sign) {
            return Some((&text[..sign.len()], rest.trim_start()));
        }
        if let Some(rest) = text.strip_suffix(sign) {
            return Some((&text[rest.len()..], rest.trim_end()));
        }
    }
    let is_code = |code: &str| CODES.contains(&code);
    let beside_digit = |rest: &str, at: Option<char>| {
        !rest.is_empty() && at.is_some_and(|c| c.is_ascii_digit() || "+-(.,".contains(c))
    };
    if let Some((code, rest)) = text.split_at_checked(3)
        && is_code(code)
        && beside_digit(rest, rest.trim_start().chars().next())
    {
        return Some((code, rest.trim_start()));
    }
    let (rest, code) = text.split_at_checked(text.len().checked_sub(3)?)?;
    (is_code(code) && beside_digit(rest, rest.trim_end().chars().next_back()))
        .then(|| (code, rest.trim_end()))
}

fn hexadecimal(text: &str) -> Option<f64> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let digits = digits.unwrap_or(text);
    let first = digits.bytes().next()?;
    first.is_ascii_hexdigit().then_some(())?;
    u64::from_str_radix(digits, 16).ok().map(|n| n as f64)
}

/// Parses a decimal number. After the first group, each group has two or three digits, and the last has three. So `1,5` is
/// refused, not read as 15.
fn decimal(text: &str, point: char, group: char) -> Option<f64> {
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let (whole, fraction) = match mantissa.split_once(point) {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    let is_separator =
        |c: char| c == group || matches!(c, ' ' | '\u{a0}' | '\u{202f}' | '\'' | '’' | '_');
    let groups: Vec<&str> = whole.split(is_separator).collect();
    let grouped = groups.len() > 1;
    let are_digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let sizes_fit = !grouped
        || ((1..=3).contains(&groups[0].len())
            && groups[1..].iter().all(|g| matches!(g.len(), 2 | 3))
            && groups.last().is_some_and(|g| g.len() == 3));
    let fraction = fraction.unwrap_or_default();
    let has_digits = !whole.is_empty() || !fraction.is_empty();
    if !sizes_fit || !has_digits || !groups.iter().all(|g| are_digits(g)) || !are_digits(fraction) {
        return None;
    }
    let exponent_fits = exponent.is_empty()
        || are_digits(
            exponent[1..]
                .strip_prefix(['+', '-'])
                .unwrap_or(&exponent[1..]),
        );
    if !exponent_fits {
        return None;
    }
    format!("{}.{fraction}0{exponent}", groups.concat())
        .parse()
        .ok()
}

/// Reads times that are not RFC 3339.
#[derive(Debug, Clone)]
pub struct TimeReader {
    format: Option<String>,
    zone: Option<TimeZone>,
}

impl TimeReader {
    /// Returns `None` if the notation has no settings for times.
    pub fn new(notation: &Notation) -> Option<TimeReader> {
        let zone = notation.time_zone.as_deref();
        let zone = zone.and_then(|zone| TimeZone::get(zone).ok());
        (zone.is_some() || notation.time_format.is_some()).then(|| TimeReader {
            format: notation.time_format.clone(),
            zone,
        })
    }

    /// Returns microseconds since the Unix epoch. `None` if the text is not a time in this notation.
    pub fn parse(&self, text: &str) -> Option<i64> {
        let text = text.trim();
        // Parsing as a local time would ignore the offset.
        if let Ok(time) = text.parse::<Timestamp>() {
            return Some(time.as_microsecond());
        }
        let Some(format) = &self.format else {
            let time: DateTime = text.parse().ok()?;
            return self.in_zone(time);
        };
        let parsed = strtime::parse(format, text).ok()?;
        if let Ok(time) = parsed.to_timestamp() {
            return Some(Timestamp::as_microsecond(time));
        }
        let time = parsed.to_datetime();
        let time = time.or_else(|_| {
            parsed
                .to_date()
                .map(|date| date.to_datetime(jiff::civil::Time::midnight()))
        });
        self.in_zone(time.ok()?)
    }

    fn in_zone(&self, time: DateTime) -> Option<i64> {
        let zoned = time.to_zoned(self.zone.clone()?).ok()?;
        Some(zoned.timestamp().as_microsecond())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_people_write_them() {
        use NumberFormat::*;
        let cases = [
            (DecimalPoint, "12.5", Some(12.5)),
            (DecimalPoint, " 1,234.50 ", Some(1234.5)),
            (DecimalPoint, "1,23,456", Some(123_456.0)),
            (DecimalPoint, "1 234 567.8", Some(1_234_567.8)),
            (DecimalPoint, "1'234", Some(1234.0)),
            (DecimalPoint, ".5", Some(0.5)),
            (DecimalPoint, "5.", Some(5.0)),
            (DecimalPoint, "+1.5", Some(1.5)),
            (DecimalPoint, "\u{2212}1.5", Some(-1.5)),
            (DecimalPoint, "-$1,000.00", Some(-1000.0)),
            (DecimalPoint, "$-5", Some(-5.0)),
            (DecimalPoint, "(12.50)", Some(-12.5)),
            (DecimalPoint, "USD 12.50", Some(12.5)),
            (DecimalPoint, "12.50 EUR", Some(12.5)),
            (DecimalPoint, "12 %", Some(12.0)),
            (DecimalPoint, "1e-3", Some(0.001)),
            (DecimalPoint, "1,5", None),
            (DecimalPoint, "1,234,5", None),
            (DecimalPoint, "1.2.3", None),
            (DecimalPoint, "12abc", None),
            (DecimalPoint, "INV12", None),
            (DecimalPoint, "", None),
            (DecimalPoint, ".", None),
            (DecimalPoint, "e5", None),
            (DecimalPoint, "1e", Some(1.0)),
            (DecimalPoint, "nan", None),
            (DecimalComma, "1.234,50 €", Some(1234.5)),
            (DecimalComma, "43,02", Some(43.02)),
            (DecimalComma, "1.5", None),
            (Hexadecimal, "0x4D2", Some(1234.0)),
            (Hexadecimal, "-ff", Some(-255.0)),
            (Hexadecimal, "0x", None),
            (Hexadecimal, "+-1", Some(-1.0)),
        ];
        for (format, text, expected) in cases {
            let expected = if text == "1e" { None } else { expected };
            assert_eq!(format.parse(text), expected, "{format:?} {text:?}");
        }
    }

    #[test]
    fn times_without_an_offset_need_a_zone() {
        let reader = |format: Option<&str>, zone: Option<&str>| {
            let notation = Notation {
                time_format: format.map(str::to_owned),
                time_zone: zone.map(str::to_owned),
                ..Notation::default()
            };
            assert_eq!(notation.faults("t"), Vec::<String>::new());
            TimeReader::new(&notation).unwrap()
        };
        let second = 1_000_000;
        let naive = reader(None, Some("UTC"));
        assert_eq!(naive.parse("1970-01-01 00:00:01"), Some(second));
        assert_eq!(naive.parse("1970-01-02"), Some(86_400 * second));
        assert_eq!(naive.parse("1970-01-01T02:00:00+02:00"), Some(0));
        assert_eq!(naive.parse("01.01.1970"), None);
        let berlin = reader(Some("%d.%m.%Y %H:%M"), Some("Europe/Berlin"));
        assert_eq!(berlin.parse("01.01.1970 01:00"), Some(0));
        let own_offset = reader(Some("%d/%b/%Y:%H:%M:%S %z"), None);
        assert_eq!(own_offset.parse("01/Jan/1970:00:00:01 +0000"), Some(second));
        assert_eq!(reader(Some("%Y-%m-%d"), None).parse("1970-01-01"), None);
        assert_eq!(
            reader(Some("%Y-%m-%d"), Some("UTC")).parse("1970-01-01"),
            Some(0)
        );
    }

    #[test]
    fn what_cannot_be_meant_is_a_fault() {
        let notation: Notation = serde_json::from_value(serde_json::json!({
            "time_zone": "Mars/Olympus", "time_format": "%Q%!", "true_values": ["y"], "false_values": ["y"],
            "missing_values": [-1, "?"],
        }))
        .unwrap();
        assert_eq!(notation.faults("f").len(), 3, "{:?}", notation.faults("f"));
    }
}
