//! A denoiser for images of any size, which it sees in overlapping tiles of the size that it was trained with.

use super::{Condition, Denoiser, ScorerError};
use crate::decode::{Reason, RowError};
use crate::image::Overlap;

/// A denoiser that one thread owns.
#[derive(Debug)]
pub struct TiledDenoiser {
    denoiser: Denoiser,
    /// Channels, height and width of a tile.
    shape: [usize; 3],
    /// The number of channels of what it predicts.
    out_channels: usize,
}

impl TiledDenoiser {
    /// `shape`: channels, height and width of the images that `denoiser` takes. `out_channels`: the number of channels of what it predicts.
    pub fn new(denoiser: Denoiser, shape: [usize; 3], out_channels: usize) -> TiledDenoiser {
        TiledDenoiser {
            denoiser,
            shape,
            out_channels,
        }
    }

    /// The channels of an image that it takes.
    pub fn channels(&self) -> usize {
        self.shape[0]
    }

    /// Height and width of a tile.
    pub fn tile(&self) -> [usize; 2] {
        [self.shape[1], self.shape[2]]
    }

    /// The graph's path in the pipeline's folder.
    pub(super) fn file(&self) -> &str {
        self.denoiser.file()
    }

    /// Returns the tiles of images of this height and width.
    pub fn overlap(&self, image: [usize; 2]) -> Overlap {
        Overlap::new(image, self.tile())
    }

    /// Returns the tiles of an image of a tile's size: one.
    pub fn overlap_of_tile(&self) -> Overlap {
        self.overlap(self.tile())
    }

    /// Returns what the model predicts for a noisy image, [C, H, W], at a timestep. Predictions are blended where tiles overlap, so
    /// that steps with them leave no seams (Bar-Tal et al. 2023, "MultiDiffusion", arXiv 2302.08113). `overlap` is that of the image's size.
    ///
    /// # Errors
    /// As [`Denoiser::predict`].
    pub fn predict(
        &mut self,
        image: &[f32],
        overlap: &Overlap,
        timestep: f32,
        conditions: &[Condition],
    ) -> Result<Vec<f32>, ScorerError> {
        overlap.blend(image, self.out_channels, |tile| {
            let mut found = Vec::new();
            let denoiser = &mut self.denoiser;
            denoiser.predict(tile, timestep, conditions, &mut found)?;
            Ok(found)
        })
    }
}

/// Checks an image that a model made.
///
/// # Errors
/// A value is NaN or infinite, so the image is refused.
pub fn finite_image(values: &[f32]) -> Result<(), RowError> {
    match values.iter().find(|value| !value.is_finite()) {
        None => Ok(()),
        Some(value) => Err(RowError {
            reason: Reason::Unscorable,
            detail: format!("the model returned {value}: it cannot be used for this image").into(),
        }),
    }
}
