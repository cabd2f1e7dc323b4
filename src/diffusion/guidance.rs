//! Classifier-free guidance: one model, asked with and without the condition.

/// Moves `unconditional` to u + scale (c - u), away from what the model predicts without the condition (Ho & Salimans 2022,
/// "Classifier-Free Diffusion Guidance", arXiv 2207.12598, with w = scale - 1). A scale of 1 is the conditional prediction.
pub fn guide(unconditional: &mut [f32], conditional: &[f32], scale: f32) {
    for (u, &c) in unconditional.iter_mut().zip(conditional) {
        *u += scale * (c - *u);
    }
}

/// Brings the standard deviation of one sample's `guided` prediction towards that of its `conditional` one: r g std(c) / std(g) +
/// (1 - r) g for r = `guidance_rescale` (Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", section
/// 3.4, arXiv 2305.08891).
pub fn rescale_guidance(guided: &mut [f32], conditional: &[f32], guidance_rescale: f32) {
    let ratio = standard_deviation(conditional) / standard_deviation(guided);
    for g in guided {
        *g = guidance_rescale * (*g * ratio) + (1.0 - guidance_rescale) * *g;
    }
}

/// The square root of the unbiased variance, summed in float64.
fn standard_deviation(values: &[f32]) -> f32 {
    let count = values.len() as f64;
    let mean = values.iter().copied().map(f64::from).sum::<f64>() / count;
    let squares = values.iter().map(|&x| (f64::from(x) - mean).powi(2));
    (squares.sum::<f64>() / (count - 1.0)).sqrt() as f32
}

/// What tells a distilled model its guidance: sines, then cosines, of 1000 (scale - 1) at `width` / 2 frequencies from 1 to 1/10000,
/// and a 0 if `width` is odd (Luo et al. 2023, "Latent Consistency Models", arXiv 2310.04378, with w = scale - 1; frequencies as
/// Kingma et al. 2021, "Variational Diffusion Models", arXiv 2107.00630, in diffusers).
pub fn guidance_embedding(scale: f32, width: usize) -> Vec<f32> {
    let half = width / 2;
    let w = (scale - 1.0) * 1000.0;
    let rate = 10_000.0_f32.ln() / (half.max(2) - 1) as f32;
    let angles: Vec<f32> = (0..half).map(|i| w * (i as f32 * -rate).exp()).collect();
    let sines = angles.iter().map(|angle| angle.sin());
    let cosines = angles.iter().map(|angle| angle.cos());
    let mut embedding: Vec<f32> = sines.chain(cosines).collect();
    embedding.resize(width, 0.0);
    embedding
}
