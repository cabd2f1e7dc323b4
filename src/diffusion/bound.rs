//! Keeps the predicted clean sample in its range.

use super::Error;
use super::config::Fields;
use super::numerics::clamp;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Bound {
    None,
    /// `clip_sample`: to [-range, range].
    Clip(f32),
    /// `thresholding`: to [-s, s] and divided by s, where s is a quantile of the sample's absolute values, at least 1 and at most
    /// `most` (Saharia et al. 2022, "Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding", section 2.3,
    /// arXiv 2205.11487).
    Threshold {
        quantile: f32,
        most: f32,
    },
}

impl Bound {
    /// Reads the bound of a class with `clip_sample`.
    pub fn read(fields: &Fields<'_>, clips: bool) -> Result<Bound, Error> {
        let clips = fields.boolean("clip_sample", clips)?;
        let range = fields.number("clip_sample_range", 1.0)? as f32;
        match Bound::read_threshold(fields)? {
            Bound::None if clips => Ok(Bound::Clip(range)),
            bound => Ok(bound),
        }
    }

    /// Reads the bound of a class without `clip_sample`.
    pub fn read_threshold(fields: &Fields<'_>) -> Result<Bound, Error> {
        let quantile = fields.number("dynamic_thresholding_ratio", 0.995)?;
        let most = fields.number("sample_max_value", 1.0)? as f32;
        if !fields.boolean("thresholding", false)? {
            return Ok(Bound::None);
        }
        if !(0.0..=1.0).contains(&quantile) {
            let why = "it must be from 0 to 1";
            return Err(fields.refused("dynamic_thresholding_ratio", why));
        }
        Ok(Bound::Threshold {
            quantile: quantile as f32,
            most,
        })
    }

    /// Bounds one clean sample.
    pub fn apply(self, clean: &mut [f32]) {
        match self {
            Bound::None => {}
            Bound::Clip(range) => {
                for x in clean {
                    *x = clamp(*x, -range, range);
                }
            }
            Bound::Threshold { quantile: at, most } => {
                let s = clamp(quantile(clean, at), 1.0, most);
                for x in clean {
                    *x = clamp(*x, -s, s) / s;
                }
            }
        }
    }
}

/// `torch.quantile` of the absolute values, interpolated linearly. NaN if one is NaN.
fn quantile(values: &[f32], q: f32) -> f32 {
    let mut sorted: Vec<f32> = values.iter().map(|x| x.abs()).collect();
    if sorted.iter().any(|x| x.is_nan()) {
        return f32::NAN;
    }
    sorted.sort_unstable_by(f32::total_cmp);
    let rank = q * (sorted.len() - 1) as f32;
    let (low, high) = (rank.floor() as usize, rank.ceil() as usize);
    let (below, above, weight) = (sorted[low], sorted[high], rank - rank.floor());
    match weight < 0.5 {
        true => below + weight * (above - below),
        false => above - (above - below) * (1.0 - weight),
    }
}
