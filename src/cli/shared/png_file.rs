//! Writes an image of 8 bits as a PNG file, with texts in its metadata.

use std::io::{self, Write};
use std::path::Path;

use png::{BitDepth, ColorType, Compression, Encoder};

use super::whole_files::write_whole;
use crate::failure::Failure;
use crate::image::{Flat, shrink};

/// The name and the text of each entry of the metadata.
pub type About = Vec<(&'static str, String)>;

/// Pixels in reading order, each with its channels.
pub struct Pixels<'p> {
    pub width: usize,
    pub height: usize,
    pub color: ColorType,
    pub bytes: &'p [u8],
}

/// Writes the file whole or not at all.
pub fn write_png(
    path: &Path,
    overwrites: bool,
    pixels: &Pixels<'_>,
    about: &[(&'static str, String)],
) -> Result<(), Failure> {
    write_whole(path, overwrites, |out| {
        let (width, height) = (pixels.width, pixels.height);
        let mut writer = encoder(out, width, height, pixels.color, about)?.write_header()?;
        writer.write_image_data(pixels.bytes)?;
        Ok(writer.finish()?)
    })
}

/// Writes an endless animation, whole or not at all. `frames`: at least one, all of one size. The last one stays for two seconds.
pub fn write_animation(path: &Path, overwrites: bool, frames: &[Flat]) -> Result<(), Failure> {
    let Some((last, before)) = frames.split_last() else {
        return Err(Failure::internal("an animation without frames"));
    };
    let color = color(last.channels).ok_or_else(|| Failure::internal("no channels of a PNG"))?;
    write_whole(path, overwrites, |out| {
        let mut encoder = encoder(out, last.width, last.height, color, &[])?;
        encoder.set_animated(frames.len() as u32, 0)?;
        encoder.set_frame_delay(1, 5)?;
        let mut writer = encoder.write_header()?;
        for frame in before {
            writer.write_image_data(&frame.pixels)?;
        }
        writer.set_frame_delay(2, 1)?;
        writer.write_image_data(&last.pixels)?;
        Ok(writer.finish()?)
    })
}

fn encoder<W: Write>(
    out: W,
    width: usize,
    height: usize,
    color: ColorType,
    about: &[(&'static str, String)],
) -> io::Result<Encoder<'static, W>> {
    let mut encoder = Encoder::new(out, width as u32, height as u32);
    encoder.set_color(color);
    encoder.set_depth(BitDepth::Eight);
    encoder.set_compression(Compression::Fast);
    for (name, text) in about {
        // tEXt holds Latin-1 alone.
        match text.is_ascii() {
            true => encoder.add_text_chunk((*name).to_owned(), text.clone())?,
            false => encoder.add_itxt_chunk((*name).to_owned(), text.clone())?,
        }
    }
    Ok(encoder)
}

/// The kind of PNG that has this many channels.
pub fn color(channels: usize) -> Option<ColorType> {
    match channels {
        1 => Some(ColorType::Grayscale),
        3 => Some(ColorType::Rgb),
        4 => Some(ColorType::Rgba),
        _ => None,
    }
}

/// Returns the bytes of an image, [C, H, W] with values from -1 to 1. They are rounded to even, as diffusers' numpy_to_pil does.
pub fn bytes(values: &[f32], channels: usize) -> Vec<u8> {
    let pixels = values.len() / channels;
    let byte = |x: f32| ((x / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
    (0..pixels * channels)
        .map(|i| byte(values[i % channels * pixels + i / channels]))
        .collect()
}

/// Returns an image of values from -1 to 1, [C, H, W], with at most `side` pixels on its longer side.
pub fn small(values: &[f32], [channels, height, width]: [usize; 3], side: usize) -> Flat {
    let image = Flat {
        width,
        height,
        channels,
        pixels: bytes(values, channels),
    };
    shrink(image, side)
}

/// The reverse of [`bytes`].
pub fn values(bytes: &[u8], channels: usize) -> Vec<f32> {
    let value = |byte: &u8| 2.0 * (f32::from(*byte) / 255.0) - 1.0;
    let channel = |c: usize| bytes.iter().skip(c).step_by(channels).map(value);
    (0..channels).flat_map(channel).collect()
}
