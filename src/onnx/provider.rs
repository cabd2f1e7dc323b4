//! The execution providers that a graph is offered to, and the provider that each node was assigned to.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fmt;
use std::ptr;

use ort::AsPointer;
use ort::ep::{self, ArenaExtendStrategy, ExecutionProviderDispatch};
use ort::session::Session;

use super::buckets::Buckets;
use crate::config::{InferenceSettings, Provider};

/// Makes a session record which provider runs which node.
pub const REMEMBER: (&str, &str) = ("session.record_ep_graph_assignment_info", "1");

/// Returns the providers that a graph is offered to, in order of preference. Nodes that no provider accepts run on the
/// CPU. The list is empty if only the CPU is used. `row` is the shape of one record.
pub fn offered(
    inference: &InferenceSettings,
    worker: usize,
    row: &[usize],
    buckets: &Buckets,
) -> Vec<ExecutionProviderDispatch> {
    let devices = &inference.devices;
    let device = devices[worker % devices.len()];
    let providers = match inference.provider {
        Provider::Cpu => vec![],
        Provider::Cuda => vec![cuda(inference, device)],
        Provider::TensorRt => vec![
            tensorrt(inference, device, row, buckets),
            cuda(inference, device),
        ],
    };
    let strict = providers.into_iter().map(|p| p.error_on_failure());
    strict.collect()
}

fn cuda(inference: &InferenceSettings, device: i32) -> ExecutionProviderDispatch {
    let cuda = ep::CUDA::default()
        .with_device_id(device)
        // TF32, on by default, has 10 bits of mantissa: too few for the golden records.
        .with_tf32(false)
        // After the warm-up, the arena has enough memory for every batch. Doubling it would waste memory.
        .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested);
    match inference.device_memory {
        Some(bytes) => cuda.with_memory_limit(bytes).build(),
        None => cuda.build(),
    }
}

fn tensorrt(
    inference: &InferenceSettings,
    device: i32,
    row: &[usize],
    buckets: &Buckets,
) -> ExecutionProviderDispatch {
    let [least, most] = profile(row, buckets);
    // One profile for all batch sizes gives one engine, which is never rebuilt for a new size.
    let mut tensorrt = ep::TensorRT::default()
        .with_device_id(device)
        .with_profile_min_shapes(least)
        .with_profile_opt_shapes(&most)
        .with_profile_max_shapes(&most);
    if let Some(bytes) = inference.device_memory {
        tensorrt = tensorrt.with_max_workspace_size(bytes);
    }
    if let Some(folder) = &inference.engine_cache {
        tensorrt = tensorrt
            .with_engine_cache(true)
            .with_engine_cache_path(folder.display())
            .with_timing_cache(true)
            .with_timing_cache_path(folder.display());
    }
    tensorrt.build()
}

/// Returns the smallest and the largest batch in TensorRT's syntax.
fn profile(row: &[usize], buckets: &Buckets) -> [String; 2] {
    let row: String = row.iter().map(|side| format!("x{side}")).collect();
    let sizes = buckets.sizes();
    [sizes[0], buckets.largest()].map(|records| format!("x:{records}{row}"))
}

/// The number of a graph's nodes that each provider runs, as reported by ONNX Runtime.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Placement(BTreeMap<String, usize>);

impl Placement {
    /// Reads the placement from a session that was created with [`REMEMBER`].
    ///
    /// # Errors
    /// When ONNX Runtime does not report it.
    pub fn of(session: &Session) -> Result<Placement, ort::Error> {
        let api = ort::api();
        let mut nodes = BTreeMap::new();
        let (mut parts, mut count) = (ptr::null(), 0);
        // SAFETY: ONNX Runtime fills in the pointers or returns an error. They point to data of the session and live as
        // long as the session.
        unsafe {
            let asked = (api.Session_GetEpGraphAssignmentInfo)(
                session.ptr(),
                &raw mut parts,
                &raw mut count,
            );
            ort::Error::result_from_status(asked)?;
            for i in 0..count {
                let part = *parts.add(i);
                let (mut name, mut members, mut taken) = (ptr::null(), ptr::null(), 0);
                let asked = (api.EpAssignedSubgraph_GetEpName)(part, &raw mut name);
                ort::Error::result_from_status(asked)?;
                let asked =
                    (api.EpAssignedSubgraph_GetNodes)(part, &raw mut members, &raw mut taken);
                ort::Error::result_from_status(asked)?;
                let name = CStr::from_ptr(name).to_string_lossy().into_owned();
                *nodes.entry(name).or_default() += taken;
            }
        }
        Ok(Placement(nodes))
    }

    /// Returns whether the provider runs some nodes and at most half of all nodes run on the CPU. Always true for the
    /// CPU. ONNX Runtime keeps a few nodes that compute shapes on the CPU even if all arithmetic runs on the GPU.
    pub fn is_mostly_on(&self, provider: Provider) -> bool {
        let name = match provider {
            Provider::Cpu => return true,
            Provider::Cuda => "CUDAExecutionProvider",
            Provider::TensorRt => "TensorrtExecutionProvider",
        };
        let all: usize = self.0.values().sum();
        self.0.contains_key(name) && 2 * self.on_cpu() <= all
    }

    /// Returns the number of nodes that run on the CPU.
    pub fn on_cpu(&self) -> usize {
        self.0.get("CPUExecutionProvider").copied().unwrap_or(0)
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (provider, nodes)) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            let provider = provider.trim_end_matches("ExecutionProvider");
            write!(f, "{comma}{nodes} nodes on {provider}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_reaches_from_the_least_batch_to_the_largest() {
        let of = profile(&[22], &Buckets::up_to(256));
        assert_eq!(of, ["x:16x22", "x:256x22"]);
        let of = profile(&[96, 96, 1], &Buckets::up_to(64));
        assert_eq!(of, ["x:16x96x96x1", "x:64x96x96x1"]);
    }

    #[test]
    fn a_graph_that_the_cpu_runs_for_the_most_part_is_not_on_the_gpu() {
        let placement = |nodes: &[(&str, usize)]| {
            let named = nodes
                .iter()
                .map(|(name, count)| (format!("{name}ExecutionProvider"), *count));
            Placement(named.collect())
        };
        let most = placement(&[("CPU", 1), ("CUDA", 143)]);
        assert!(most.is_mostly_on(Provider::Cuda));
        assert!(!most.is_mostly_on(Provider::TensorRt));
        assert!(!placement(&[("CPU", 3), ("CUDA", 1)]).is_mostly_on(Provider::Cuda));
        assert!(!placement(&[("CPU", 4)]).is_mostly_on(Provider::Cuda));
        assert!(placement(&[("CPU", 4)]).is_mostly_on(Provider::Cpu));
        assert!(placement(&[("CUDA", 3), ("Tensorrt", 1)]).is_mostly_on(Provider::TensorRt));
    }
}
