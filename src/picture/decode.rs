//! An encoded picture to upright 8-bit pixels of 1 or 3 channels.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::codecs::bmp::BmpDecoder;
use image::codecs::jpeg::JpegDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::tiff::TiffDecoder;
use image::codecs::webp::WebPDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, Limits};

use super::PictureError;

/// What a decoder may take beside the pixels, bytes.
const SCRATCH: u64 = 64 << 20;
/// Of the widest pixel, 16 bits of red, green, blue and alpha.
const PIXEL_BYTES: u64 = 8;

/// uint8 [height, width, channels], row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Flat {
    pub width: usize,
    pub height: usize,
    pub channels: usize,
    pub pixels: Vec<u8>,
}

/// Decodes a picture of at most `most` pixels to `channels`, 1 or 3.
pub fn decode(encoded: &[u8], channels: usize, most: u64) -> Result<Flat, PictureError> {
    guarded(|| {
        let mut decoder = open(encoded, most)?;
        // EXIF that cannot be read must not cost the picture.
        let upright = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        let mut picture = DynamicImage::from_decoder(decoder).map_err(broken)?;
        picture.apply_orientation(upright);
        flatten(picture, channels)
    })
}

/// Width and height as the header says, upright, held against the limit of `most` pixels.
pub fn size(encoded: &[u8], most: u64) -> Result<(usize, usize), PictureError> {
    guarded(|| {
        let mut decoder = open(encoded, most)?;
        let (width, height) = decoder.dimensions();
        let (width, height) = (width as usize, height as usize);
        let turned = matches!(
            decoder.orientation(),
            Ok(Orientation::Rotate90
                | Orientation::Rotate270
                | Orientation::Rotate90FlipH
                | Orientation::Rotate270FlipH)
        );
        Ok(if turned {
            (height, width)
        } else {
            (width, height)
        })
    })
}

/// A decoder's panic on bytes from outside is that picture's fault, not the end of the process.
fn guarded<T>(body: impl FnOnce() -> Result<T, PictureError>) -> Result<T, PictureError> {
    catch_unwind(AssertUnwindSafe(body))
        .unwrap_or_else(|_| Err(PictureError::Broken("its decoder panicked".to_owned())))
}

/// Reads the header, and refuses what is too large or animated.
fn open(encoded: &[u8], most: u64) -> Result<Box<dyn ImageDecoder + '_>, PictureError> {
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(most.saturating_mul(PIXEL_BYTES).saturating_add(SCRATCH));
    let bytes = Cursor::new(encoded);
    let mut decoder: Box<dyn ImageDecoder + '_> = match image::guess_format(encoded) {
        Ok(ImageFormat::Png) => {
            let png = PngDecoder::with_limits(bytes, limits.clone()).map_err(broken)?;
            if png.is_apng().map_err(broken)? {
                return Err(PictureError::Animated);
            }
            Box::new(png)
        }
        Ok(ImageFormat::WebP) => {
            let webp = WebPDecoder::new(bytes).map_err(broken)?;
            if webp.has_animation() {
                return Err(PictureError::Animated);
            }
            Box::new(webp)
        }
        Ok(ImageFormat::Jpeg) => {
            if !jpeg_has_its_end(encoded) {
                return Err(PictureError::Broken("JPEG: cut off".to_owned()));
            }
            Box::new(JpegDecoder::new(bytes).map_err(broken)?)
        }
        Ok(ImageFormat::Bmp) => Box::new(BmpDecoder::new(bytes).map_err(broken)?),
        Ok(ImageFormat::Tiff) => {
            if tiff_goes_on(encoded) {
                return Err(PictureError::Broken("TIFF: several pages".to_owned()));
            }
            Box::new(TiffDecoder::new(bytes).map_err(broken)?)
        }
        _ => return Err(PictureError::Unknown),
    };
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 {
        return Err(PictureError::Broken(format!("{width} x {height} pixels")));
    }
    if pixels > most {
        return Err(PictureError::TooLarge {
            what: "pixels",
            is: pixels,
            limit: most,
        });
    }
    decoder.set_limits(limits).map_err(broken)?;
    Ok(decoder)
}

fn broken(error: ImageError) -> PictureError {
    match error {
        ImageError::Limits(limit) => PictureError::TooMuchMemory(limit.to_string()),
        error => PictureError::Broken(error.to_string()),
    }
}

/// The decoder paints what is cut off gray and says nothing. In the data of a scan, 0xFF is followed by 0 or a restart,
/// so what looks like a marker after the last start of a scan is one.
fn jpeg_has_its_end(encoded: &[u8]) -> bool {
    let last = |marker: u8| encoded.windows(2).rposition(|pair| pair == [0xff, marker]);
    let (scan, end) = (last(0xda), last(0xd9));
    end.is_some() && end >= scan
}

/// Whether the first directory names a second one.
fn tiff_goes_on(encoded: &[u8]) -> bool {
    let little = encoded.starts_with(b"II");
    let number = |at: usize, bytes: usize| {
        let part = encoded.get(at..at.checked_add(bytes)?)?;
        let digits = part.iter();
        let fold = |sum: usize, digit: &u8| sum << 8 | usize::from(*digit);
        Some(match little {
            true => digits.rev().fold(0, fold),
            false => digits.fold(0, fold),
        })
    };
    let next = || {
        let first = number(4, 4)?;
        let entries = number(first, 2)?;
        number(first + 2 + 12 * entries, 4)
    };
    next().is_some_and(|next| next != 0)
}

/// Alpha dropped, 16 bits to 8, to `channels`.
fn flatten(picture: DynamicImage, channels: usize) -> Result<Flat, PictureError> {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let samples = usize::from(picture.color().channel_count());
    let eight_bits = match picture {
        DynamicImage::ImageLuma8(b) => b.into_raw(),
        DynamicImage::ImageLumaA8(b) => b.into_raw(),
        DynamicImage::ImageRgb8(b) => b.into_raw(),
        DynamicImage::ImageRgba8(b) => b.into_raw(),
        DynamicImage::ImageLuma16(b) => narrow(&b.into_raw()),
        DynamicImage::ImageLumaA16(b) => narrow(&b.into_raw()),
        DynamicImage::ImageRgb16(b) => narrow(&b.into_raw()),
        DynamicImage::ImageRgba16(b) => narrow(&b.into_raw()),
        _ => return Err(PictureError::Broken("floating point samples".to_owned())),
    };
    Ok(Flat {
        width,
        height,
        channels,
        pixels: to_channels(eight_bits, samples, channels),
    })
}

fn narrow(samples: &[u16]) -> Vec<u8> {
    let rounded = |v: &u16| ((u32::from(*v) + 128) / 257) as u8;
    samples.iter().map(rounded).collect()
}

/// `samples` a pixel are 1 or 2 of gray, 3 or 4 of colour, the even ones with alpha.
fn to_channels(pixels: Vec<u8>, samples: usize, channels: usize) -> Vec<u8> {
    let each = pixels.chunks_exact(samples);
    match (samples, channels) {
        (1, 1) | (3, 3) => pixels,
        (2, 1) => each.map(|p| p[0]).collect(),
        (1 | 2, _) => each.flat_map(|p| [p[0]; 3]).collect(),
        (_, 1) => each.map(luma).collect(),
        (_, _) => each.flat_map(|p| [p[0], p[1], p[2]]).collect(),
    }
}

/// ITU-R 601, in the integers of Pillow's `convert("L")`.
fn luma(pixel: &[u8]) -> u8 {
    let [r, g, b] = [0, 1, 2].map(|i| u32::from(pixel[i]));
    ((r * 19_595 + g * 38_470 + b * 7_471 + 0x8000) >> 16) as u8
}
