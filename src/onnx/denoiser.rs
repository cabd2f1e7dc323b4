//! Runs the denoiser of a diffusion pipeline: from noisy images, a timestep and conditions to what it predicts.

use std::borrow::Cow;

use half::f16;
use ort::session::{Session, SessionInputValue};
use ort::value::{Outlet, PrimitiveTensorElementType, Tensor, TensorElementType, ValueType};

use super::component::{fault, find, floats, input, open, output};
use super::generative::TOLERANCE;
use super::interrupt::Interrupt;
use super::{Runtime, ScorerError};
use crate::bundle::image_generative::GoldenImage;
use crate::config::{InferenceSettings, Provider};
use crate::diffusion::folder::DenoiserFiles;

/// The names that exporters give to the noisy images, and to the prediction.
const SAMPLES: [&str; 2] = ["sample", "hidden_states"];
const TIMESTEP: &str = "timestep";
const OUTPUT: &str = "out_sample";

/// What a denoiser gets beside image and timestep: the same for all images.
#[derive(Debug, Clone)]
pub struct Condition {
    /// The input's name.
    pub name: &'static str,
    /// The shape for one image.
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

impl Condition {
    /// A vector for each image.
    pub fn vector(name: &'static str, values: Vec<f32>) -> Condition {
        Condition {
            name,
            shape: vec![values.len()],
            values,
        }
    }
}

/// A denoiser that one thread owns.
#[derive(Debug)]
pub struct Denoiser {
    session: Session,
    /// The graph's path in the pipeline's folder.
    file: String,
    sample: String,
    sample_type: TensorElementType,
    timestep_type: TensorElementType,
    /// The timestep is a vector, with one value for each image, rather than a scalar.
    timestep_is_vector: bool,
    /// The element type of each condition.
    conditions: Vec<(&'static str, TensorElementType)>,
    output: String,
    output_type: TensorElementType,
    /// Channels, height and width of an image.
    shape: [usize; 3],
    out_channels: usize,
    /// The most images of a run.
    together: usize,
    interrupt: Interrupt,
}

impl Denoiser {
    /// Creates a session for thread `worker`, and checks the graph's tensors. On a CPU, images are run one by one: several at
    /// once would gain nothing, and an image's bits would depend on the others.
    ///
    /// # Errors
    /// [`ScorerError::Graph`] if the tensors are not those of a denoiser or a golden point differs, or [`ScorerError::Provider`] if the provider is not
    /// available.
    pub fn new(
        runtime: &Runtime,
        files: &DenoiserFiles,
        inference: &InferenceSettings,
        worker: usize,
        most_together: usize,
    ) -> Result<Denoiser, ScorerError> {
        Denoiser::of_shape(
            runtime,
            files,
            files.shape,
            inference,
            worker,
            most_together,
        )
    }

    /// As [`Denoiser::new`], for images of other sides than the files say.
    ///
    /// # Errors
    /// As of [`Denoiser::new`].
    pub fn of_shape(
        runtime: &Runtime,
        files: &DenoiserFiles,
        shape: [usize; 3],
        inference: &InferenceSettings,
        worker: usize,
        most_together: usize,
    ) -> Result<Denoiser, ScorerError> {
        let file = files.graph.file.clone();
        let (session, provider) = open(runtime, &files.graph, inference, worker, &shape)?;
        let tensors =
            Tensors::of(&session, files, shape).map_err(|problem| fault(&file, problem))?;
        let one_by_one = provider == Provider::Cpu || tensors.takes_one;
        let mut denoiser = Denoiser {
            sample: tensors.sample.0,
            sample_type: tensors.sample.1,
            timestep_type: tensors.timestep,
            timestep_is_vector: tensors.timestep_is_vector,
            conditions: tensors.conditions,
            output: tensors.output.0,
            output_type: tensors.output.1,
            session,
            file,
            shape,
            out_channels: files.out_channels,
            together: if one_by_one { 1 } else { most_together },
            interrupt: runtime.interrupt.clone(),
        };
        // The sessions of all threads run the same graph on the same device.
        let golden = if worker == 0 { &files.golden[..] } else { &[] };
        for (number, point) in (1..).zip(golden) {
            denoiser.check(number, point)?;
        }
        Ok(denoiser)
    }

    /// Compares what the graph returns for a golden point with what it returned to the trainer.
    fn check(&mut self, number: usize, point: &GoldenImage) -> Result<(), ScorerError> {
        let mut found = Vec::new();
        self.predict(&point.noisy, point.timestep as f32, &[], &mut found)?;
        let matches =
            |(got, want): (&f32, &f32)| (got - want).abs() <= TOLERANCE * want.abs().max(1.0);
        let pairs = || found.iter().zip(&point.out_sample);
        match pairs().position(|pair| !matches(pair)) {
            None => Ok(()),
            Some(at) => {
                let problem = format!(
                    "golden point {number} gives {} in `{}` {at}, but the trainer computed {}: the graph was altered, or it computes differently on this machine",
                    found[at], self.output, point.out_sample[at]
                );
                Err(fault(&self.file, problem))
            }
        }
    }

    /// The graph's path in the pipeline's folder.
    pub(super) fn file(&self) -> &str {
        &self.file
    }

    /// Whether the graph takes whole timesteps alone.
    pub fn takes_whole_timesteps(&self) -> bool {
        use TensorElementType::{Int32, Int64};
        matches!(self.timestep_type, Int32 | Int64)
    }

    /// Writes what the model predicts for noisy images, [N, C, H, W], at one timestep. A graph of whole timesteps gets a fractional
    /// one rounded down.
    ///
    /// # Errors
    /// [`ScorerError::Run`] when ONNX Runtime fails, or [`ScorerError::Graph`] when the output has another shape than declared.
    pub fn predict(
        &mut self,
        images: &[f32],
        timestep: f32,
        conditions: &[Condition],
        predicted: &mut Vec<f32>,
    ) -> Result<(), ScorerError> {
        predicted.clear();
        let size: usize = self.shape.iter().product();
        for part in images.chunks(size * self.together) {
            self.run(part, part.len() / size, timestep, conditions, predicted)?;
        }
        Ok(())
    }

    fn run(
        &mut self,
        images: &[f32],
        count: usize,
        timestep: f32,
        conditions: &[Condition],
        predicted: &mut Vec<f32>,
    ) -> Result<(), ScorerError> {
        let [channels, height, width] = self.shape;
        let shape = [count, channels, height, width];
        let sample = input(self.sample_type, &shape, images)?;
        let count_of_timesteps = if self.timestep_is_vector { count } else { 1 };
        let timestep = match self.timestep_type {
            TensorElementType::Int64 => self.timesteps(timestep as i64, count_of_timesteps)?,
            TensorElementType::Int32 => self.timesteps(timestep as i32, count_of_timesteps)?,
            TensorElementType::Float64 => {
                self.timesteps(f64::from(timestep), count_of_timesteps)?
            }
            TensorElementType::Float16 => {
                self.timesteps(f16::from_f32(timestep), count_of_timesteps)?
            }
            _ => self.timesteps(timestep, count_of_timesteps)?,
        };
        let mut inputs = vec![
            (Cow::from(self.sample.as_str()), sample),
            (Cow::from(TIMESTEP), timestep),
        ];
        for (name, element) in &self.conditions {
            let condition = conditions.iter().find(|condition| condition.name == *name);
            let condition =
                condition.ok_or_else(|| fault(&self.file, format!("was not given `{name}`")))?;
            let shape: Vec<usize> = [&[count], condition.shape.as_slice()].concat();
            let value = input(*element, &shape, &condition.values.repeat(count))?;
            inputs.push((Cow::from(*name), value));
        }
        let runs = self.interrupt.runs()?;
        let outputs = self
            .session
            .run_with_options(inputs, runs)
            .map_err(|e| self.interrupt.failure(e))?;
        let shape = [count, self.out_channels, height, width];
        let tensor = (self.output.as_str(), self.output_type);
        output(&outputs, &self.file, tensor, &shape, predicted)
    }

    fn timesteps<T: PrimitiveTensorElementType + Clone + std::fmt::Debug + 'static>(
        &self,
        timestep: T,
        count: usize,
    ) -> Result<SessionInputValue<'static>, ScorerError> {
        let shape = if self.timestep_is_vector {
            vec![count]
        } else {
            Vec::new()
        };
        Ok(Tensor::from_array((shape, vec![timestep; count]))?.into())
    }
}

/// The graph's tensors, checked.
struct Tensors {
    sample: (String, TensorElementType),
    /// The batch's size is fixed at 1.
    takes_one: bool,
    timestep: TensorElementType,
    timestep_is_vector: bool,
    conditions: Vec<(&'static str, TensorElementType)>,
    output: (String, TensorElementType),
}

impl Tensors {
    fn of(session: &Session, files: &DenoiserFiles, shape: [usize; 3]) -> Result<Tensors, String> {
        use TensorElementType::{Float16, Float32, Float64, Int32, Int64};
        let inputs = session.inputs();
        let sample = find(inputs, &SAMPLES).ok_or("has no input `sample` for the noisy images")?;
        let timestep = find(inputs, &[TIMESTEP]).ok_or("has no input `timestep`")?;
        let given = files.conditions.iter().map(|(name, _)| *name);
        let known: Vec<&str> = given.chain([sample.name(), TIMESTEP]).collect();
        if let Some(more) = inputs.iter().find(|input| !known.contains(&input.name())) {
            return Err(format!(
                "also needs the input `{}`: a pipeline of this class gives it {}",
                more.name(),
                known.join(", ")
            ));
        }
        let conditions = conditions(inputs, &files.conditions)?;
        let output = match find(session.outputs(), &[OUTPUT]) {
            Some(output) => output,
            None if session.outputs().len() == 1 => &session.outputs()[0],
            None => return Err(format!("has no output `{OUTPUT}`")),
        };
        let [channels, height, width] = shape;
        let image = |channels| [channels, height, width];
        let (sample_type, batch) = images(sample, &image(channels))?;
        let (output_type, _) = images(output, &image(files.out_channels))?;
        let (timestep_type, rank) = match timestep.dtype() {
            ValueType::Tensor { ty, shape, .. } => (*ty, shape.len()),
            _ => return Err("has an input `timestep` that is no tensor".into()),
        };
        let known = [Int64, Int32, Float32, Float16, Float64];
        if rank > 1 || !known.contains(&timestep_type) {
            return Err(format!(
                "has an input `timestep` of {timestep_type} with {rank} dimensions: it must be a number or a vector of numbers"
            ));
        }
        if batch > 1 {
            return Err(format!(
                "takes exactly {batch} images at once: export it for any number"
            ));
        }
        Ok(Tensors {
            sample: (sample.name().to_owned(), sample_type),
            takes_one: batch == 1,
            timestep: timestep_type,
            timestep_is_vector: rank == 1,
            conditions,
            output: (output.name().to_owned(), output_type),
        })
    }
}

/// The element types of the conditions, which must be there with their number of values.
fn conditions(
    inputs: &[Outlet],
    wanted: &[(&'static str, usize)],
) -> Result<Vec<(&'static str, TensorElementType)>, String> {
    let types = wanted.iter().map(|&(name, width)| {
        let input = find(inputs, &[name]).ok_or_else(|| format!("has no input `{name}`"))?;
        let (element, sides) = floats(input)?;
        match sides.last() {
            Some(&side) if side >= 0 && side != width as i64 => Err(format!(
                "has `{name}` of {side} values, and gets {width}: it belongs to another model"
            )),
            _ => Ok((name, element)),
        }
    });
    types.collect()
}

/// The type and the fixed batch size, or -1, of a tensor of images, [N, C, H, W].
fn images(tensor: &Outlet, image: &[usize; 3]) -> Result<(TensorElementType, i64), String> {
    use TensorElementType::{Float16, Float32};
    let wrong = |found: &dyn std::fmt::Display| {
        format!(
            "has `{}` of {found}, and must have float32 or float16 [N, {}, {}, {}]",
            tensor.name(),
            image[0],
            image[1],
            image[2]
        )
    };
    let ValueType::Tensor { ty, shape, .. } = tensor.dtype() else {
        return Err(wrong(&"another kind"));
    };
    let sides: Vec<i64> = shape.iter().copied().collect();
    let fits = sides.len() == 4
        && (sides[1..].iter().zip(image)).all(|(&side, &wanted)| side < 0 || side == wanted as i64);
    if !fits || !matches!(ty, Float16 | Float32) {
        let name = match ty {
            Float16 => "float16".to_owned(),
            Float32 => "float32".to_owned(),
            other => other.to_string(),
        };
        return Err(wrong(&format!("{name} {sides:?}")));
    }
    Ok((*ty, sides[0]))
}
