//! The graphs of a bundle's generative part, and the drawing of rows with them.

use std::io;
use std::panic::resume_unwind;
use std::thread;

use ort::session::{Session, SessionInputValue};
use ort::value::{TensorElementType, TensorRef};

use super::buckets::{Buckets, padded};
use super::interrupt::Interrupt;
use super::outputs::values;
use super::scorer::{builder, commit, tensor_fault};
use super::{BATCH, Runtime, ScorerError};
use crate::bundle::generative::{DECODE, DENOISER, ENCODE, GoldenPoint};
use crate::bundle::{Fault, Generative};
use crate::diffusion::{self, Noise, NoiseFile, Plan, PredictionType, Sample, Scheduler, normals};

/// Maximum deviation of a golden point, relative to values above 1.
pub(super) const TOLERANCE: f32 = 1e-3;

/// Why rows could not be drawn.
#[derive(Debug, thiserror::Error)]
pub enum DrawError {
    #[error(transparent)]
    Graph(#[from] ScorerError),
    #[error(transparent)]
    Scheduler(#[from] diffusion::Error),
    #[error("the states cannot be written: {0}")]
    States(#[from] io::Error),
    #[error(
        "the denoiser returned NaN or infinity at step {step} of sample {sample}: the bundle's denoiser is unusable with this scheduler and number of steps"
    )]
    NotFinite { step: usize, sample: u64 },
}

/// The three graphs, on one thread of the CPU. Every row gets the same bits in any batch.
#[derive(Debug)]
pub struct Graphs {
    encode: Session,
    denoiser: Session,
    decode: Session,
    /// Number of features, F.
    width: usize,
    /// Number of dimensions of the denoiser's space, D.
    dimensions: usize,
    /// Whether the denoiser takes its timestep as int64; float32 otherwise.
    takes_integers: bool,
    buckets: Buckets,
    interrupt: Interrupt,
}

impl Graphs {
    /// Creates the sessions and checks the golden points.
    ///
    /// # Errors
    /// [`ScorerError::Graph`] if a graph does not have the tensors of the contract or does not give the trainer's values.
    pub fn new(
        runtime: &Runtime,
        generative: &Generative,
        width: usize,
    ) -> Result<Graphs, ScorerError> {
        let session = |file, model: &[u8]| commit(&mut builder(runtime)?, file, model);
        let denoiser = session(DENOISER, &generative.denoiser)?;
        let mut inputs = denoiser.inputs().iter();
        let timestep = inputs.find(|tensor| tensor.name() == "timestep");
        let of_floats = tensor_fault(
            "input",
            "timestep",
            TensorElementType::Float32,
            &[-1],
            timestep,
        );
        let mut graphs = Graphs {
            takes_integers: of_floats.is_some(),
            encode: session(ENCODE, &generative.encode)?,
            decode: session(DECODE, &generative.decode)?,
            denoiser,
            width,
            dimensions: generative.about.dimensions(),
            buckets: Buckets::up_to(BATCH),
            interrupt: runtime.interrupt.clone(),
        };
        let faults = graphs.tensor_faults();
        if !faults.is_empty() {
            return Err(ScorerError::Graph(faults));
        }
        for (number, point) in (1..).zip(&generative.about.golden) {
            graphs.check(number, point)?;
        }
        Ok(graphs)
    }

    fn tensor_faults(&self) -> Vec<Fault> {
        use TensorElementType::{Float32, Int64};
        let (row, point) = ([-1, self.width as i64], [-1, self.dimensions as i64]);
        let timestep = if self.takes_integers { Int64 } else { Float32 };
        let graphs: [(&str, &Session, &[_], &[_]); 3] = [
            (
                ENCODE,
                &self.encode,
                &[("x", Float32, &row[..]), ("known", Float32, &row)],
                &[("sample", Float32, &point[..]), ("mask", Float32, &point)],
            ),
            (
                DENOISER,
                &self.denoiser,
                &[
                    ("sample", Float32, &point[..]),
                    ("timestep", timestep, &[-1]),
                    ("mask", Float32, &point),
                ],
                &[("out_sample", Float32, &point[..])],
            ),
            (
                DECODE,
                &self.decode,
                &[("sample", Float32, &point[..])],
                &[("x", Float32, &row[..])],
            ),
        ];
        let mut faults = Vec::new();
        for (file, session, inputs, outputs) in graphs {
            let sides = [
                ("input", session.inputs(), inputs),
                ("output", session.outputs(), outputs),
            ];
            for (kind, tensors, expected) in sides {
                for (name, element, shape) in expected {
                    let found = tensors.iter().find(|tensor| tensor.name() == *name);
                    let problem = tensor_fault(kind, name, *element, shape, found);
                    faults.extend(problem.map(|problem| Fault::new(file, problem)));
                }
                if kind == "input" && tensors.len() > expected.len() {
                    let names: Vec<&str> = expected.iter().map(|(name, ..)| *name).collect();
                    let problem =
                        format!("has further inputs: it may only have {}", names.join(", "));
                    faults.push(Fault::new(file, problem));
                }
            }
        }
        faults
    }

    fn check(&mut self, number: usize, point: &GoldenPoint) -> Result<(), ScorerError> {
        let row = |values: &[Option<f32>]| -> Vec<f32> {
            values.iter().map(|v| v.unwrap_or(f32::NAN)).collect()
        };
        let (sample, mask) = self.encode(&row(&point.x), &point.known)?;
        let out = self.denoise(&point.noisy, point.timestep as f32, &point.mask)?;
        let decoded = self.decode(&point.noisy)?;
        for (file, output, found, expected) in [
            (ENCODE, "sample", sample, &point.sample),
            (ENCODE, "mask", mask, &point.mask),
            (DENOISER, "out_sample", out, &point.out_sample),
            (DECODE, "x", decoded, &row(&point.decoded)),
        ] {
            let differs = |(found, expected): (&f32, &f32)| {
                let are_close = (found - expected).abs() <= TOLERANCE * expected.abs().max(1.0);
                let are_missing = found.is_nan() && expected.is_nan();
                !are_close && !are_missing
            };
            if let Some(at) = found.iter().zip(expected).position(differs) {
                let problem = format!(
                    "golden point {number} gives {} in `{output}` {at}, but the trainer computed {}: the graph was altered, or it computes differently on this machine",
                    found[at], expected[at]
                );
                return Err(ScorerError::Graph(vec![Fault::new(file, problem)]));
            }
        }
        Ok(())
    }

    /// Returns the points of rows, and which of their dimensions are known.
    ///
    /// `x`: [N, F], NaN is missing. `known`: [N, F], 1 for a feature that is given. Both results: [N, D].
    ///
    /// # Errors
    /// ONNX Runtime fails.
    pub fn encode(
        &mut self,
        x: &[f32],
        known: &[f32],
    ) -> Result<(Vec<f32>, Vec<f32>), ScorerError> {
        let (mut samples, mut masks) = (Vec::new(), Vec::new());
        let (width, dimensions) = (self.width, self.dimensions);
        let (mut first, mut second) = (Vec::new(), Vec::new());
        let part = self.buckets.largest() * width;
        for (x, known) in x.chunks(part).zip(known.chunks(part)) {
            let rows = x.len() / width;
            let bucket = self.buckets.fit(rows);
            let x = padded(x, bucket * width, &mut first);
            let known = padded(known, bucket * width, &mut second);
            let inputs = ort::inputs![
                "x" => TensorRef::from_array_view(([bucket, width], x))?,
                "known" => TensorRef::from_array_view(([bucket, width], known))?,
            ];
            let outputs = self.encode.run_with_options(inputs, self.interrupt.runs()?);
            let outputs = outputs.map_err(|e| self.interrupt.failure(e))?;
            for (name, all) in [("sample", &mut samples), ("mask", &mut masks)] {
                let found = values::<f32>(&outputs, ENCODE, name, &[bucket, dimensions])?;
                all.extend_from_slice(&found[..rows * dimensions]);
            }
        }
        Ok((samples, masks))
    }

    /// Returns the rows of points. `sample`: [N, D]. Result: [N, F].
    ///
    /// # Errors
    /// ONNX Runtime fails.
    pub fn decode(&mut self, sample: &[f32]) -> Result<Vec<f32>, ScorerError> {
        let (width, dimensions) = (self.width, self.dimensions);
        let (mut rows, mut buffer) = (Vec::new(), Vec::new());
        for sample in sample.chunks(self.buckets.largest() * dimensions) {
            let count = sample.len() / dimensions;
            let bucket = self.buckets.fit(count);
            let sample = padded(sample, bucket * dimensions, &mut buffer);
            let sample = TensorRef::from_array_view(([bucket, dimensions], sample))?;
            let inputs = ort::inputs!["sample" => sample];
            let outputs = self.decode.run_with_options(inputs, self.interrupt.runs()?);
            let outputs = outputs.map_err(|e| self.interrupt.failure(e))?;
            let found = values::<f32>(&outputs, DECODE, "x", &[bucket, width])?;
            rows.extend_from_slice(&found[..count * width]);
        }
        Ok(rows)
    }

    /// Returns the denoiser's prediction. `sample`, `mask` and the result: [N, D].
    ///
    /// # Errors
    /// ONNX Runtime fails.
    pub fn denoise(
        &mut self,
        sample: &[f32],
        timestep: f32,
        mask: &[f32],
    ) -> Result<Vec<f32>, ScorerError> {
        let dimensions = self.dimensions;
        let (mut all, mut first, mut second) = (Vec::new(), Vec::new(), Vec::new());
        let part = self.buckets.largest() * dimensions;
        for (sample, mask) in sample.chunks(part).zip(mask.chunks(part)) {
            let count = sample.len() / dimensions;
            let bucket = self.buckets.fit(count);
            let sample = padded(sample, bucket * dimensions, &mut first);
            let mask = padded(mask, bucket * dimensions, &mut second);
            let (floats, integers) = (
                vec![timestep; bucket],
                vec![timestep.round() as i64; bucket],
            );
            let timestep: SessionInputValue<'_> = match self.takes_integers {
                true => TensorRef::from_array_view(([bucket], &integers[..]))?.into(),
                false => TensorRef::from_array_view(([bucket], &floats[..]))?.into(),
            };
            let inputs = ort::inputs![
                "sample" => TensorRef::from_array_view(([bucket, dimensions], sample))?,
                "timestep" => timestep,
                "mask" => TensorRef::from_array_view(([bucket, dimensions], mask))?,
            ];
            let outputs = self
                .denoiser
                .run_with_options(inputs, self.interrupt.runs()?);
            let outputs = outputs.map_err(|e| self.interrupt.failure(e))?;
            let found = values::<f32>(&outputs, DENOISER, "out_sample", &[bucket, dimensions])?;
            all.extend_from_slice(&found[..count * dimensions]);
        }
        Ok(all)
    }

    /// Draws the samples and returns them as rows [N, F].
    ///
    /// `x` [N, F] holds the values of the features that `known` [N, F] marks with 1. They are held, and the others are drawn.
    fn draw(
        &mut self,
        draw: &Draw,
        samples: &[Sample],
        x: &[f32],
        known: &[f32],
        states: &mut States<'_>,
    ) -> Result<Vec<f32>, DrawError> {
        let dimensions = self.dimensions;
        let (held, mask) = self.encode(x, known)?;
        let hold = |sample: &mut [f32]| {
            for ((value, held), mask) in sample.iter_mut().zip(&held).zip(&mask) {
                if *mask > 0.5 {
                    *value = *held;
                }
            }
        };
        let mut noise = draw.noise.of(samples, dimensions);
        let mut sample = noise.initial()?;
        draw.plan.scale_noise(&mut sample);
        let mut run = draw.plan.start(dimensions);
        let mut input = vec![0.0; held.len()];
        for (step, &timestep) in draw.plan.timesteps().iter().enumerate() {
            draw.plan.scale_input(step, &sample, &mut input);
            hold(&mut input);
            states(self, step, &input)?;
            let output = self.denoise(&input, timestep, &mask)?;
            if let Some(at) = output.iter().position(|value| !value.is_finite()) {
                let sample = samples[at / dimensions].number;
                return Err(DrawError::NotFinite { step, sample });
            }
            let step_noise = match draw.plan.is_stochastic() {
                true => noise.of_step(step)?,
                false => Vec::new(),
            };
            run.step(step, &output, &mut sample, &step_noise)?;
        }
        hold(&mut sample);
        states(self, draw.plan.steps(), &sample)?;
        Ok(self.decode(&sample)?)
    }
}

/// Gets the graphs, the number of a state, from 0 to the number of steps, and the points, [N, D]. Until the last one they are as the
/// denoiser gets them, scaled to a variance of about 1.
pub type States<'s> = dyn FnMut(&mut Graphs, usize, &[f32]) -> io::Result<()> + 's;

/// How samples are drawn.
#[derive(Debug)]
struct Draw {
    plan: Plan,
    noise: Noise,
}

/// Draws rows on several cores. A sample has the same bits whatever the batch, the number of cores, or the samples beside it.
#[derive(Debug)]
pub struct Sampler {
    cores: Vec<Graphs>,
    draw: Draw,
    width: usize,
}

impl Sampler {
    /// Creates sessions on `cores` cores. `plan` is one of the bundle's own scheduler, or of another one in diffusers' format.
    ///
    /// # Errors
    /// A graph does not satisfy the contract.
    pub fn new(
        runtime: &Runtime,
        generative: &Generative,
        width: usize,
        cores: usize,
        plan: Plan,
        noise: Noise,
    ) -> Result<Sampler, DrawError> {
        let cores = (0..cores.max(1)).map(|_| Graphs::new(runtime, generative, width));
        Ok(Sampler {
            cores: cores.collect::<Result<_, _>>()?,
            draw: Draw { plan, noise },
            width,
        })
    }

    /// Draws the samples with the numbers `first`, `first` + 1, … and returns them as rows [N, F], in order.
    ///
    /// `x` [N, F] holds the values of the features that `known` [N, F] marks with 1. They are held, and the others are drawn.
    ///
    /// # Errors
    /// ONNX Runtime fails, or the denoiser returns NaN.
    pub fn draw(&mut self, first: u64, x: &[f32], known: &[f32]) -> Result<Vec<f32>, DrawError> {
        let samples = self.samples(first, x);
        self.draw_samples(&samples, x, known)
    }

    /// Draws these samples, and otherwise does as [`draw`](Self::draw).
    ///
    /// # Errors
    /// As [`draw`](Self::draw).
    pub fn draw_samples(
        &mut self,
        samples: &[Sample],
        x: &[f32],
        known: &[f32],
    ) -> Result<Vec<f32>, DrawError> {
        let part = BATCH * self.width;
        let draw = &self.draw;
        let parts: Vec<_> = samples
            .chunks(BATCH)
            .zip(x.chunks(part).zip(known.chunks(part)))
            .collect();
        let cores = self.cores.len();
        let drawn = thread::scope(|scope| {
            let threads: Vec<_> = self
                .cores
                .iter_mut()
                .enumerate()
                .map(|(core, graphs)| {
                    let own = parts.iter().skip(core).step_by(cores);
                    scope.spawn(move || {
                        let rows = own.map(|(samples, (x, known))| {
                            graphs.draw(draw, samples, x, known, &mut |_, _, _| Ok(()))
                        });
                        rows.collect::<Result<Vec<_>, _>>()
                    })
                })
                .collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined.collect::<Vec<_>>()
        });
        let mut of_cores = Vec::with_capacity(cores);
        for drawn in drawn {
            of_cores.push(
                drawn
                    .unwrap_or_else(|panic| resume_unwind(panic))?
                    .into_iter(),
            );
        }
        let in_order = (0..parts.len()).filter_map(|part| of_cores[part % cores].next());
        Ok(in_order.flatten().collect())
    }

    /// Draws samples as [`Sampler::draw`] does, on one core, and passes on every state.
    ///
    /// # Errors
    /// As [`Sampler::draw`], or `states` fails.
    pub fn trace(
        &mut self,
        x: &[f32],
        known: &[f32],
        states: &mut States<'_>,
    ) -> Result<(), DrawError> {
        let samples = self.samples(0, x);
        self.cores[0].draw(&self.draw, &samples, x, known, states)?;
        Ok(())
    }

    /// Returns as many samples of the sampler's seed as `x` [N, F] has rows.
    fn samples(&self, first: u64, x: &[f32]) -> Vec<Sample> {
        let count = (x.len() / self.width) as u64;
        self.draw.noise.samples(first..first + count)
    }

    /// Returns the file that replaces the seed's noise.
    pub fn noise_file(&self) -> Option<&NoiseFile> {
        self.draw.noise.file.as_ref()
    }

    /// Returns the number of denoising steps.
    pub fn steps(&self) -> usize {
        self.draw.plan.steps()
    }

    /// Returns the points of rows [N, F] of which every feature is known, [N, D].
    ///
    /// # Errors
    /// ONNX Runtime fails.
    pub fn encode(&mut self, x: &[f32]) -> Result<Vec<f32>, ScorerError> {
        let known = vec![1.0; x.len()];
        Ok(self.cores[0].encode(x, &known)?.0)
    }

    /// Returns the number of samples that keep every core busy for one batch.
    pub fn at_once(&self) -> u64 {
        (self.cores.len() * BATCH) as u64
    }

    /// Returns the seed of [`draw`](Self::draw).
    pub fn seed(&self) -> u64 {
        self.draw.noise.seed
    }

    /// Returns the number of dimensions of a point, D.
    pub fn dimensions(&self) -> usize {
        self.cores[0].dimensions
    }
}

/// Noise levels at which the estimate is calibrated, in the denoiser's space.
const LEVELS: [f32; 9] = [0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0];
/// The level at which records are denoised to see how far they move.
const PROBE: f32 = 0.3;
/// A lower estimate counts as no noise: records of another period move as far.
const LEAST: f32 = 0.03;
/// Number of held-out rows that the estimate is calibrated on.
const CALIBRATION_ROWS: usize = 2_000;

/// Removes noise from rows in one step: the mean of the clean rows, given the noisy one.
pub struct Denoising {
    graphs: Graphs,
    prediction: PredictionType,
    /// ᾱ of each timestep.
    alphas_cumprod: Vec<f32>,
    /// Points of held-out rows, [M, D].
    held_out: Vec<f32>,
}

impl Denoising {
    /// Creates the sessions.
    ///
    /// # Errors
    /// A graph does not satisfy the contract.
    pub fn new(
        runtime: &Runtime,
        generative: &Generative,
        width: usize,
        scheduler: &Scheduler,
    ) -> Result<Denoising, DrawError> {
        let mut graphs = Graphs::new(runtime, generative, width)?;
        let rows = &generative.reference.held_out;
        let rows = &rows[..rows.len().min(CALIBRATION_ROWS * width)];
        let (held_out, _) = graphs.encode(rows, &vec![1.0; rows.len()])?;
        Ok(Denoising {
            graphs,
            prediction: scheduler.prediction(),
            alphas_cumprod: scheduler.schedule().alphas_cumprod.clone(),
            held_out,
        })
    }

    /// Returns the mean of the clean rows that the rows [N, F] may come from, if noise of the standard deviation `sigma` was added to
    /// their points.
    ///
    /// # Errors
    /// ONNX Runtime fails.
    pub fn mean(&mut self, rows: &[f32], sigma: f32) -> Result<Vec<f32>, DrawError> {
        let (points, _) = self.graphs.encode(rows, &vec![1.0; rows.len()])?;
        let clean = self.clean(&points, sigma)?;
        Ok(self.graphs.decode(&clean)?)
    }

    /// Estimates the noise level of rows [N, F]: the one at which held-out rows with noise move as far when they are denoised. 0 if
    /// the rows move no farther than held-out rows without noise.
    ///
    /// # Errors
    /// ONNX Runtime fails.
    pub fn estimate(&mut self, rows: &[f32]) -> Result<f32, DrawError> {
        let (points, _) = self.graphs.encode(rows, &vec![1.0; rows.len()])?;
        let moved = self.moved(&points)?;
        let mut before = (0.0, f32::NEG_INFINITY);
        for level in LEVELS {
            let mut noise = normals(0, 0);
            let mut noisy = vec![0.0; self.held_out.len()];
            noise.fill(&mut noisy);
            for (noisy, clean) in noisy.iter_mut().zip(&self.held_out) {
                *noisy = clean + level * *noisy;
            }
            let expected = self.moved(&noisy)?;
            if moved <= expected {
                let (lower, nearer) = before;
                // Linear between two levels.
                let share = (moved - nearer) / (expected - nearer);
                let estimate = lower + (level - lower) * share;
                return Ok(if level == 0.0 || estimate < LEAST {
                    0.0
                } else {
                    estimate
                });
            }
            before = (level, expected);
        }
        Ok(LEVELS[LEVELS.len() - 1])
    }

    /// Returns the root mean square distance that points [N, D] move when they are denoised.
    fn moved(&mut self, points: &[f32]) -> Result<f32, DrawError> {
        let clean = self.clean(points, PROBE)?;
        let squares = points
            .iter()
            .zip(&clean)
            .map(|(a, b)| f64::from(a - b).powi(2));
        Ok((squares.sum::<f64>() / points.len().max(1) as f64).sqrt() as f32)
    }

    fn clean(&mut self, points: &[f32], sigma: f32) -> Result<Vec<f32>, DrawError> {
        // ᾱ falls, so the noise rises with the timestep.
        let level = |alpha: &f32| ((1.0 - alpha) / alpha).sqrt();
        let timestep = self
            .alphas_cumprod
            .partition_point(|alpha| level(alpha) < sigma);
        let timestep = timestep.min(self.alphas_cumprod.len() - 1);
        let alpha_cumprod = self.alphas_cumprod[timestep];
        let (alpha, noise) = (alpha_cumprod.sqrt(), (1.0 - alpha_cumprod).sqrt());
        let noisy: Vec<f32> = points.iter().map(|value| alpha * value).collect();
        let mask = vec![0.0; noisy.len()];
        let output = self.graphs.denoise(&noisy, timestep as f32, &mask)?;
        let both = output.iter().zip(&noisy);
        let clean: Vec<f32> = both
            .map(|(output, x)| self.prediction.clean(*output, *x, alpha, noise))
            .collect();
        match clean.iter().position(|value| !value.is_finite()) {
            Some(at) => Err(DrawError::NotFinite {
                step: 0,
                sample: (at / self.graphs.dimensions) as u64,
            }),
            None => Ok(clean),
        }
    }
}
