//! The memory limits for decompressed batches, and the batches that count towards them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

/// The limits in bytes for one batch and for all batches together, including the overhead of their records. They are global
/// because the librdkafka functions that they limit are global.
pub(super) static BATCH_SHARE: AtomicU64 = AtomicU64::new(u64::MAX);
pub(super) static SHARE: AtomicU64 = AtomicU64::new(u64::MAX);
/// Set when a batch was refused for now. It will be fetched again.
pub(super) static HELD_BACK: AtomicBool = AtomicBool::new(false);

/// Limits all batches together to `share` bytes, and each batch to half of that.
pub(super) fn set(share: u64) {
    BATCH_SHARE.store(share / 2, Ordering::Relaxed);
    SHARE.store(share, Ordering::Relaxed);
}

/// Returns the memory of the batches that are decompressed but not consumed yet.
pub fn held() -> u64 {
    batches().bytes
}

/// Returns whether a batch was refused for now since the last call.
pub fn held_back() -> bool {
    HELD_BACK.swap(false, Ordering::Relaxed)
}

/// The decompressed batches that librdkafka holds, by their address.
#[derive(Default)]
pub(super) struct Batches {
    pub bytes: u64,
    pub by_address: HashMap<usize, HeldBatch>,
}

pub(super) struct HeldBatch {
    pub weight: u64,
    /// The bytes, if this module allocated them. Otherwise `free` frees them.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "only kept"))]
    pub ours: Option<Vec<u8>>,
    pub free: Option<unsafe extern "C" fn(*mut std::ffi::c_void)>,
}

static BATCHES: LazyLock<Mutex<Batches>> = LazyLock::new(Mutex::default);

pub(super) fn batches() -> MutexGuard<'static, Batches> {
    BATCHES.lock().unwrap_or_else(PoisonError::into_inner)
}
