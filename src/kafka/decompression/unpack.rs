//! Decompresses a batch within its share of memory, or makes a stand-in for it.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::Ordering;

use super::budget::{BATCH_SHARE, SHARE, held};
use super::codec::{self, Codec, Refused};
use super::records;
use crate::record::Record;

/// librdkafka's overhead in bytes for each record.
const RECORD_OVERHEAD: u64 = 512;
/// The name of the header of a stand-in record.
const HEADER: &str = "residuald.batch";

/// Proves that this process made a stand-in record. Producers cannot know this value.
static SECRET: LazyLock<String> = LazyLock::new(|| {
    let random = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", random(), random())
});

/// A batch that was too large to be decompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Oversized {
    /// The first offset.
    pub first: i64,
    /// The last offset.
    pub last: i64,
    pub records: u64,
    /// The memory that the batch would take, including the overhead of its records.
    pub bytes: u64,
    /// The limit for one batch.
    pub share: u64,
}

impl Oversized {
    /// Returns the batch that a stand-in record describes, or `None` for any other record.
    pub fn of(record: &Record<'_>) -> Option<Oversized> {
        let ours = record.payload.is_none() && record.headers.len() == 1;
        let (name, value) = record.headers.first().filter(|_| ours)?;
        let text = std::str::from_utf8(value.filter(|_| *name == HEADER)?).ok()?;
        let mut words = text.strip_prefix(SECRET.as_str())?.split_whitespace();
        let mut number = || words.next()?.parse::<u64>().ok();
        let (before, records, bytes, share) = (number()?, number()?, number()?, number()?);
        Some(Oversized {
            first: record.offset - i64::try_from(before).ok()?,
            last: record.offset,
            records,
            bytes,
            share,
        })
    }
}

/// Decompresses a batch for the parser, or makes a stand-in for it.
pub(super) fn unpack(codec: Codec, compressed: &[u8]) -> Result<UnpackedBatch, Refused> {
    let share = SHARE.load(Ordering::Relaxed);
    if held() >= share {
        return Err(Refused::ForNow);
    }
    let batch = within(codec, compressed, BATCH_SHARE.load(Ordering::Relaxed))?;
    let held = held();
    match held > 0 && held + batch.weight > share {
        true => Err(Refused::ForNow),
        false => Ok(batch),
    }
}

/// Bytes for the parser, and the memory that the parsed records will take.
#[derive(Debug)]
pub(super) struct UnpackedBatch {
    pub bytes: Vec<u8>,
    pub weight: u64,
}

fn within(codec: Codec, compressed: &[u8], share: u64) -> Result<UnpackedBatch, Refused> {
    if let Some(bytes) = codec::read(codec, compressed, share)? {
        // The parser reports bytes that are not records.
        let count = records::walk(&bytes[..]).map_or(0, |seen| seen.records);
        let weight = bytes.len() as u64 + RECORD_OVERHEAD * count;
        if weight <= share {
            return Ok(UnpackedBatch { bytes, weight });
        }
    }
    let seen = codec::open(codec, compressed, share)
        .and_then(records::walk)
        .map_err(|_| Refused::Broken)?;
    let bytes = seen.bytes + RECORD_OVERHEAD * seen.records;
    let (before, records) = (seen.last_offset - seen.first_offset, seen.records);
    let description = format!("{} {before} {records} {bytes} {share}", *SECRET);
    let bytes = records::stand_in(&seen, HEADER, &description);
    let weight = bytes.len() as u64 + RECORD_OVERHEAD;
    Ok(UnpackedBatch { bytes, weight })
}

#[cfg(test)]
mod tests;
