//! Computes the mean residuals of the records that a calibration keeps. These records are known only after all are scored.

/// Number of score bins, eight per doubling over 64 doublings around 1.
const BINS: usize = 512;
/// Bins per doubling of the score.
const PER_DOUBLING: f32 = 8.0;

/// Sums of residuals per score bin. A record that is left out later subtracts the mean of its bin.
pub struct Residuals {
    features: usize,
    /// [BINS, features].
    sums: Vec<f64>,
    records: Vec<u64>,
    left_out: Vec<u64>,
}

impl Residuals {
    pub fn new(features: usize) -> Residuals {
        Residuals {
            features,
            sums: vec![0.0; BINS * features],
            records: vec![0; BINS],
            left_out: vec![0; BINS],
        }
    }

    pub fn add(&mut self, score: f32, residual: &[f32]) {
        let bin = bin(score);
        self.records[bin] += 1;
        let sums = &mut self.sums[bin * self.features..][..self.features];
        for (sum, residual) in sums.iter_mut().zip(residual) {
            *sum += f64::from(*residual);
        }
    }

    pub fn leave_out(&mut self, score: f32) {
        self.left_out[bin(score)] += 1;
    }

    /// Returns the mean residual of each feature over the kept records.
    pub fn means(&self) -> Vec<f32> {
        let bins = || 0..BINS;
        let kept = |bin: usize| self.records[bin].saturating_sub(self.left_out[bin]);
        let count: u64 = bins().map(kept).sum();
        let mean = |feature: usize| {
            let used = bins().filter(|&bin| kept(bin) > 0);
            let sum: f64 = used
                .map(|bin| {
                    let share = kept(bin) as f64 / self.records[bin] as f64;
                    self.sums[bin * self.features + feature] * share
                })
                .sum();
            (sum / count.max(1) as f64) as f32
        };
        (0..self.features).map(mean).collect()
    }
}

fn bin(score: f32) -> usize {
    let from_zero = score.max(f32::MIN_POSITIVE).log2() * PER_DOUBLING + BINS as f32 / 2.0;
    from_zero.clamp(0.0, BINS as f32 - 1.0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_counts_no_more() {
        let mut residuals = Residuals::new(2);
        for _ in 0..90 {
            residuals.add(0.1, &[1.0, 2.0]);
        }
        for _ in 0..10 {
            residuals.add(30.0, &[101.0, 2.0]);
        }
        assert_eq!(residuals.means(), [11.0, 2.0]);
        (0..10).for_each(|_| residuals.leave_out(30.0));
        assert_eq!(residuals.means(), [1.0, 2.0]);
        residuals.add(0.0, &[1.0, 2.0]);
        assert_eq!(residuals.means(), [1.0, 2.0]);
    }
}
