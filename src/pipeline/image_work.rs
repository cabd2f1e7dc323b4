//! What a diffusion model does with a whole image before it is scored: it translates the image, or denoises a copy of it.

use std::time::Instant;

use crate::batch::RestoredImage;
use crate::decode::{Reason, RowError};
use crate::image::{
    About, Image, ImageReader, PngPixels, WholeImage, bytes, color, encode_png, values,
};
use crate::metrics::Metrics;
use crate::onnx::{Denoised, ImageDenoising, ImageTranslation, ScorerError};

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

/// What a model made of an image.
enum Made {
    Translated(WholeImage),
    Restored(RestoredImage),
}

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
        let made = match self.run(&image) {
            Ok(made) => made,
            Err(error) => Err(self.image_is_at_fault(error)?),
        };
        let (seconds, made) = match (&*self, made) {
            (ImageWork::Translate(_), made) => (&metrics.translation_seconds, made),
            (ImageWork::Denoise { .. }, made) => {
                // The image is scored all the same.
                let failed = |error: RowError| RestoredImage::Failed(error.detail.to_string());
                let made = made.or_else(|error| Ok(Made::Restored(failed(error))));
                (&metrics.restoration_seconds, made)
            }
        };
        seconds.observe(started.elapsed().as_secs_f64());
        Ok(made.map(|made| match made {
            Made::Translated(translated) => (reader.cut(translated), None),
            Made::Restored(restored) => (reader.cut(image), Some(Box::new(restored))),
        }))
    }

    fn run(&mut self, image: &WholeImage) -> Result<Result<Made, RowError>, ScorerError> {
        let source = values(&image.pixels, image.channels);
        let size = [image.height, image.width];
        match self {
            ImageWork::Translate(translation) => {
                // A stop interrupts the model's runs.
                let made = translation.translate(&source, size, image.number, || false)?;
                let made = made.expect("it is never told to stop");
                Ok(made.map(|made| Made::Translated(translated(image, &made))))
            }
            ImageWork::Denoise {
                denoising,
                steps,
                about,
            } => {
                let denoised = denoising.denoise(&source, size, None, *steps)?;
                Ok(denoised.map(|denoised| Made::Restored(restored(image, &denoised, about))))
            }
        }
    }

    /// Returns why the model failed, if the image is at fault: the model still works on the image that it was proved with.
    fn image_is_at_fault(&mut self, error: ScorerError) -> Result<RowError, ScorerError> {
        if let ScorerError::Interrupted = error {
            return Err(error);
        }
        match self.warm_up() {
            Ok(()) => {
                let why = format!("the model failed on this image: {error}");
                tracing::error!("{why}");
                Ok(RowError {
                    reason: Reason::Unscorable,
                    detail: why.into(),
                })
            }
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

/// The image with the values that a model made, [C, H, W].
fn translated(image: &WholeImage, made: &[f32]) -> WholeImage {
    let channels = made.len() / (image.width * image.height);
    WholeImage {
        width: image.width,
        height: image.height,
        channels,
        pixels: bytes(made, channels),
        number: image.number,
        lost: image.lost,
    }
}

fn restored(image: &WholeImage, denoised: &Denoised, about: &About) -> RestoredImage {
    let Some(clean) = &denoised.image else {
        return RestoredImage::Unchanged;
    };
    let pixels = PngPixels {
        width: image.width,
        height: image.height,
        color: color(image.channels).expect("a model of 1 or 3 channels"),
        bytes: &bytes(clean, image.channels),
    };
    let mut png = Vec::new();
    let about = [about.as_slice(), &denoised.about()].concat();
    encode_png(&mut png, &pixels, &about).expect("as many pixels as the size says, in memory");
    RestoredImage::Denoised {
        png,
        sigma: denoised.levels(),
        lost: image.lost,
    }
}
