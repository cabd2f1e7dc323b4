//! Measures how well heatmaps find the pixels that masks mark, over any number of images.

use serde::Serialize;

use crate::image::Components;

/// The per-region overlap is integrated up to this false positive rate. Beyond it, a segmentation is useless.
pub const FPR_LIMIT: f64 = 0.3;

/// Number of leading bits that determine the bin of a heat. Heats in the same bin agree in sign, exponent and the first 11 bits
/// of the fraction, so their relative difference is at most 1/2048.
const BIN_BITS: u32 = 20;

/// A measure computed from binned heats.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Binned {
    /// The value in [0, 1]. Heats in the same bin count as ties.
    pub value: f64,
    /// Maximum difference between `value` and the exact result.
    pub error: f64,
}

/// Counts the pixels of heatmaps by heat, in 24 MiB for any number of images.
///
/// A higher heat is more anomalous, and NaN is the highest. The order of the images does not change an AUROC, and changes an
/// AUPRO only by the rounding of f64 sums.
#[derive(Debug, Clone)]
pub struct PixelRanking {
    bins: Vec<Bin>,
    regions: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Bin {
    normal: u64,
    anomalous: u64,
    /// Sum over all regions of the share of the region's pixels that are in this bin.
    overlap: f64,
}

impl Default for PixelRanking {
    fn default() -> PixelRanking {
        PixelRanking {
            bins: vec![Bin::default(); 1 << BIN_BITS],
            regions: 0,
        }
    }
}

impl PixelRanking {
    /// Adds an image by its `heat` and `mask` (true where anomalous), both row-major [height, width]. The mask of an image
    /// without defects is false everywhere.
    ///
    /// # Panics
    /// If `heat` and `mask` differ in length or are not whole rows of `width` pixels.
    pub fn add(&mut self, heat: &[f32], mask: &[bool], width: usize) {
        assert_eq!(heat.len(), mask.len(), "one mask value per pixel");
        for (heat, anomalous) in heat.iter().zip(mask) {
            let bin = &mut self.bins[bin_of(*heat)];
            bin.normal += u64::from(!anomalous);
            bin.anomalous += u64::from(*anomalous);
        }
        let regions = Components::of(mask, width);
        for run in regions.runs {
            let share = 1.0 / regions.areas[run.region] as f64;
            for heat in &heat[run.pixels] {
                self.bins[bin_of(*heat)].overlap += share;
            }
        }
        self.regions += regions.areas.len() as u64;
    }

    /// Returns the number of regions in all masks.
    pub fn regions(&self) -> u64 {
        self.regions
    }

    /// Returns the area under the ROC over all pixels of all images: the probability that a random anomalous pixel is hotter than
    /// a random normal one. A tie counts one half. `None` if a class is absent.
    pub fn auroc(&self) -> Option<Binned> {
        let (normals, anomalies) = self.totals();
        let mut below = normals;
        let (mut twice_won, mut tied) = (0u128, 0u128);
        for bin in self.bins.iter().rev() {
            below -= bin.normal;
            twice_won += u128::from(bin.anomalous) * u128::from(2 * below + bin.normal);
            tied += u128::from(bin.anomalous) * u128::from(bin.normal);
        }
        let twice_pairs = 2.0 * (u128::from(normals) * u128::from(anomalies)) as f64;
        (twice_pairs > 0.0).then(|| Binned {
            value: twice_won as f64 / twice_pairs,
            error: tied as f64 / twice_pairs,
        })
    }

    /// Returns the area under the per-region overlap up to a false positive rate of [`FPR_LIMIT`], divided by that limit.
    ///
    /// For each threshold, the false positive rate is the share of all normal pixels that are hotter. The overlap is the share of
    /// a region's pixels that are hotter, averaged over the regions, so that a small defect counts as much as a large one. The
    /// area is a sum of trapezoids between thresholds, and the last one is cut at the limit (Bergmann et al. 2021, "The MVTec
    /// Anomaly Detection Dataset", 5.2; Anomalib's AUPRO approximates the same by resampling a curve for each region). `None` if
    /// there are no normal pixels or no regions.
    pub fn aupro(&self) -> Option<Binned> {
        self.overlap_up_to(FPR_LIMIT)
    }

    fn overlap_up_to(&self, limit: f64) -> Option<Binned> {
        let (normals, _) = self.totals();
        if normals == 0 || self.regions == 0 {
            return None;
        }
        let (mut rate, mut overlap) = (0.0, 0.0);
        let (mut area, mut error) = (0.0, 0.0);
        let mut hotter = 0;
        for bin in self.bins.iter().rev() {
            hotter += bin.normal;
            let next = hotter as f64 / normals as f64;
            let rise = bin.overlap / self.regions as f64;
            let width = next.min(limit) - rate;
            let risen = if next > limit {
                rise * width / (next - rate)
            } else {
                rise
            };
            area += width * (overlap + risen / 2.0);
            // Within a bin, the curve may be anywhere between its ends.
            error += width * (rise - risen / 2.0);
            if next >= limit {
                break;
            }
            (rate, overlap) = (next, overlap + rise);
        }
        Some(Binned {
            value: area / limit,
            error: error / limit,
        })
    }

    fn totals(&self) -> (u64, u64) {
        self.bins.iter().fold((0, 0), |(normals, anomalies), bin| {
            (normals + bin.normal, anomalies + bin.anomalous)
        })
    }
}

/// Resizes a heatmap from (width, height) `from` to `to`. The interpolation is bilinear, with pixel centres at halves and edge
/// values extended to the border, like OpenCV's INTER_LINEAR and torch's `align_corners=False`. Input and output are row-major
/// [height, width].
///
/// # Panics
/// If `heat` does not have `from` pixels, or a side is 0.
pub fn stretch(heat: &[f32], from: (usize, usize), to: (usize, usize)) -> Vec<f32> {
    assert_eq!(heat.len(), from.0 * from.1, "one heat per pixel");
    if from == to {
        return heat.to_vec();
    }
    let (columns, rows) = (between(from.0, to.0), between(from.1, to.1));
    let mut out = Vec::with_capacity(to.0 * to.1);
    for (top, bottom, down) in rows {
        let (top, bottom) = (&heat[top * from.0..], &heat[bottom * from.0..]);
        for &(left, right, across) in &columns {
            let mix = |row: &[f32]| row[left] + (row[right] - row[left]) * across;
            out.push(mix(top) + (mix(bottom) - mix(top)) * down);
        }
    }
    out
}

/// Returns for each of `to` pixels the two of `from` pixels that it lies between, and its distance from the first.
fn between(from: usize, to: usize) -> Vec<(usize, usize, f32)> {
    let position = |i: usize| {
        let at = (i as f64 + 0.5) * from as f64 / to as f64 - 0.5;
        let at = at.clamp(0.0, (from - 1) as f64);
        let first = at as usize;
        (first, (first + 1).min(from - 1), (at - first as f64) as f32)
    };
    (0..to).map(position).collect()
}

/// Returns the bin of a heat: the highest bits of its position in the order of all f32.
fn bin_of(heat: f32) -> usize {
    if heat.is_nan() {
        return (1 << BIN_BITS) - 1;
    }
    // Like `f32::total_cmp`: the bits of negative numbers are inverted. Adding zero turns -0.0 into 0.0.
    let bits = (heat + 0.0).to_bits();
    let ordered = if bits >> 31 == 1 {
        !bits
    } else {
        bits | 1 << 31
    };
    (ordered >> (32 - BIN_BITS)) as usize
}

#[cfg(test)]
mod tests;
