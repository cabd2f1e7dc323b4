//! `residuald inpaint`: draws the marked parts of images anew, so that they fit the rest.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::bounded;
use crate::cli::shared::image_job::{ImageJob, Made, Outcome, Source, Steps, tasks};
use crate::cli::shared::images::{ImageArguments, say_notes};
use crate::cli::shared::latent_editor::{LatentEditing, PromptArguments};
use crate::config::Provider;
use crate::daemon::image_model::{AnyModel, ImageModel};
use crate::decode::{Reason, RowError};
use crate::diffusion::folder::ImagePipeline;
use crate::diffusion::{Repaint, normals};
use crate::failure::Failure;
use crate::image::{About, BitDepth, MOST_WHOLE, Opened, bytes, crops};
use crate::onnx::{ScorerError, TiledDenoiser, finite_image};

/// From this level on, a pixel of a mask is drawn anew, as in diffusers.
const WHITE: u8 = 128;
/// The default number of resamplings.
const RESAMPLINGS: u8 = 5;
/// The default number of steps of a pipeline that does not say it.
const STEPS: usize = 50;
/// Maximum size of a file of verdicts in bytes.
const MOST_VERDICTS: u64 = 256 << 20;

/// Draw marked parts of images anew, so that they fit the rest; all other pixels keep their values
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  residuald inpaint models/parts part.png --mask mask.png --out repaired.png
  residuald score parts --bundle models/parts --out verdicts.ndjson
  residuald inpaint stable-diffusion wall.png --mask mask.png --prompt 'a red brick wall' --out repaired.png
  residuald inpaint models/parts parts --regions verdicts.ndjson --out repaired

MODEL is a bundle for images with a denoiser (residuald-train images --generative), a diffusion pipeline of a denoiser and a scheduler, or a
Stable Diffusion folder, which needs --prompt and vae_encoder. In a mask, pixels of level 128 and above are drawn anew. The noise of an image depends on --seed and the image's bytes. Existing images
are skipped, so the same command goes on after Ctrl-C.")]
pub struct Arguments {
    /// Folder of the bundle or of the pipeline
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Image, or folder of images
    #[arg(value_name = "IMAGE")]
    input: PathBuf,
    /// Image in black and white: what is white is drawn anew
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "regions",
        conflicts_with = "regions"
    )]
    mask: Option<PathBuf>,
    /// Verdicts that `residuald score --out` wrote: their regions are drawn anew
    #[arg(long, value_name = "FILE.ndjson")]
    regions: Option<PathBuf>,
    /// Folder to write to, or a file .png for one image
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// Number of noise levels [default: the bundle's steps; 50 for a pipeline]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    steps: Option<u16>,
    /// How often each step is taken: more make the drawn part fit better; not for pipelines for text [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=100))]
    resamplings: Option<u8>,
    /// Seed of the noise
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    prompt: PromptArguments,
    #[command(flatten)]
    images: ImageArguments,
    /// Run on all CPU cores or on the first GPU
    #[arg(long, value_enum, default_value_t = Provider::Cpu)]
    provider: Provider,
    /// Replace existing images
    #[arg(long)]
    force: bool,
    /// Print one JSON object at the end instead of text
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    match AnyModel::open(&arguments.model)? {
        AnyModel::Pixels(model) => pixels(arguments, &model),
        AnyModel::Latent(pipeline) => latent(arguments, *pipeline),
    }
}

/// With a model of pixels.
fn pixels(arguments: &Arguments, model: &ImageModel) -> Result<(), Failure> {
    if let Some(name) = arguments.prompt.given() {
        return Err(arguments.no_effect(name, "does not draw from text"));
    }
    let channels = model.image_channels()?;
    model.is_not_paired("inpaint")?;
    let steps = arguments
        .steps
        .map(usize::from)
        .or(model.steps)
        .unwrap_or(STEPS);
    let resamplings = arguments.resamplings.unwrap_or(RESAMPLINGS);
    let repaint = Repaint::new(&model.scheduler, steps, resamplings.into());
    let painter = Painter {
        repaint: repaint.map_err(Failure::usage)?,
        marks: Marks::read(arguments)?,
        least: [model.files.shape[1], model.files.shape[2]],
        seed: arguments.seed,
        channels,
    };
    let mut about = model.about();
    about.extend([
        ("seed", arguments.seed.to_string()),
        ("steps", steps.to_string()),
        ("resamplings", resamplings.to_string()),
    ]);
    let job = arguments.job(channels, about)?;
    let workers = model.denoisers(arguments.provider, job.images.len())?;
    say_notes(model);
    job.run(workers, |worker, source, steps| {
        painter.paint(worker, source, steps)
    })
}

/// With a pipeline for text, which works on latent images.
fn latent(arguments: &Arguments, pipeline: ImagePipeline) -> Result<(), Failure> {
    if arguments.resamplings.is_some() {
        return Err(arguments.no_effect("--resamplings", "works on latent images"));
    }
    let marks = Marks::read(arguments)?;
    let steps = arguments.steps.map(usize::from);
    let (folder, provider) = (&arguments.model, arguments.provider);
    let editing = LatentEditing::new(folder, pipeline, &arguments.prompt, steps, 1.0, provider)?;
    let mut about = editing.about.clone();
    about.push(("seed", arguments.seed.to_string()));
    let job = arguments.job(3, about)?;
    let editors = editing.editors(job.images.len());
    job.run(editors, |editor, source, steps| {
        let marked = match marks.of(source) {
            Ok(marked) => marked,
            Err(error) => return Ok(Some(Err(error))),
        };
        if !marked.contains(&true) {
            return Ok(Some(Ok(composed(source, &marked, &source.values, 3))));
        }
        let mut noise = normals(arguments.seed, source.number);
        let edited = editor.edit(
            &source.values,
            source.size,
            Some(&marked),
            &mut noise,
            steps,
        )?;
        Ok(edited.map(|image| finite_image(&image).map(|()| composed(source, &marked, &image, 3))))
    })
}

impl Arguments {
    fn job(&self, channels: usize, about: About) -> Result<ImageJob, Failure> {
        Ok(ImageJob {
            images: tasks(&self.input, &self.out)?,
            channels,
            out_channels: channels,
            depth: BitDepth::new(self.images.bit_depth.unwrap_or(16)),
            overwrites: self.force,
            json: self.json,
            about,
        })
    }

    fn no_effect(&self, option: &str, why: &str) -> Failure {
        Failure::usage(format!(
            "{option} has no effect, because {} {why}: leave {option} out",
            self.model.display()
        ))
    }
}

/// The new pixels where the image is marked, and its own elsewhere.
fn composed(source: &Source, marked: &[bool], image: &[f32], channels: usize) -> Made {
    let mut made = bytes(image, channels);
    let pixels = made.chunks_exact_mut(channels);
    let pixels = pixels.zip(source.bytes.chunks_exact(channels)).zip(marked);
    for ((made, source), marked) in pixels {
        if !marked {
            made.copy_from_slice(source);
        }
    }
    let count = marked.iter().filter(|marked| **marked).count();
    Made {
        bytes: made,
        about: vec![("painted", format!("{count} pixels"))],
        unchanged: count == 0,
    }
}

/// Which pixels are drawn anew.
enum Marks {
    Mask {
        /// Height and width.
        size: [usize; 2],
        marked: Vec<bool>,
    },
    /// The regions of each image, by its name.
    Regions(HashMap<String, Vec<Region>>),
}

/// A line of the verdicts. Other fields do not matter.
#[derive(Deserialize)]
struct Verdict {
    file: String,
    #[serde(default)]
    regions: Vec<Region>,
}

#[derive(Deserialize)]
struct Region {
    x: usize,
    y: usize,
    width: usize,
    height: usize,
}

impl Marks {
    fn read(arguments: &Arguments) -> Result<Marks, Failure> {
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
    fn of(&self, source: &Source) -> Result<Vec<bool>, RowError> {
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
                let regions = all.get(&source.name).ok_or_else(|| {
                    refused("--regions has no verdict of it: score the same folder".into())
                })?;
                let mut marked = vec![false; height * width];
                for region in regions {
                    let fits = region
                        .x
                        .checked_add(region.width)
                        .is_some_and(|x| x <= width)
                        && region
                            .y
                            .checked_add(region.height)
                            .is_some_and(|y| y <= height);
                    if !fits {
                        return Err(refused(format!(
                            "a region of its verdict reaches beyond its {width} x {height} pixels: it is another image"
                        )));
                    }
                    for row in marked
                        .chunks_exact_mut(width)
                        .skip(region.y)
                        .take(region.height)
                    {
                        row[region.x..][..region.width].fill(true);
                    }
                }
                Ok(marked)
            }
        }
    }
}

fn regions(path: &Path) -> Result<HashMap<String, Vec<Region>>, Failure> {
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
        all.insert(verdict.file, verdict.regions);
    }
    match all.is_empty() {
        true => Err(failed(&"holds no verdicts")),
        false => Ok(all),
    }
}

struct Painter {
    repaint: Repaint,
    marks: Marks,
    /// Height and width of the least part of an image that the model sees.
    least: [usize; 2],
    seed: u64,
    channels: usize,
}

impl Painter {
    fn paint(
        &self,
        denoiser: &mut TiledDenoiser,
        source: &Source,
        steps: &Steps<'_>,
    ) -> Result<Outcome, Failure> {
        let marked = match self.marks.of(source) {
            Ok(marked) => marked,
            Err(error) => return Ok(Some(Err(error))),
        };
        let mut image = source.values.clone();
        let mut noise = normals(self.seed, source.number);
        let crops = crops(&marked, source.size, self.least);
        steps.expect(crops.len() * self.repaint.runs());
        for crop in &crops {
            let known = crop.cut(&image, source.size);
            let overlap = denoiser.overlap([crop.height, crop.width]);
            let painted = crop.cut(&marked, source.size);
            let predict = |sample: &[f32], timestep: f32| {
                if steps.must_stop() {
                    return Ok(None);
                }
                let predicted = denoiser.predict(sample, &overlap, timestep, &[])?;
                steps.count();
                Ok::<_, ScorerError>(Some(predicted))
            };
            let drawn = self.repaint.paint(&known, &painted, &mut noise, predict)?;
            let Some(drawn) = drawn else {
                return Ok(None);
            };
            if let Err(error) = finite_image(&drawn) {
                return Ok(Some(Err(error)));
            }
            crop.paste(&drawn, &mut image, source.size);
        }
        Ok(Some(Ok(composed(source, &marked, &image, self.channels))))
    }
}
