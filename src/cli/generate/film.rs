//! Some of the states from noise to image, for an animation.

use crate::cli::shared::png_file::small;
use crate::failure::Failure;
use crate::image::Flat;
use crate::onnx::VaeDecoder;

/// Maximum number of states that an animation shows.
pub const MOST_FRAMES: usize = 16;
/// Maximum number of pixels on a side of a frame.
const SIDE: usize = 512;

/// The states of a group of images, [N, C, H, W].
pub struct Film {
    /// The states that are kept: 0 is the noise.
    kept: Vec<usize>,
    /// Channels, height and width of a state.
    shape: [usize; 3],
    /// Latent states. They become frames in the end.
    latent: Option<Vec<Vec<f32>>>,
    /// The frames of each image.
    frames: Vec<Vec<Flat>>,
}

impl Film {
    /// Of `images` images that take `steps` steps.
    pub fn new(images: usize, steps: usize, shape: [usize; 3], is_latent: bool) -> Film {
        Film {
            kept: spread(steps),
            shape,
            latent: is_latent.then(Vec::new),
            frames: vec![Vec::new(); images],
        }
    }

    /// Keeps a state if the animation shows it. The last one is given as images.
    pub fn see(&mut self, state: usize, values: &[f32]) {
        if !self.kept[..self.kept.len() - 1].contains(&state) {
            return;
        }
        match &mut self.latent {
            Some(latent) => latent.push(values.to_vec()),
            None => self.add(values, self.shape),
        }
    }

    /// Returns the frames of each image, the last of which is one of `images`, [N, C, H, W] of this shape.
    ///
    /// # Errors
    /// The decoder fails.
    pub fn finish(
        mut self,
        images: &[f32],
        shape: [usize; 3],
        decoder: Option<&mut VaeDecoder>,
    ) -> Result<Vec<Vec<Flat>>, Failure> {
        if let (Some(latent), Some(decoder)) = (self.latent.take(), decoder) {
            for state in latent {
                self.add(&decoder.decode(&state)?, shape);
            }
        }
        self.add(images, shape);
        Ok(self.frames)
    }

    fn add(&mut self, values: &[f32], shape: [usize; 3]) {
        let images = values.chunks_exact(shape.iter().product());
        for (frames, values) in self.frames.iter_mut().zip(images) {
            frames.push(small(values, shape, SIDE));
        }
    }
}

/// States from 0 to `steps`, at equal distances.
fn spread(steps: usize) -> Vec<usize> {
    let last = steps.min(MOST_FRAMES - 1);
    (0..=last).map(|i| i * steps / last).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_noise_and_the_image_are_shown() {
        assert_eq!(spread(1), [0, 1]);
        assert_eq!(spread(4), [0, 1, 2, 3, 4]);
        let of_many = spread(1000);
        assert_eq!(of_many.len(), MOST_FRAMES);
        assert_eq!(of_many[..2], [0, 66]);
        assert_eq!(of_many[15], 1000);
    }
}
