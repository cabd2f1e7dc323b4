//! Where the heat is: connected pixels over a cut, as boxes.

use serde::Serialize;

/// A box around connected hot pixels, in pixels of the upright picture before resizing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Region {
    pub x: usize,
    pub y: usize,
    pub width: usize,
    pub height: usize,
    /// Its share of the picture's heat, in [0, 1].
    pub share: f32,
    /// Its share of the picture's pixels, in (0, 1]; of the hot ones, not of the box.
    pub area: f32,
}

/// The `most` regions of `heat`, [height, width], where it is above `cut`, those with the largest share first. Pixels are connected
/// by sides and corners. The picture is `full` = (width, height) pixels.
pub fn regions(
    heat: &[f32],
    width: usize,
    cut: f32,
    most: usize,
    full: (usize, usize),
) -> Vec<Region> {
    let height = heat.len() / width;
    let total: f64 = heat.iter().map(|h| f64::from(*h)).sum();
    let mut seen = vec![false; heat.len()];
    let mut found = Vec::new();
    let mut stack = Vec::new();
    for start in 0..heat.len() {
        if seen[start] || heat[start] <= cut {
            continue;
        }
        seen[start] = true;
        stack.push(start);
        let (mut left, mut right, mut top, mut bottom) = (width, 0, height, 0);
        let (mut sum, mut pixels) = (0.0, 0_usize);
        while let Some(at) = stack.pop() {
            let (x, y) = (at % width, at / width);
            (left, right) = (left.min(x), right.max(x + 1));
            (top, bottom) = (top.min(y), bottom.max(y + 1));
            sum += f64::from(heat[at]);
            pixels += 1;
            for y in y.saturating_sub(1)..(y + 2).min(height) {
                for x in x.saturating_sub(1)..(x + 2).min(width) {
                    let near = y * width + x;
                    if !seen[near] && heat[near] > cut {
                        seen[near] = true;
                        stack.push(near);
                    }
                }
            }
        }
        let across = |x: usize| x * full.0 / width;
        let down = |y: usize| y * full.1 / height;
        let (x, y) = (across(left), down(top));
        found.push(Region {
            x,
            y,
            width: (right * full.0).div_ceil(width) - x,
            height: (bottom * full.1).div_ceil(height) - y,
            share: (sum / total) as f32,
            area: (pixels as f64 / heat.len() as f64) as f32,
        });
    }
    found.sort_by(|a, b| b.share.total_cmp(&a.share));
    found.truncate(most);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_boxes_in_the_pictures_pixels_the_largest_share_first() {
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
    fn a_box_of_a_picture_smaller_than_its_map_is_never_empty() {
        let mut heat = vec![0.0; 64 * 64];
        heat[63 * 64 + 63] = 1.0;
        let found = regions(&heat, 64, 0.5, 1, (1, 1));
        assert_eq!(
            (found[0].x, found[0].y, found[0].width, found[0].height),
            (0, 0, 1, 1)
        );
    }
}
