//! Pixels as diffusion models take them: from bytes in reading order to values from -1 to 1, [C, H, W], and back.

/// Returns the values of 8-bit pixels with these channels.
pub fn values(bytes: &[u8], channels: usize) -> Vec<f32> {
    let value = |byte: &u8| 2.0 * (f32::from(*byte) / 255.0) - 1.0;
    let channel = |c: usize| bytes.iter().skip(c).step_by(channels).map(value);
    (0..channels).flat_map(channel).collect()
}

/// The reverse of [`values`]. Bytes are rounded to even, as diffusers' numpy_to_pil does.
pub fn bytes(values: &[f32], channels: usize) -> Vec<u8> {
    let pixels = values.len() / channels;
    let byte = |x: f32| ((x / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
    (0..pixels * channels)
        .map(|i| byte(values[i % channels * pixels + i / channels]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back() {
        for channels in [1, 3] {
            let all: Vec<u8> = (0..=255).cycle().take(256 * channels).collect();
            assert_eq!(bytes(&values(&all, channels), channels), all);
        }
        assert_eq!(bytes(&[-3.0, 0.0, 3.0], 1), [0, 128, 255]);
    }
}
