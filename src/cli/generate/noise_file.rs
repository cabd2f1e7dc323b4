//! Noise from a NumPy file, read a part at a time.

use std::fs::File;
use std::io::Seek;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use npyz::{DType, NpyHeader, Order};

use crate::diffusion::Plan;
use crate::failure::Failure;
use crate::npy;

/// float32 [N, C, H, W], the initial noise, or [1 + steps, N, C, H, W], also that of each step.
pub struct NoiseFile {
    path: PathBuf,
    file: File,
    /// Where the values begin, in bytes.
    start: u64,
    has_steps: bool,
    images: u64,
    /// The number of values of an image.
    dimensions: u64,
}

impl NoiseFile {
    /// # Errors
    /// If the file cannot be read, or has another shape or type.
    pub fn open(path: &Path, image: [usize; 3], plan: &Plan) -> Result<NoiseFile, Failure> {
        let failed = |problem: String| Failure::data(format!("{}: {problem}", path.display()));
        let metadata = path.metadata().map_err(|e| failed(e.to_string()))?;
        if !metadata.is_file() {
            return Err(failed("is not a regular file".into()));
        }
        let mut file = File::open(path).map_err(|e| failed(e.to_string()))?;
        let head = npy::head(&mut file).map_err(|e| failed(format!("is not a .npy file: {e}")))?;
        let header = NpyHeader::from_reader(&head[..])
            .map_err(|e| failed(format!("is not a .npy file: {e}")))?;
        let [c, h, w] = image.map(|side| side as u64);
        let steps = plan.steps() as u64 + 1;
        let (has_steps, images) = match *header.shape() {
            [n, a, b, d] if [a, b, d] == [c, h, w] => (false, n),
            [s, n, a, b, d] if [s, a, b, d] == [steps, c, h, w] => (true, n),
            _ => {
                return Err(failed(format!(
                    "has the shape {:?}: it must be [N, {c}, {h}, {w}], or [{steps}, N, {c}, {h}, {w}] with the noise of each step",
                    header.shape()
                )));
            }
        };
        let is_float = matches!(header.dtype(), DType::Plain(kind) if kind.to_string() == "<f4");
        if !is_float || header.order() != Order::C {
            return Err(failed(format!(
                "holds {} in {:?} order: it must hold float32 ('<f4') in C order",
                header.dtype().descr(),
                header.order()
            )));
        }
        let start = file.stream_position().map_err(|e| failed(e.to_string()))?;
        let values = header
            .shape()
            .iter()
            .try_fold(4_u64, |all, side| all.checked_mul(*side));
        if values.and_then(|values| values.checked_add(start)) != Some(metadata.len()) {
            return Err(failed("is cut off, or longer than its shape".into()));
        }
        Ok(NoiseFile {
            path: path.to_owned(),
            file,
            start,
            has_steps,
            images,
            dimensions: c * h * w,
        })
    }

    pub fn images(&self) -> u64 {
        self.images
    }

    /// Whether it also holds the noise of each step.
    pub fn has_steps(&self) -> bool {
        self.has_steps
    }

    /// The noise of some images: of row 0, the initial noise, or of row 1 + i, that of step i.
    pub fn read(&self, row: u64, images: &Range<u64>) -> Result<Vec<f32>, Failure> {
        let first = (row * self.images + images.start) * self.dimensions;
        let count = (images.end - images.start) * self.dimensions;
        let mut bytes = vec![0; count as usize * 4];
        let read = self.file.read_exact_at(&mut bytes, self.start + first * 4);
        read.map_err(|e| Failure::data(format!("{}: {e}", self.path.display())))?;
        let (values, _) = bytes.as_chunks::<4>();
        let values: Vec<f32> = values
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect();
        match values.iter().all(|value| value.is_finite()) {
            true => Ok(values),
            false => Err(Failure::data(format!(
                "{}: has a NaN or an infinity",
                self.path.display()
            ))),
        }
    }
}
