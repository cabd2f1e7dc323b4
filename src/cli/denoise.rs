//! `residuald denoise`: removes noise from records or images.

mod images;
mod tables;

use std::path::Path;

use crate::bundle::{Draft, MANIFEST, ModelInput};
use crate::cli::shared::images::ImageArguments;
use crate::cli::shared::rewrite::RewriteArguments;
use crate::config::Provider;
use crate::daemon::image_model::ImageModel;
use crate::failure::Failure;

/// Remove noise from records or images: each becomes the mean of what it may have been before the noise
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  residuald denoise sensors.csv --bundle sensors --out clean.ndjson
  residuald denoise sensors.parquet --bundle sensors --sigma 0.2 --out clean.ndjson.gz
  residuald denoise photos --bundle models/parts --out clean
  residuald denoise noisy.png --bundle models/parts --sigma 25 --out clean.png

Records: the noise level is in the denoiser's space, in which each feature has about the standard deviation 1. Without --sigma it is estimated
from the first 2,000 records, by comparison with the bundle's held-out records. Each output record is the input record with its new
values, and with the field `denoised`, which has the old value of each number that changed. Booleans, categories and
times do not change: noise in them is another value, not a smaller or larger one.

Images: the noise level is in levels of 255. Without --sigma it is estimated for each image, and an image without measurable noise is
returned as it is. Images keep their size. Existing images are skipped, so the same command goes on after Ctrl-C.")]
pub struct Arguments {
    #[command(flatten)]
    common: RewriteArguments,
    /// Standard deviation of the noise [default: estimated]
    #[arg(long, value_name = "SIGMA", allow_negative_numbers = true)]
    sigma: Option<f32>,
    /// Number of denoising steps for images: 1 gives the mean, which has the least error; more give a sharper image [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    steps: Option<u16>,
    #[command(flatten)]
    images: ImageArguments,
    /// Denoise images on all CPU cores or on the first GPU [default: cpu]
    #[arg(long, value_enum)]
    provider: Option<Provider>,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    if let Some(sigma) = arguments.sigma
        && !(sigma > 0.0 && sigma.is_finite())
    {
        return Err(Failure::usage(format!(
            "--sigma {sigma}: it must be above 0"
        )));
    }
    let folder: &Path = &arguments.common.bundle;
    if folder.join(MANIFEST).exists() {
        let mut bundle = Draft::read(folder).finish()?;
        if matches!(bundle.manifest.input, ModelInput::Tabular { .. }) {
            return tables::run(arguments, &bundle);
        }
        return images::run(arguments, ImageModel::of_bundle(folder, &mut bundle)?);
    }
    images::run(arguments, ImageModel::read(folder)?)
}
