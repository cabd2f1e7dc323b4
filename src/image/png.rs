//! Encodes images of 8 bits as PNG, with texts in the metadata.

use std::io::{self, Write};

use png::{BitDepth, ColorType, Compression, Encoder};

/// The name and the text of each entry of the metadata.
pub type About = Vec<(&'static str, String)>;

/// Pixels in reading order, each with its channels.
pub struct PngPixels<'p> {
    pub width: usize,
    pub height: usize,
    pub color: ColorType,
    pub bytes: &'p [u8],
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

/// Writes the image. The same pixels and texts give the same bytes.
///
/// # Errors
/// `out` cannot be written, or the pixels are not as many as their size says.
pub fn encode_png(
    out: impl Write,
    pixels: &PngPixels<'_>,
    about: &[(&'static str, String)],
) -> io::Result<()> {
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
}
