//! Scores rows in an ONNX Runtime session that one thread owns. For each row, it returns a score, a residual and a
//! reconstruction.

use ort::ep::ExecutionProviderDispatch;
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::value::{Outlet, TensorElementType, TensorRef, ValueType};

use super::Runtime;
use super::buckets::{Buckets, padded};
use super::interrupt::Interrupt;
use super::outputs::values;
use super::provider::{self, Placement};
use crate::batch::Scores;
use crate::bundle::{Fault, ModelInput, Pixels};
use crate::config::{InferenceSettings, Provider};

pub(super) const MODEL: &str = "model.onnx";
/// Makes ONNX Runtime parse a graph in the format in which the graph was checked.
const ONNX_ONLY: (&str, &str) = ("session.load_model_format", "ONNX");

/// The maximum number of images that a GPU scores at once, because a network's activations fill the GPU's memory.
const MOST_IMAGES: usize = 64;

/// A single-threaded scorer of rows.
#[derive(Debug)]
pub struct Scorer {
    session: Session,
    /// The number of values in a row: the features, or height x width x channels.
    width: usize,
    /// `None` for rows of a table.
    pixels: Option<Pixels>,
    buckets: Buckets,
    padded: Vec<f32>,
    padded_pixels: Vec<u8>,
    interrupt: Interrupt,
    /// The provider in use. With a fallback, it is not the configured one.
    pub provider: Provider,
    pub placement: Placement,
}

/// The number of pixels whose memory is kept from one image to the next.
const KEPT: usize = 1 << 20;

/// The model's outputs for rows of pixels, one row after the other.
#[derive(Debug, Default)]
pub struct ImageScores {
    /// [rows]
    pub scores: Vec<f32>,
    /// [rows, height, width]
    pub heat: Vec<f32>,
    /// [rows, height, width, channels]
    pub reconstruction: Vec<u8>,
}

impl ImageScores {
    pub fn clear(&mut self) {
        self.scores.clear();
        self.heat.clear();
        self.reconstruction.clear();
        // Free the memory of a huge image.
        self.heat.shrink_to(KEPT);
        self.reconstruction.shrink_to(KEPT);
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ScorerError {
    /// The graph does not match the manifest.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Graph(Vec<Fault>),
    #[error(
        "inference.provider = \"{provider}\" is not available: {problem}. Use an image or library with ONNX Runtime's {provider} \
         build on a machine with such a device, or set inference.provider = \"cpu\", or allow inference.fallback"
    )]
    Provider {
        provider: &'static str,
        problem: String,
    },
    #[error("ONNX Runtime failed: {}{}", .0.message().trim(), advice(.0))]
    Run(#[from] ort::Error),
    #[error("ONNX Runtime was interrupted")]
    Interrupted,
}

/// What to do about an error of a run, if that is known.
fn advice(error: &ort::Error) -> &'static str {
    match error.message().contains("Failed to allocate memory") {
        true => ". There is too little memory: smaller images and batches need less",
        false => "",
    }
}

impl Scorer {
    /// Creates a session of the graph `model` for thread `worker`, for batches of up to `max_records` rows of `input`.
    /// Checks the tensors and warms up every batch size.
    ///
    /// # Errors
    /// [`ScorerError::Graph`] with every fault of the graph, or [`ScorerError::Provider`] if the configured provider is
    /// not available.
    pub fn new(
        runtime: &Runtime,
        model: &[u8],
        input: &ModelInput,
        inference: &InferenceSettings,
        worker: usize,
        max_records: usize,
    ) -> Result<Scorer, ScorerError> {
        let pixels = match input {
            ModelInput::Tabular { .. } => None,
            ModelInput::Image(pixels) => Some(*pixels),
        };
        let buckets = |provider| match pixels {
            None => Buckets::up_to(max_records),
            // One image keeps a core busy. Scoring several at once gains nothing and adds latency.
            Some(_) if provider == Provider::Cpu => Buckets::one(),
            Some(_) => Buckets::doubling(max_records.min(MOST_IMAGES)),
        };
        let row = match input {
            ModelInput::Tabular { features } => vec![features.len()],
            ModelInput::Image(pixels) => vec![pixels.height, pixels.width, pixels.channels],
        };
        let offered = provider::offered(inference, worker, &row, &buckets(inference.provider));
        let (session, provider, placement) = open(runtime, model, inference, &offered)?;
        let faults = tensor_faults(&session, input);
        if !faults.is_empty() {
            return Err(ScorerError::Graph(faults));
        }
        let mut scorer = Scorer {
            session,
            width: row.iter().product(),
            pixels,
            buckets: buckets(provider),
            padded: Vec::new(),
            padded_pixels: Vec::new(),
            interrupt: runtime.interrupt.clone(),
            provider,
            placement,
        };
        scorer.warm_up()?;
        Ok(scorer)
    }

    fn warm_up(&mut self) -> Result<(), ScorerError> {
        let mut scores = Scores::default();
        for records in self.buckets.sizes().to_vec() {
            if self.provider != Provider::Cpu {
                // TensorRT builds its engine in the first run, which can take minutes.
                tracing::info!(provider = self.provider.as_str(), records, "warming up");
            }
            if self.pixels.is_some() {
                let rows = vec![0; records * self.width];
                self.score_pixels(&rows, &mut ImageScores::default())?;
                continue;
            }
            let rows = vec![0.0; records * self.width];
            self.score(&rows, &mut scores)?;
        }
        Ok(())
    }

    /// Scores any number of `rows`, [records, features], and appends to `scores`. The results of a row are bit-for-bit
    /// the same in every batch.
    ///
    /// # Errors
    /// [`ScorerError::Run`] when ONNX Runtime fails, for example because it is out of memory.
    pub fn score(&mut self, rows: &[f32], scores: &mut Scores) -> Result<(), ScorerError> {
        for part in rows.chunks(self.largest() * self.width) {
            let records = part.len() / self.width;
            let bucket = self.buckets.fit(records);
            let input = padded(part, bucket * self.width, &mut self.padded);
            let x = TensorRef::from_array_view(([bucket, self.width], input))?;
            let runs = self.interrupt.runs()?;
            let outputs = self
                .session
                .run_with_options(ort::inputs!["x" => x], runs)
                .map_err(|e| self.interrupt.failure(e))?;
            let row = [bucket, self.width];
            let found = values(&outputs, MODEL, "score", &row[..1])?;
            scores.scores.extend_from_slice(&found[..records]);
            for (name, into) in [
                ("residual", &mut scores.residuals),
                ("reconstruction", &mut scores.reconstructions),
            ] {
                let found = values(&outputs, MODEL, name, &row)?;
                into.extend_from_slice(&found[..part.len()]);
            }
        }
        Ok(())
    }

    /// Scores any number of `rows`, uint8 [rows, height, width, channels], and appends to `scores`. The results of a
    /// row do not depend on the other rows. On the CPU, where each row is run alone, they are bit-for-bit the same.
    ///
    /// # Errors
    /// [`ScorerError::Run`] when ONNX Runtime fails, for example because it is out of memory.
    pub fn score_pixels(
        &mut self,
        rows: &[u8],
        scores: &mut ImageScores,
    ) -> Result<(), ScorerError> {
        let Some(Pixels {
            height,
            width,
            channels,
            ..
        }) = self.pixels
        else {
            unreachable!("the bundle's kind determines its rows");
        };
        for part in rows.chunks(self.largest() * self.width) {
            let images = part.len() / self.width;
            let bucket = self.buckets.fit(images);
            let input = padded(part, bucket * self.width, &mut self.padded_pixels);
            let x = TensorRef::from_array_view(([bucket, height, width, channels], input))?;
            let runs = self.interrupt.runs()?;
            let outputs = self
                .session
                .run_with_options(ort::inputs!["x" => x], runs)
                .map_err(|e| self.interrupt.failure(e))?;
            let shape = [bucket, height, width, channels];
            let found: &[f32] = values(&outputs, MODEL, "score", &shape[..1])?;
            let heat: &[f32] = values(&outputs, MODEL, "residual", &shape[..3])?;
            let expected: &[u8] = values(&outputs, MODEL, "reconstruction", &shape)?;
            scores.scores.extend_from_slice(&found[..images]);
            scores
                .heat
                .extend_from_slice(&heat[..images * height * width]);
            scores
                .reconstruction
                .extend_from_slice(&expected[..part.len()]);
        }
        Ok(())
    }

    /// Scores a row of zeros, which the warm-up has already scored.
    pub(super) fn score_zeros(&mut self) -> Result<(), ScorerError> {
        match self.pixels {
            None => {
                let row = vec![0.0; self.width];
                self.score(&row, &mut Scores::default())
            }
            Some(_) => self.score_pixels(&vec![0; self.width], &mut ImageScores::default()),
        }
    }

    /// Returns the number of values in a row.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Fills `scores` up to `values` values for rows that failed. Their scores are NaN, and the rest is zero.
    pub(super) fn fill(&self, scores: &mut ImageScores, values: usize) {
        let channels = self.pixels.map_or(1, |pixels| pixels.channels);
        scores.scores.resize(values / self.width, f32::NAN);
        scores.heat.resize(values / channels, 0.0);
        scores.reconstruction.resize(values, 0);
    }

    /// Returns a handle that interrupts the scorer from another thread.
    pub fn interrupt(&self) -> Interrupt {
        self.interrupt.clone()
    }

    /// Returns the maximum number of rows that are scored at once.
    pub fn largest(&self) -> usize {
        self.buckets.largest()
    }
}

/// Opens a session on the configured provider, or on the CPU if the fallback is allowed.
fn open(
    runtime: &Runtime,
    model: &[u8],
    inference: &InferenceSettings,
    offered: &[ExecutionProviderDispatch],
) -> Result<(Session, Provider, Placement), ScorerError> {
    match session_on(runtime, model, inference.provider, offered) {
        Err(ScorerError::Provider { provider, problem }) if inference.fallback => {
            tracing::warn!(
                provider,
                problem,
                "the configured provider is not available; falling back to the CPU"
            );
            session_on(runtime, model, Provider::Cpu, &[])
        }
        had => had,
    }
}

fn session_on(
    runtime: &Runtime,
    model: &[u8],
    provider: Provider,
    offered: &[ExecutionProviderDispatch],
) -> Result<(Session, Provider, Placement), ScorerError> {
    opened(runtime, |b| commit(b, MODEL, model), provider, offered)
}

/// Opens a session on the given provider. `commit` names the graph.
pub(super) fn opened(
    runtime: &Runtime,
    commit: impl Fn(&mut SessionBuilder) -> Result<Session, ScorerError>,
    provider: Provider,
    offered: &[ExecutionProviderDispatch],
) -> Result<(Session, Provider, Placement), ScorerError> {
    let absent = |problem: &str| ScorerError::Provider {
        provider: provider.as_str(),
        problem: problem.trim().to_owned(),
    };
    let with_providers = builder(runtime)?.with_execution_providers(offered);
    let mut with_providers = with_providers.map_err(|e| {
        // The text before the problem names a place in ONNX Runtime's source.
        let problem = e.message().rsplit(" : FAIL : ").next();
        absent(problem.unwrap_or_default())
    })?;
    let session = match commit(&mut with_providers) {
        Err(refused) if !offered.is_empty() => {
            // If the CPU accepts the graph, the device is at fault.
            commit(&mut builder(runtime)?)?;
            return Err(absent(&refused.to_string()));
        }
        committed => committed?,
    };
    let placement = Placement::of(&session)?;
    if !placement.is_mostly_on(provider) {
        let elsewhere = format!("ONNX Runtime runs most of the graph elsewhere ({placement})");
        return Err(absent(&elsewhere));
    }
    if provider != Provider::Cpu && placement.on_cpu() > 0 {
        tracing::info!(%placement, "some nodes run on the CPU, with copies to and from the GPU around them");
    }
    Ok((session, provider, placement))
}

pub(super) fn builder(runtime: &Runtime) -> Result<SessionBuilder, ScorerError> {
    let builder = Session::builder(&runtime.environment)?
        .with_optimization_level(GraphOptimizationLevel::All)
        .map_err(ort::Error::from)?
        .with_intra_threads(1)
        .map_err(ort::Error::from)?
        .with_inter_threads(1)
        .map_err(ort::Error::from)?
        .with_intra_op_spinning(false)
        .map_err(ort::Error::from)?
        .with_config_entry(provider::REMEMBER.0, provider::REMEMBER.1)
        .map_err(ort::Error::from)?
        .with_config_entry(ONNX_ONLY.0, ONNX_ONLY.1)
        .map_err(ort::Error::from)?;
    runtime.interrupt.watch(&builder)?;
    Ok(builder)
}

/// Opens a session of the graph in `file` of the bundle.
pub(super) fn commit(
    builder: &mut SessionBuilder,
    file: &str,
    model: &[u8],
) -> Result<Session, ScorerError> {
    let session = builder.commit_from_memory(model);
    session.map_err(|e| refused(file, &e))
}

/// Why there is no session of the graph in `file`.
pub(super) fn refused(file: &str, error: &ort::Error) -> ScorerError {
    ScorerError::Graph(vec![Fault::new(
        file,
        format!("ONNX Runtime refuses it: {}", error.message().trim()),
    )])
}

/// Checks names, element types and shapes against the schema. Reports all faults.
fn tensor_faults(session: &Session, input: &ModelInput) -> Vec<Fault> {
    use TensorElementType::{Float32, Uint8};
    let mut faults = Vec::new();
    let (row, heat, element) = match input {
        ModelInput::Tabular { features } => {
            let row = vec![-1, features.len() as i64];
            (row.clone(), row, Float32)
        }
        ModelInput::Image(pixels) => {
            let sides = [-1, pixels.height as i64, pixels.width as i64];
            let row = [&sides[..], &[pixels.channels as i64]].concat();
            (row, sides.to_vec(), Uint8)
        }
    };
    let expected_inputs = [("x", element, &row[..])];
    let expected_outputs = [
        ("score", Float32, &[-1][..]),
        ("residual", Float32, &heat[..]),
        ("reconstruction", element, &row[..]),
    ];
    for (kind, tensors, expected) in [
        ("input", session.inputs(), &expected_inputs[..]),
        ("output", session.outputs(), &expected_outputs[..]),
    ] {
        for (name, element, shape) in expected {
            let found = tensors.iter().find(|tensor| tensor.name() == *name);
            if let Some(problem) = tensor_fault(kind, name, *element, shape, found) {
                faults.push(Fault::new(MODEL, problem));
            }
        }
        for extra in tensors.iter().map(Outlet::name) {
            if kind == "input" && !expected.iter().any(|(name, ..)| *name == extra) {
                faults.push(Fault::new(
                    MODEL,
                    format!(
                        "{kind} `{extra}` is unexpected: the only input of a scorer graph is `x`"
                    ),
                ));
            }
        }
    }
    faults
}

pub(super) fn tensor_fault(
    kind: &str,
    name: &str,
    element: TensorElementType,
    shape: &[i64],
    found: Option<&Outlet>,
) -> Option<String> {
    let Some(found) = found else {
        return Some(format!("{kind} `{name}` is missing"));
    };
    match found.dtype() {
        ValueType::Tensor {
            ty, shape: actual, ..
        } if *ty == element && actual.iter().eq(shape) => None,
        other => Some(format!(
            "{kind} `{name}` must be {element} {shape:?} for this schema (-1 is the batch), but it is {other:?}"
        )),
    }
}
