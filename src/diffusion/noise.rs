//! Gaussian noise that is the same for a sample in any batch, thread and count.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};

/// An endless sequence of standard normals.
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
