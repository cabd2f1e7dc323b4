//! Writes an image of 8 bits as a PNG file, with texts in its metadata.

use std::path::Path;

use png::{BitDepth, ColorType, Compression, Encoder};

use super::whole_files::write_whole;
use crate::failure::Failure;

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
        let mut encoder = Encoder::new(out, pixels.width as u32, pixels.height as u32);
        encoder.set_color(pixels.color);
        encoder.set_depth(BitDepth::Eight);
        encoder.set_compression(Compression::Fast);
        for (name, text) in about {
            // tEXt holds Latin-1 alone.
            match text.is_ascii() {
                true => encoder.add_text_chunk((*name).to_owned(), text.clone())?,
                false => encoder.add_itxt_chunk((*name).to_owned(), text.clone())?,
            }
        }
        let mut writer = encoder.write_header()?;
        writer.write_image_data(pixels.bytes)?;
        Ok(writer.finish()?)
    })
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

/// The reverse of [`bytes`].
pub fn values(bytes: &[u8], channels: usize) -> Vec<f32> {
    let value = |byte: &u8| 2.0 * (f32::from(*byte) / 255.0) - 1.0;
    let channel = |c: usize| bytes.iter().skip(c).step_by(channels).map(value);
    (0..channels).flat_map(channel).collect()
}
