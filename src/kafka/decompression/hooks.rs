//! Functions that librdkafka calls instead of its own. The linker redirects calls of `x` to `__wrap_x`; see `build.rs`.
//!
//! librdkafka limits a decompressed batch only for zstd, and a batch above that limit blocks its partition forever.

use std::cell::RefCell;
use std::ffi::{c_char, c_int, c_void};
use std::panic::catch_unwind;
use std::ptr::null_mut;
use std::slice::from_raw_parts;
use std::sync::atomic::Ordering;

use super::budget::{HELD_BACK, HeldBatch, batches};
use super::codec::{Codec, Refused};
use super::unpack::{UnpackedBatch, unpack};

type Free = Option<unsafe extern "C" fn(*mut c_void)>;

/// `RD_KAFKA_RESP_ERR__BAD_COMPRESSION`
const BAD_COMPRESSION: c_int = -198;

unsafe extern "C" {
    fn __real_rd_kafka_buf_new_shadow(bytes: *const c_void, size: usize, free: Free)
    -> *mut c_void;
    fn __real_rd_kafka_lz4_decompress(
        broker: *mut c_void,
        proper_checksum: c_int,
        offset: i64,
        compressed: *mut c_char,
        length: usize,
        out: *mut *mut c_void,
        out_length: *mut usize,
    ) -> c_int;
}

thread_local! {
    /// A snappy batch, kept between librdkafka's call for its length and the call for its bytes. librdkafka allocates the
    /// buffer in between.
    static SNAPPY: RefCell<Option<UnpackedBatch>> = const { RefCell::new(None) };
}

/// References these functions so that the linker does not remove them, although no Rust code calls them.
pub fn link() {
    std::hint::black_box([
        __wrap_rd_gz_decompress as *const (),
        __wrap_rd_kafka_lz4_decompress as *const (),
        __wrap_rd_kafka_zstd_decompress as *const (),
        __wrap_rd_kafka_snappy_java_uncompress as *const (),
        __wrap_rd_kafka_snappy_uncompressed_length as *const (),
        __wrap_rd_kafka_snappy_uncompress as *const (),
        __wrap_rd_kafka_buf_new_shadow as *const (),
    ]);
}

/// Decompresses a batch. Returns `None` if the batch is refused.
///
/// # Safety
/// `compressed` points to `length` bytes.
unsafe fn unpacked(
    codec: Codec,
    compressed: *const c_void,
    length: usize,
) -> Option<UnpackedBatch> {
    // SAFETY: the caller guarantees this.
    let compressed = unsafe { from_raw_parts(compressed.cast::<u8>(), length) };
    // A panic must not unwind through C.
    let batch = catch_unwind(|| unpack(codec, compressed)).unwrap_or(Err(Refused::Broken));
    if matches!(batch, Err(Refused::ForNow)) {
        HELD_BACK.store(true, Ordering::Relaxed);
    }
    // The parser needs an address, so an empty batch counts as refused.
    batch.ok().filter(|batch| !batch.bytes.is_empty())
}

/// Lends a batch to librdkafka by address and length. librdkafka returns it to [`release`].
fn lend(batch: UnpackedBatch) -> (*mut c_void, usize) {
    let (address, length) = (batch.bytes.as_ptr(), batch.bytes.len());
    keep(address as usize, batch.weight, Some(batch.bytes));
    (address.cast_mut().cast(), length)
}

fn keep(address: usize, weight: u64, ours: Option<Vec<u8>>) {
    let mut batches = batches();
    batches.bytes += weight;
    let free = None;
    let kept = HeldBatch { weight, ours, free };
    if let Some(before) = batches.by_address.insert(address, kept) {
        batches.bytes -= before.weight;
    }
}

unsafe extern "C" fn release(address: *mut c_void) {
    let kept = {
        let mut batches = batches();
        let kept = batches.by_address.remove(&(address as usize));
        batches.bytes -= kept.as_ref().map_or(0, |kept| kept.weight);
        kept
    };
    if let Some(HeldBatch {
        ours: None,
        free: Some(free),
        ..
    }) = kept
    {
        // SAFETY: librdkafka passed `free` together with this address.
        unsafe { free(address) };
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_rd_kafka_buf_new_shadow(
    bytes: *const c_void,
    size: usize,
    free: Free,
) -> *mut c_void {
    let free = match batches().by_address.get_mut(&(bytes as usize)) {
        Some(kept) => {
            kept.free = free;
            Some(release as unsafe extern "C" fn(*mut c_void))
        }
        None => free,
    };
    // SAFETY: these are librdkafka's own arguments, except for the function that frees the bytes.
    unsafe { __real_rd_kafka_buf_new_shadow(bytes, size, free) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_rd_gz_decompress(
    compressed: *const c_void,
    length: c_int,
    out_length: *mut u64,
) -> *mut c_void {
    // SAFETY: librdkafka passes its bytes with their length.
    let batch = unsafe { unpacked(Codec::Gzip, compressed, length as usize) };
    let (address, bytes) = batch.map_or((null_mut(), 0), lend);
    // SAFETY: librdkafka passes a valid output argument.
    unsafe { *out_length = bytes as u64 };
    address
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_rd_kafka_lz4_decompress(
    broker: *mut c_void,
    proper_checksum: c_int,
    offset: i64,
    compressed: *mut c_char,
    length: usize,
    out: *mut *mut c_void,
    out_length: *mut usize,
) -> c_int {
    if proper_checksum == 0 {
        // Only brokers before 0.10 write such batches.
        // SAFETY: these are librdkafka's own arguments.
        return unsafe {
            __real_rd_kafka_lz4_decompress(
                broker,
                proper_checksum,
                offset,
                compressed,
                length,
                out,
                out_length,
            )
        };
    }
    // SAFETY: librdkafka passes its bytes with their length, and valid output arguments.
    unsafe {
        hand_out(
            unpacked(Codec::Lz4, compressed.cast(), length),
            out,
            out_length,
        )
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_rd_kafka_zstd_decompress(
    _broker: *mut c_void,
    compressed: *mut c_char,
    length: usize,
    out: *mut *mut c_void,
    out_length: *mut usize,
) -> c_int {
    // SAFETY: librdkafka passes its bytes with their length, and valid output arguments.
    unsafe {
        hand_out(
            unpacked(Codec::Zstd, compressed.cast(), length),
            out,
            out_length,
        )
    }
}

/// # Safety
/// Both pointers can be written to.
unsafe fn hand_out(
    batch: Option<UnpackedBatch>,
    out: *mut *mut c_void,
    out_length: *mut usize,
) -> c_int {
    let Some(batch) = batch else {
        return BAD_COMPRESSION;
    };
    let (address, bytes) = lend(batch);
    // SAFETY: the caller guarantees this.
    unsafe {
        *out = address;
        *out_length = bytes;
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_rd_kafka_snappy_java_uncompress(
    compressed: *const c_char,
    length: usize,
    out_length: *mut usize,
    error: *mut c_char,
    error_size: usize,
) -> *mut c_char {
    // SAFETY: librdkafka passes its bytes with their length, valid output arguments, and its buffer for an error text.
    unsafe {
        let batch = unpacked(Codec::SnappyBlocks, compressed.cast(), length);
        let (address, bytes) = batch.map_or((null_mut(), 0), lend);
        *out_length = bytes;
        if address.is_null() && error_size > 0 {
            *error = 0;
        }
        address.cast()
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_rd_kafka_snappy_uncompressed_length(
    compressed: *const c_char,
    length: usize,
    out_length: *mut usize,
) -> bool {
    // SAFETY: librdkafka passes its bytes with their length.
    let Some(batch) = (unsafe { unpacked(Codec::Snappy, compressed.cast(), length) }) else {
        return false;
    };
    // SAFETY: librdkafka passes a valid output argument.
    unsafe { *out_length = batch.bytes.len() };
    SNAPPY.set(Some(batch));
    true
}

/// Returns 0 on success.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_rd_kafka_snappy_uncompress(
    _compressed: *const c_char,
    _length: usize,
    out: *mut c_char,
) -> c_int {
    let Some(UnpackedBatch { bytes, weight }) = SNAPPY.take() else {
        return -1;
    };
    // SAFETY: librdkafka allocated the number of bytes that `__wrap_rd_kafka_snappy_uncompressed_length` returned.
    unsafe {
        out.cast::<u8>()
            .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len())
    };
    keep(out as usize, weight, None);
    0
}
