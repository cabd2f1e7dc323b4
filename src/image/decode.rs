//! Decodes an image to upright 8-bit pixels with 1 or 3 channels.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use ::image::codecs::bmp::BmpDecoder;
use ::image::codecs::jpeg::JpegDecoder;
use ::image::codecs::png::PngDecoder;
use ::image::codecs::tiff::TiffDecoder;
use ::image::codecs::webp::WebPDecoder;
use ::image::metadata::Orientation;
use ::image::{
    DynamicImage, GrayImage, ImageDecoder, ImageError as CodecError, ImageFormat, Limits, RgbImage,
};

use super::{BitDepth, ImageError, cost};

/// Memory limit of a decoder for the header and metadata (profiles, EXIF, texts), in bytes.
const HEADER: u64 = 8 << 20;

/// Decoded pixels: uint8 [height, width, channels], row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Flat {
    pub width: usize,
    pub height: usize,
    pub channels: usize,
    pub pixels: Vec<u8>,
}

/// An image whose header has been read.
pub struct Opened<'e> {
    decoder: Box<dyn ImageDecoder + 'e>,
    /// The transformation that makes the image upright.
    turn: Orientation,
    /// Width of the upright image.
    pub width: usize,
    /// Height of the upright image.
    pub height: usize,
    channels: usize,
    /// Maximum memory that [`Opened::decode`] takes, in bytes.
    pub bytes: u64,
}

impl<'e> Opened<'e> {
    /// Reads the header of an image with at most `most` pixels, which is to be decoded to `channels` (1 or 3).
    pub fn new(encoded: &'e [u8], channels: usize, most: u64) -> Result<Self, ImageError> {
        guarded(|| {
            let (mut decoder, format) = open(encoded, most)?;
            // Unreadable EXIF must not make the image fail.
            let turn = decoder.orientation().unwrap_or(Orientation::NoTransforms);
            let (width, height) = decoder.dimensions();
            let (width, height) = match turn {
                Orientation::Rotate90
                | Orientation::Rotate270
                | Orientation::Rotate90FlipH
                | Orientation::Rotate270FlipH => (height, width),
                _ => (width, height),
            };
            let turned = turn != Orientation::NoTransforms;
            let bytes = cost::decoding(&*decoder, format, encoded, channels, turned);
            let mut limits = Limits::no_limits();
            limits.max_alloc = Some(bytes.saturating_add(HEADER));
            decoder.set_limits(limits).map_err(broken)?;
            Ok(Opened {
                decoder,
                turn,
                width: width as usize,
                height: height as usize,
                channels,
                bytes,
            })
        })
    }

    /// Whether the image has colours, which are lost with 1 channel.
    pub fn is_colour(&self) -> bool {
        self.decoder.color_type().has_color()
    }

    /// Whether the image has 16 bits per channel, of which 8 are kept.
    pub fn has_16_bits(&self) -> bool {
        let color = self.decoder.color_type();
        color.bytes_per_pixel() == 2 * color.channel_count()
    }

    /// Whether the image has transparency, which is lost.
    pub fn has_alpha(&self) -> bool {
        self.decoder.color_type().has_alpha()
    }

    /// Decodes the image. `depth` is that of 16-bit samples.
    pub fn decode(self, depth: &BitDepth) -> Result<Flat, ImageError> {
        guarded(|| {
            let image = DynamicImage::from_decoder(self.decoder).map_err(broken)?;
            let flat = flatten(image, self.channels, depth)?;
            match self.turn {
                Orientation::NoTransforms => Ok(flat),
                turn => turned(flat, turn),
            }
        })
    }
}

/// Turns a panic of a decoder into an error, so that a bad image does not end the process.
fn guarded<T>(body: impl FnOnce() -> Result<T, ImageError>) -> Result<T, ImageError> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| {
        Err(ImageError::Broken(
            "the image's decoder panicked".to_owned(),
        ))
    })
}

type Header<'e> = (Box<dyn ImageDecoder + 'e>, ImageFormat);

/// Reads the header and refuses images that are too large or animated.
fn open(encoded: &[u8], most: u64) -> Result<Header<'_>, ImageError> {
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(HEADER);
    let bytes = Cursor::new(encoded);
    let format = ::image::guess_format(encoded).map_err(|_| ImageError::Unknown)?;
    let decoder: Box<dyn ImageDecoder + '_> = match format {
        ImageFormat::Png => {
            let png = PngDecoder::with_limits(bytes, limits).map_err(broken)?;
            if png.is_apng().map_err(broken)? {
                return Err(ImageError::Animated);
            }
            Box::new(png)
        }
        ImageFormat::WebP => {
            let webp = WebPDecoder::new(bytes).map_err(broken)?;
            if webp.has_animation() {
                return Err(ImageError::Animated);
            }
            Box::new(webp)
        }
        ImageFormat::Jpeg => {
            if !jpeg_has_its_end(encoded) {
                return Err(ImageError::Broken("the JPEG is truncated".to_owned()));
            }
            Box::new(JpegDecoder::new(bytes).map_err(broken)?)
        }
        ImageFormat::Bmp => Box::new(BmpDecoder::new(bytes).map_err(broken)?),
        ImageFormat::Tiff => {
            if tiff_goes_on(encoded) {
                return Err(ImageError::Broken(
                    "the TIFF has several pages: send a single page".to_owned(),
                ));
            }
            Box::new(TiffDecoder::new(bytes).map_err(broken)?)
        }
        _ => return Err(ImageError::Unknown),
    };
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 {
        return Err(ImageError::Broken(format!(
            "the image is empty: its size is {width} x {height} pixels"
        )));
    }
    if pixels > most {
        return Err(ImageError::TooLarge {
            what: "pixels",
            is: pixels,
            limit: most,
        });
    }
    Ok((decoder, format))
}

fn broken(error: CodecError) -> ImageError {
    match error {
        CodecError::Limits(limit) => ImageError::TooMuchMemory(limit.to_string()),
        error => ImageError::Broken(error.to_string()),
    }
}

/// Returns whether a JPEG is complete. The decoder would silently fill the rest of a truncated one with gray. In a scan's data,
/// 0xFF is followed by 0 or a restart marker, so every other marker after the last start of a scan is a real one.
fn jpeg_has_its_end(encoded: &[u8]) -> bool {
    let last = |marker: u8| encoded.windows(2).rposition(|pair| pair == [0xff, marker]);
    let (scan, end) = (last(0xda), last(0xd9));
    end.is_some() && end >= scan
}

/// Returns whether a TIFF has several pages: its first directory then refers to a second one.
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

/// Drops alpha, and converts 16 bits to 8 and the colours to `channels`, in one pass and without a third copy of the image.
fn flatten(image: DynamicImage, channels: usize, depth: &BitDepth) -> Result<Flat, ImageError> {
    let largest = match &image {
        DynamicImage::ImageLuma16(b) => b.iter().copied().max(),
        // The last sample of a pixel is alpha.
        DynamicImage::ImageLumaA16(b) => b.pixels().map(|p| p[0]).max(),
        DynamicImage::ImageRgb16(b) => b.iter().copied().max(),
        DynamicImage::ImageRgba16(b) => b.pixels().map(|p| p[0].max(p[1]).max(p[2])).max(),
        _ => None,
    };
    if let Some(largest) = largest {
        depth.note(largest).map_err(ImageError::Broken)?;
    }
    let narrow = depth.narrow();
    let (width, height) = (image.width() as usize, image.height() as usize);
    let pixels = match image {
        DynamicImage::ImageLuma8(b) if channels == 1 => b.into_raw(),
        DynamicImage::ImageRgb8(b) if channels == 3 => b.into_raw(),
        DynamicImage::ImageLuma8(b) => gray::<_, 1>(&b, channels, |v| v),
        DynamicImage::ImageLumaA8(b) => gray::<_, 2>(&b, channels, |v| v),
        DynamicImage::ImageLuma16(b) => gray::<_, 1>(&b, channels, &narrow),
        DynamicImage::ImageLumaA16(b) => gray::<_, 2>(&b, channels, &narrow),
        DynamicImage::ImageRgb8(b) => colour::<_, 3>(&b, channels, |v| v),
        DynamicImage::ImageRgba8(b) => colour::<_, 4>(&b, channels, |v| v),
        DynamicImage::ImageRgb16(b) => colour::<_, 3>(&b, channels, &narrow),
        DynamicImage::ImageRgba16(b) => colour::<_, 4>(&b, channels, &narrow),
        _ => {
            return Err(ImageError::Broken(
                "the image has floating-point samples, which are not supported".to_owned(),
            ));
        }
    };
    Ok(Flat {
        width,
        height,
        channels,
        pixels,
    })
}

/// Converts pixels of `N` samples, of which the first is gray.
fn gray<T: Copy, const N: usize>(samples: &[T], channels: usize, to: impl Fn(T) -> u8) -> Vec<u8> {
    let mut pixels = Vec::with_capacity(samples.len() / N * channels);
    for pixel in samples.as_chunks::<N>().0 {
        let level = to(pixel[0]);
        pixels.extend_from_slice(&[level; 3][..channels]);
    }
    pixels
}

/// Converts pixels of `N` samples, of which the first three are red, green and blue.
fn colour<T: Copy, const N: usize>(
    samples: &[T],
    channels: usize,
    to: impl Fn(T) -> u8,
) -> Vec<u8> {
    let mut pixels = Vec::with_capacity(samples.len() / N * channels);
    for pixel in samples.as_chunks::<N>().0 {
        let rgb = [0, 1, 2].map(|i| to(pixel[i]));
        match channels {
            1 => pixels.push(luma(&rgb)),
            _ => pixels.extend_from_slice(&rgb),
        }
    }
    pixels
}

/// Applies the orientation `turn`.
fn turned(flat: Flat, turn: Orientation) -> Result<Flat, ImageError> {
    let (width, height, channels) = (flat.width as u32, flat.height as u32, flat.channels);
    let image = match channels {
        1 => GrayImage::from_raw(width, height, flat.pixels).map(DynamicImage::from),
        _ => RgbImage::from_raw(width, height, flat.pixels).map(DynamicImage::from),
    };
    let wrong = || {
        ImageError::Broken(format!(
            "the decoder did not return {width} x {height} pixels"
        ))
    };
    let mut image = image.ok_or_else(wrong)?;
    image.apply_orientation(turn);
    Ok(Flat {
        width: image.width() as usize,
        height: image.height() as usize,
        channels,
        pixels: image.into_bytes(),
    })
}

/// Converts to gray by ITU-R 601, with the integers of Pillow's `convert("L")`.
fn luma(pixel: &[u8]) -> u8 {
    let [r, g, b] = [0, 1, 2].map(|i| u32::from(pixel[i]));
    ((r * 19_595 + g * 38_470 + b * 7_471 + 0x8000) >> 16) as u8
}
