//! Images that a diffusion model works on as a whole, at their own size: to translate them before they are scored, or to denoise
//! them.

use sha2::{Digest, Sha256};

use super::{Opened, Overlap};

/// Maximum number of pixels of such an image. The model's sampler holds several copies of it as floats.
pub const MOST_WHOLE: u64 = 16 << 20;

/// What an [`ImageReader`](super::ImageReader) must know of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WholeModel {
    /// The channels of the images that it takes: 1 for gray, 3 for RGB.
    pub channels: usize,
    /// Height and width of the tiles in which it sees them.
    pub tile: [usize; 2],
    /// The number of its runs for each tile, and for each image beside them.
    pub runs: [usize; 2],
    /// The bytes of memory that its work takes for each pixel.
    pub bytes: usize,
    /// The bytes for each pixel that stay until the image's batch is delivered.
    pub kept_bytes: usize,
}

impl WholeModel {
    /// Returns the number of the model's runs on an image of this size.
    pub fn runs(&self, width: usize, height: usize) -> usize {
        let [each_tile, each_image] = self.runs;
        Overlap::new([height, width], self.tile).tiles() * each_tile + each_image
    }
}

/// A decoded image, upright.
#[derive(Debug, Clone, PartialEq)]
pub struct WholeImage {
    pub width: usize,
    pub height: usize,
    pub channels: usize,
    /// 8 bits, in reading order.
    pub pixels: Vec<u8>,
    /// The number of its noise, by [`noise_number`].
    pub number: u64,
    pub lost: Lost,
}

/// What an image lost when it was decoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lost {
    /// It became gray.
    pub colour: bool,
    /// It had 16 bits for each channel.
    pub depth: bool,
    pub transparency: bool,
}

impl Lost {
    /// `channels`: those that the image is decoded to.
    pub fn of(opened: &Opened<'_>, channels: usize) -> Lost {
        Lost {
            colour: channels == 1 && opened.is_colour(),
            depth: opened.has_16_bits(),
            transparency: opened.has_alpha(),
        }
    }

    /// Returns the names of what was lost.
    pub fn names(&self) -> Vec<&'static str> {
        let all = [
            ("colour", self.colour),
            ("depth", self.depth),
            ("transparency", self.transparency),
        ];
        let lost = all.into_iter().filter(|(_, is_lost)| *is_lost);
        lost.map(|(name, _)| name).collect()
    }
}

/// Returns the number of the noise of an image that comes as these bytes, with any name and from anywhere: the first 8 bytes of their
/// SHA-256, big-endian.
pub fn noise_number(encoded: &[u8]) -> u64 {
    let digest = Sha256::digest(encoded);
    u64::from_be_bytes(std::array::from_fn(|i| digest[i]))
}
