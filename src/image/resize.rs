//! Resizes bit-identically to Pillow's `resize(size, BILINEAR)` on 8 bits, so that golden images get the same pixels as in
//! training. The filter is a triangle as wide as the source of one pixel. It is applied in one direction after the other, and
//! each pass is rounded (`src/libImaging/Resample.c`). `fast_image_resize` 6 has shorter weights, so up to a quarter of its
//! pixels differ by one level.

use super::decode::Flat;

/// Fractional bits of a weight.
const PRECISION: u32 = 22;
const HALF: i32 = 1 << (PRECISION - 1);

/// The source pixels of one pixel: the first of them, and the weights from there, which add up to 1.
struct Window {
    start: usize,
    weights: Vec<i32>,
}

/// Resizes to `width` x `height`, both at least 1.
pub fn resize(image: Flat, width: usize, height: usize) -> Flat {
    let narrowed = |image: Flat| match image.width == width {
        true => image,
        false => match image.channels {
            1 => columns::<1>(&image, width),
            4 => columns::<4>(&image, width),
            _ => columns::<3>(&image, width),
        },
    };
    let shortened = |image: Flat| match image.height == height {
        true => image,
        false => rows(&image, height),
    };
    // Pillow 13 shortens a tall image first (python-pillow/Pillow#9549), which changes the rounding.
    let lost = |from: usize, to: usize| from.saturating_sub(to);
    let (lost_columns, lost_rows) = (lost(image.width, width), lost(image.height, height));
    if lost_rows > 2 * lost_columns {
        narrowed(shortened(image))
    } else {
        shortened(narrowed(image))
    }
}

fn windows(from: usize, to: usize) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    // Half of the triangle's base.
    let support = scale.max(1.0);
    let window = |i: usize| {
        let center = (i as f64 + 0.5) * scale;
        let start = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(from);
        let height = |x: usize| {
            let distance = ((x as f64 - center + 0.5) * (1.0 / support)).abs();
            (1.0 - distance).max(0.0)
        };
        let heights: Vec<f64> = (start..end).map(height).collect();
        let total: f64 = heights.iter().sum();
        let weight = |h: &f64| (0.5 + h / total * f64::from(1 << PRECISION)) as i32;
        Window {
            start,
            weights: heights.iter().map(weight).collect(),
        }
    };
    (0..to).map(window).collect()
}

fn level(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

fn columns<const C: usize>(image: &Flat, width: usize) -> Flat {
    let windows = windows(image.width, width);
    let mut pixels = Vec::with_capacity(width * image.height * C);
    for row in image.pixels.chunks_exact(image.width * C) {
        for window in &windows {
            let mut sums = [HALF; C];
            let part = row[window.start * C..].as_chunks::<C>().0;
            for (pixel, weight) in part.iter().zip(&window.weights) {
                for (sum, sample) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(*sample) * weight;
                }
            }
            pixels.extend(sums.map(level));
        }
    }
    Flat {
        width,
        pixels,
        ..*image
    }
}

fn rows(image: &Flat, height: usize) -> Flat {
    let stride = image.width * image.channels;
    let mut pixels = Vec::with_capacity(stride * height);
    let mut sums = vec![0; stride];
    for window in windows(image.height, height) {
        sums.fill(HALF);
        let part = image.pixels[window.start * stride..].chunks_exact(stride);
        for (row, weight) in part.zip(&window.weights) {
            for (sum, sample) in sums.iter_mut().zip(row) {
                *sum += i32::from(*sample) * weight;
            }
        }
        pixels.extend(sums.iter().copied().map(level));
    }
    Flat {
        height,
        pixels,
        ..*image
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(bytes: usize) -> Vec<u8> {
        let mut state: u32 = 7;
        let mut next = || {
            state = state.wrapping_mul(1_103_515_245).wrapping_add(12_345) & 0x7fff_ffff;
            (state >> 16) as u8
        };
        (0..bytes).map(|_| next()).collect()
    }

    #[test]
    fn it_is_pillows_to_the_bit() {
        for (from, to, channels, expected) in PILLOW {
            let image = Flat {
                width: from.0,
                height: from.1,
                channels,
                pixels: noise(from.0 * from.1 * channels),
            };
            let resized = resize(image, to.0, to.1);
            assert_eq!(resized.pixels.len(), to.0 * to.1 * channels);
            let fold = |sum: u32, level: &u8| sum.wrapping_mul(31).wrapping_add(u32::from(*level));
            let got = resized.pixels.iter().fold(0, fold);
            assert_eq!(got, expected, "{from:?} to {to:?}, {channels}");
        }
    }

    type Case = ((usize, usize), (usize, usize), usize, u32);

    /// Source size, target size, channels, and the checksum of Pillow 13's `frombytes(mode, from, noise).resize(to,
    /// BILINEAR).tobytes()` as above.
    const PILLOW: [Case; 13] = [
        ((100, 80), (64, 64), 1, 2553261479),
        ((100, 80), (64, 64), 3, 1718860936),
        ((300, 200), (37, 64), 3, 368330900),
        ((17, 9), (64, 64), 1, 1947371116),
        ((1, 1), (32, 32), 3, 2581430272),
        ((1000, 3), (64, 64), 1, 3172060842),
        ((640, 480), (256, 256), 3, 3191864441),
        ((64, 200), (64, 64), 3, 3124796737),
        ((65535, 2), (64, 64), 1, 1382440448),
        ((115, 287), (64, 64), 1, 2830967601),
        ((40, 300), (64, 32), 3, 2577493213),
        ((20, 66), (64, 64), 1, 404989562),
        ((100, 136), (64, 64), 1, 2420352007),
    ];
}
