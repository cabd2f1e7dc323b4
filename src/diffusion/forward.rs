//! The forward process: from a clean sample to a noisy one.

/// Writes the noisy sample √ᾱ x₀ + √(1 - ᾱ) ε (Ho et al. 2020, equation 4, arXiv 2006.11239). The slices have one length.
pub fn add_noise(alpha_cumprod: f32, clean: &[f32], noise: &[f32], noisy: &mut [f32]) {
    mix(
        alpha_cumprod.sqrt(),
        (1.0 - alpha_cumprod).sqrt(),
        clean,
        noise,
        noisy,
    );
}

/// Writes the velocity √ᾱ ε - √(1 - ᾱ) x₀ that a model of `v_prediction` predicts (Salimans & Ho 2022, arXiv 2202.00512).
pub fn velocity(alpha_cumprod: f32, clean: &[f32], noise: &[f32], velocity: &mut [f32]) {
    let (alpha, sigma) = (alpha_cumprod.sqrt(), (1.0 - alpha_cumprod).sqrt());
    for ((v, &x), &e) in velocity.iter_mut().zip(clean).zip(noise) {
        *v = alpha * e - sigma * x;
    }
}

/// α x₀ + σ ε.
pub(super) fn mix(alpha: f32, sigma: f32, clean: &[f32], noise: &[f32], noisy: &mut [f32]) {
    for ((y, &x), &e) in noisy.iter_mut().zip(clean).zip(noise) {
        *y = alpha * x + sigma * e;
    }
}
