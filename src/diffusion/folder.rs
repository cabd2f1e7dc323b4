//! A folder as `ORTDiffusionPipeline.save_pretrained` of optimum and diffusers write it: `model_index.json`, the scheduler's
//! configuration, and the denoiser as ONNX with its own configuration beside it. Pipelines for text have more components.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Component, Path};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::components::{GraphFile, GraphSource, TextToImageFiles};
use super::config;
use super::{Error, Scheduler};
use crate::bundle::graph;
use crate::bundle::image_generative::GoldenImage;

pub const INDEX: &str = "model_index.json";
/// The key that says how a model of pairs gets its source.
const CONDITIONING: &str = "conditioning";
const SCHEDULER: &str = "scheduler";
const SCHEDULER_CONFIG: &str = "scheduler_config.json";
pub(super) const CONFIG: &str = "config.json";
const MODEL: &str = "model.onnx";
/// Where the denoiser may be, by the kind of its network.
const DENOISERS: [&str; 2] = ["unet", "transformer"];
/// The most bytes of a configuration, and of a graph: Protobuf allows 2 GiB.
const MOST_JSON: u64 = 4 << 20;
const MOST_GRAPH: u64 = 2 << 30;
/// The most channels, and the most pixels on a side.
pub(super) const MOST_CHANNELS: u64 = 4096;
pub const MOST_PIXELS: u64 = 8192;
/// The pipelines that draw from text, and the parts that they may have. A feature extractor serves the safety checker.
const TEXT_TO_IMAGE: [&str; 7] = [
    "StableDiffusionPipeline",
    INPAINT,
    "StableDiffusionImg2ImgPipeline",
    "LatentConsistencyModelPipeline",
    XL[0],
    XL[1],
    XL[2],
];
/// Those of Stable Diffusion XL (Podell et al. 2023, arXiv 2307.01952).
const XL: [&str; 3] = [
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    XL_INPAINT,
];
/// The parts that these cannot do without.
const XL_PARTS: [&str; 4] = ["tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2"];
const TEXT_TO_IMAGE_PARTS: [&str; 8] = [
    "tokenizer",
    "text_encoder",
    "vae",
    "vae_encoder",
    "vae_decoder",
    SAFETY_CHECKER,
    "feature_extractor",
    "image_encoder",
];
/// Their denoisers may also take the mask, of one channel, and the masked latent image.
const INPAINT: &str = "StableDiffusionInpaintPipeline";
pub const XL_INPAINT: &str = "StableDiffusionXLInpaintPipeline";
const SAFETY_CHECKER: &str = "safety_checker";
/// Flags of Stable Diffusion XL in the index. A model with the first takes a score in place of the target size.
const AESTHETICS: &str = "requires_aesthetics_score";
const FORCE_ZEROS: &str = "force_zeros_for_empty_prompt";
const WATERMARK: &str = "add_watermarker";
/// What `residuald-train` writes into the index beside the parts: the default number of steps, and the default guidance.
const STEPS: &str = "steps";
const DISTILLED: &str = "distilled";
const GUIDANCE: &str = "guidance";
const MOST_STEPS: u64 = 100_000;
/// The largest guidance. Images are saturated far below.
pub const MOST_GUIDANCE: f32 = 1000.0;

/// What a denoiser may take beside image and timestep: the tokens' embeddings and the guidance's embedding; in Stable Diffusion XL also
/// the whole prompt's embedding and the image's size.
pub const HIDDEN_STATES: &str = "encoder_hidden_states";
pub const TIMESTEP_COND: &str = "timestep_cond";
pub const TEXT_EMBEDS: &str = "text_embeds";
pub const TIME_IDS: &str = "time_ids";

/// A pipeline that draws images from noise alone, or from noise and text, of a folder or of a bundle.
#[derive(Debug)]
pub struct ImagePipeline {
    /// The pipeline's class, without a prefix for ONNX, or the bundle's name.
    pub pipeline: String,
    /// The default number of steps. `None` if only the class tells it, as in diffusers. `residuald-train` writes it into the index.
    pub steps: Option<usize>,
    pub scheduler: Scheduler,
    pub denoiser: DenoiserFiles,
    /// `None` if it draws from noise alone.
    pub text: Option<TextToImageFiles>,
    /// What was ignored or guessed.
    pub notes: Vec<String>,
}

/// The denoiser's graph, and what its configuration says of it.
#[derive(Debug)]
pub struct DenoiserFiles {
    pub graph: GraphFile,
    /// Channels, height and width of an image, or of a latent image.
    pub shape: [usize; 3],
    /// The inputs beside image and timestep, and the number of values of their last dimension.
    pub conditions: Vec<(&'static str, usize)>,
    /// The number of values that tell the model its guidance, if it takes them (`time_cond_proj_dim`).
    pub guidance_width: Option<usize>,
    /// As many as an image's, or twice that if it also predicts a variance.
    pub out_channels: usize,
    /// The channels that are joined to the noisy image, behind its own: a source image, or for latent images the mask and the masked
    /// image. 0 if the model takes none.
    pub source_channels: usize,
    /// Whether it knows only the noise levels of its default steps.
    pub is_distilled: bool,
    /// What it must return, if that is known.
    pub golden: Vec<GoldenImage>,
}

impl ImagePipeline {
    /// Reads a folder. `class` replaces the scheduler's class.
    ///
    /// # Errors
    /// If a file is missing or wrong, or the pipeline needs more than a denoiser and a scheduler.
    pub fn read(folder: &Path, class: Option<&str>) -> Result<ImagePipeline, Error> {
        let mut notes = Vec::new();
        let path = folder.join(INDEX);
        if !path.exists() {
            let problem = "is missing: the folder must be one that save_pretrained of a pipeline of diffusers or optimum wrote";
            return Err(failed(&path, problem));
        }
        let index = object(&path)?;
        let pipeline = pipeline(folder, &index)?;
        let is_joined = [INPAINT, XL_INPAINT].contains(&pipeline.as_str());
        let is_joined = is_joined || is_paired(folder, &index)?;
        let mut denoiser = DenoiserFiles::read(folder, &index, is_joined)?;
        let scheduler = scheduler(folder, &index, &pipeline, class, &mut notes)?;
        let text = match TEXT_TO_IMAGE.contains(&pipeline.as_str()) {
            true => {
                let is_xl = is_xl(&pipeline);
                let guidance = guidance(&path, &index)?;
                let zeros = is_xl && flag(&path, &index, FORCE_ZEROS, true)?;
                let files = TextToImageFiles::read(folder, is_xl, guidance, zeros, &mut notes);
                Some(files?)
            }
            false => None,
        };
        if let Some(text) = &text {
            let channels = denoiser.shape[0] - denoiser.source_channels;
            let latent = text.decoder.latent_channels;
            if latent != channels {
                let problem = format!(
                    "the denoiser has `in_channels` {channels}, and vae_decoder has `latent_channels` {latent}: they must be the same"
                );
                return Err(failed(folder, &problem));
            }
            denoiser.conditions.extend(text.conditions());
        }
        if text.is_some() && index.get(SAFETY_CHECKER).is_some_and(is_part) {
            notes.push("the pipeline's safety_checker is not run".into());
        }
        if text.is_some() && flag(&path, &index, WATERMARK, false)? {
            notes.push("the pipeline's invisible watermark is not added".into());
        }
        denoiser.is_distilled = flag(&path, &index, DISTILLED, false)?;
        let steps = index.contains_key(STEPS);
        let steps = steps.then(|| whole(&path, &index, STEPS, MOST_STEPS));
        Ok(ImagePipeline {
            pipeline,
            steps: steps.transpose()?,
            scheduler,
            denoiser,
            text,
            notes,
        })
    }
}

/// Whether a pipeline of this class is Stable Diffusion XL.
pub fn is_xl(pipeline: &str) -> bool {
    XL.contains(&pipeline)
}

/// A flag of the index. `default` if it is absent or null.
fn flag(path: &Path, index: &Map<String, Value>, name: &str, default: bool) -> Result<bool, Error> {
    match index.get(name) {
        None | Some(Value::Null) => Ok(default),
        Some(Value::Bool(value)) => Ok(*value),
        Some(_) => Err(failed(path, &format!("`{name}` must be true or false"))),
    }
}

/// Returns a hash of the files of a pipeline of a denoiser and a scheduler, as lower-case hexadecimal: the SHA-256 of the name and of the SHA-256 of
/// each of them. `graph` is the denoiser's.
///
/// # Errors
/// A file cannot be read.
pub fn fingerprint(folder: &Path, graph: &GraphFile) -> Result<String, Error> {
    let external = match &graph.source {
        GraphSource::File(path) => graph::external_files(&read(path, MOST_GRAPH)?),
        GraphSource::Bytes(model) => graph::external_files(model),
    };
    let external = external.map_err(|e| failed(folder, &e))?;
    let component = graph.file.strip_suffix(MODEL).unwrap_or_default();
    let weights = external.iter().map(|file| format!("{component}{file}"));
    let mut files = vec![
        INDEX.to_owned(),
        format!("{SCHEDULER}/{SCHEDULER_CONFIG}"),
        format!("{component}{CONFIG}"),
        graph.file.clone(),
    ];
    files.extend(weights);
    files.sort();
    let mut all = Sha256::new();
    for file in files {
        let path = folder.join(&file);
        let unread = |e: std::io::Error| failed(&path, &format!("cannot be read: {e}"));
        let mut one = Sha256::new();
        let mut content = BufReader::new(File::open(&path).map_err(unread)?);
        loop {
            let part = content.fill_buf().map_err(unread)?;
            if part.is_empty() {
                break;
            }
            one.update(part);
            let read = part.len();
            content.consume(read);
        }
        all.update(file.as_bytes());
        all.update([0]);
        all.update(one.finalize());
    }
    Ok(hex::encode(all.finalize()))
}

/// The default guidance of the index, if it has one.
fn guidance(path: &Path, index: &Map<String, Value>) -> Result<Option<f32>, Error> {
    let Some(value) = index.get(GUIDANCE) else {
        return Ok(None);
    };
    let scale = value.as_f64().map(|scale| scale as f32);
    let scale = scale.filter(|scale| (0.0..=MOST_GUIDANCE).contains(scale));
    let problem = format!("`{GUIDANCE}` must be from 0 to {MOST_GUIDANCE}");
    scale.map(Some).ok_or_else(|| failed(path, &problem))
}

/// The pipeline's class. All its parts must be known.
fn pipeline(folder: &Path, index: &Map<String, Value>) -> Result<String, Error> {
    let class = index.get("_class_name").and_then(Value::as_str);
    let Some(class) = class else {
        return Err(failed(&folder.join(INDEX), "has no `_class_name`"));
    };
    let class: String = class.chars().take(100).collect();
    let plain = ["ORT", "Onnx"]
        .iter()
        .find_map(|prefix| class.strip_prefix(prefix));
    let pipeline = plain.unwrap_or(&class).to_owned();
    let others: Vec<&str> = index
        .iter()
        .filter(|(_, part)| is_part(part))
        .map(|(name, _)| name.as_str())
        .filter(|name| *name != SCHEDULER && !DENOISERS.contains(name))
        .collect();
    let of_text = TEXT_TO_IMAGE.contains(&pipeline.as_str());
    let is_xl = is_xl(&pipeline);
    let is_known = |name: &&str| {
        of_text && TEXT_TO_IMAGE_PARTS.contains(name) || is_xl && XL_PARTS.contains(name)
    };
    let others: Vec<&str> = others.into_iter().filter(|name| !is_known(name)).collect();
    if is_xl {
        must_be_whole(folder, &pipeline, index)?;
    }
    if others.is_empty() {
        return Ok(pipeline);
    }
    Err(failed(
        folder,
        &format!(
            "is a {pipeline}, which also needs {}: only pipelines of a denoiser and a scheduler, such as DDPMPipeline, and {} can be drawn from",
            others.join(", "),
            TEXT_TO_IMAGE.join(", ")
        ),
    ))
}

/// Refuses a pipeline of Stable Diffusion XL that only refines what another one drew.
fn must_be_whole(folder: &Path, pipeline: &str, index: &Map<String, Value>) -> Result<(), Error> {
    if flag(&folder.join(INDEX), index, AESTHETICS, false)? {
        let problem = format!(
            "is a {pipeline} with `{AESTHETICS}`, a refiner: only models that take the target size can be drawn from"
        );
        return Err(failed(folder, &problem));
    }
    let is_absent = |name: &&str| !index.get(*name).is_some_and(is_part);
    let absent: Vec<&str> = XL_PARTS.into_iter().filter(is_absent).collect();
    match absent.is_empty() {
        true => Ok(()),
        false => {
            let absent = absent.join(", ");
            let problem = format!("is a {pipeline}, and its {INDEX} names no {absent}");
            Err(failed(folder, &problem))
        }
    }
}

/// Parts are a library and a class. A part that a pipeline was saved without is a pair of nulls.
fn is_part(value: &Value) -> bool {
    let names = value.as_array().map(Vec::as_slice).unwrap_or_default();
    names.len() == 2 && names[1].is_string()
}

fn scheduler(
    folder: &Path,
    index: &Map<String, Value>,
    pipeline: &str,
    class: Option<&str>,
    notes: &mut Vec<String>,
) -> Result<Scheduler, Error> {
    let path = folder.join(SCHEDULER).join(SCHEDULER_CONFIG);
    let config = object(&path)?;
    let configured = config.get("_class_name").and_then(Value::as_str);
    // Diffusers loads the class that the index names, and its DDIMPipeline makes a DDIMScheduler of any.
    let indexed = index.get(SCHEDULER).and_then(|part| part.get(1));
    let indexed = match pipeline {
        "DDIMPipeline" => Some("DDIMScheduler"),
        _ => indexed.and_then(Value::as_str),
    };
    let chosen = class.or(indexed).or(configured);
    if let (Some(chosen), Some(configured), None) = (chosen, configured, class)
        && chosen != configured
    {
        notes.push(format!(
            "{} is of {configured}, and read as {chosen}, the scheduler of a {pipeline}",
            path.display()
        ));
    }
    let scheduler = Scheduler::from_config(&config, chosen);
    let scheduler = scheduler.map_err(|e| named(&path, &e))?;
    notes.extend(ignored(&path.display().to_string(), &scheduler));
    Ok(scheduler)
}

/// Says which fields of the scheduler's file are ignored, if any.
pub(super) fn ignored(file: &str, scheduler: &Scheduler) -> Option<String> {
    let fields = scheduler.ignored();
    (!fields.is_empty()).then(|| {
        let (class, fields) = (scheduler.class(), fields.join(", "));
        format!("{file}: {class} has no {fields}: ignored, as in diffusers")
    })
}

impl DenoiserFiles {
    fn read(
        folder: &Path,
        index: &Map<String, Value>,
        is_joined: bool,
    ) -> Result<DenoiserFiles, Error> {
        let named = |name: &&str| index.get(*name).is_some_and(is_part);
        let Some(name) = DENOISERS.into_iter().find(named) else {
            return Err(failed(
                &folder.join(INDEX),
                "names no denoiser: `unet` or `transformer`",
            ));
        };
        let inside = folder.join(name);
        let path = inside.join(CONFIG);
        let config = object(&path)?;
        let whole = |field: &str, most: u64| whole(&path, &config, field, most);
        let channels = whole("in_channels", MOST_CHANNELS)?;
        let out_channels = match config.get("out_channels") {
            None | Some(Value::Null) => channels,
            Some(_) => whole("out_channels", 2 * MOST_CHANNELS)?,
        };
        let source_channels = match is_joined {
            true => channels.saturating_sub(out_channels),
            false => 0,
        };
        if source_channels == 0 && out_channels != channels && out_channels != 2 * channels {
            let problem = format!(
                "`out_channels` is {out_channels}: it must be `in_channels`, {channels}, or twice that with a predicted variance"
            );
            return Err(failed(&path, &problem));
        }
        let [height, width] = sides(&config)
            .ok_or_else(|| failed(&path, "`sample_size` must be one or two numbers of pixels"))?;
        let guidance_width = match config.get("time_cond_proj_dim") {
            None | Some(Value::Null) => None,
            Some(_) => Some(whole("time_cond_proj_dim", MOST_CHANNELS)?),
        };
        Ok(DenoiserFiles {
            graph: graph(folder, name)?,
            shape: [channels, height, width],
            conditions: guidance_width
                .map(|width| (TIMESTEP_COND, width))
                .into_iter()
                .collect(),
            guidance_width,
            out_channels,
            source_channels,
            is_distilled: false,
            golden: Vec::new(),
        })
    }
}

/// Whether the model was trained on pairs of images, and takes the source joined to the noisy image (Saharia et al. 2021, "Palette",
/// arXiv 2111.05826). Diffusers has no such pipeline, so that this is residuald's own key.
fn is_paired(folder: &Path, index: &Map<String, Value>) -> Result<bool, Error> {
    match index.get(CONDITIONING) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::String(kind)) if kind == "concat" => Ok(true),
        Some(other) => {
            let other: String = other.to_string().chars().take(100).collect();
            let problem = format!("has the `{CONDITIONING}` {other}: only \"concat\" is known");
            Err(failed(&folder.join(INDEX), &problem))
        }
    }
}

/// A whole number of a configuration, from 1 to `most`.
pub(super) fn whole(
    path: &Path,
    config: &Map<String, Value>,
    field: &str,
    most: u64,
) -> Result<usize, Error> {
    let value = config.get(field).and_then(Value::as_u64);
    let value = value.filter(|value| (1..=most).contains(value));
    let wanted = || failed(path, &format!("`{field}` must be 1 to {most}"));
    Ok(value.ok_or_else(wanted)? as usize)
}

/// The graph of a component, whose external weights must be beside it. It is not kept in memory.
pub(super) fn graph(folder: &Path, component: &str) -> Result<GraphFile, Error> {
    let inside = folder.join(component);
    let path = inside.join(MODEL);
    let model = read(&path, MOST_GRAPH)?;
    let external = graph::external_files(&model).map_err(|e| failed(&path, &e))?;
    for file in external {
        check_external(&inside, &file).map_err(|e| failed(&path, &e))?;
    }
    Ok(GraphFile {
        file: format!("{component}/{MODEL}"),
        source: GraphSource::File(path),
    })
}

/// `sample_size`: one number for a square, or height and width.
fn sides(config: &Map<String, Value>) -> Option<[usize; 2]> {
    let side = |value: &Value| {
        let pixels = value.as_u64().filter(|n| (1..=MOST_PIXELS).contains(n));
        pixels.map(|pixels| pixels as usize)
    };
    match config.get("sample_size")? {
        Value::Array(both) if both.len() == 2 => Some([side(&both[0])?, side(&both[1])?]),
        one => Some([side(one)?; 2]),
    }
}

/// A file of weights must be a regular one inside of the denoiser's folder.
fn check_external(folder: &Path, file: &str) -> Result<(), String> {
    let outside =
        || format!("keeps weights in `{file}`, which is not inside of its folder: copy it there");
    let name = Path::new(file);
    let plain = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    if file.is_empty() || file.contains('\0') || !name.components().all(plain) {
        return Err(outside());
    }
    let missing = |e| format!("keeps weights in `{file}`, which cannot be read: {e}");
    let path = folder.join(name).canonicalize().map_err(missing)?;
    if !path.starts_with(folder.canonicalize().map_err(missing)?) {
        return Err(outside());
    }
    match path.metadata().map_err(missing)?.is_file() {
        true => Ok(()),
        false => Err(format!(
            "keeps weights in `{file}`, which is not a regular file"
        )),
    }
}

pub(super) fn object(path: &Path) -> Result<Map<String, Value>, Error> {
    config::parse(&text(path, MOST_JSON)?).map_err(|e| failed(path, &e.to_string()))
}

pub(super) fn text(path: &Path, most: u64) -> Result<String, Error> {
    String::from_utf8(read(path, most)?).map_err(|_| failed(path, "is not UTF-8"))
}

/// The problem with a file that is not there. The folder's README.md often tells how to get what it leaves out.
fn missing(path: &Path) -> String {
    let mut folders = path.ancestors().skip(1).take(2);
    let readme = folders.find_map(|folder| Some(folder.join("README.md")).filter(|f| f.exists()));
    match readme {
        Some(readme) => format!("is missing: see {} for how to get it", readme.display()),
        None => "is missing: copy it from where the folder came from".to_owned(),
    }
}

fn read(path: &Path, most: u64) -> Result<Vec<u8>, Error> {
    let unread = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => failed(path, &missing(path)),
        _ => failed(path, &format!("cannot be read: {e}")),
    };
    // A pipe or a device might never end.
    if !path.metadata().map_err(unread)?.is_file() {
        return Err(failed(path, "is not a regular file"));
    }
    let mut bytes = Vec::new();
    let mut file = File::open(path).map_err(unread)?.take(most + 1);
    file.read_to_end(&mut bytes).map_err(unread)?;
    match bytes.len() as u64 > most {
        true => Err(failed(
            path,
            &format!("is larger than {} MiB, the limit", most >> 20),
        )),
        false => Ok(bytes),
    }
}

fn named(path: &Path, error: &Error) -> Error {
    Error::Config(format!("{}: {error}", path.display()))
}

pub(super) fn failed(path: &Path, problem: &str) -> Error {
    Error::Config(format!("{} {problem}", path.display()))
}
