//! The generative part of a bundle for tables: the graphs that draw, complete and denoise records, and a sample of real rows to compare with.

use serde::Deserialize;
use serde_json::Value;

use super::manifest::{Feature, FeatureKind};
use crate::npy;

pub const SCHEDULER: &str = "scheduler_config.json";
pub const DENOISER: &str = "denoiser.onnx";
pub const ENCODE: &str = "encode.onnx";
pub const DECODE: &str = "decode.onnx";
pub const REFERENCE: &str = "reference.npy";
pub const ABOUT: &str = "generative.json";
/// All files. A bundle contains all or none of them.
pub const FILES: [&str; 6] = [SCHEDULER, DENOISER, ENCODE, DECODE, REFERENCE, ABOUT];

/// Maximum number of denoising steps.
pub const MOST_STEPS: usize = 10_000;

/// The generative part of a bundle with F features. The denoiser works on points of D dimensions.
#[derive(Debug, Clone)]
pub struct Generative {
    /// The default scheduler, in diffusers' format.
    pub scheduler: Value,
    /// `denoiser.onnx`: `sample` float32 [N, D], `timestep` int64 [N], `mask` float32 [N, D] -> `out_sample` float32 [N, D].
    pub denoiser: Vec<u8>,
    /// `encode.onnx`: `x` float32 [N, F], `known` float32 [N, F] -> `sample` float32 [N, D], `mask` float32 [N, D].
    pub encode: Vec<u8>,
    /// `decode.onnx`: `sample` float32 [N, D] -> `x` float32 [N, F].
    pub decode: Vec<u8>,
    pub reference: Reference,
    pub about: About,
}

/// Rows of the training data and as many held-out rows. NaN is a missing value.
#[derive(Debug, Clone, Default)]
pub struct Reference {
    /// Number of values in a row, F.
    pub width: usize,
    /// float32 [M, F]
    pub training: Vec<f32>,
    /// float32 [M, F]
    pub held_out: Vec<f32>,
}

/// The content of `generative.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct About {
    /// Default number of denoising steps.
    pub steps: usize,
    /// The distribution of each feature in the training data.
    pub marginals: Vec<Marginal>,
    /// Examples of what each graph returns.
    pub golden: Vec<GoldenPoint>,
}

/// The distribution of one feature in the training data.
#[derive(Debug, Clone, Deserialize)]
pub struct Marginal {
    /// For numbers and parts of times: evenly spaced quantiles from the minimum to the maximum, ascending.
    #[serde(default)]
    pub quantiles: Vec<f32>,
    /// For booleans (false, true) and categories: the share of each value.
    #[serde(default)]
    pub shares: Vec<f32>,
    /// Share of records without the feature.
    #[serde(default)]
    pub missing: f32,
    /// Number of decimals that the data has; `None` if there is no such number.
    #[serde(default)]
    pub decimals: Option<u32>,
}

/// What the graphs return for one row on the trainer's machine: `encode` of `x`, and `denoiser` and `decode` of `noisy`. `null` in `x`
/// and `decoded` is NaN.
#[derive(Debug, Clone, Deserialize)]
pub struct GoldenPoint {
    pub x: Vec<Option<f32>>,
    pub known: Vec<f32>,
    pub sample: Vec<f32>,
    pub mask: Vec<f32>,
    pub timestep: i64,
    pub noisy: Vec<f32>,
    pub out_sample: Vec<f32>,
    pub decoded: Vec<Option<f32>>,
}

impl Reference {
    /// Parses `reference.npy`: float32 [2M, F], the training rows first.
    ///
    /// # Errors
    /// A message, if it is not such an array.
    pub fn parse(bytes: &[u8], features: usize) -> Result<Reference, String> {
        npy::head(&mut &*bytes).map_err(|e| e.to_string())?;
        let file = npyz::NpyFile::new(bytes).map_err(|e| e.to_string())?;
        let shape = file.shape().to_vec();
        let fits = shape.len() == 2 && shape[1] == features as u64 && shape[0] % 2 == 0;
        if !fits || shape[0] == 0 || file.order() != npyz::Order::C {
            return Err(format!(
                "has shape {shape:?}, but must have {features} columns and as many training rows as held-out rows, in C order"
            ));
        }
        // The size of the file bounds the memory: the header may claim any shape.
        let values = shape[0].saturating_mul(shape[1]);
        if values.saturating_mul(4) > bytes.len() as u64 {
            return Err("is shorter than its header says".into());
        }
        let mut training = file.into_vec::<f32>().map_err(|e| e.to_string())?;
        let held_out = training.split_off(training.len() / 2);
        Ok(Reference {
            width: features,
            training,
            held_out,
        })
    }

    /// Returns the number of rows of each kind, M.
    pub fn rows(&self) -> usize {
        self.training.len() / self.width.max(1)
    }
}

impl About {
    /// Returns the number of dimensions of the denoiser's space, D. 0 if there are no golden points.
    pub fn dimensions(&self) -> usize {
        self.golden.first().map_or(0, |point| point.sample.len())
    }

    /// Returns everything that is wrong with it for these features.
    pub fn faults(&self, features: &[Feature]) -> Vec<String> {
        let mut faults = Vec::new();
        if self.steps == 0 || self.steps > MOST_STEPS {
            faults.push(format!(
                "steps is {}: it must be between 1 and {MOST_STEPS}",
                self.steps
            ));
        }
        if self.marginals.len() != features.len() {
            faults.push(format!(
                "marginals has {} entries for {} features",
                self.marginals.len(),
                features.len()
            ));
        }
        for (feature, marginal) in features.iter().zip(&self.marginals) {
            if let Some(problem) = marginal.fault(&feature.kind) {
                faults.push(format!("the marginal of `{}` {problem}", feature.name));
            }
        }
        let (width, dimensions) = (features.len(), self.dimensions());
        if dimensions == 0 {
            faults.push("golden must hold at least one point, with at least one dimension".into());
        }
        let has_other_sizes = |point: &GoldenPoint| {
            let rows = [point.x.len(), point.known.len(), point.decoded.len()];
            let points = [&point.sample, &point.mask, &point.noisy, &point.out_sample];
            rows.iter().any(|&length| length != width)
                || points.iter().any(|values| values.len() != dimensions)
        };
        if let Some(number) = self.golden.iter().position(has_other_sizes) {
            faults.push(format!(
                "golden point {} must have {width} features and {dimensions} dimensions",
                number + 1
            ));
        }
        faults
    }
}

impl Marginal {
    fn fault(&self, kind: &FeatureKind) -> Option<String> {
        let expected = match kind {
            FeatureKind::Number | FeatureKind::Timestamp { .. } => {
                let ascending = self.quantiles.is_sorted() && self.quantiles.len() >= 2;
                let finite = self.quantiles.iter().all(|value| value.is_finite());
                return (!ascending || !finite)
                    .then(|| "must have at least 2 finite, ascending quantiles".into());
            }
            FeatureKind::Bool => 2,
            FeatureKind::Categorical { vocabulary } => vocabulary.len(),
        };
        let count = self.shares.len();
        let valid = self.shares.iter().all(|share| (0.0..=1.0).contains(share));
        (count != expected || !valid).then(|| format!("must have {expected} shares from 0 to 1"))
    }
}

#[cfg(test)]
mod tests {
    use npyz::WriterBuilder;
    use serde_json::json;

    use super::*;

    fn npy(shape: &[u64], values: &[f32]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let options = npyz::WriteOptions::new().default_dtype().shape(shape);
        let mut writer = options.writer(&mut bytes).begin_nd().unwrap();
        writer.extend(values.iter().copied()).unwrap();
        writer.finish().unwrap();
        bytes
    }

    #[test]
    fn the_reference_holds_training_rows_and_then_held_out_rows() {
        let bytes = npy(&[4, 2], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        let reference = Reference::parse(&bytes, 2).unwrap();
        assert_eq!(reference.training, [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(reference.held_out, [4.0, 5.0, 6.0, 7.0]);
        assert_eq!(reference.rows(), 2);
    }

    #[test]
    fn a_reference_of_another_shape_or_size_is_refused() {
        let bytes = npy(&[4, 2], &[0.0; 8]);
        assert!(Reference::parse(&bytes, 3).is_err());
        assert!(Reference::parse(&bytes[..bytes.len() - 4], 2).is_err());
        assert!(Reference::parse(b"", 2).is_err());
        assert!(Reference::parse(&npy(&[3, 2], &[0.0; 6]), 2).is_err());
        assert!(Reference::parse(&npy(&[0, 2], &[]), 2).is_err());
    }

    #[test]
    fn faults_name_the_feature() {
        let features: Vec<Feature> = serde_json::from_value(json!([
            {"name": "a", "path": "a", "type": "number"},
            {"name": "b", "path": "b", "type": "bool"},
        ]))
        .unwrap();
        let point = json!({"x": [1, null], "known": [1, 1], "sample": [0, 0, 0], "mask": [1, 1, 1], "timestep": 5,
            "noisy": [0, 0, 0], "out_sample": [0, 0, 0], "decoded": [1, null]});
        let about = |quantiles, point| -> About {
            let marginals = json!([{"quantiles": quantiles}, {"shares": [0.5, 0.5]}]);
            serde_json::from_value(json!({"steps": 30, "marginals": marginals, "golden": [point]}))
                .unwrap()
        };
        let right = about(json!([0, 1]), point.clone());
        assert_eq!(right.faults(&features), Vec::<String>::new());
        assert_eq!(right.dimensions(), 3);
        let wrong = about(json!([1, 0]), point.clone()).faults(&features);
        assert!(wrong[0].contains("`a`"), "{wrong:?}");
        let mut short = point;
        short["x"] = json!([1]);
        assert_eq!(about(json!([0, 1]), short).faults(&features).len(), 1);
    }
}
