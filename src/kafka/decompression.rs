//! Bounds the memory of compressed record batches in librdkafka, which decompresses each batch as a whole: 0.9 MB of gzip
//! can become 1 GB.
//!
//! A batch that exceeds its share is not passed to librdkafka's parser. One stand-in record without a value replaces
//! its records. It has the last offset of the batch, and it describes the batch ([`Oversized`]). A batch that fits by
//! itself, but not together with the batches that wait to be consumed, is refused for now. librdkafka fetches it again
//! half a second later.

mod budget;
mod codec;
#[cfg(target_os = "linux")]
mod hooks;
mod records;
mod unpack;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use budget::{held, held_back};
pub use unpack::Oversized;

/// Limits all batches together to `share` bytes, and each batch to half of that.
pub fn bound(share: u64) {
    budget::set(share);
    #[cfg(target_os = "linux")]
    hooks::link();
}

/// Returns whether an unreadable batch may be logged now. librdkafka retries such a batch twice per second, so the log
/// is limited.
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
