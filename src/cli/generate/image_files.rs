//! Writes images as PNG files, and states as NumPy files. A file is written whole or not at all.

use std::collections::HashSet;
use std::fs::Permissions;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ::image::codecs::png::PngEncoder;
use ::image::{ExtendedColorType, ImageEncoder};
use npyz::WriterBuilder;
use tempfile::NamedTempFile;

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
            write_whole(&path, self.files.overwrites, |out| {
                let options = npyz::WriteOptions::new().default_dtype().shape(&shape);
                let mut npy = options.writer(out).begin_nd()?;
                npy.extend(values.iter().copied())?;
                npy.finish()
            })?;
            self.files
                .png(&folder.join(format!("{state:04}.png")), values)?;
        }
        Ok(())
    }
}

/// Creates the folder, and refuses names that are there already.
fn create(
    folder: &Path,
    names: impl Iterator<Item = String>,
    overwrites: bool,
) -> Result<(), Failure> {
    std::fs::create_dir_all(folder).map_err(|e| failed(folder, &e))?;
    if overwrites {
        return Ok(());
    }
    let there = std::fs::read_dir(folder).map_err(|e| failed(folder, &e))?;
    let there: HashSet<_> = there.flatten().map(|entry| entry.file_name()).collect();
    match names
        .into_iter()
        .find(|name| there.contains(name.as_ref() as &std::ffi::OsStr))
    {
        None => Ok(()),
        Some(name) => Err(Failure::usage(format!(
            "{} is there already: name another folder, or overwrite with --force",
            folder.join(name).display()
        ))),
    }
}

/// Writes to a temporary file beside `path`, which then takes its name.
fn write_whole(
    path: &Path,
    overwrites: bool,
    write: impl FnOnce(&mut BufWriter<&mut NamedTempFile>) -> io::Result<()>,
) -> Result<(), Failure> {
    let folder = path.parent().unwrap_or(Path::new("."));
    // As a new file has them; a temporary one is its owner's alone.
    let permissions = Permissions::from_mode(0o666);
    let file = tempfile::Builder::new()
        .permissions(permissions)
        .tempfile_in(folder);
    let written = file.and_then(|mut file| {
        let mut out = BufWriter::new(&mut file);
        write(&mut out)?;
        out.flush()?;
        drop(out);
        match overwrites {
            true => file.persist(path)?,
            false => file.persist_noclobber(path)?,
        };
        Ok(())
    });
    written.map_err(|e| failed(path, &e))
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::data(format!("{}: {error}", path.display()))
}
