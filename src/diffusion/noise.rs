//! Gaussian noise that is the same for a sample in any batch, thread and count.

use std::ops::Range;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};

use super::Error;
use super::noise_file::NoiseFile;

/// An endless sequence of standard normals.
#[derive(Debug)]
pub struct Normals(ChaCha8Rng);

/// The noise of sample `index` of those drawn with `seed`: its initial noise first, then that of each step. Every sample has its
/// own stream of the ChaCha8 generator (Bernstein 2008, "ChaCha, a variant of Salsa20").
pub fn normals(seed: u64, index: u64) -> Normals {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    generator.set_stream(index);
    Normals(generator)
}

impl Normals {
    /// Writes the next values of the sequence.
    pub fn fill(&mut self, values: &mut [f32]) {
        for value in values {
            *value = StandardNormal.sample(&mut self.0);
        }
    }
}

/// Where noise comes from: a seed, or for the samples that a file holds noise for, the file.
#[derive(Debug)]
pub struct Noise {
    pub seed: u64,
    pub file: Option<NoiseFile>,
}

/// The sample whose noise is that of `number` among those drawn with `seed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    pub seed: u64,
    pub number: u64,
}

impl Noise {
    /// Returns samples of the seed.
    pub fn samples(&self, numbers: Range<u64>) -> Vec<Sample> {
        let seed = self.seed;
        numbers.map(|number| Sample { seed, number }).collect()
    }

    /// Returns the noise of some samples with `dimensions` values each.
    pub fn of<'n>(&'n self, samples: &'n [Sample], dimensions: usize) -> NoiseOfSamples<'n> {
        NoiseOfSamples {
            seeded: samples
                .iter()
                .map(|of| normals(of.seed, of.number))
                .collect(),
            samples,
            file: self.file.as_ref(),
            dimensions,
        }
    }
}

/// The noise of a group of samples, in sequence.
pub struct NoiseOfSamples<'n> {
    samples: &'n [Sample],
    seeded: Vec<Normals>,
    file: Option<&'n NoiseFile>,
    dimensions: usize,
}

impl NoiseOfSamples<'_> {
    /// Returns the initial noise, [N, dimensions].
    ///
    /// # Errors
    /// [`Error::Noise`] if the file cannot be read.
    pub fn initial(&mut self) -> Result<Vec<f32>, Error> {
        self.next(0, self.file)
    }

    /// Returns the noise of step `i`, [N, dimensions].
    ///
    /// # Errors
    /// As [`NoiseOfSamples::initial`].
    pub fn of_step(&mut self, i: usize) -> Result<Vec<f32>, Error> {
        self.next(1 + i as u64, self.file.filter(|file| file.has_steps()))
    }

    fn next(&mut self, row: u64, file: Option<&NoiseFile>) -> Result<Vec<f32>, Error> {
        let mut all = vec![0.0; self.seeded.len() * self.dimensions];
        let parts = all.chunks_exact_mut(self.dimensions);
        for ((part, normals), sample) in parts.zip(&mut self.seeded).zip(self.samples) {
            // The seed's sequence moves on, so that the noise of the steps does not depend on where the initial noise comes from.
            normals.fill(part);
            if let Some(file) = file.filter(|file| sample.number < file.samples()) {
                file.read(row, sample.number, part)?;
            }
        }
        Ok(all)
    }
}
