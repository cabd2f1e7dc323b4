//! What the sessions of a pipeline's components have in common: they read external weights, and floats of two sizes.

use half::f16;
use ort::session::builder::SessionBuilder;
use ort::session::{Session, SessionInputValue, SessionOutputs};
use ort::value::{Outlet, Tensor, TensorElementType, ValueType};

use super::buckets::Buckets;
use super::outputs::values;
use super::provider;
use super::scorer::{commit, opened, refused};
use super::{Runtime, ScorerError};
use crate::bundle::Fault;
use crate::config::{InferenceSettings, Provider};
use crate::diffusion::components::{GraphFile, GraphSource};

/// Creates a session for thread `worker`, and returns the provider that it runs on.
pub(super) fn open(
    runtime: &Runtime,
    graph: &GraphFile,
    inference: &InferenceSettings,
    worker: usize,
    row: &[usize],
) -> Result<(Session, Provider), ScorerError> {
    let offered = provider::offered(inference, worker, row, &Buckets::one());
    let commit = |builder: &mut SessionBuilder| match &graph.source {
        GraphSource::Bytes(model) => commit(builder, &graph.file, model),
        GraphSource::File(path) => {
            let session = builder.commit_from_file(path);
            session.map_err(|e| refused(&graph.file, &e))
        }
    };
    let (session, provider, _) = opened(runtime, commit, inference.provider, &offered)?;
    Ok((session, provider))
}

/// Returns the first tensor that has one of the names.
pub(super) fn find<'t>(tensors: &'t [Outlet], names: &[&str]) -> Option<&'t Outlet> {
    tensors.iter().find(|t| names.contains(&t.name()))
}

/// Returns the element type and the sides of a tensor of float32 or float16. A side that is not fixed is -1.
pub(super) fn floats(tensor: &Outlet) -> Result<(TensorElementType, Vec<i64>), String> {
    use TensorElementType::{Float16, Float32};
    match tensor.dtype() {
        ValueType::Tensor { ty, shape, .. } if matches!(ty, Float16 | Float32) => {
            Ok((*ty, shape.iter().copied().collect()))
        }
        _ => Err(format!(
            "has `{}`, which must be float32 or float16",
            tensor.name()
        )),
    }
}

/// Returns an input of one of the two sizes of floats.
pub(super) fn input(
    element: TensorElementType,
    shape: &[usize],
    values: &[f32],
) -> Result<SessionInputValue<'static>, ScorerError> {
    Ok(match element {
        TensorElementType::Float16 => {
            let halves: Vec<f16> = values.iter().copied().map(f16::from_f32).collect();
            Tensor::from_array((shape, halves))?.into()
        }
        _ => Tensor::from_array((shape, values.to_vec()))?.into(),
    })
}

/// Appends an output of one of the two sizes of floats.
///
/// # Errors
/// [`ScorerError::Graph`] if the output is absent, or has another shape or type.
pub(super) fn output(
    outputs: &SessionOutputs<'_>,
    file: &str,
    (name, element): (&str, TensorElementType),
    shape: &[usize],
    found: &mut Vec<f32>,
) -> Result<(), ScorerError> {
    match element {
        TensorElementType::Float16 => {
            let halves = values::<f16>(outputs, file, name, shape)?;
            found.extend(halves.iter().map(|value| value.to_f32()));
        }
        _ => found.extend_from_slice(values::<f32>(outputs, file, name, shape)?),
    }
    Ok(())
}

/// A fault of the graph in `file`.
pub(super) fn fault(file: &str, problem: impl Into<String>) -> ScorerError {
    ScorerError::Graph(vec![Fault::new(file, problem.into())])
}
