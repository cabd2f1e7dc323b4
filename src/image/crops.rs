//! The parts of an image that hold all marked pixels, with what is around them.

use super::Components;

/// More components than this are covered by one crop.
const MOST: usize = 64;

/// A part of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crop {
    pub left: usize,
    pub top: usize,
    pub width: usize,
    pub height: usize,
}

/// Returns disjoint crops that together hold all marked pixels of a mask, [height, width], row-major. Each is at least `least`
/// (height, width) large where the image is, and has at least a quarter of that around its marked pixels.
pub fn crops(marked: &[bool], [height, width]: [usize; 2], least: [usize; 2]) -> Vec<Crop> {
    let components = Components::of(marked, width);
    let mut boxes: Vec<Option<[usize; 4]>> = vec![None; components.areas.len()];
    for run in &components.runs {
        let (y, left) = (run.pixels.start / width, run.pixels.start % width);
        let found = [left, y, left + run.pixels.len(), y + 1];
        let own = &mut boxes[run.region];
        *own = Some(own.map_or(found, |own| union(own, found)));
    }
    let mut boxes: Vec<[usize; 4]> = boxes.into_iter().flatten().collect();
    if boxes.len() > MOST {
        boxes = boxes.into_iter().reduce(union).into_iter().collect();
    }
    let mut grown: Vec<[usize; 4]> = Vec::new();
    for [left, top, right, bottom] in boxes {
        let [left, right] = grow(left, right, least[1], width);
        let [top, bottom] = grow(top, bottom, least[0], height);
        let mut one = [left, top, right, bottom];
        // A union may reach crops that neither of its parts reached.
        while let Some(at) = grown.iter().position(|other| overlap(*other, one)) {
            one = union(one, grown.swap_remove(at));
        }
        grown.push(one);
    }
    let crop = |[left, top, right, bottom]: [usize; 4]| Crop {
        left,
        top,
        width: right - left,
        height: bottom - top,
    };
    grown.into_iter().map(crop).collect()
}

fn union(a: [usize; 4], b: [usize; 4]) -> [usize; 4] {
    [
        a[0].min(b[0]),
        a[1].min(b[1]),
        a[2].max(b[2]),
        a[3].max(b[3]),
    ]
}

fn overlap(a: [usize; 4], b: [usize; 4]) -> bool {
    a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]
}

/// Grows a range to `least`, and by a quarter of it on either side, within 0..`side`.
fn grow(start: usize, end: usize, least: usize, side: usize) -> [usize; 2] {
    let length = (end - start + least / 2).max(least).min(side);
    let middle = (start + end) / 2;
    let start = middle.saturating_sub(length / 2).min(side - length);
    [start, start + length]
}

impl Crop {
    /// Copies the crop out of planes of `width` x `height` pixels.
    pub fn cut<T: Copy>(&self, image: &[T], [height, width]: [usize; 2]) -> Vec<T> {
        let planes = image.chunks_exact(height * width);
        let rows =
            planes.flat_map(|plane| plane.chunks_exact(width).skip(self.top).take(self.height));
        rows.flat_map(|row| &row[self.left..][..self.width])
            .copied()
            .collect()
    }

    /// Copies the crop back.
    pub fn paste<T: Copy>(&self, part: &[T], image: &mut [T], [height, width]: [usize; 2]) {
        let mut parts = part.chunks_exact(self.width);
        for plane in image.chunks_exact_mut(height * width) {
            let rows = plane
                .chunks_exact_mut(width)
                .skip(self.top)
                .take(self.height);
            for (row, part) in rows.zip(&mut parts) {
                row[self.left..][..self.width].copy_from_slice(part);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(points: &[(usize, usize)], height: usize, width: usize) -> Vec<bool> {
        let mut mask = vec![false; height * width];
        points.iter().for_each(|(x, y)| mask[y * width + x] = true);
        mask
    }

    #[test]
    fn crops_hold_all_marks_are_disjoint_and_large_enough() {
        let points = [(0, 0), (99, 5), (50, 40), (58, 40), (99, 79)];
        let mask = marked(&points, 80, 100);
        let crops = crops(&mask, [80, 100], [16, 16]);
        assert_eq!(crops.len(), 4, "{crops:?}");
        for (x, y) in points {
            let holds = |c: &&Crop| {
                (c.left..c.left + c.width).contains(&x) && (c.top..c.top + c.height).contains(&y)
            };
            assert_eq!(crops.iter().filter(holds).count(), 1);
        }
        assert!(crops.iter().all(|c| c.width >= 16 && c.height >= 16));
    }

    #[test]
    fn a_crop_is_no_larger_than_the_image() {
        let found = crops(&marked(&[(1, 1)], 2, 3), [2, 3], [16, 16]);
        assert_eq!(
            found,
            [Crop {
                left: 0,
                top: 0,
                width: 3,
                height: 2
            }]
        );
        assert_eq!(crops(&[false; 6], [2, 3], [16, 16]), []);
        let dots: Vec<_> = (0..300).map(|i| (2 * (i % 20), 2 * (i / 20))).collect();
        assert_eq!(crops(&marked(&dots, 40, 40), [40, 40], [4, 4]).len(), 1);
    }

    #[test]
    fn what_was_cut_is_pasted() {
        let image: Vec<usize> = (0..24).collect();
        let crop = Crop {
            left: 1,
            top: 1,
            width: 2,
            height: 2,
        };
        let part = crop.cut(&image, [3, 4]);
        assert_eq!(part, [5, 6, 9, 10, 17, 18, 21, 22]);
        let mut copy = vec![0; 24];
        crop.paste(&part, &mut copy, [3, 4]);
        assert_eq!(crop.cut(&copy, [3, 4]), part);
        assert_eq!(copy.iter().filter(|v| **v > 0).count(), 8);
    }
}
