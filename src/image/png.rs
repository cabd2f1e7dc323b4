//! Encodes images of 8 bits as PNG, with texts in the metadata.

use std::io::{self, Write};

use png::{BitDepth, ColorType, Compression, Encoder};

use super::decode::Flat;

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
    let mut writer =
        encoder(out, pixels.width, pixels.height, pixels.color, about)?.write_header()?;
    writer.write_image_data(pixels.bytes)?;
    Ok(writer.finish()?)
}

/// Writes an endless animation. `frames`: at least one, all of one size. The last one stays for two seconds.
///
/// # Errors
/// `out` cannot be written, or there are no frames.
pub fn encode_animation(out: impl Write, frames: &[Flat]) -> io::Result<()> {
    let invalid = |problem| io::Error::new(io::ErrorKind::InvalidInput, problem);
    let Some((last, before)) = frames.split_last() else {
        return Err(invalid("an animation without frames"));
    };
    let color = color(last.channels).ok_or_else(|| invalid("no kind of PNG has these channels"))?;
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
