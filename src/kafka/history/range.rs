//! The start and end of a range as a user writes them.

use std::collections::BTreeMap;
use std::str::FromStr;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};

/// The start or the end of a range. The start is inclusive, the end exclusive.
#[derive(Debug, Clone, PartialEq)]
pub enum Bound {
    Beginning,
    /// The end of the topic at the time when reading starts.
    End,
    /// The same offset in every partition.
    Offset(i64),
    /// An offset for each of these partitions. Others are not read.
    Offsets(BTreeMap<i32, i64>),
    /// In each partition, the first record with this timestamp or a later one.
    Time(Timestamp),
    /// Like `Time`, as a duration before now.
    Ago(SignedDuration),
}

impl Bound {
    /// Returns the partitions that the bound names, if any.
    pub fn partitions(&self) -> Option<Vec<i32>> {
        match self {
            Bound::Offsets(offsets) => Some(offsets.keys().copied().collect()),
            _ => None,
        }
    }
}

const EXPECTED: &str = "expected `beginning`, `end`, a time (2026-01-31T08:00:00Z, 2026-01-31, -24h, -7d), \
    an offset (1000) or offsets by partition (0:1000,1:990)";

impl FromStr for Bound {
    type Err = String;

    fn from_str(text: &str) -> Result<Bound, String> {
        let expected = |_| EXPECTED.to_owned();
        match text {
            "beginning" => return Ok(Bound::Beginning),
            "end" => return Ok(Bound::End),
            _ => {}
        }
        if let Some(ago) = text.strip_prefix('-') {
            return before_now(ago).map(Bound::Ago);
        }
        if text.bytes().all(|b| b.is_ascii_digit()) {
            return Ok(Bound::Offset(text.parse().map_err(|_| EXPECTED)?));
        }
        if text
            .bytes()
            .all(|b| b.is_ascii_digit() || b":, ".contains(&b))
        {
            return offsets(text).map(Bound::Offsets);
        }
        if let Ok(time) = text.parse::<Timestamp>() {
            return Ok(Bound::Time(time));
        }
        let midnight = text.parse::<Date>().map_err(expected)?;
        let midnight = midnight.to_zoned(TimeZone::UTC).map_err(expected)?;
        Ok(Bound::Time(midnight.timestamp()))
    }
}

fn before_now(text: &str) -> Result<SignedDuration, String> {
    let span: Span = text.parse().map_err(|_| EXPECTED.to_owned())?;
    let ago = span
        .to_duration(SpanRelativeTo::days_are_24_hours())
        .map_err(
            |_| "a time before now is given in weeks, days, hours, minutes and seconds: -36h, -7d",
        )?;
    if ago.is_negative() {
        return Err(EXPECTED.to_owned());
    }
    Ok(ago)
}

fn offsets(text: &str) -> Result<BTreeMap<i32, i64>, String> {
    let mut offsets = BTreeMap::new();
    for part in text.split(',') {
        let (partition, offset) = part.trim().split_once(':').ok_or(EXPECTED)?;
        let partition = partition.parse().map_err(|_| EXPECTED)?;
        let offset = offset.parse().map_err(|_| EXPECTED)?;
        if offsets.insert(partition, offset).is_some() {
            return Err(format!("partition {partition} is given twice"));
        }
    }
    Ok(offsets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        let time = |text: &str| Bound::Time(text.parse().unwrap());
        let hours = |h| Bound::Ago(SignedDuration::from_hours(h));
        for (text, expected) in [
            ("beginning", Bound::Beginning),
            ("end", Bound::End),
            ("0", Bound::Offset(0)),
            ("12345678901", Bound::Offset(12_345_678_901)),
            ("3:17", Bound::Offsets([(3, 17)].into())),
            ("0:5, 2:0", Bound::Offsets([(0, 5), (2, 0)].into())),
            ("2026-01-31T08:00:00Z", time("2026-01-31T08:00:00Z")),
            (
                "2026-01-31T08:00:00.5+01:00",
                time("2026-01-31T07:00:00.5Z"),
            ),
            ("2026-01-31", time("2026-01-31T00:00:00Z")),
            ("-24h", hours(24)),
            ("-7d", hours(7 * 24)),
            ("-1w", hours(7 * 24)),
            ("-1d12h", hours(36)),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "-",
            "yesterday",
            "1:",
            ":1",
            "0:1,0:2",
            "1:2:3",
            "-1mo",
            "--1h",
            "1.5",
            "2026-13-01",
            "99999999999999999999",
        ] {
            assert!(text.parse::<Bound>().is_err(), "{text}");
        }
    }
}
