//! `[inference]`: the ONNX Runtime execution provider, its devices and the worker threads.

use std::path::PathBuf;
use std::time::Duration;

use super::settings::Settings;

#[derive(Debug, Clone)]
pub struct InferenceSettings {
    pub provider: Provider,
    pub fallback: bool,
    /// Number of worker threads, at least 1.
    pub workers: usize,
    /// CUDA device ids, at least one, assigned to workers round-robin.
    pub devices: Vec<i32>,
    /// Maximum memory of one worker's tensors on a device, in bytes.
    pub device_memory: Option<usize>,
    /// Folder in which TensorRT caches its engines.
    pub engine_cache: Option<PathBuf>,
}

impl InferenceSettings {
    pub(super) fn parse(s: &mut Settings) -> InferenceSettings {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        InferenceSettings {
            provider: s
                .choice(
                    "inference.provider",
                    &[
                        ("cpu", Provider::Cpu),
                        ("cuda", Provider::Cuda),
                        ("tensorrt", Provider::TensorRt),
                    ],
                )
                .unwrap_or(Provider::Cpu),
            fallback: s.boolean("inference.fallback"),
            workers: match s.integer("inference.workers", 0, 1024) {
                0 => cores,
                workers => workers,
            },
            devices: s.integers("inference.devices", 0, 63),
            device_memory: Some(s.integer("inference.device_memory", 0, 1 << 40))
                .filter(|&bytes| bytes > 0),
            engine_cache: s.optional_text("inference.engine_cache").map(PathBuf::from),
        }
    }

    pub fn on_cpu(workers: usize) -> InferenceSettings {
        InferenceSettings {
            provider: Provider::Cpu,
            fallback: false,
            workers,
            devices: vec![0],
            device_memory: None,
            engine_cache: None,
        }
    }
}

/// ONNX Runtime execution providers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "daemon", derive(clap::ValueEnum))]
pub enum Provider {
    Cpu,
    Cuda,
    #[cfg_attr(feature = "daemon", value(name = "tensorrt"))]
    TensorRt,
}

impl Provider {
    pub fn as_str(self) -> &'static str {
        match self {
            Provider::Cpu => "cpu",
            Provider::Cuda => "cuda",
            Provider::TensorRt => "tensorrt",
        }
    }

    /// Returns the default of `model.load_timeout`. It is longer for GPUs, because building TensorRT engines takes minutes, and
    /// so can the first use of CUDA.
    pub fn load_timeout(self) -> Duration {
        match self {
            Provider::Cpu => Duration::from_secs(60),
            Provider::Cuda | Provider::TensorRt => Duration::from_secs(15 * 60),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{SMALLEST, load};

    #[test]
    fn devices_are_one_number_a_list_or_an_array() {
        for (flag, devices) in [
            ("inference.devices=3", &[3][..]),
            ("inference.devices=0, 2", &[0, 2]),
            ("inference.devices=[1, 0]", &[1, 0]),
        ] {
            let config = load(SMALLEST, &[], &[flag]).unwrap();
            assert_eq!(config.inference.devices, devices, "{flag}");
        }
        for flag in ["inference.devices=-1", "inference.devices=0,x"] {
            let error = load(SMALLEST, &[], &[flag]).unwrap_err();
            assert!(error.contains("whole numbers from 0 to 63"), "{error}");
        }
        let error = load(SMALLEST, &[], &["inference.devices=[]"]).unwrap_err();
        assert!(error.contains("inference.devices"), "{error}");
    }
}
