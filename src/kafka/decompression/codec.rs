//! Decompresses batches of Kafka's four codecs piece by piece.

use std::io::{self, Error, Read};

/// The compression codec of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    Gzip,
    Lz4,
    Zstd,
    /// Snappy, as one block.
    Snappy,
    /// Snappy blocks preceded by their lengths, as the Java client writes them, without the Java client's header.
    SnappyBlocks,
}

/// The reason why a batch is not passed to the parser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// Batches that wait to be consumed take all the memory.
    ForNow,
    /// The batch cannot be decompressed at all, or not within its share of memory.
    Broken,
}

/// zstd's own limit for the window of a stream.
const ZSTD_WINDOW_LOG: u32 = 27;

/// Decompresses the whole batch. Returns `None` if the result has more than `max` bytes.
pub fn read(codec: Codec, compressed: &[u8], max: u64) -> Result<Option<Vec<u8>>, Refused> {
    if snappy_length(codec, compressed).is_some_and(|bytes| bytes > max) {
        return Ok(None);
    }
    let reader = open(codec, compressed, max).map_err(|_| Refused::Broken)?;
    let mut bytes = Vec::new();
    reader
        .take(max.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|_| Refused::Broken)?;
    Ok((bytes.len() as u64 <= max).then_some(bytes))
}

/// Opens a decompressing stream that takes at most `max` bytes of memory, however long its output is.
pub fn open<'c>(codec: Codec, compressed: &'c [u8], max: u64) -> io::Result<Box<dyn Read + 'c>> {
    Ok(match codec {
        Codec::Gzip if compressed.starts_with(&[0x1f, 0x8b]) => {
            Box::new(flate2::bufread::GzDecoder::new(compressed))
        }
        Codec::Gzip => Box::new(flate2::bufread::ZlibDecoder::new(compressed)),
        Codec::Lz4 => Box::new(lz4_flex::frame::FrameDecoder::new(compressed)),
        Codec::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(compressed)?;
            decoder.window_log_max(max.ilog2().clamp(10, ZSTD_WINDOW_LOG))?;
            Box::new(decoder)
        }
        Codec::Snappy => Box::new(Blocks {
            rest: &[],
            block: block(compressed, max)?,
            read: 0,
            max,
        }),
        Codec::SnappyBlocks => Box::new(Blocks {
            rest: compressed,
            block: Vec::new(),
            read: 0,
            max,
        }),
    })
}

/// Returns the decompressed length that a snappy batch declares.
pub fn snappy_length(codec: Codec, compressed: &[u8]) -> Option<u64> {
    match codec {
        Codec::Snappy => Some(snap::raw::decompress_len(compressed).ok()? as u64),
        Codec::SnappyBlocks => {
            let (mut rest, mut sum) = (compressed, 0);
            while let Some((one, after)) = next_block(rest) {
                sum += snap::raw::decompress_len(one).ok()? as u64;
                rest = after;
            }
            Some(sum)
        }
        _ => None,
    }
}

/// Decompresses one block at a time, because snappy cannot decompress a part of a block.
struct Blocks<'c> {
    rest: &'c [u8],
    block: Vec<u8>,
    read: usize,
    max: u64,
}

impl Read for Blocks<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.read == self.block.len() {
            if self.rest.is_empty() {
                return Ok(0);
            }
            let cut = || Error::other("a snappy block is cut off");
            let (one, rest) = next_block(self.rest).ok_or_else(cut)?;
            self.block = block(one, self.max)?;
            (self.rest, self.read) = (rest, 0);
        }
        let bytes = (&self.block[self.read..]).read(into)?;
        self.read += bytes;
        Ok(bytes)
    }
}

/// Returns the first block and the rest.
fn next_block(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = rest.split_first_chunk()?;
    rest.split_at_checked(u32::from_be_bytes(*length) as usize)
}

/// Decompresses a block. Refuses a block that decompresses to more than twice `max`.
fn block(compressed: &[u8], max: u64) -> io::Result<Vec<u8>> {
    let bytes = snap::raw::decompress_len(compressed)? as u64;
    if bytes > max.saturating_mul(2) {
        return Err(Error::other("a snappy block is too large to be read"));
    }
    Ok(snap::raw::Decoder::new().decompress_vec(compressed)?)
}
