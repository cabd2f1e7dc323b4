//! The four codecs of Kafka, read piece by piece.

use std::io::{self, Error, Read};

use super::Refused;

/// How a batch is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    Gzip,
    Lz4,
    Zstd,
    /// One block.
    Snappy,
    /// Blocks with their lengths before them, as Java writes it; without its header.
    SnappyBlocks,
}

/// zstd's own bound for the window that a stream may ask for.
const ZSTD_WINDOW_LOG: u32 = 27;

/// All of it, or `None` if it is more than `most` bytes.
pub fn read(codec: Codec, compressed: &[u8], most: u64) -> Result<Option<Vec<u8>>, Refused> {
    if snappy_length(codec, compressed).is_some_and(|bytes| bytes > most) {
        return Ok(None);
    }
    let reader = open(codec, compressed, most).map_err(|_| Refused::Broken)?;
    let mut bytes = Vec::new();
    reader
        .take(most.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|_| Refused::Broken)?;
    Ok((bytes.len() as u64 <= most).then_some(bytes))
}

/// Takes at most `most` bytes of memory, whatever comes out of it.
pub fn open<'c>(codec: Codec, compressed: &'c [u8], most: u64) -> io::Result<Box<dyn Read + 'c>> {
    Ok(match codec {
        Codec::Gzip if compressed.starts_with(&[0x1f, 0x8b]) => {
            Box::new(flate2::bufread::GzDecoder::new(compressed))
        }
        Codec::Gzip => Box::new(flate2::bufread::ZlibDecoder::new(compressed)),
        Codec::Lz4 => Box::new(lz4_flex::frame::FrameDecoder::new(compressed)),
        Codec::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(compressed)?;
            decoder.window_log_max(most.ilog2().clamp(10, ZSTD_WINDOW_LOG))?;
            Box::new(decoder)
        }
        Codec::Snappy => Box::new(Blocks {
            rest: &[],
            block: block(compressed, most)?,
            read: 0,
            most,
        }),
        Codec::SnappyBlocks => Box::new(Blocks {
            rest: compressed,
            block: Vec::new(),
            read: 0,
            most,
        }),
    })
}

/// Bytes that a snappy batch says it has.
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

/// Snappy cannot be read in parts smaller than a block.
struct Blocks<'c> {
    rest: &'c [u8],
    block: Vec<u8>,
    read: usize,
    most: u64,
}

impl Read for Blocks<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.read == self.block.len() {
            if self.rest.is_empty() {
                return Ok(0);
            }
            let cut = || Error::other("a block of snappy is cut off");
            let (one, rest) = next_block(self.rest).ok_or_else(cut)?;
            self.block = block(one, self.most)?;
            (self.rest, self.read) = (rest, 0);
        }
        let bytes = (&self.block[self.read..]).read(into)?;
        self.read += bytes;
        Ok(bytes)
    }
}

/// A block and what comes behind it.
fn next_block(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = rest.split_first_chunk()?;
    rest.split_at_checked(u32::from_be_bytes(*length) as usize)
}

/// One of more than twice `most` cannot be read at all.
fn block(compressed: &[u8], most: u64) -> io::Result<Vec<u8>> {
    let bytes = snap::raw::decompress_len(compressed)? as u64;
    if bytes > most.saturating_mul(2) {
        return Err(Error::other(
            "a block of snappy that is too large to be read",
        ));
    }
    Ok(snap::raw::Decoder::new().decompress_vec(compressed)?)
}
