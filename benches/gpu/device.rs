//! Measures the throughput of one scorer graph by batch size, for each way to move batches to the device and results back.
//! `benches/gpu/run.py` starts one process for each way and reads the JSON lines that it prints. To run it by hand:
//!
//! ```sh
//! cargo run --release --example device -- models/payments --provider cuda --way graph --batches 64,1024
//! ```

use std::ffi::c_void;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use ort::ep::{self, ArenaExtendStrategy, cuda::ConvAlgorithmSearch};
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{IoBinding, Session};
use ort::value::{DynTensor, TensorElementType, ValueType};
use residuald::batch::Scores;
use residuald::config::{InferenceSettings, Provider};
use residuald::onnx::{self, ImageScores, Scorer};

/// The message of any error. The errors of `ort` are not `Send`, so only their text can leave a thread.
struct Error(String);

impl<E: std::fmt::Display> From<E> for Error {
    fn from(error: E) -> Error {
        Error(error.to_string())
    }
}

#[derive(Parser)]
struct Arguments {
    /// The bundle's folder
    bundle: PathBuf,
    /// Measure this graph instead of the bundle's model.onnx; it must have the same inputs and outputs (not with --way scorer)
    #[arg(long)]
    graph: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "cuda")]
    provider: On,
    #[arg(long, value_enum, default_value = "scorer")]
    way: Way,
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1,16,64,256,1024,4096,16384"
    )]
    batches: Vec<usize>,
    /// How long to measure each batch size
    #[arg(long, default_value_t = 0.4)]
    seconds: f64,
    /// Sessions that run concurrently, each in its own thread
    #[arg(long, default_value_t = 1)]
    sessions: usize,
    /// Allow TensorFloat-32 (10 bits of mantissa) in matrix products
    #[arg(long)]
    tf32: bool,
    /// Let cuDNN run convolutions in the NHWC layout
    #[arg(long)]
    nhwc: bool,
    /// Limit of device memory for each session, in bytes
    #[arg(long)]
    memory: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum On {
    Cpu,
    Cuda,
    Tensorrt,
}

/// How a batch reaches the device and its results come back.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Way {
    /// The daemon's own scorer
    Scorer,
    /// Ordinary memory on both sides, without I/O binding
    Pageable,
    /// I/O binding with inputs and outputs that stay in device memory: the upper bound
    Device,
    /// Like device, but replayed as one CUDA graph
    Graph,
    /// Like graph, plus the copies to and from page-locked buffers
    GraphCopies,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let measured = match arguments.way {
        Way::Scorer => scorer(&arguments),
        _ => bound(&arguments),
    };
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error(e)) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Prints the measurement of one batch size, over all sessions together.
fn report(
    arguments: &Arguments,
    batch: usize,
    runs: usize,
    took: Duration,
    first: Duration,
    sum: f64,
) {
    let seconds = took.as_secs_f64();
    println!(
        "{}",
        serde_json::json!({
            "batch": batch,
            "rows_per_second": (runs * batch) as f64 / seconds,
            "us_per_batch": seconds * 1e6 / runs as f64 * arguments.sessions as f64,
            "runs": runs,
            "first_ms": first.as_secs_f64() * 1e3,
            "score_sum": sum,
        })
    );
}

/// Calls `once` repeatedly for `--seconds`, after a separately timed first call and three warm-up calls.
/// Returns the number of timed calls, their duration and the duration of the first call.
fn measure(
    arguments: &Arguments,
    barrier: &Barrier,
    mut once: impl FnMut() -> Result<(), Error>,
) -> Result<(usize, Duration, Duration), Error> {
    let started = Instant::now();
    once()?;
    let first = started.elapsed();
    for _ in 0..3 {
        once()?;
    }
    barrier.wait();
    let (started, mut runs) = (Instant::now(), 0);
    while runs < 3 || started.elapsed().as_secs_f64() < arguments.seconds {
        once()?;
        runs += 1;
    }
    Ok((runs, started.elapsed(), first))
}

fn scorer(arguments: &Arguments) -> Result<(), Error> {
    if arguments.graph.is_some() {
        return Err(
            "--graph cannot be used with --way scorer, which always runs the bundle's model.onnx"
                .into(),
        );
    }
    let inference = InferenceSettings {
        provider: match arguments.provider {
            On::Cpu => Provider::Cpu,
            On::Cuda => Provider::Cuda,
            On::Tensorrt => Provider::TensorRt,
        },
        device_memory: arguments.memory,
        ..InferenceSettings::on_cpu(arguments.sessions)
    };
    for &batch in &arguments.batches {
        let loaded = onnx::load(&arguments.bundle, &inference, batch)?;
        eprintln!(
            "{} {}",
            arguments.bundle.display(),
            loaded.scorers[0].placement
        );
        let row = row_of(&loaded.bundle.manifest.input);
        let width: usize = row.iter().product();
        let pixels = loaded.bundle.features().is_empty();
        let barrier = Barrier::new(arguments.sessions);
        let results = side_by_side(loaded.scorers, |scorer: &mut Scorer| {
            let (values, bytes) = (values(batch * width), bytes(batch * width));
            let mut scores = Scores::default();
            let mut images = ImageScores::default();
            let timed = measure(arguments, &barrier, || {
                if pixels {
                    images.clear();
                    return Ok(scorer.score_pixels(&bytes, &mut images)?);
                }
                scores.clear();
                Ok(scorer.score(&values, &mut scores)?)
            })?;
            let scores = if pixels {
                &images.scores
            } else {
                &scores.scores
            };
            Ok((timed, sum(scores)))
        })?;
        print(arguments, batch, &results);
    }
    Ok(())
}

type Timed = ((usize, Duration, Duration), f64);

fn print(arguments: &Arguments, batch: usize, results: &[Timed]) {
    let runs = results.iter().map(|((runs, ..), _)| runs).sum();
    let took = results.iter().map(|((_, took, _), _)| *took).max();
    let first = results.iter().map(|((.., first), _)| *first).max();
    let (took, first) = took.zip(first).expect("there is a session");
    report(arguments, batch, runs, took, first, results[0].1);
}

fn side_by_side<S: Send>(
    sessions: Vec<S>,
    run: impl Fn(&mut S) -> Result<Timed, Error> + Sync,
) -> Result<Vec<Timed>, Error> {
    thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = sessions
            .into_iter()
            .map(|mut session| scope.spawn(move || run(&mut session)))
            .collect();
        let joined = threads.into_iter().map(|t| t.join().expect("no panic"));
        joined.collect()
    })
}

fn row_of(input: &residuald::bundle::ModelInput) -> Vec<usize> {
    match input {
        residuald::bundle::ModelInput::Tabular { features } => vec![features.len()],
        residuald::bundle::ModelInput::Image(p) => vec![p.height, p.width, p.channels],
    }
}

/// Pseudo-random numbers in [0, 1), the same in every run.
fn values(count: usize) -> Vec<f32> {
    bytes(count).iter().map(|&b| f32::from(b) / 256.0).collect()
}

fn bytes(count: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn sum(scores: &[f32]) -> f64 {
    scores.iter().map(|&score| f64::from(score)).sum()
}

/// Measures ONNX Runtime itself with I/O binding, without the daemon's scorer.
fn bound(arguments: &Arguments) -> Result<(), Error> {
    let library = std::env::var("ORT_DYLIB_PATH")?;
    let environment = ort::init_from(library)?
        .with_name("device")
        .with_telemetry(false)
        .build()?;
    let own = arguments.bundle.join("model.onnx");
    let graph = std::fs::read(arguments.graph.as_deref().unwrap_or(&own))?;
    for &batch in &arguments.batches {
        // A CUDA graph keeps the shapes of its first run, so each batch size needs its own session.
        let mut bound = Vec::new();
        for _ in 0..arguments.sessions {
            bound.push(Bound::new(arguments, &environment, &graph, batch)?);
        }
        let barrier = Barrier::new(arguments.sessions);
        let results = side_by_side(bound, |bound: &mut Bound| {
            let timed = measure(arguments, &barrier, || bound.run())?;
            Ok((timed, bound.sum()?))
        })?;
        print(arguments, batch, &results);
    }
    Ok(())
}

struct Bound {
    session: Session,
    binding: IoBinding,
    way: Way,
    /// The page-locked buffers of `Way::GraphCopies`, from and to which each batch is copied.
    copies: Option<Copies>,
    /// Bound to the session, so they must live as long as it does.
    outputs: Vec<DynTensor>,
    input: DynTensor,
    sum: f64,
}

impl Bound {
    fn new(
        arguments: &Arguments,
        environment: &ort::environment::Environment,
        graph: &[u8],
        batch: usize,
    ) -> Result<Bound, Error> {
        let session = session(arguments, environment, graph)?;
        let on_gpu = arguments.provider != On::Cpu;
        let memory = |device, memory_type| {
            let device = if on_gpu {
                device
            } else {
                AllocationDevice::CPU
            };
            MemoryInfo::new(device, 0, AllocatorType::Device, memory_type)
        };
        let pinned = memory(AllocationDevice::CUDA_PINNED, MemoryType::CPUInput)?;
        let device = memory(AllocationDevice::CUDA, MemoryType::Default)?;
        let pinned = Allocator::new(&session, pinned)?;
        let device = Allocator::new(&session, device)?;
        let shaped = |kind: &ValueType| match kind {
            ValueType::Tensor { ty, shape, .. } => {
                let sides = shape
                    .iter()
                    .map(|&side| if side < 0 { batch as i64 } else { side });
                Ok((*ty, sides.collect::<Vec<i64>>()))
            }
            other => Err(Error(format!("not a tensor: {other:?}"))),
        };
        let (ty, shape) = shaped(session.inputs()[0].dtype())?;
        let mut host_input = DynTensor::new(&pinned, ty, shape.clone())?;
        fill(&mut host_input, ty)?;
        let names: Vec<String> = session
            .outputs()
            .iter()
            .map(|o| o.name().to_owned())
            .collect();
        let make = |allocator: &Allocator| {
            let kinds = session.outputs().iter().map(|o| shaped(o.dtype()));
            let tensors = kinds.map(|kind| {
                let (ty, shape) = kind?;
                Ok::<_, Error>(DynTensor::new(allocator, ty, shape)?)
            });
            tensors.collect::<Result<Vec<_>, _>>()
        };
        let (input, outputs, copies) = if arguments.way == Way::Pageable {
            let mut input = DynTensor::new(&Allocator::default(), ty, shape)?;
            fill(&mut input, ty)?;
            (input, Vec::new(), None)
        } else {
            let mut device_input = DynTensor::new(&device, ty, shape)?;
            host_input.copy_into(&mut device_input)?;
            let copies = match arguments.way {
                Way::GraphCopies => Some(Copies {
                    cuda: Cuda::load(on_gpu)?,
                    input: host_input,
                    outputs: make(&pinned)?,
                }),
                _ => None,
            };
            (device_input, make(&device)?, copies)
        };
        let mut bound = Bound {
            binding: session.create_binding()?,
            session,
            way: arguments.way,
            copies,
            outputs,
            input,
            sum: 0.0,
        };
        bound.binding.bind_input("x", &bound.input)?;
        for (name, output) in names.iter().zip(&mut bound.outputs) {
            bound.binding.bind_output(name, output)?;
        }
        Ok(bound)
    }

    fn run(&mut self) -> Result<(), Error> {
        if self.way == Way::Pageable {
            let outputs = self.session.run(ort::inputs!["x" => self.input.view()])?;
            self.sum = sum(outputs["score"].try_extract_tensor::<f32>()?.1);
            return Ok(());
        }
        if let Some(copies) = &mut self.copies {
            copies.cuda.copy(&copies.input, &mut self.input)?;
        }
        self.session.run_binding(&self.binding)?;
        self.binding.synchronize_outputs()?;
        if let Some(copies) = &mut self.copies {
            for (from, to) in self.outputs.iter().zip(&mut copies.outputs) {
                copies.cuda.copy(from, to)?;
            }
        }
        Ok(())
    }

    /// The sum of the last run's scores, to check that all ways compute the same.
    fn sum(&self) -> Result<f64, Error> {
        let names = self.session.outputs().iter().map(|output| output.name());
        let at = names.into_iter().position(|name| name == "score");
        let at = at.ok_or("the graph has no output `score`")?;
        match (self.way, &self.copies) {
            (Way::Pageable, _) => Ok(self.sum),
            (_, Some(copies)) => Ok(sum(copies.outputs[at].try_extract_tensor::<f32>()?.1)),
            _ => {
                let count = i64::try_from(self.outputs[at].shape().num_elements())?;
                let memory = Allocator::default();
                let mut here = DynTensor::new(&memory, TensorElementType::Float32, [count])?;
                self.outputs[at].copy_into(&mut here)?;
                Ok(sum(here.try_extract_tensor::<f32>()?.1))
            }
        }
    }
}

struct Copies {
    cuda: Cuda,
    input: DynTensor,
    outputs: Vec<DynTensor>,
}

/// Copies between host and device through the CUDA runtime, because ONNX Runtime has no function for this.
/// A rehearsal on the CPU uses ordinary copies.
enum Cuda {
    Absent,
    Runtime(libloading::Library),
}

impl Cuda {
    fn load(on_gpu: bool) -> Result<Cuda, Error> {
        if !on_gpu {
            return Ok(Cuda::Absent);
        }
        // SAFETY: ONNX Runtime's CUDA provider has already loaded the same library.
        Ok(Cuda::Runtime(unsafe {
            libloading::Library::new("libcudart.so.13")?
        }))
    }

    fn copy(&self, from: &DynTensor, to: &mut DynTensor) -> Result<(), Error> {
        let Cuda::Runtime(library) = self else {
            return Ok(from.copy_into(to)?);
        };
        type Memcpy = unsafe extern "C" fn(*mut c_void, *const c_void, usize, i32) -> i32;
        const DIRECTION_BY_ADDRESS: i32 = 4;
        let bytes = from.data_type().byte_size(from.shape().num_elements());
        let bytes = bytes.ok_or("cannot copy a tensor of strings")?;
        // SAFETY: both tensors have the same type and shape and outlive the call, which returns after the copy.
        let code = unsafe {
            let memcpy = library.get::<Memcpy>(b"cudaMemcpy\0")?;
            let (to, from) = (to.data_ptr_mut(), from.data_ptr());
            memcpy(to, from, bytes, DIRECTION_BY_ADDRESS)
        };
        if code != 0 {
            return Err(Error(format!("cudaMemcpy failed with CUDA error {code}")));
        }
        Ok(())
    }
}

fn fill(tensor: &mut DynTensor, ty: TensorElementType) -> Result<(), Error> {
    if ty == TensorElementType::Uint8 {
        let (_, into) = tensor.try_extract_tensor_mut::<u8>()?;
        into.copy_from_slice(&bytes(into.len()));
    } else {
        let (_, into) = tensor.try_extract_tensor_mut::<f32>()?;
        into.copy_from_slice(&values(into.len()));
    }
    Ok(())
}

fn session(
    arguments: &Arguments,
    environment: &ort::environment::Environment,
    graph: &[u8],
) -> Result<Session, Error> {
    let cuda_graph = matches!(arguments.way, Way::Graph | Way::GraphCopies);
    let mut cuda = ep::CUDA::default()
        .with_tf32(arguments.tf32)
        .with_prefer_nhwc(arguments.nhwc)
        .with_conv_algorithm_search(ConvAlgorithmSearch::Exhaustive)
        .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested)
        .with_cuda_graph(cuda_graph);
    if let Some(bytes) = arguments.memory {
        cuda = cuda.with_memory_limit(bytes);
    }
    let providers = match arguments.provider {
        On::Cpu => vec![],
        On::Cuda => vec![cuda.build().error_on_failure()],
        On::Tensorrt => vec![
            ep::TensorRT::default()
                .with_cuda_graph(cuda_graph)
                .build()
                .error_on_failure(),
            cuda.build().error_on_failure(),
        ],
    };
    let session = Session::builder(environment)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_intra_threads(1)?
        .with_execution_providers(providers)?
        .commit_from_memory(graph)?;
    Ok(session)
}
