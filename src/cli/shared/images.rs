//! How the verbs read images: like the daemon, with the depth that a flag or the settings give.

use crate::bundle::ModelInput;
use crate::config::ImageSettings;
use crate::decode::SetBy;
use crate::image::{BitDepth, ImageReader};

use super::print;
use crate::daemon::image_model::ImageModel;
use crate::daemon::input;
use crate::failure::Failure;

#[derive(Clone, clap::Args)]
pub struct ImageArguments {
    /// How many bits the camera uses in gray images of 16 bits, as input.bit_depth: 9 to 16 [default: that of --config, else 16]
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u32).range(9..=16))]
    pub bit_depth: Option<u32>,
}

impl ImageArguments {
    /// Returns the reader of a bundle's images, by the settings if there are some. `None` if the bundle reads tables.
    ///
    /// # Errors
    /// The bundle reads tables, but the arguments are about images.
    pub fn reader(
        &self,
        input: &ModelInput,
        settings: Option<&ImageSettings>,
    ) -> Result<Option<ImageReader>, Failure> {
        match (input, self.bit_depth) {
            (ModelInput::Tabular { .. }, None) => Ok(None),
            (ModelInput::Tabular { .. }, Some(_)) => Err(Failure::usage(
                "--bit-depth applies to images, but the bundle reads tables: remove it",
            )),
            (ModelInput::Image(pixels), depth) => {
                let reader = match settings {
                    Some(settings) => input::images_by(*pixels, settings),
                    None => input::images(*pixels),
                };
                Ok(Some(match depth {
                    Some(bits) => reader.with_depth(BitDepth::new(bits)),
                    None => reader,
                }))
            }
        }
    }
}

/// Says on standard error if the images seem to use fewer bits than they were read with.
pub fn warn_of_depth(reader: &ImageReader) {
    if let Some(warning) = reader.depth().warning() {
        print::error_line(format_args!("{}", SetBy::Flags.named(&warning)));
    }
}

/// Says on standard error what was ignored or guessed when a model was read.
pub fn say_notes(model: &ImageModel) {
    for note in &model.notes {
        print::error_line(format_args!("{note}"));
    }
}
