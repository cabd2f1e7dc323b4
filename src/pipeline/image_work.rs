//! What a diffusion model does with a whole image before it is scored: it translates the image, or denoises a copy of it.

use std::time::Instant;

use crate::batch::RestoredImage;
use crate::decode::{Reason, RowError};
use crate::image::{
    About, Image, ImageReader, PngPixels, WholeImage, bytes, color, encode_png, values,
};
use crate::metrics::Metrics;
use crate::onnx::{ImageDenoising, ImageTranslation, ScorerError};

/// A worker's model.
pub enum ImageWork {
    Translate(ImageTranslation),
    Denoise {
        denoising: ImageDenoising,
        steps: usize,
        /// What the metadata of every denoised image says.
        about: About,
    },
}

/// The rows to score, and what is published of the image if images are restored.
pub type Worked = (Image, Option<Box<RestoredImage>>);

impl ImageWork {
    /// Works on an image and cuts it into rows. The inner error is why the image cannot be scored.
    ///
    /// # Errors
    /// When ONNX Runtime fails, and the image is not at fault.
    pub fn work(
        &mut self,
        image: WholeImage,
        reader: &ImageReader,
        metrics: &Metrics,
    ) -> Result<Result<Worked, RowError>, ScorerError> {
        let started = Instant::now();
        let (worked, seconds) = match self {
            ImageWork::Translate(_) => {
                let translated = self.translate(image)?;
                let worked = translated.map(|image| (reader.cut(image), None));
                (worked, &metrics.translation_seconds)
            }
            ImageWork::Denoise { .. } => {
                let restored = self.denoise(&image)?;
                let worked = Ok((reader.cut(image), Some(Box::new(restored))));
                (worked, &metrics.restoration_seconds)
            }
        };
        seconds.observe(started.elapsed().as_secs_f64());
        Ok(worked)
    }

    fn translate(
        &mut self,
        image: WholeImage,
    ) -> Result<Result<WholeImage, RowError>, ScorerError> {
        let ImageWork::Translate(translation) = self else {
            unreachable!("a worker has one model");
        };
        let source = values(&image.pixels, image.channels);
        let size = [image.height, image.width];
        // A stop interrupts the model's runs.
        let made = match translation.translate(&source, size, image.number, || false) {
            Ok(made) => made.expect("it is never told to stop"),
            Err(error) => Err(unscorable(&self.image_is_at_fault(error)?)),
        };
        Ok(made.map(|made| {
            let channels = made.len() / (image.width * image.height);
            WholeImage {
                channels,
                pixels: bytes(&made, channels),
                ..image
            }
        }))
    }

    fn denoise(&mut self, image: &WholeImage) -> Result<RestoredImage, ScorerError> {
        let ImageWork::Denoise {
            denoising,
            steps,
            about,
        } = self
        else {
            unreachable!("a worker has one model");
        };
        let source = values(&image.pixels, image.channels);
        let size = [image.height, image.width];
        let denoised = match denoising.denoise(&source, size, None, *steps) {
            Ok(Ok(denoised)) => denoised,
            Ok(Err(refused)) => return Ok(RestoredImage::Failed(refused.detail.to_string())),
            Err(error) => return Ok(RestoredImage::Failed(self.image_is_at_fault(error)?)),
        };
        let Some(clean) = &denoised.image else {
            return Ok(RestoredImage::Unchanged);
        };
        let pixels = PngPixels {
            width: image.width,
            height: image.height,
            color: color(image.channels).expect("a model of 1 or 3 channels"),
            bytes: &bytes(clean, image.channels),
        };
        let mut png = Vec::new();
        let said = [about.as_slice(), &denoised.about()].concat();
        encode_png(&mut png, &pixels, &said).expect("as many pixels as the size says, in memory");
        Ok(RestoredImage::Denoised {
            png,
            sigma: denoised.levels(),
            lost: image.lost,
        })
    }

    /// Returns why the model failed, if the image is at fault: the model still works on the image that it was proved with.
    fn image_is_at_fault(&mut self, error: ScorerError) -> Result<String, ScorerError> {
        if let ScorerError::Interrupted = error {
            return Err(error);
        }
        match self.warm_up() {
            Ok(()) => Ok(format!("the model failed on this image: {error}")),
            Err(ScorerError::Interrupted) => Err(ScorerError::Interrupted),
            Err(_) => Err(error),
        }
    }

    /// Runs the model on an image of one tile.
    ///
    /// # Errors
    /// When ONNX Runtime fails, or the model returns NaN.
    pub fn warm_up(&mut self) -> Result<(), ScorerError> {
        match self {
            ImageWork::Translate(translation) => translation.warm_up(),
            ImageWork::Denoise {
                denoising, steps, ..
            } => denoising.warm_up(*steps),
        }
    }
}

fn unscorable(why: &str) -> RowError {
    RowError {
        reason: Reason::Unscorable,
        detail: why.to_owned().into(),
    }
}
