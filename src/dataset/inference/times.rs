//! Finds the format of times that are not RFC 3339.

use std::sync::LazyLock;

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;

use crate::bundle::notation::{Notation, TimeReader};

/// The strptime patterns to try, the most likely first.
const PATTERNS: [&str; 37] = [
    "%d/%b/%Y:%H:%M:%S %z",
    "%a, %d %b %Y %H:%M:%S %z",
    "%Y/%m/%d %H:%M:%S",
    "%Y/%m/%d %H:%M",
    "%d.%m.%Y %H:%M:%S",
    "%d.%m.%Y %H:%M",
    "%m/%d/%Y %H:%M:%S",
    "%m/%d/%Y %H:%M",
    "%d/%m/%Y %H:%M:%S",
    "%d/%m/%Y %H:%M",
    "%Y/%m/%d",
    "%d.%m.%Y",
    "%m/%d/%Y",
    "%d/%m/%Y",
    "%d-%m-%Y %H:%M:%S",
    "%d-%m-%Y %H:%M",
    "%d-%m-%Y",
    "%m-%d-%Y",
    "%d-%b-%Y %H:%M:%S",
    "%d-%b-%Y",
    "%d/%b/%Y",
    "%b %d, %Y",
    "%b %d %Y",
    "%d %b %Y %H:%M:%S",
    "%d %b %Y",
    "%B %d, %Y",
    "%d %B %Y",
    "%a %b %d %H:%M:%S %Y",
    "%m/%d/%Y %I:%M:%S %p",
    "%m/%d/%Y %I:%M %p",
    "%d/%m/%Y %I:%M:%S %p",
    "%d/%m/%Y %I:%M %p",
    "%m/%d/%y %H:%M",
    "%d/%m/%y %H:%M",
    "%m/%d/%y",
    "%d/%m/%y",
    "%d.%m.%y",
];

/// 1800-01-01 in microseconds since 1970. A time before it is a year of two digits that was read as one of four.
const EARLIEST: i64 = -5_364_662_400_000_000;
const MICROSECONDS_PER_DAY: i64 = 86_400_000_000;

/// The formats that could read every string so far.
#[derive(Debug, Clone, Default)]
pub struct Patterns {
    seen: u64,
    iso: u64,
    iso_dates: u64,
    /// One bit for each of [`PATTERNS`].
    failed: u64,
    /// The span of the times in ISO 8601, and that of the times that each pattern reads.
    iso_span: Span,
    spans: Vec<Span>,
}

/// The earliest and the latest of some times, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Span {
    ends: Option<(i64, i64)>,
    /// Whether a time is not at midnight in UTC.
    has_clock: bool,
}

impl Span {
    pub fn extend(&mut self, time: i64) {
        let (first, last) = self.ends.unwrap_or((time, time));
        self.ends = Some((first.min(time), last.max(time)));
        self.has_clock |= time.rem_euclid(MICROSECONDS_PER_DAY) != 0;
    }

    /// Returns whether every time is at midnight, like a date that is written as a time.
    pub fn is_midnight(self) -> bool {
        !self.has_clock
    }

    /// Returns the time from the earliest to the latest, in hours.
    pub fn hours(self) -> f64 {
        self.ends.map_or(0.0, |(first, last)| {
            last.saturating_sub(first) as f64 / 3.6e9
        })
    }
}

/// The format of a column's times.
#[derive(Debug, Clone, PartialEq)]
pub struct TimeFormat {
    /// If `None`, the times are ISO 8601 without an offset.
    pub pattern: Option<&'static str>,
    pub has_offset: bool,
    pub has_clock: bool,
    pub span: Span,
}

impl Patterns {
    pub fn observe(&mut self, text: &str) {
        self.seen += 1;
        // Stops early for columns of other texts.
        if self.failed == (1 << PATTERNS.len()) - 1 && self.iso + 1 < self.seen {
            return;
        }
        let starts_right = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        let has_digit = text.bytes().any(|b| b.is_ascii_digit());
        if !starts_right || !has_digit || text.len() > 64 {
            self.failed = (1 << PATTERNS.len()) - 1;
            return;
        }
        if let Ok(time) = text.parse::<DateTime>() {
            self.iso += 1;
            let utc = time.to_zoned(TimeZone::UTC);
            if let Ok(utc) = utc {
                self.iso_span.extend(utc.timestamp().as_microsecond());
            }
            self.iso_dates += u64::from(text.len() <= 10 && text.parse::<Date>().is_ok());
        }
        self.spans.resize(PATTERNS.len(), Span::default());
        for (at, reader) in READERS.iter().enumerate() {
            if self.failed & (1 << at) != 0 {
                continue;
            }
            match reader.parse(text).filter(|time| *time >= EARLIEST) {
                Some(time) => self.spans[at].extend(time),
                None => self.failed |= 1 << at,
            }
        }
    }

    /// Returns the format that reads all `strings` strings, and another pattern that reads them too, if there is one.
    pub fn all_of(&self, strings: u64) -> Option<(TimeFormat, Option<&'static str>)> {
        if strings == 0 || self.seen != strings {
            return None;
        }
        if self.iso == strings {
            let format = TimeFormat {
                pattern: None,
                has_offset: false,
                has_clock: self.iso_dates < strings,
                span: self.iso_span,
            };
            return Some((format, None));
        }
        let fitting = PATTERNS.iter().enumerate();
        let mut fitting = fitting.filter(|(at, _)| self.failed & (1 << at) == 0);
        let (at, pattern) = fitting.next()?;
        let format = TimeFormat {
            pattern: Some(pattern),
            has_offset: pattern.contains("%z"),
            has_clock: pattern.contains("%H") || pattern.contains("%I"),
            span: self.spans[at],
        };
        Some((format, fitting.next().map(|(_, other)| *other)))
    }
}

/// A reader for each of [`PATTERNS`].
static READERS: LazyLock<Vec<TimeReader>> = LazyLock::new(|| {
    let readers = PATTERNS.iter().map(|pattern| {
        TimeReader::new(&Notation {
            time_format: Some((*pattern).to_owned()),
            time_zone: Some("UTC".to_owned()),
            ..Notation::default()
        })
    });
    readers
        .map(|reader| reader.expect("a format was given"))
        .collect()
});
