//! Writes an image as a PNG file.

use std::path::Path;

use super::whole_files::write_whole;
use crate::failure::Failure;
use crate::image::{PngPixels, encode_png};

/// Writes the file whole or not at all.
pub fn write_png(
    path: &Path,
    overwrites: bool,
    pixels: &PngPixels<'_>,
    about: &[(&'static str, String)],
) -> Result<(), Failure> {
    write_whole(path, overwrites, |out| encode_png(out, pixels, about))
}
