//! Writes images as PNG files, and their states as NumPy files.

use std::ops::Range;
use std::path::{Path, PathBuf};

use png::ColorType;

use crate::cli::shared::png_file::{write_animation, write_png};
use crate::cli::shared::whole_files::{create, failed, write_npy};
use crate::failure::Failure;
use crate::image::{Flat, PngPixels, bytes, color};

/// A folder of images, `000000.png` and so on.
pub struct ImageFiles {
    folder: PathBuf,
    /// Channels, height and width.
    shape: [usize; 3],
    color: ColorType,
    overwrites: bool,
    /// The metadata of every image.
    about: Vec<(&'static str, String)>,
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
        let color = color(shape[0]).ok_or_else(|| {
            Failure::data(format!(
                "the model draws images of {} channels, and a PNG has 1, 3 or 4",
                shape[0]
            ))
        })?;
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
            about: Vec::new(),
        })
    }

    /// Has every image say this in its metadata, and its number.
    pub fn with_about(mut self, about: Vec<(&'static str, String)>) -> ImageFiles {
        self.about = about;
        self
    }

    /// Channels, height and width of an image.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// Writes an image of values from -1 to 1, [C, H, W].
    pub fn write(&self, image: u64, values: &[f32]) -> Result<(), Failure> {
        let mut about = self.about.clone();
        about.push(("image", image.to_string()));
        self.png(&self.folder.join(format!("{image:06}.png")), values, &about)
    }

    fn png(
        &self,
        path: &Path,
        values: &[f32],
        about: &[(&'static str, String)],
    ) -> Result<(), Failure> {
        let [channels, height, width] = self.shape;
        let pixels = PngPixels {
            width,
            height,
            color: self.color,
            bytes: &bytes(values, channels),
        };
        write_png(path, self.overwrites, &pixels, about)
    }
}

/// A folder for each image, with the state before the first step and after each: `000000/0000.npy`, and `000000/0000.png` if the
/// state is an image. `000000/animation.png` shows some of them, decoded if they are latent.
pub struct Trace {
    folder: PathBuf,
    shape: [usize; 3],
    overwrites: bool,
    images: Option<ImageFiles>,
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
        let images = Some(ImageFiles::new(folder, shape, 0, overwrites)?);
        let trace = Trace::of_latents(folder, shape, count, overwrites)?;
        Ok(Trace { images, ..trace })
    }

    /// Creates the folder for latent images, which are no images yet.
    ///
    /// # Errors
    /// If it holds one of the folders already, and `overwrites` is not set.
    pub fn of_latents(
        folder: &Path,
        shape: [usize; 3],
        count: u64,
        overwrites: bool,
    ) -> Result<Trace, Failure> {
        create(
            folder,
            (0..count).map(|image| format!("{image:06}")),
            overwrites,
        )?;
        Ok(Trace {
            folder: folder.to_owned(),
            shape,
            overwrites,
            images: None,
        })
    }

    /// Whether the states are latent images.
    pub fn is_latent(&self) -> bool {
        self.images.is_none()
    }

    /// Writes the animation of an image.
    pub fn animate(&self, image: u64, frames: &[Flat]) -> Result<(), Failure> {
        let path = self.folder.join(format!("{image:06}/animation.png"));
        write_animation(&path, self.overwrites, frames)
    }

    /// Writes the states of some images, [N, C, H, W].
    pub fn write(&self, images: Range<u64>, state: usize, values: &[f32]) -> Result<(), Failure> {
        let dimensions = self.shape.iter().product();
        for (image, values) in images.zip(values.chunks_exact(dimensions)) {
            let folder = self.folder.join(format!("{image:06}"));
            std::fs::create_dir_all(&folder).map_err(|e| failed(&folder, &e))?;
            let shape = self.shape.map(|side| side as u64);
            let path = folder.join(format!("{state:04}.npy"));
            write_npy(&path, self.overwrites, &shape, values)?;
            if let Some(images) = &self.images {
                images.png(&folder.join(format!("{state:04}.png")), values, &[])?;
            }
        }
        Ok(())
    }
}
