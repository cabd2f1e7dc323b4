//! Samplers of diffusion models, on NumPy arrays.

use numpy::ndarray::{Array3, ArrayViewD, IxDyn};
use numpy::{AllowTypeChange, IntoPyArray, PyArray1, PyArray3, PyArrayDyn, PyArrayLikeDyn};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use residuald::diffusion;

use crate::error;

type Floats<'py> = PyArrayLikeDyn<'py, f32, AllowTypeChange>;

/// The most values that [`normals`] returns: 4 GiB.
const MOST_NORMALS: u64 = 1 << 30;

/// A scheduler, from the fields of a `scheduler_config.json`.
#[pyclass(frozen, module = "residuald")]
pub struct Scheduler(diffusion::Scheduler);

#[pymethods]
impl Scheduler {
    #[new]
    #[pyo3(signature = (config, class_name = None, eta = 0.0))]
    fn new(config: &Bound<'_, PyAny>, class_name: Option<&str>, eta: f32) -> PyResult<Scheduler> {
        let py = config.py();
        let dict = py.get_type::<PyDict>().call1((config,))?;
        let json: String = py
            .import("json")?
            .call_method1("dumps", (dict,))?
            .extract()?;
        let read = match class_name {
            Some(class) => diffusion::Scheduler::from_json_as(&json, class),
            None => diffusion::Scheduler::from_json(&json),
        };
        let scheduler = read.and_then(|scheduler| scheduler.with_eta(eta));
        scheduler.map(Scheduler).map_err(error)
    }

    #[getter]
    fn class_name(&self) -> &'static str {
        self.0.class()
    }

    #[getter]
    fn ignored(&self) -> Vec<String> {
        self.0.ignored().to_vec()
    }

    #[getter]
    fn alphas_cumprod<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f32>> {
        self.0.schedule().alphas_cumprod.clone().into_pyarray(py)
    }

    fn timesteps<'py>(&self, py: Python<'py>, steps: usize) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let plan = self.0.plan(steps).map_err(error)?;
        Ok(plan.timesteps().to_vec().into_pyarray(py))
    }

    fn run(&self, steps: usize) -> PyResult<Run> {
        let plan = self.0.plan(steps).map_err(error)?;
        Ok(Run { plan, run: None })
    }
}

/// One batch on its way from noise to samples.
#[pyclass(module = "residuald")]
pub struct Run {
    plan: diffusion::Plan,
    /// From the first step on, which says how large a sample is.
    run: Option<diffusion::Run>,
}

#[pymethods]
impl Run {
    fn __len__(&self) -> usize {
        self.plan.steps()
    }

    #[getter]
    fn timesteps<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f32>> {
        self.plan.timesteps().to_vec().into_pyarray(py)
    }

    #[getter]
    fn init_noise_sigma(&self) -> f32 {
        self.plan.init_noise_sigma()
    }

    fn adds_noise(&self, i: usize) -> PyResult<bool> {
        self.check(i)?;
        Ok(self.plan.adds_noise(i))
    }

    fn scale_input<'py>(
        &self,
        py: Python<'py>,
        i: usize,
        sample: Floats<'py>,
    ) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        self.check(i)?;
        let sample = sample.as_array();
        let values = flat(&sample);
        let mut input = vec![0.0; values.len()];
        self.plan.scale_input(i, &values, &mut input);
        shaped(py, &sample, input)
    }

    fn add_noise<'py>(
        &self,
        py: Python<'py>,
        i: usize,
        clean: Floats<'py>,
        noise: Floats<'py>,
    ) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        self.check(i)?;
        let (clean, noise) = (clean.as_array(), flat(&noise.as_array()));
        let values = flat(&clean);
        if values.len() != noise.len() {
            return Err(error("the clean sample and the noise differ in size"));
        }
        let mut noisy = vec![0.0; values.len()];
        self.plan.add_noise(i, &values, &noise, &mut noisy);
        shaped(py, &clean, noisy)
    }

    #[pyo3(signature = (i, output, sample, noise = None))]
    fn step<'py>(
        &mut self,
        py: Python<'py>,
        i: usize,
        output: Floats<'py>,
        sample: Floats<'py>,
        noise: Option<Floats<'py>>,
    ) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        let sample = sample.as_array();
        let mut values = flat(&sample);
        let dimensions = sample.shape().iter().skip(1).product();
        let output = flat(&output.as_array());
        let noise = noise.map_or_else(Vec::new, |noise| flat(&noise.as_array()));
        let plan = &self.plan;
        let run = self.run.get_or_insert_with(|| plan.start(dimensions));
        py.detach(|| run.step(i, &output, &mut values, &noise))
            .map_err(error)?;
        shaped(py, &sample, values)
    }
}

impl Run {
    fn check(&self, i: usize) -> PyResult<()> {
        let steps = self.plan.steps();
        match i < steps {
            true => Ok(()),
            false => Err(error(format!("step {i}: the plan has {steps} steps"))),
        }
    }
}

fn flat(array: &ArrayViewD<'_, f32>) -> Vec<f32> {
    array.iter().copied().collect()
}

/// `values` in the shape of `like`.
fn shaped<'py>(
    py: Python<'py>,
    like: &ArrayViewD<'_, f32>,
    values: Vec<f32>,
) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
    let array = numpy::ndarray::ArrayD::from_shape_vec(IxDyn(like.shape()), values);
    Ok(array.map_err(error)?.into_pyarray(py))
}

/// Standard normals, [draws, N, dimensions]. Those of a sample depend on the seed and its number alone.
#[pyfunction]
pub fn normals(
    py: Python<'_>,
    seed: u64,
    samples: Vec<u64>,
    draws: usize,
    dimensions: usize,
) -> PyResult<Bound<'_, PyArray3<f32>>> {
    let size = samples.len() as u128 * draws as u128 * dimensions as u128;
    if size > MOST_NORMALS.into() {
        return Err(error(format!(
            "{size} values are more than {MOST_NORMALS}: ask for fewer samples at once"
        )));
    }
    let mut values = Array3::zeros((draws, samples.len(), dimensions));
    let mut one = vec![0.0; dimensions];
    for (at, &sample) in samples.iter().enumerate() {
        let mut noise = diffusion::normals(seed, sample);
        for draw in 0..draws {
            noise.fill(&mut one);
            let mut row = values.slice_mut(numpy::ndarray::s![draw, at, ..]);
            row.iter_mut()
                .zip(&one)
                .for_each(|(to, &value)| *to = value);
        }
    }
    Ok(values.into_pyarray(py))
}
