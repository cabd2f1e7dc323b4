//! Decodes images that are not scored: thumbnails and masks.

use ::image::ExtendedColorType;
use ::image::ImageEncoder;
use ::image::codecs::jpeg::JpegEncoder;

use super::decode::{Flat, Opened};
use super::resize::resize;
use super::{BitDepth, ImageError, Limits, envelope};

const JPEG_QUALITY: u8 = 85;

/// The anomalous pixels of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    pub width: usize,
    pub height: usize,
    /// Whether each pixel is anomalous: [height, width], row-major.
    pub marked: Vec<bool>,
}

/// Decodes a mask. Pixels that are not black are marked.
///
/// # Errors
/// The same as for an image that is to be scored.
pub fn mask(encoded: &[u8], limits: Limits) -> Result<Mask, ImageError> {
    let (flat, ()) = flat(encoded, 1, limits, &BitDepth::default(), |_| ())?;
    Ok(Mask {
        width: flat.width,
        height: flat.height,
        marked: flat.pixels.iter().map(|level| *level > 0).collect(),
    })
}

/// Returns the upright image as a JPEG in colour. Its longer side has at most `side` pixels.
///
/// # Errors
/// The same as for an image that is to be scored.
pub fn thumbnail(encoded: &[u8], limits: Limits, side: usize) -> Result<Vec<u8>, ImageError> {
    thumbnail_within(encoded, limits, &BitDepth::default(), side, |_| ())
}

/// Like [`thumbnail`], but calls `reserve` before anything is decoded, with the memory that it takes in bytes. The result of
/// `reserve` is kept until the thumbnail is made.
pub fn thumbnail_within<T>(
    encoded: &[u8],
    limits: Limits,
    depth: &BitDepth,
    side: usize,
    reserve: impl FnOnce(u64) -> T,
) -> Result<Vec<u8>, ImageError> {
    let (flat, _reserved) = flat(encoded, 3, limits, depth, reserve)?;
    let small = shrink(flat, side);
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, JPEG_QUALITY)
        .write_image(
            &small.pixels,
            small.width as u32,
            small.height as u32,
            ExtendedColorType::Rgb8,
        )
        .map_err(|e| ImageError::Broken(e.to_string()))?;
    Ok(jpeg)
}

/// Returns the image with at most `side` pixels on its longer side. A smaller image stays as it is.
pub fn shrink(image: Flat, side: usize) -> Flat {
    let longer = image.width.max(image.height).max(side);
    let (width, height) = (image.width * side / longer, image.height * side / longer);
    resize(image, width.max(1), height.max(1))
}

fn flat<T>(
    encoded: &[u8],
    channels: usize,
    limits: Limits,
    depth: &BitDepth,
    reserve: impl FnOnce(u64) -> T,
) -> Result<(Flat, T), ImageError> {
    let encoded = envelope::image(encoded, super::FIELD, limits.bytes)?;
    let opened = Opened::new(&encoded, channels, limits.pixels)?;
    // The first pass of resizing makes an image of the same height and at most the same width.
    let pixels = (opened.width * opened.height * channels) as u64;
    let bytes = opened.bytes.max(2 * pixels);
    limits.allow(opened.width, opened.height, bytes)?;
    let reserved = reserve(bytes);
    Ok((opened.decode(depth)?, reserved))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::image::codecs::png::PngEncoder;

    fn png(width: u32, height: u32, levels: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        PngEncoder::new(&mut bytes)
            .write_image(levels, width, height, ExtendedColorType::L8)
            .unwrap();
        bytes
    }

    #[test]
    fn what_is_not_black_is_marked() {
        let mask = mask(&png(3, 2, &[0, 1, 255, 0, 0, 7]), Limits::default()).unwrap();
        assert_eq!((mask.width, mask.height), (3, 2));
        assert_eq!(mask.marked, [false, true, true, false, false, true]);
    }

    #[test]
    fn thumbnails_keep_the_shape_and_are_never_larger() {
        let size = |width, height, side| {
            let image = png(width, height, &vec![90; (width * height) as usize]);
            let jpeg = thumbnail(&image, Limits::default(), side).unwrap();
            let small = ::image::load_from_memory(&jpeg).unwrap();
            (small.width(), small.height())
        };
        assert_eq!(size(400, 100, 100), (100, 25));
        assert_eq!(size(40, 10, 100), (40, 10));
        assert_eq!(size(1, 1000, 100), (1, 100));
        assert!(thumbnail(b"none", Limits::default(), 100).is_err());
    }

    /// Found by fuzzing: png 0.18.1 panics if a palette ends within a colour (image-rs/image-png#694).
    #[test]
    fn a_decoder_that_panics_is_a_refusal() {
        let image = include_bytes!("../../tests/fuzz/seeds/image/odd_palette.png");
        let refused = thumbnail(image, Limits::default(), 100);
        assert!(matches!(refused, Err(ImageError::Broken(_))), "{refused:?}");
    }

    /// A few kilobytes that would become 16 GB of pixels.
    #[test]
    fn an_image_that_resizing_would_blow_up_is_too_large() {
        let long = png(1, 1 << 20, &vec![0; 1 << 20]);
        let limits = Limits {
            bytes: 1 << 20,
            pixels: 1 << 21,
            memory: u64::MAX,
        };
        let mut pixels = serde_json::json!(
            {"height": 64, "width": 64, "channels": 1, "resize": "bilinear"}
        );
        let read = |pixels: &serde_json::Value, image: &[u8]| {
            let pixels = serde_json::from_value(pixels.clone()).unwrap();
            super::super::ImageReader::new(pixels, super::super::FIELD, limits).read(image)
        };
        assert!(read(&pixels, &long).is_ok());
        pixels["tiles"] = serde_json::json!({"scale": 1.0, "overlap": 8});
        let found = read(&pixels, &long);
        assert!(
            matches!(found, Err(ImageError::TooLarge { is, .. }) if is == 64 << 20),
            "{found:?}"
        );
        assert!(read(&pixels, &png(1, 1000, &[0; 1000])).is_ok());
    }
}
