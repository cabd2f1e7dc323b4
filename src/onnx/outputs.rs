//! Checks a graph's outputs before they are used, because a graph may not keep its declared types and shapes.

use ort::session::SessionOutputs;
use ort::value::PrimitiveTensorElementType;

use super::ScorerError;
use crate::bundle::Fault;

/// Returns the values of the output `name` of the graph in `file`, which must have this shape.
///
/// # Errors
/// [`ScorerError::Graph`] if the output is absent, or has another shape or type.
pub fn values<'o, T: PrimitiveTensorElementType>(
    outputs: &'o SessionOutputs<'_>,
    file: &str,
    name: &str,
    shape: &[usize],
) -> Result<&'o [T], ScorerError> {
    let fault = |problem: String| ScorerError::Graph(vec![Fault::new(file, problem)]);
    let value = outputs.get(name);
    let value = value.ok_or_else(|| fault(format!("returned no output `{name}`")))?;
    let (found, values) = value
        .try_extract_tensor::<T>()
        .map_err(|e| fault(format!("returned a wrong output `{name}`: {e}")))?;
    let same = found
        .iter()
        .copied()
        .eq(shape.iter().map(|&side| side as i64));
    if !same || values.len() != shape.iter().product::<usize>() {
        return Err(fault(format!(
            "returned output `{name}` with shape {found:?} for a batch of {}; the shape must be {shape:?}",
            shape[0]
        )));
    }
    Ok(values)
}
