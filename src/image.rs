//! Prepares images for scoring. They are extracted from the payload (`envelope`), decoded to 8-bit pixels (`decode`), resized
//! (`resize`) and cut into the scorer's rows (`tiles`). The scorer's outputs become maps (`maps`) and regions (`regions`).
//!
//! The preprocessing is the same as in the trainer:
//!
//! | | |
//! | --- | --- |
//! | formats | PNG, JPEG, WebP, BMP, TIFF, recognised by their first bytes |
//! | EXIF orientation | applied; EXIF that cannot be read is ignored |
//! | alpha | dropped; the colours under it are used |
//! | 16 bits | v / 257, rounded; with a smaller [`BitDepth`], its largest sample is white |
//! | palette, bilevel, CMYK, YCbCr | converted to RGB or gray by the format's decoder; colour profiles are not applied |
//! | colour where gray is wanted | ITU-R 601 luma, (19595 R + 38470 G + 7471 B + 32768) >> 16 |
//! | gray where colour is wanted | the gray value in all three channels |
//! | size | resized with an antialiased triangle filter, bit-identical to Pillow's BILINEAR |
//!
//! Animations, TIFFs with several pages, floating-point samples, truncated files, and images beyond the [`Limits`] are refused.
//! The limits are checked against the header before anything is decoded.

mod connected;
mod cost;
mod crops;
mod decode;
mod depth;
mod envelope;
mod maps;
mod noise_level;
mod overlap;
mod png;
mod regions;
mod resize;
mod tiles;
mod values;
mod view;
mod whole;

use std::borrow::Cow;

use serde_json::value::RawValue;

use crate::bundle::Pixels;
pub use connected::Components;
pub use crops::{Crop, crops};
pub use decode::{Flat, Opened};
pub use depth::BitDepth;
pub use maps::{Finding, Png, highest};
pub use noise_level::noise_level;
pub use overlap::Overlap;
pub use png::{About, PngPixels, color, encode_animation, encode_png};
pub use regions::Region;
pub use tiles::Layout;
pub use values::{bytes, values};
pub use view::{Mask, mask, shrink, thumbnail};
pub use whole::{Lost, MOST_WHOLE, WholeImage, WholeModel, noise_number};

/// Limits for the image in a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Maximum size of the encoded image, in bytes.
    pub bytes: usize,
    /// Maximum number of pixels, which is width times height.
    pub pixels: u64,
    /// Maximum memory of one image while it is decoded, resized and scored, in bytes.
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
    /// Checks whether an image of this size may take `bytes` of memory.
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

/// Default name of the field with the image in a JSON object.
pub const FIELD: &str = "image";

/// Why a payload has no image that can be scored. The payload becomes a dead letter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    #[error("the image has {is} {what}, but at most {limit} are allowed")]
    TooLarge {
        what: &'static str,
        is: u64,
        limit: u64,
    },
    #[error("the lines, profiles or texts of the image take more memory than allowed: {0}")]
    TooMuchMemory(String),
    #[error(
        "decoding and scoring the image of {width} x {height} pixels takes {is} bytes of memory, but the share for images is {limit}: raise memory.limit, or send smaller images"
    )]
    OverShare {
        width: usize,
        height: usize,
        is: u64,
        limit: u64,
    },
    #[error("the payload is neither a PNG, JPEG, WebP, BMP or TIFF image nor a JSON object")]
    Unknown,
    #[error("{0}")]
    Broken(String),
    #[error("the image is animated: send a single frame")]
    Animated,
    #[error("the payload is not a valid JSON object: {0}")]
    Json(String),
    #[error("key `{0}` occurs twice")]
    Duplicate(String),
    #[error("field `{0}` is missing: it must contain the image in base64")]
    Missing(String),
    #[error("field `{0}` is not a string: it must contain the image in base64")]
    NotString(String),
    #[error("field `{field}` is not valid base64: {problem}")]
    NotBase64 { field: String, problem: String },
}

/// Converts payloads to rows for one model.
#[derive(Debug, Clone)]
pub struct ImageReader {
    pixels: Pixels,
    /// Dotted path of the image in a JSON object.
    field: String,
    limits: Limits,
    depth: BitDepth,
    /// Set if a model works on the whole image.
    model: Option<WholeModel>,
}

/// What an image in flight takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// The bytes that its batch holds beside the payload.
    pub bytes: usize,
    /// The number of runs of the model that works on the whole image.
    pub runs: usize,
}

/// An image that is ready to be scored.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// Width of the upright image before resizing.
    pub width: usize,
    /// Height of the upright image before resizing.
    pub height: usize,
    pub layout: Layout,
    /// The model's input: uint8 [tiles, height, width, channels].
    pub rows: Vec<u8>,
}

impl Image {
    /// Returns the memory in bytes that scoring the image takes from here on, including its rows.
    pub fn bytes(&self) -> u64 {
        cost::scoring(0, 0, &self.layout)
    }
}

impl ImageReader {
    /// Creates a reader for a model that takes `pixels`. In a JSON object, the image is at the dotted path `field`.
    pub fn new(pixels: Pixels, field: &str, limits: Limits) -> ImageReader {
        ImageReader {
            pixels,
            field: field.to_owned(),
            limits,
            depth: BitDepth::default(),
            model: None,
        }
    }

    /// Has images decoded for a model that works on the whole image.
    pub fn with_model(mut self, model: WholeModel) -> ImageReader {
        self.limits.pixels = self.limits.pixels.min(MOST_WHOLE);
        self.model = Some(model);
        self
    }

    /// Sets the depth of 16-bit samples.
    pub fn with_depth(self, depth: BitDepth) -> ImageReader {
        ImageReader { depth, ..self }
    }

    /// Returns what images are decoded for, if a model works on the whole image.
    pub fn model(&self) -> Option<&WholeModel> {
        self.model.as_ref()
    }

    /// Returns the largest number of pixels of an image, and the number of runs of the model that works on it, 0 without one.
    pub fn largest(&self) -> (u64, usize) {
        let side = (self.limits.pixels as f64).sqrt() as usize;
        let runs = self.model.map_or(0, |m| m.runs(side.max(1), side.max(1)));
        (self.limits.pixels, runs)
    }

    /// Returns what was seen of 16-bit images.
    pub fn depth(&self) -> &BitDepth {
        &self.depth
    }

    pub fn pixels(&self) -> &Pixels {
        &self.pixels
    }

    /// Decodes a payload, an image or a JSON object with one, into rows.
    ///
    /// # Errors
    /// [`ImageError`] if there is no image that can be scored. No payload causes a panic or takes more memory than the limits
    /// allow.
    pub fn read(&self, payload: &[u8]) -> Result<Image, ImageError> {
        self.read_within(payload, |_| ()).map(|(image, ())| image)
    }

    /// Like [`ImageReader::read`], but calls `reserve` before anything is decoded, with the memory in bytes that the image takes
    /// until it is scored. The result of `reserve` is returned with the image.
    ///
    /// # Errors
    /// The same as of [`ImageReader::read`].
    pub fn read_within<T>(
        &self,
        payload: &[u8],
        reserve: impl FnOnce(u64) -> T,
    ) -> Result<(Image, T), ImageError> {
        let (image, reserved) = self.decode_within(payload, reserve)?;
        Ok((self.cut(image), reserved))
    }

    /// Decodes a payload: with the channels of the model that works on the whole image, or with the scorer's. `reserve` is called as in
    /// [`ImageReader::read_within`].
    ///
    /// # Errors
    /// The same as of [`ImageReader::read`].
    pub fn decode_within<T>(
        &self,
        payload: &[u8],
        reserve: impl FnOnce(u64) -> T,
    ) -> Result<(WholeImage, T), ImageError> {
        let encoded = envelope::image(payload, &self.field, self.limits.bytes)?;
        let channels = self.model.map_or(self.pixels.channels, |m| m.channels);
        let opened = Opened::new(&encoded, channels, self.limits.pixels)?;
        let (width, height) = (opened.width, opened.height);
        self.can_be_resized(width, height)?;
        let layout = Layout::of(width, height, &self.pixels);
        let unpacked = match &encoded {
            Cow::Borrowed(_) => 0,
            Cow::Owned(bytes) => bytes.len() as u64,
        };
        let working = self.model.map_or(0, |m| width * height * m.bytes);
        let scoring = cost::scoring(width, height, &layout);
        let bytes = unpacked + opened.bytes.max(scoring).max(working as u64);
        self.limits.allow(width, height, bytes)?;
        let reserved = reserve(bytes);
        let lost = Lost::of(&opened, channels);
        let flat = opened.decode(&self.depth)?;
        let image = WholeImage {
            width,
            height,
            channels,
            pixels: flat.pixels,
            number: self.model.map_or(0, |_| noise_number(&encoded)),
            lost,
        };
        Ok((image, reserved))
    }

    /// Converts an image of the scorer's channels to rows.
    pub fn cut(&self, image: WholeImage) -> Image {
        let (width, height) = (image.width, image.height);
        let flat = Flat {
            width,
            height,
            channels: image.channels,
            pixels: image.pixels,
        };
        let (layout, rows) = tiles::rows(flat, &self.pixels);
        Image {
            width,
            height,
            layout,
            rows,
        }
    }

    /// Refuses an image that is too large after resizing. An image narrower than a tile is stretched, so 1 x 64 million pixels
    /// would take gigabytes.
    fn can_be_resized(&self, width: usize, height: usize) -> Result<(), ImageError> {
        let layout = Layout::of(width, height, &self.pixels);
        let row = layout.tile_width as u64 * layout.tile_height as u64;
        let limit = self.limits.pixels.max(row);
        let is = layout.width as u64 * layout.height as u64;
        if is > limit {
            return Err(ImageError::TooLarge {
                what: "pixels after resizing",
                is,
                limit,
            });
        }
        Ok(())
    }

    /// Returns what a payload will take while it is in flight, according to its header. It is nothing if the payload will be refused.
    pub fn load(&self, payload: &[u8]) -> Load {
        let one = self.pixels.row_bytes();
        if self.pixels.tiles.is_none() && self.model.is_none() {
            return Load {
                bytes: one,
                runs: 0,
            };
        }
        let load = || {
            let encoded = envelope::image(payload, &self.field, self.limits.bytes).ok()?;
            let opened = Opened::new(&encoded, self.pixels.channels, self.limits.pixels).ok()?;
            let (width, height) = (opened.width, opened.height);
            self.can_be_resized(width, height).ok()?;
            let rows = Layout::of(width, height, &self.pixels).rows();
            let kept = self.model.map_or(0, |m| width * height * m.kept_bytes);
            Some(Load {
                bytes: rows.saturating_mul(one).saturating_add(kept),
                runs: self.model.map_or(0, |m| m.runs(width, height)),
            })
        };
        load().unwrap_or_default()
    }

    /// Returns a [`thumbnail`] of a payload's image. `reserve` is called as in [`ImageReader::read_within`].
    ///
    /// # Errors
    /// The same as of [`ImageReader::read`].
    pub fn thumbnail<T>(
        &self,
        payload: &[u8],
        side: usize,
        reserve: impl FnOnce(u64) -> T,
    ) -> Result<Vec<u8>, ImageError> {
        let encoded = envelope::image(payload, &self.field, self.limits.bytes)?;
        // What a thumbnail shows is no image of the stream, so it is not counted.
        let depth = BitDepth::new(self.depth.bits());
        view::thumbnail_within(&encoded, self.limits, &depth, side, reserve)
    }

    /// Returns a payload with a PNG image in place of its own, and whether the payload is the bare image.
    pub fn with_image(&self, payload: &[u8], png: &[u8]) -> (Vec<u8>, bool) {
        match envelope::with_image(payload, &self.field, png) {
            Some(json) => (json.into_bytes(), false),
            None => (png.to_vec(), true),
        }
    }

    /// Returns whether the payload is JSON with the image in a field, not the bare image.
    pub fn is_json(payload: &[u8]) -> bool {
        envelope::is_json(payload)
    }

    /// Returns the JSON object around the image, without the image. `None` for a bare image.
    pub fn context(&self, payload: &[u8]) -> Option<Cow<'static, RawValue>> {
        envelope::context(payload, &self.field).map(Cow::Owned)
    }
}

#[cfg(test)]
mod tests;
