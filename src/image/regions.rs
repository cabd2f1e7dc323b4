//! Finds the regions of a heatmap: boxes around connected pixels above a cutoff.

use serde::{Deserialize, Serialize};

use super::Components;

/// A box around connected hot pixels, in pixels of the upright image before resizing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Region {
    pub x: usize,
    pub y: usize,
    pub width: usize,
    pub height: usize,
    /// The region's share of the image's heat, in [0, 1].
    #[serde(default)]
    pub share: f32,
    /// The region's hot pixels as a share of the image's pixels, in (0, 1]. Other pixels in the box do not count.
    #[serde(default)]
    pub area: f32,
}

impl Region {
    /// Marks its pixels in an image, [H, W]. Returns whether it lies within the image; otherwise nothing is marked.
    pub fn mark(&self, marked: &mut [bool], [height, width]: [usize; 2]) -> bool {
        let right = self.x.checked_add(self.width);
        let bottom = self.y.checked_add(self.height);
        let fits = right.is_some_and(|x| x <= width) && bottom.is_some_and(|y| y <= height);
        if fits {
            let rows = marked.chunks_exact_mut(width).skip(self.y);
            for row in rows.take(self.height) {
                row[self.x..][..self.width].fill(true);
            }
        }
        fits
    }
}

/// The bounding box of a component on the map, and its total heat.
#[derive(Clone)]
struct Extent {
    left: usize,
    right: usize,
    top: usize,
    bottom: usize,
    sum: f64,
}

/// Returns the regions where `heat`, [height, width], is above `cut`: at most `most`, those with the largest share first. Pixels
/// are connected by sides and corners. The image has `full` = (width, height) pixels.
pub fn regions(
    heat: &[f32],
    width: usize,
    cut: f32,
    most: usize,
    full: (usize, usize),
) -> Vec<Region> {
    let height = heat.len() / width;
    let total: f64 = heat.iter().map(|h| f64::from(*h)).sum();
    let hot: Vec<bool> = heat.iter().map(|h| *h > cut).collect();
    let components = Components::of(&hot, width);
    let empty = Extent {
        left: width,
        right: 0,
        top: height,
        bottom: 0,
        sum: 0.0,
    };
    let mut extents = vec![empty; components.areas.len()];
    for run in components.runs {
        let extent = &mut extents[run.region];
        let (x, y) = (run.pixels.start % width, run.pixels.start / width);
        extent.left = extent.left.min(x);
        extent.right = extent.right.max(x + run.pixels.len());
        extent.top = extent.top.min(y);
        extent.bottom = extent.bottom.max(y + 1);
        extent.sum += heat[run.pixels].iter().map(|h| f64::from(*h)).sum::<f64>();
    }
    let across = |x: usize| x * full.0 / width;
    let down = |y: usize| y * full.1 / height;
    let region = |(extent, pixels): (Extent, usize)| {
        let (x, y) = (across(extent.left), down(extent.top));
        Region {
            x,
            y,
            width: (extent.right * full.0).div_ceil(width) - x,
            height: (extent.bottom * full.1).div_ceil(height) - y,
            share: (extent.sum / total) as f32,
            area: (pixels as f64 / heat.len() as f64) as f32,
        }
    };
    let areas = components.areas.iter().copied();
    let mut found: Vec<_> = extents.into_iter().zip(areas).map(region).collect();
    found.sort_by(|a, b| b.share.total_cmp(&a.share));
    found.truncate(most);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_boxes_in_the_images_pixels_the_largest_share_first() {
        #[rustfmt::skip]
        let heat = [
            1.0, 0.0, 0.0, 0.0,
            0.0, 0.0, 0.0, 3.0,
            0.0, 0.0, 3.0, 0.0,
            0.5, 0.5, 0.0, 0.0,
        ];
        let found = regions(&heat, 4, 0.6, 9, (40, 8));
        assert_eq!(found.len(), 2);
        let first = found[0];
        assert_eq!(
            (first.x, first.y, first.width, first.height),
            (20, 2, 20, 4)
        );
        assert_eq!((first.share, first.area), (0.75, 0.125));
        let second = found[1];
        assert_eq!(
            (second.x, second.y, second.width, second.height),
            (0, 0, 10, 2)
        );
        assert_eq!(regions(&heat, 4, 0.6, 1, (40, 8)).len(), 1);
        assert_eq!(regions(&heat, 4, 9.0, 1, (40, 8)).len(), 0);
    }

    #[test]
    fn a_box_of_an_image_smaller_than_its_map_is_never_empty() {
        let mut heat = vec![0.0; 64 * 64];
        heat[63 * 64 + 63] = 1.0;
        let found = regions(&heat, 64, 0.5, 1, (1, 1));
        assert_eq!(
            (found[0].x, found[0].y, found[0].width, found[0].height),
            (0, 0, 1, 1)
        );
    }
}
