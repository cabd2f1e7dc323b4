//! Images, step by step: taken out of the payload (`envelope`), decoded to 8-bit pixels (`decode`), resized (`resize`) and cut
//! into the scorer's rows (`tiles`). The scorer's outputs become maps (`maps`) and regions (`regions`).
//!
//! Preprocessing, the same as in the trainer:
//!
//! | | |
//! | --- | --- |
//! | formats | PNG, JPEG, WebP, BMP, TIFF, told by their first bytes |
//! | EXIF orientation | applied; EXIF that cannot be read counts as none |
//! | alpha | dropped: the colours under it count |
//! | 16 bits | v / 257, rounded |
//! | palette, bilevel, CMYK, YCbCr | to RGB or gray by the format's decoder; colour profiles are not applied |
//! | colour where gray is wanted | ITU-R 601 luma, (19595 R + 38470 G + 7471 B + 32768) >> 16 |
//! | gray where colour is wanted | three times the same |
//! | size | resized by an antialiased triangle, as Pillow's BILINEAR does, to the bit |
//!
//! Refused: animations, TIFFs of several pages, floating-point samples, truncated files, and images beyond the limits, which
//! are checked against the header before anything is decoded.

mod connected;
mod cost;
mod decode;
mod envelope;
mod maps;
mod regions;
mod resize;
mod tiles;
mod view;

use std::borrow::Cow;

use serde_json::value::RawValue;

use crate::bundle::Pixels;
pub use connected::Components;
use decode::Opened;
pub use maps::{Finding, Png, highest};
pub use regions::Region;
pub use tiles::Layout;
pub use view::{Mask, mask, thumbnail};

/// Limits on a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the encoded image.
    pub bytes: usize,
    /// Width times height.
    pub pixels: u64,
    /// Bytes that one image may take while it is decoded, resized and scored.
    pub memory: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            bytes: 32 << 20,
            pixels: 64 << 20,
            memory: u64::MAX,
        }
    }
}

impl Limits {
    /// Whether an image of that size may take `bytes`.
    fn allow(&self, width: usize, height: usize, bytes: u64) -> Result<(), ImageError> {
        match bytes <= self.memory {
            true => Ok(()),
            false => Err(ImageError::OverShare {
                width,
                height,
                is: bytes,
                limit: self.memory,
            }),
        }
    }
}

/// The field of a JSON object that holds the image.
pub const FIELD: &str = "image";

/// Why a payload has no image that can be scored. It becomes a dead letter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    #[error("{what}: {is}, the limit is {limit}")]
    TooLarge {
        what: &'static str,
        is: u64,
        limit: u64,
    },
    #[error("its lines, profiles or texts take more memory than those of an image may: {0}")]
    TooMuchMemory(String),
    #[error(
        "to decode and score it, {width} x {height} pixels, takes {is} bytes of memory; the share for images is {limit}: raise memory.limit, or send smaller images"
    )]
    OverShare {
        width: usize,
        height: usize,
        is: u64,
        limit: u64,
    },
    #[error("neither a PNG, JPEG, WebP, BMP or TIFF nor a JSON object")]
    Unknown,
    #[error("{0}")]
    Broken(String),
    #[error("animated: which of its images counts?")]
    Animated,
    #[error("not a JSON object that can be read: {0}")]
    Json(String),
    #[error("key `{0}` is there twice")]
    Duplicate(String),
    #[error("`{0}` is missing: it should hold the image in base64")]
    Missing(String),
    #[error("`{0}` is not a text: it should hold the image in base64")]
    NotText(String),
    #[error("`{field}` is not base64: {problem}")]
    NotBase64 { field: String, problem: String },
}

/// Reads payloads into rows for one model.
#[derive(Debug, Clone)]
pub struct ImageReader {
    pixels: Pixels,
    /// Dotted path.
    field: String,
    limits: Limits,
}

/// An image, ready to be scored.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// Size when upright and before resizing.
    pub width: usize,
    pub height: usize,
    pub layout: Layout,
    /// uint8 [tiles, height, width, channels] of the model.
    pub rows: Vec<u8>,
}

impl Image {
    /// Bytes that scoring it takes from here on, rows included.
    pub fn bytes(&self) -> u64 {
        cost::scoring(0, 0, &self.layout)
    }
}

impl ImageReader {
    /// Reads images for `pixels`; in a JSON object they are at `field`, a dotted path.
    pub fn new(pixels: Pixels, field: &str, limits: Limits) -> ImageReader {
        ImageReader {
            pixels,
            field: field.to_owned(),
            limits,
        }
    }

    pub fn pixels(&self) -> &Pixels {
        &self.pixels
    }

    /// Decodes a payload, an image or a JSON object with one, into rows.
    ///
    /// # Errors
    /// [`ImageError`]. No payload makes it panic or take more memory than the limits allow.
    pub fn read(&self, payload: &[u8]) -> Result<Image, ImageError> {
        self.read_within(payload, |_| ()).map(|(image, ())| image)
    }

    /// The same. `take` is told the bytes that it takes until the image is scored, before anything is decoded; what it gives comes back with
    /// the image.
    ///
    /// # Errors
    /// As [`ImageReader::read`].
    pub fn read_within<T>(
        &self,
        payload: &[u8],
        take: impl FnOnce(u64) -> T,
    ) -> Result<(Image, T), ImageError> {
        let encoded = envelope::image(payload, &self.field, self.limits.bytes)?;
        let opened = Opened::new(&encoded, self.pixels.channels, self.limits.pixels)?;
        let (width, height) = (opened.width, opened.height);
        self.can_be_resized(width, height)?;
        let layout = Layout::of(width, height, &self.pixels);
        let unpacked = match &encoded {
            Cow::Borrowed(_) => 0,
            Cow::Owned(bytes) => bytes.len() as u64,
        };
        let bytes = unpacked + opened.bytes.max(cost::scoring(width, height, &layout));
        self.limits.allow(width, height, bytes)?;
        let taken = take(bytes);
        let (layout, rows) = tiles::rows(opened.decode()?, &self.pixels);
        let image = Image {
            width,
            height,
            layout,
            rows,
        };
        Ok((image, taken))
    }

    /// Refuses an image that becomes too large: one narrower than a tile is stretched, and 1 x 64 million pixels would take gigabytes.
    fn can_be_resized(&self, width: usize, height: usize) -> Result<(), ImageError> {
        let layout = Layout::of(width, height, &self.pixels);
        let row = layout.tile_width as u64 * layout.tile_height as u64;
        let limit = self.limits.pixels.max(row);
        let is = layout.width as u64 * layout.height as u64;
        if is > limit {
            return Err(ImageError::TooLarge {
                what: "pixels once it is resized",
                is,
                limit,
            });
        }
        Ok(())
    }

    /// Bytes of the rows that a payload will become, by its header; 0 if it will be refused.
    pub fn row_bytes(&self, payload: &[u8]) -> usize {
        let one = self.pixels.row_bytes();
        if self.pixels.tiles.is_none() {
            return one;
        }
        let rows = || {
            let encoded = envelope::image(payload, &self.field, self.limits.bytes).ok()?;
            let opened = Opened::new(&encoded, self.pixels.channels, self.limits.pixels).ok()?;
            let (width, height) = (opened.width, opened.height);
            self.can_be_resized(width, height).ok()?;
            Some(Layout::of(width, height, &self.pixels).rows())
        };
        rows().map_or(0, |rows| rows.saturating_mul(one))
    }

    /// The image of a payload, to look at: see [`thumbnail`]. `take` as in [`ImageReader::read_within`].
    ///
    /// # Errors
    /// As [`ImageReader::read`].
    pub fn thumbnail<T>(
        &self,
        payload: &[u8],
        side: usize,
        take: impl FnOnce(u64) -> T,
    ) -> Result<Vec<u8>, ImageError> {
        let encoded = envelope::image(payload, &self.field, self.limits.bytes)?;
        view::thumbnail_within(&encoded, self.limits, side, take)
    }

    /// The JSON object around the image without the image; `None` for a bare image.
    pub fn context(&self, payload: &[u8]) -> Option<Cow<'static, RawValue>> {
        envelope::context(payload, &self.field).map(Cow::Owned)
    }
}

#[cfg(test)]
mod tests;
