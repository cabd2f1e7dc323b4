//! Computes the maximum memory that an image takes until it is scored, from its header and before anything is decoded.

use ::image::{ImageDecoder, ImageFormat};

use super::Layout;

/// Memory of a decoder's tables, rows and buffers in bytes, independent of the image.
const SCRATCH: u64 = 4 << 20;

/// Returns the memory that decoding takes in bytes: the decoder's memory besides its input, and the 8-bit pixels made from its
/// output.
pub fn decoding(
    decoder: &dyn ImageDecoder,
    format: ImageFormat,
    encoded: &[u8],
    channels: usize,
    turned: bool,
) -> u64 {
    let (width, height) = decoder.dimensions();
    let (width, height) = (u64::from(width), u64::from(height));
    let out = decoder.total_bytes();
    let bytes = encoded.len() as u64;
    let held = match format {
        ImageFormat::Jpeg => bytes + jpeg(width, height, decoder, encoded),
        // Either planes of YUV and alpha, or a second copy of the pixels and an image of the transforms.
        ImageFormat::WebP => {
            8 * width.next_multiple_of(16) * height.next_multiple_of(16) + webp_tables(bytes)
        }
        // A second copy of the output, and a strip, which may be the whole image.
        ImageFormat::Tiff => match holds_jpeg(encoded) {
            false => 2 * out,
            true => 5 * out,
        },
        // Rows that other rows are filtered against.
        _ => 4 * out / height.max(1),
    };
    let flat = width * height * channels as u64;
    let decoding = out + held + if out == flat { 0 } else { flat };
    let turning = if turned { 2 * flat } else { 0 };
    SCRATCH.saturating_add(decoding.max(turning))
}

/// Returns the memory in bytes from the 8-bit pixels to the score: the image between the two passes of resizing, the rows, and
/// the scorer's outputs for each pixel, from which the maps of a verdict are made.
pub fn scoring(width: usize, height: usize, layout: &Layout) -> u64 {
    let [width, height, canvas_width, canvas_height, channels] =
        [width, height, layout.width, layout.height, layout.channels].map(|n| n as u64);
    let canvas = canvas_width * canvas_height;
    let between = (canvas_width * height).max(width * canvas_height);
    let kept = rows(layout);
    let resizing = width * height + between + canvas;
    // The rows have original samples, expected samples, and the heat as a float. The canvas has both maps again.
    kept + (resizing * channels).max(kept + canvas * (12 + 2 * channels))
}

/// Returns the memory in bytes of a decoded image that waits for the scorer.
pub fn rows(layout: &Layout) -> u64 {
    let one = layout.tile_width * layout.tile_height;
    (layout.rows() * one * layout.channels) as u64
}

/// Returns the memory of a JPEG decoder: strips of samples, and all 16-bit coefficients if a component is spread over several
/// scans.
fn jpeg(width: u64, height: u64, decoder: &dyn ImageDecoder, encoded: &[u8]) -> u64 {
    let components = u64::from(decoder.original_color_type().channel_count()).max(3);
    let strips = 512 * components * width;
    let marks = |code: u8| encoded.windows(2).filter(move |pair| *pair == [0xff, code]);
    let progressive = marks(0xc2).next().is_some();
    let coefficients = match progressive || marks(0xda).nth(1).is_some() {
        true => 2 * components * width.next_multiple_of(32) * height.next_multiple_of(32),
        false => 0,
    };
    strips + coefficients
}

/// Returns the memory of Huffman tables. A lossless WebP may contain thousands of Huffman codes, whose tables take more memory
/// than in the file.
fn webp_tables(bytes: u64) -> u64 {
    32 * bytes
}

/// Returns whether a TIFF contains JPEG strips. A strip is decoded as a whole, possibly with all of its coefficients.
fn holds_jpeg(encoded: &[u8]) -> bool {
    encoded.windows(3).any(|mark| mark == [0xff, 0xd8, 0xff])
}
