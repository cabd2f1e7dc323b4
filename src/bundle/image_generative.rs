//! The generative part of a bundle for images: a denoiser that images are drawn from, and its scheduler.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::generative::{ABOUT, DENOISER, MOST_STEPS, SCHEDULER};
use super::manifest::Pixels;

/// All files. A bundle contains all or none of them.
pub const FILES: [&str; 3] = [SCHEDULER, DENOISER, ABOUT];

/// The generative part of a bundle whose rows are images of C channels, H x W pixels. Values are pixels / 127.5 - 1.
#[derive(Debug, Clone)]
pub struct ImageGenerative {
    /// The default scheduler, in diffusers' format.
    pub scheduler: Map<String, Value>,
    /// `denoiser.onnx`: `sample` float32 [N, C, H, W], `timestep` int64 [N] -> `out_sample` float32 [N, C, H, W].
    pub denoiser: Vec<u8>,
    pub about: ImageAbout,
}

/// The content of `generative.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct ImageAbout {
    /// Default number of denoising steps.
    pub steps: usize,
    /// Whether the denoiser knows only the noise levels of these steps.
    #[serde(default)]
    pub distilled: bool,
    /// Examples of what the denoiser returns.
    pub golden: Vec<GoldenImage>,
}

/// What the denoiser returns for one noisy image on the trainer's machine. Both images are flat, in the order [C, H, W].
#[derive(Debug, Clone, Deserialize)]
pub struct GoldenImage {
    pub timestep: i64,
    pub noisy: Vec<f32>,
    pub out_sample: Vec<f32>,
}

impl ImageAbout {
    /// Returns everything that is wrong with it for these images.
    pub fn faults(&self, pixels: &Pixels) -> Vec<String> {
        let mut faults = Vec::new();
        if self.steps == 0 || self.steps > MOST_STEPS {
            faults.push(format!(
                "steps is {}: it must be between 1 and {MOST_STEPS}",
                self.steps
            ));
        }
        if self.golden.is_empty() {
            faults.push("golden must hold at least one point".into());
        }
        let values = pixels.channels * pixels.height * pixels.width;
        let fits =
            |point: &GoldenImage| [&point.noisy, &point.out_sample].map(Vec::len) == [values; 2];
        if let Some(number) = self.golden.iter().position(|point| !fits(point)) {
            faults.push(format!(
                "golden point {} must have {values} values in `noisy` and in `out_sample`: {} channels of {} x {} pixels",
                number + 1,
                pixels.channels,
                pixels.width,
                pixels.height
            ));
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn faults_are_named() {
        let pixels = json!({"height": 1, "width": 2, "channels": 1, "resize": "bilinear"});
        let pixels: Pixels = serde_json::from_value(pixels).unwrap();
        let faults = |steps: usize, golden: Value| {
            let about = json!({"steps": steps, "golden": golden});
            let about: ImageAbout = serde_json::from_value(about).unwrap();
            about.faults(&pixels)
        };
        let point =
            |noisy: Value| json!([{"timestep": 5, "noisy": noisy, "out_sample": [0.0, 1.0]}]);
        assert_eq!(faults(50, point(json!([0.5, 1]))), Vec::<String>::new());
        assert!(faults(0, point(json!([0.5, 1])))[0].contains("steps is 0"));
        assert!(faults(50, point(json!([0.5])))[0].contains("golden point 1 must have 2 values"));
        assert!(faults(50, json!([]))[0].contains("at least one point"));
    }
}
