//! Noise from a NumPy file, read a part at a time.

use std::fs::File;
use std::io::Seek;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use npyz::{DType, NpyHeader, Order};

use super::{Error, Plan};
use crate::npy;

/// float32 [N, …], the initial noise of N samples, or [1 + steps, N, …], also that of each step.
#[derive(Debug)]
pub struct NoiseFile {
    path: PathBuf,
    file: File,
    /// Where the values begin, in bytes.
    start: u64,
    has_steps: bool,
    samples: u64,
    /// The number of values of a sample.
    dimensions: u64,
}

impl NoiseFile {
    /// `shape`: the shape of a sample.
    ///
    /// # Errors
    /// [`Error::Noise`] if the file cannot be read, or has another shape or type.
    pub fn open(path: &Path, shape: &[usize], plan: &Plan) -> Result<NoiseFile, Error> {
        let failed = |problem: String| Error::Noise(format!("{}: {problem}", path.display()));
        let metadata = path.metadata().map_err(|e| failed(e.to_string()))?;
        if !metadata.is_file() {
            return Err(failed("is not a regular file".into()));
        }
        let mut file = File::open(path).map_err(|e| failed(e.to_string()))?;
        let head = npy::head(&mut file).map_err(|e| failed(format!("is not a .npy file: {e}")))?;
        let header = NpyHeader::from_reader(&head[..])
            .map_err(|e| failed(format!("is not a .npy file: {e}")))?;
        let shape: Vec<u64> = shape.iter().map(|side| *side as u64).collect();
        let steps = plan.steps() as u64 + 1;
        let (has_steps, samples) = match header.shape() {
            [n, sample @ ..] if sample == shape => (false, *n),
            [s, n, sample @ ..] if *s == steps && sample == shape => (true, *n),
            found => {
                let sides: Vec<String> = shape.iter().map(u64::to_string).collect();
                let sides = sides.join(", ");
                return Err(failed(format!(
                    "has the shape {found:?}: it must be [N, {sides}], or [{steps}, N, {sides}] with the noise of each step"
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
            samples,
            dimensions: shape.iter().product(),
        })
    }

    /// The number of samples that the file holds noise for.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Whether it also holds the noise of each step.
    pub fn has_steps(&self) -> bool {
        self.has_steps
    }

    /// Reads the noise of a sample into `values`: of row 0, the initial noise, or of row 1 + i, that of step i.
    ///
    /// # Errors
    /// [`Error::Noise`] if the file cannot be read, or has a NaN or an infinity there.
    pub fn read(&self, row: u64, sample: u64, values: &mut [f32]) -> Result<(), Error> {
        let first = (row * self.samples + sample) * self.dimensions;
        let mut bytes = vec![0; self.dimensions as usize * 4];
        let read = self.file.read_exact_at(&mut bytes, self.start + first * 4);
        read.map_err(|e| Error::Noise(format!("{}: {e}", self.path.display())))?;
        let (found, _) = bytes.as_chunks::<4>();
        for (value, bytes) in values.iter_mut().zip(found) {
            *value = f32::from_le_bytes(*bytes);
        }
        match values.iter().all(|value| value.is_finite()) {
            true => Ok(()),
            false => Err(Error::Noise(format!(
                "{}: has a NaN or an infinity",
                self.path.display()
            ))),
        }
    }
}
