//! The standard deviation of the noise in an image, from its finest details.

/// The high-pass filter of Daubechies' wavelet with four coefficients.
const HIGH_PASS: [f64; 4] = [
    -0.482_962_913_144_690_25,
    0.836_516_303_737_469,
    -0.224_143_868_041_857_35,
    -0.129_409_522_550_921_45,
];
/// The median of the absolute value of a standard normal.
const MEDIAN: f64 = 0.674_489_750_196_081_7;

/// Returns the mean over the channels of the noise's standard deviation in an image, [C, H, W]: the median of the absolute finest
/// diagonal details of a wavelet transform, divided by 0.6745 (Donoho & Johnstone 1994, "Ideal spatial adaptation by wavelet
/// shrinkage", section 4.2; scikit-image's `estimate_sigma`). Details of exactly 0 are left out, because noise has none. Fine
/// structure of the image itself counts as noise, so that the estimate is too high for it. `None` if there are no details: the image is flat, or a side is
/// shorter than 4 pixels.
pub fn noise_level(image: &[f32], [height, width]: [usize; 2]) -> Option<f32> {
    if height < HIGH_PASS.len() || width < HIGH_PASS.len() {
        return None;
    }
    let planes = image.chunks_exact(height * width);
    let levels: Vec<f64> = planes
        .filter_map(|plane| of_plane(plane, height, width))
        .collect();
    let mean = levels.iter().sum::<f64>() / levels.len() as f64;
    (!levels.is_empty()).then_some(mean as f32)
}

fn of_plane(plane: &[f32], height: usize, width: usize) -> Option<f64> {
    let taps = HIGH_PASS.len();
    let detail = |top: usize, left: usize| -> f64 {
        let row = |y: usize| -> f64 {
            let values = &plane[(top + y) * width + left..][..taps];
            let products = values.iter().zip(&HIGH_PASS);
            products.map(|(value, tap)| f64::from(*value) * tap).sum()
        };
        (0..taps).map(|y| HIGH_PASS[y] * row(y)).sum::<f64>().abs()
    };
    let tops = (0..=height - taps).step_by(2);
    let details = tops.flat_map(|top| (0..=width - taps).step_by(2).map(move |left| (top, left)));
    let details = details.map(|(top, left)| detail(top, left));
    // The filter's coefficients add up to 0 but for a rounding.
    let mut details: Vec<f64> = details.filter(|detail| *detail > 1e-7).collect();
    if details.is_empty() {
        return None;
    }
    let (count, middle) = (details.len(), details.len() / 2);
    let (below, &mut upper, _) = details.select_nth_unstable_by(middle, f64::total_cmp);
    let lower = match count % 2 {
        0 => below.iter().copied().fold(0.0, f64::max),
        _ => upper,
    };
    Some((lower + upper) / 2.0 / MEDIAN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::SeedableRng;
    use rand_distr::{Distribution, StandardNormal};

    #[test]
    fn the_level_of_noise_on_a_slope() {
        let mut generator = ChaCha8Rng::seed_from_u64(1);
        for sigma in [0.5, 10.0, 50.0] {
            let pixel = |i: usize| {
                let noise: f32 = StandardNormal.sample(&mut generator);
                (i % 90) as f32 + (i / 90) as f32 * 0.5 + sigma * noise
            };
            let image: Vec<f32> = (0..2 * 80 * 90).map(pixel).collect();
            let found = noise_level(&image, [80, 90]).unwrap();
            assert!((found / sigma - 1.0).abs() < 0.05, "{sigma}: {found}");
        }
    }

    #[test]
    fn an_image_without_details_has_no_level() {
        assert_eq!(noise_level(&[7.0; 100], [10, 10]), None);
        assert_eq!(noise_level(&[1.0, 5.0, 2.0, 9.0, 3.0, 7.0], [2, 3]), None);
        assert_eq!(noise_level(&[1.0], [1, 1]), None);
    }
}
