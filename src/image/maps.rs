//! Combines the scorer's outputs for the rows of an image into one heatmap, one reconstruction and the regions.

use ::image::codecs::png::PngEncoder;
use ::image::{ExtendedColorType, ImageEncoder};

use super::regions::{Region, regions};
use super::{Image, Layout};

/// The gray level of the threshold in a heatmap, which makes the maps of different images comparable.
const AT_THRESHOLD: f32 = 127.5;

/// Explains the score of an image.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// Width of the upright image before resizing.
    pub width: usize,
    /// Height of the upright image before resizing.
    pub height: usize,
    pub regions: Vec<Region>,
    /// In gray. Level 127.5 is a heat equal to the threshold, and 255 is twice that or more.
    pub heatmap: Png,
    /// The image that the model expected, in gray or RGB.
    pub reconstruction: Png,
}

/// An encoded PNG.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Png {
    pub width: usize,
    pub height: usize,
    pub bytes: Vec<u8>,
}

/// Returns the score of an image, which is the highest score of its rows. It is NaN if any of them is NaN.
pub fn highest(scores: &[f32]) -> f32 {
    let worse = |a: f32, b: f32| if a.is_nan() || a > b { a } else { b };
    scores.iter().copied().fold(f32::NEG_INFINITY, worse)
}

impl Image {
    /// Combines the heat of the rows, float32 [rows, height, width], into one map, float32 [layout.height, layout.width].
    /// Negative heat counts as 0.
    pub fn heat(&self, rows: &[f32]) -> Vec<f32> {
        self.layout.blend(1, |i| f32::max(rows[i], 0.0))
    }

    /// Builds the finding from `heat`, float32 [rows, height, width], and `reconstruction`, uint8 [rows, height, width,
    /// channels]. A region is where the heat is above the lower of `threshold` and half of its peak. There are at most `most`
    /// regions.
    pub fn finding(
        &self,
        heat: &[f32],
        reconstruction: &[u8],
        threshold: f32,
        most: usize,
    ) -> Finding {
        let layout = &self.layout;
        let heat = self.heat(heat);
        let expected = layout.blend(layout.channels, |i| f32::from(reconstruction[i]));
        let peak = heat.iter().copied().fold(0.0, f32::max);
        let found = match peak > 0.0 && peak.is_finite() {
            true => {
                let cut = threshold.min(peak / 2.0);
                let full = (self.width, self.height);
                regions(&heat, layout.width, cut, most, full)
            }
            false => Vec::new(),
        };
        let shade = |heat: &f32| (heat / threshold * AT_THRESHOLD).round() as u8;
        let expected = expected.iter().map(|level| level.round() as u8);
        Finding {
            width: self.width,
            height: self.height,
            regions: found,
            heatmap: layout.png(1, heat.iter().map(shade).collect()),
            reconstruction: layout.png(layout.channels, expected.collect()),
        }
    }
}

impl Layout {
    /// Blends the values of the rows, [rows, tile height, tile width, channels], into one canvas, [height, width, channels].
    /// Where rows overlap, each is weighted by the distance of the pixel from the row's edge.
    fn blend(&self, channels: usize, value: impl Fn(usize) -> f32) -> Vec<f32> {
        let pixels = self.width * self.height;
        if self.rows() == 1 {
            return (0..pixels * channels).map(value).collect();
        }
        let mut sums = vec![0.0; pixels * channels];
        let mut weights = vec![0.0; pixels];
        let inward = |at: usize, side: usize| (at + 1).min(side - at) as f32;
        let mut from = 0;
        for (left, top) in self.positions() {
            for y in 0..self.tile_height {
                for x in 0..self.tile_width {
                    let weight = inward(x, self.tile_width) * inward(y, self.tile_height);
                    let to = (top + y) * self.width + left + x;
                    weights[to] += weight;
                    for sum in &mut sums[to * channels..(to + 1) * channels] {
                        *sum += weight * value(from);
                        from += 1;
                    }
                }
            }
        }
        for (pixel, weight) in sums.chunks_exact_mut(channels).zip(weights) {
            for sum in pixel {
                *sum /= weight;
            }
        }
        sums
    }

    fn png(&self, channels: usize, pixels: Vec<u8>) -> Png {
        let color = match channels {
            1 => ExtendedColorType::L8,
            _ => ExtendedColorType::Rgb8,
        };
        let mut bytes = Vec::new();
        PngEncoder::new(&mut bytes)
            .write_image(&pixels, self.width as u32, self.height as u32, color)
            .expect("8-bit pixels of a known size always encode into memory");
        Png {
            width: self.width,
            height: self.height,
            bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::Pixels;

    fn pixels() -> Pixels {
        serde_json::from_value(serde_json::json!({
            "height": 8, "width": 8, "channels": 1, "resize": "bilinear",
            "tiles": {"scale": 1.0, "overlap": 4},
        }))
        .unwrap()
    }

    #[test]
    fn rows_that_agree_are_put_together_to_what_they_were_cut_from() {
        let layout = Layout::of(13, 9, &pixels());
        let value = |x: usize, y: usize| (x + 20 * y) as f32;
        let mut rows = Vec::new();
        for (left, top) in layout.positions() {
            for y in 0..8 {
                rows.extend((0..8).map(|x| value(left + x, top + y)));
            }
        }
        let whole = layout.blend(1, |i| rows[i]);
        for (i, got) in whole.iter().enumerate() {
            assert!((got - value(i % 13, i / 13)).abs() < 1e-3, "{i}");
        }
    }

    #[test]
    fn the_worst_row_counts_and_nan_stays() {
        assert_eq!(highest(&[1.0, 3.0, 2.0]), 3.0);
        assert!(highest(&[f32::NAN, 3.0]).is_nan());
        assert!(highest(&[3.0, f32::NAN]).is_nan());
    }

    #[test]
    fn a_finding_says_where_and_what_was_expected() {
        let layout = Layout::of(8, 8, &pixels());
        let image = Image {
            width: 8,
            height: 8,
            layout,
            rows: vec![0; 64],
        };
        let mut heat = vec![0.0; 64];
        heat[9] = 4.0;
        heat[10] = f32::NAN;
        let finding = image.finding(&heat, &[7; 64], 2.0, 5);
        assert_eq!(finding.regions.len(), 1);
        assert_eq!((finding.regions[0].x, finding.regions[0].y), (1, 1));
        let map = ::image::load_from_memory(&finding.heatmap.bytes)
            .unwrap()
            .into_luma8();
        assert_eq!(
            (map.as_raw()[9], map.as_raw()[10], map.as_raw()[0]),
            (255, 0, 0)
        );
        let expected = ::image::load_from_memory(&finding.reconstruction.bytes).unwrap();
        assert_eq!(expected.into_luma8().as_raw(), &vec![7; 64]);
    }
}
