//! Bounds the memory of compressed record batches in librdkafka, which decompresses each batch as a whole: 0.9 MB of gzip
//! can become 1 GB.
//!
//! A batch that exceeds its share is not given to librdkafka's parser. One stand-in record without a value replaces its
//! records, at the last offset of the batch, and describes the batch ([`Oversized`]). A batch that fits by itself, but not
//! together with batches that wait to be consumed, is refused for now. librdkafka fetches it again half a second later.

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

/// librdkafka's overhead in bytes for each record.
const RECORD_OVERHEAD: u64 = 512;
/// The header of a stand-in record.
const HEADER: &str = "residuald.batch";

/// The limits in bytes for one batch and for all batches together, including the overhead of their records. They are global
/// because librdkafka's functions that they bound are.
static BATCH_SHARE: AtomicU64 = AtomicU64::new(u64::MAX);
static SHARE: AtomicU64 = AtomicU64::new(u64::MAX);
/// A batch was refused for now and will be fetched again.
static HELD_BACK: AtomicBool = AtomicBool::new(false);
/// Proves that a stand-in was made here. Producers of records cannot know it.
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
    /// The memory it would take, including the overhead of its records.
    pub bytes: u64,
    /// The limit for one batch.
    pub share: u64,
}

impl Oversized {
    /// The batch for which a stand-in record was made; `None` for any other record.
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

/// Limits all batches together to `share` bytes, and each batch to half of that.
pub fn bound(share: u64) {
    BATCH_SHARE.store(share / 2, Ordering::Relaxed);
    SHARE.store(share, Ordering::Relaxed);
    #[cfg(target_os = "linux")]
    hooks::link();
}

/// The memory of batches that are decompressed and not consumed yet.
pub fn held() -> u64 {
    batches().bytes
}

/// Whether a batch was refused for now since the last call.
pub fn held_back() -> bool {
    HELD_BACK.swap(false, Ordering::Relaxed)
}

/// Limits how often an unreadable batch is logged, because librdkafka tries it again twice per second.
pub fn may_log() -> bool {
    const EVERY: Duration = Duration::from_secs(30);
    static LOGGED: Mutex<Option<Instant>> = Mutex::new(None);
    let mut logged = LOGGED.lock().unwrap_or_else(PoisonError::into_inner);
    let may_log = logged.is_none_or(|logged| logged.elapsed() >= EVERY);
    if may_log {
        *logged = Some(Instant::now());
    }
    may_log
}

/// Why a batch is not given to the parser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refused {
    /// Batches that wait to be consumed take all the memory.
    ForNow,
    /// It cannot be decompressed, or not within its share.
    Broken,
}

/// Decompresses a batch for the parser, or makes a stand-in for it.
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

/// Bytes for the parser, and the memory that the parsed records will take.
#[derive(Debug)]
struct Batch {
    bytes: Vec<u8>,
    weight: u64,
}

fn within(codec: Codec, compressed: &[u8], share: u64) -> Result<Batch, Refused> {
    if let Some(bytes) = codec::read(codec, compressed, share)? {
        // The parser reports bytes that are not records.
        let count = records::walk(&bytes[..]).map_or(0, |seen| seen.records);
        let weight = bytes.len() as u64 + RECORD_OVERHEAD * count;
        if weight <= share {
            return Ok(Batch { bytes, weight });
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
    Ok(Batch { bytes, weight })
}

/// The decompressed batches that librdkafka holds, by their address.
#[derive(Default)]
struct Batches {
    bytes: u64,
    by_address: HashMap<usize, HeldBatch>,
}

struct HeldBatch {
    weight: u64,
    /// The bytes, if they were allocated here. Otherwise `free` frees them.
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
