//! Writes an image as a PNG file.

use std::path::Path;

use super::whole_files::write_whole;
use crate::failure::Failure;
use crate::image::{Flat, PngPixels, bytes, encode_animation, encode_png, shrink};

/// Writes the file whole or not at all.
pub fn write_png(
    path: &Path,
    overwrites: bool,
    pixels: &PngPixels<'_>,
    about: &[(&'static str, String)],
) -> Result<(), Failure> {
    write_whole(path, overwrites, |out| encode_png(out, pixels, about))
}

/// Writes an endless animation, whole or not at all. `frames`: at least one, all of one size.
pub fn write_animation(path: &Path, overwrites: bool, frames: &[Flat]) -> Result<(), Failure> {
    write_whole(path, overwrites, |out| encode_animation(out, frames))
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
