//! Writes images as PNG files, and their states as NumPy files.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use ::image::codecs::png::PngEncoder;
use ::image::{ExtendedColorType, ImageEncoder};

use super::whole_files::{create, failed, write_npy, write_whole};
use crate::failure::Failure;

/// A folder of images, `000000.png` and so on.
pub struct ImageFiles {
    folder: PathBuf,
    /// Channels, height and width.
    shape: [usize; 3],
    color: ExtendedColorType,
    overwrites: bool,
}

impl ImageFiles {
    /// Creates the folder.
    ///
    /// # Errors
    /// If it holds one of the files already, and `overwrites` is not set, or PNG has no such channels.
    pub fn new(
        folder: &Path,
        shape: [usize; 3],
        count: u64,
        overwrites: bool,
    ) -> Result<ImageFiles, Failure> {
        let color = match shape[0] {
            1 => ExtendedColorType::L8,
            3 => ExtendedColorType::Rgb8,
            4 => ExtendedColorType::Rgba8,
            channels => {
                return Err(Failure::data(format!(
                    "the model draws images of {channels} channels, and a PNG has 1, 3 or 4"
                )));
            }
        };
        create(
            folder,
            (0..count).map(|image| format!("{image:06}.png")),
            overwrites,
        )?;
        Ok(ImageFiles {
            folder: folder.to_owned(),
            shape,
            color,
            overwrites,
        })
    }

    /// The number of values of an image.
    pub fn dimensions(&self) -> usize {
        self.shape.iter().product()
    }

    /// Writes an image of values from -1 to 1, [C, H, W].
    pub fn write(&self, image: u64, values: &[f32]) -> Result<(), Failure> {
        self.png(&self.folder.join(format!("{image:06}.png")), values)
    }

    fn png(&self, path: &Path, values: &[f32]) -> Result<(), Failure> {
        let [channels, height, width] = self.shape;
        let pixels = height * width;
        // Rounded to even as diffusers' numpy_to_pil.
        let byte = |x: f32| ((x / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
        let bytes: Vec<u8> = (0..pixels * channels)
            .map(|i| byte(values[i % channels * pixels + i / channels]))
            .collect();
        write_whole(path, self.overwrites, |out| {
            PngEncoder::new(out)
                .write_image(&bytes, width as u32, height as u32, self.color)
                .map_err(io::Error::other)
        })
    }
}

/// A folder for each image, with the state before the first step and after each: `000000/0000.npy`, `000000/0000.png`.
pub struct Trace {
    files: ImageFiles,
}

impl Trace {
    /// Creates the folder.
    ///
    /// # Errors
    /// As [`ImageFiles::new`].
    pub fn new(
        folder: &Path,
        shape: [usize; 3],
        count: u64,
        overwrites: bool,
    ) -> Result<Trace, Failure> {
        let files = ImageFiles::new(folder, shape, 0, overwrites)?;
        create(
            folder,
            (0..count).map(|image| format!("{image:06}")),
            overwrites,
        )?;
        Ok(Trace { files })
    }

    /// Writes the states of some images, [N, C, H, W].
    pub fn write(&self, images: Range<u64>, state: usize, values: &[f32]) -> Result<(), Failure> {
        for (image, values) in images.zip(values.chunks_exact(self.files.dimensions())) {
            let folder = self.files.folder.join(format!("{image:06}"));
            std::fs::create_dir_all(&folder).map_err(|e| failed(&folder, &e))?;
            let shape = self.files.shape.map(|side| side as u64);
            let path = folder.join(format!("{state:04}.npy"));
            write_npy(&path, self.files.overwrites, &shape, values)?;
            self.files
                .png(&folder.join(format!("{state:04}.png")), values)?;
        }
        Ok(())
    }
}
