//! Bounds what compressed batches of records take in librdkafka, which decompresses each whole: 0.9 MB of gzip can be 1 GB.
//!
//! A batch of more than its share is not given to the parser. In place of its records stands one record without a value, at the last
//! offset of the batch, which says what it stands for ([`Oversized`]). A batch that fits alone but not beside those that wait to be consumed is
//! refused for the moment: librdkafka fetches it again half a second later.

mod codec;
#[cfg(target_os = "linux")]
mod hooks;
mod records;

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::record::Record;
use codec::Codec;

/// What librdkafka takes for each record beside its bytes.
const RECORD: u64 = 512;
/// The header of a record that stands for a batch.
const HEADER: &str = "residuald.batch";

/// Bytes of one batch and of all batches together, their records' books included. One for the process, as the functions that they
/// bound are.
static BATCH_SHARE: AtomicU64 = AtomicU64::new(u64::MAX);
static SHARE: AtomicU64 = AtomicU64::new(u64::MAX);
/// A batch was refused that will be fetched again.
static HELD_BACK: AtomicBool = AtomicBool::new(false);
/// Proves that a stand-in is ours: whoever produces records cannot know it.
static SECRET: LazyLock<String> = LazyLock::new(|| {
    let random = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", random(), random())
});

/// A batch that was too large to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Oversized {
    /// Offsets.
    pub first: i64,
    pub last: i64,
    pub records: u64,
    /// Bytes that it takes, its records' books included.
    pub bytes: u64,
    pub share: u64,
}

impl Oversized {
    /// The batch that a record stands for, if it does.
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

/// Bounds all batches together to `share` bytes, and each to half of that.
pub fn bound(share: u64) {
    BATCH_SHARE.store(share / 2, Ordering::Relaxed);
    SHARE.store(share, Ordering::Relaxed);
    #[cfg(target_os = "linux")]
    hooks::link();
}

/// Bytes of batches that are decompressed and not consumed.
pub fn held() -> u64 {
    batches().bytes
}

/// Whether, since the last look, a batch was refused that will be fetched again.
pub fn held_back() -> bool {
    HELD_BACK.swap(false, Ordering::Relaxed)
}

/// Whether it is worth a line in the log that a batch cannot be read: librdkafka tries again twice a second.
pub fn is_news() -> bool {
    const EVERY: Duration = Duration::from_secs(30);
    static SAID: Mutex<Option<Instant>> = Mutex::new(None);
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    let news = said.is_none_or(|said| said.elapsed() >= EVERY);
    if news {
        *said = Some(Instant::now());
    }
    news
}

/// Why a batch is not given to the parser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refused {
    /// Those that wait to be consumed take the share.
    ForNow,
    /// It cannot be read, or not within its share.
    Broken,
}

/// Decompresses a batch for the parser: its records, or the one that stands for them.
fn unpack(codec: Codec, compressed: &[u8]) -> Result<Batch, Refused> {
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

/// Bytes for the parser, and what it makes of them weighs.
#[derive(Debug)]
struct Batch {
    bytes: Vec<u8>,
    weight: u64,
}

fn within(codec: Codec, compressed: &[u8], share: u64) -> Result<Batch, Refused> {
    if let Some(bytes) = codec::read(codec, compressed, share)? {
        // What are no records, the parser will say.
        let count = records::walk(&bytes[..]).map_or(0, |seen| seen.records);
        let weight = bytes.len() as u64 + RECORD * count;
        if weight <= share {
            return Ok(Batch { bytes, weight });
        }
    }
    let seen = codec::open(codec, compressed, share)
        .and_then(records::walk)
        .map_err(|_| Refused::Broken)?;
    let bytes = seen.bytes + RECORD * seen.records;
    let (before, records) = (seen.last_offset - seen.first_offset, seen.records);
    let says = format!("{} {before} {records} {bytes} {share}", *SECRET);
    let bytes = records::stand_in(&seen, HEADER, &says);
    let weight = bytes.len() as u64 + RECORD;
    Ok(Batch { bytes, weight })
}

/// The batches that librdkafka holds, by their address.
#[derive(Default)]
struct Batches {
    bytes: u64,
    by_address: HashMap<usize, Kept>,
}

struct Kept {
    weight: u64,
    /// Freed with this; without it by whoever made it.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "only kept"))]
    ours: Option<Vec<u8>>,
    free: Option<unsafe extern "C" fn(*mut std::ffi::c_void)>,
}

static BATCHES: LazyLock<Mutex<Batches>> = LazyLock::new(Mutex::default);

fn batches() -> MutexGuard<'static, Batches> {
    BATCHES.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
