//! A contact sheet: the first images of a run in one PNG file, small and in a grid.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::cli::shared::new_file::must_be_new;
use crate::cli::shared::png_file::write_png;
use crate::failure::Failure;
use crate::image::{About, Flat, PngPixels, color};

/// Maximum number of images on a sheet.
const MOST_IMAGES: u64 = 100;
/// Maximum number of pixels on a side of an image on the sheet.
pub const SIDE: usize = 256;
/// The pixels between images.
const GAP: usize = 4;
/// The level of what is between images.
const WHITE: u8 = 255;

pub struct Sheet {
    path: PathBuf,
    overwrites: bool,
    /// The number of images on it.
    count: u64,
    images: Mutex<Vec<Option<Flat>>>,
}

impl Sheet {
    /// # Errors
    /// The file is there already and `overwrites` is not set, or its folder is missing.
    pub fn new(path: &Path, count: u64, overwrites: bool) -> Result<Sheet, Failure> {
        must_be_new(path, overwrites)?;
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        if !folder.is_none_or(Path::is_dir) {
            return Err(Failure::usage(format!(
                "--sheet {}: there is no such folder",
                path.display()
            )));
        }
        let count = count.min(MOST_IMAGES);
        Ok(Sheet {
            path: path.to_owned(),
            overwrites,
            count,
            images: Mutex::new(vec![None; count as usize]),
        })
    }

    /// Whether an image of this number is on the sheet.
    pub fn shows(&self, image: u64) -> bool {
        image < self.count
    }

    /// Puts an image with at most [`SIDE`] pixels on a side onto the sheet.
    pub fn put(&self, image: u64, small: Flat) {
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        images[image as usize] = Some(small);
    }

    /// Writes the file once all images are on the sheet. Returns their number.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, about: &About) -> Result<u64, Failure> {
        let images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        let images: Vec<&Flat> = images.iter().flatten().collect();
        let sheet = grid(&images);
        let pixels = PngPixels {
            width: sheet.width,
            height: sheet.height,
            color: color(sheet.channels)
                .ok_or_else(|| Failure::internal("an image of other channels than a PNG has"))?,
            bytes: &sheet.pixels,
        };
        let mut about = about.clone();
        about.push(("images", images.len().to_string()));
        write_png(&self.path, self.overwrites, &pixels, &about)?;
        Ok(images.len() as u64)
    }
}

/// Images of one size, row by row, in about as many rows as columns.
fn grid(images: &[&Flat]) -> Flat {
    let columns = (images.len() as f64).sqrt().ceil() as usize;
    let rows = images.len().div_ceil(columns);
    let Flat {
        width,
        height,
        channels,
        ..
    } = *images[0];
    let (across, down) = (width + GAP, height + GAP);
    let (all_width, all_height) = (columns * across - GAP, rows * down - GAP);
    let mut pixels = vec![WHITE; all_width * all_height * channels];
    for (number, image) in images.iter().enumerate() {
        let (left, top) = (number % columns * across, number / columns * down);
        for (y, row) in image.pixels.chunks_exact(width * channels).enumerate() {
            let start = ((top + y) * all_width + left) * channels;
            pixels[start..start + row.len()].copy_from_slice(row);
        }
    }
    Flat {
        width: all_width,
        height: all_height,
        channels,
        pixels,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_stand_in_rows_with_white_between() {
        let image = |level| Flat {
            width: 2,
            height: 1,
            channels: 1,
            pixels: vec![level; 2],
        };
        let images = [image(1), image(2), image(3)];
        let sheet = grid(&images.iter().collect::<Vec<_>>());
        assert_eq!((sheet.width, sheet.height), (8, 6));
        let row = |y: usize| &sheet.pixels[y * 8..][..8];
        assert_eq!(row(0), [1, 1, 255, 255, 255, 255, 2, 2]);
        assert_eq!(row(1), [255; 8]);
        assert_eq!(row(5), [3, 3, 255, 255, 255, 255, 255, 255]);
    }
}
