//! Which pixels of an image are drawn anew: those of a mask, or those of the regions of its verdict.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;

use super::Arguments;
use crate::bounded;
use crate::cli::shared::image_job::Source;
use crate::decode::{Reason, RowError};
use crate::failure::Failure;
use crate::image::{BitDepth, MOST_WHOLE, Opened, Region};

/// From this level on, a pixel of a mask is drawn anew, as in diffusers.
const WHITE: u8 = 128;
/// Maximum size of a file of verdicts in bytes.
const MOST_VERDICTS: u64 = 256 << 20;

/// Which pixels are drawn anew.
pub enum Marks {
    Mask {
        /// Height and width.
        size: [usize; 2],
        marked: Vec<bool>,
    },
    /// The verdict on each image, by its name.
    Regions(HashMap<String, Verdict>),
}

impl Marks {
    /// # Errors
    /// A file cannot be read, or is not what it should be.
    pub fn read(arguments: &Arguments) -> Result<Marks, Failure> {
        if let Some(path) = &arguments.regions {
            return regions(path).map(Marks::Regions);
        }
        if arguments.input.is_dir() {
            return Err(Failure::usage(
                "--mask is for one image: a folder of images takes --regions, or give its images one by one",
            ));
        }
        let path = arguments.mask.as_deref().unwrap_or(Path::new(""));
        let failed =
            |e: &dyn std::fmt::Display| Failure::data(format!("--mask {}: {e}", path.display()));
        let encoded = bounded::read(path, bounded::IMAGE).map_err(|e| failed(&e))?;
        let opened = Opened::new(&encoded, 1, MOST_WHOLE).map_err(|e| failed(&e))?;
        let mask = opened.decode(&BitDepth::new(16)).map_err(|e| failed(&e))?;
        Ok(Marks::Mask {
            size: [mask.height, mask.width],
            marked: mask.pixels.iter().map(|level| *level >= WHITE).collect(),
        })
    }

    /// Returns the marked pixels of an image, [H, W].
    ///
    /// # Errors
    /// The mask or the verdict is not one of this image.
    pub fn of(&self, source: &Source) -> Result<Vec<bool>, RowError> {
        let [height, width] = source.size;
        let refused = |problem: String| RowError {
            reason: Reason::Malformed,
            detail: problem.into(),
        };
        match self {
            Marks::Mask { size, marked } if *size == source.size => Ok(marked.clone()),
            Marks::Mask { size, .. } => Err(refused(format!(
                "the mask has {} x {} pixels, but its image has {width} x {height}: both must have the same size",
                size[1], size[0]
            ))),
            Marks::Regions(all) => {
                let verdict = all.get(&source.name).ok_or_else(|| {
                    refused("--regions has no verdict of it: score the same folder".into())
                })?;
                let mut marked = vec![false; height * width];
                // The regions of a normal image are only where its heat is highest.
                let regions = verdict.severity.as_ref().map(|_| &verdict.regions);
                for region in regions.into_iter().flatten() {
                    if !region.mark(&mut marked, source.size) {
                        return Err(refused(format!(
                            "a region of its verdict reaches beyond its {width} x {height} pixels: it is another image"
                        )));
                    }
                }
                Ok(marked)
            }
        }
    }
}

/// A line of the verdicts. Other fields do not matter.
#[derive(Deserialize)]
pub struct Verdict {
    file: String,
    /// `None` if the image is normal.
    #[serde(default = "unknown")]
    severity: Option<String>,
    #[serde(default)]
    regions: Vec<Region>,
}

fn unknown() -> Option<String> {
    Some("unknown".into())
}

fn regions(path: &Path) -> Result<HashMap<String, Verdict>, Failure> {
    let failed =
        |e: &dyn std::fmt::Display| Failure::data(format!("--regions {}: {e}", path.display()));
    let text = bounded::read_text(path, MOST_VERDICTS).map_err(|e| failed(&e))?;
    let mut all = HashMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        let verdict: Verdict = serde_json::from_str(line).map_err(|e| {
            failed(&format!(
                "line {number} is no verdict of `residuald score FOLDER --out`: {e}"
            ))
        })?;
        all.insert(verdict.file.clone(), verdict);
    }
    match all.is_empty() {
        true => Err(failed(&"holds no verdicts")),
        false => Ok(all),
    }
}
