//! Finds the connected components of a mask.

use std::ops::Range;

/// A run of marked pixels in one row.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// Range of indices into the row-major mask.
    pub pixels: Range<usize>,
    /// Index of the run's region.
    pub region: usize,
}

/// The regions of a mask, row-major [height, width]: pixels that touch at an edge or a corner (8-connectivity) form
/// one region.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Components {
    /// Runs in the order of their pixels.
    pub runs: Vec<Run>,
    /// Number of pixels of each region.
    pub areas: Vec<usize>,
}

impl Components {
    /// Finds the components in O(pixels) time, with memory for the runs. Each run is joined by union-find with the runs above
    /// that it touches (Rosenfeld & Pfaltz 1966, "Sequential operations in digital image processing").
    ///
    /// # Panics
    /// If the mask is not whole rows of `width` pixels.
    pub fn of(mask: &[bool], width: usize) -> Components {
        if mask.is_empty() {
            return Components::default();
        }
        assert_eq!(mask.len() % width, 0, "whole rows");
        let mut runs: Vec<Run> = Vec::new();
        let mut parents: Vec<usize> = Vec::new();
        let mut above = 0..0;
        for (y, row) in mask.chunks(width).enumerate() {
            let first = runs.len();
            let (mut x, mut touched) = (0, above.start);
            for part in row.chunk_by(|a, b| a == b) {
                let pixels = y * width + x..y * width + x + part.len();
                x += part.len();
                if !part[0] {
                    continue;
                }
                let this = runs.len();
                parents.push(this);
                // Corners count as touching, so the runs above are compared with [start - 1, end + 1).
                while touched < above.end && runs[touched].pixels.end + width < pixels.start {
                    touched += 1;
                }
                let touching = |run: &Run| run.pixels.start + width <= pixels.end;
                for other in (touched..above.end).take_while(|i| touching(&runs[*i])) {
                    let (a, b) = (root(&mut parents, other), root(&mut parents, this));
                    parents[a.max(b)] = a.min(b);
                }
                runs.push(Run { pixels, region: 0 });
            }
            above = first..runs.len();
        }
        let mut areas: Vec<usize> = Vec::new();
        for i in 0..runs.len() {
            let root = root(&mut parents, i);
            // The first run of a region is its root.
            if root == i {
                runs[i].region = areas.len();
                areas.push(0);
            }
            runs[i].region = runs[root].region;
            areas[runs[i].region] += runs[i].pixels.len();
        }
        Components { runs, areas }
    }
}

fn root(parents: &mut [usize], mut i: usize) -> usize {
    while parents[i] != i {
        parents[i] = parents[parents[i]];
        i = parents[i];
    }
    i
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mask(rows: &[&str]) -> Vec<bool> {
        rows.concat().bytes().map(|b| b == b'#').collect()
    }

    #[test]
    fn corners_touch_and_the_ends_of_rows_do_not() {
        let found = Components::of(&mask(&["#..#", "..#.", "#..."]), 4);
        assert_eq!(found.areas, [1, 2, 1]);
        let found = Components::of(&mask(&["...#", "#...", "...."]), 4);
        assert_eq!(found.areas, [1, 1]);
        assert!(Components::of(&[], 0).areas.is_empty());
    }

    #[test]
    fn what_joins_late_is_one_region() {
        let found = Components::of(
            &mask(&["#.#.#", "#.#.#", "#####", ".....", "##.##", "..#.."]),
            5,
        );
        assert_eq!(found.areas, [11, 5]);
        let spiral = mask(&["#####", "....#", "###.#", "#...#", "#####"]);
        assert_eq!(Components::of(&spiral, 5).areas, [17]);
    }

    proptest! {
        /// Two marked pixels that touch belong to the same region, and a region is connected: a flood fill from its first pixel
        /// covers it.
        #[test]
        fn regions_are_what_a_flood_fills(
            (width, mask) in (1usize..9).prop_flat_map(|w| {
                (Just(w), prop::collection::vec(any::<bool>(), 0..8 * w).prop_map(move |mut v| { v.truncate(v.len() / w * w); v }))
            })
        ) {
            let regions = Components::of(&mask, width);
            let mut named = vec![None; mask.len()];
            for run in &regions.runs {
                named[run.pixels.clone()].fill(Some(run.region));
            }
            let mut left = mask.clone();
            let mut flooded = Vec::new();
            for start in 0..mask.len() {
                if !left[start] {
                    continue;
                }
                let (mut open, mut area) = (vec![start], 0);
                left[start] = false;
                while let Some(at) = open.pop() {
                    area += 1;
                    prop_assert_eq!(named[at], Some(flooded.len()));
                    let (x, y) = ((at % width) as isize, (at / width) as isize);
                    for (dx, dy) in [(-1, -1), (0, -1), (1, -1), (-1, 0), (1, 0), (-1, 1), (0, 1), (1, 1)] {
                        let (x, y) = (x + dx, y + dy);
                        if x < 0 || y < 0 || x >= width as isize {
                            continue;
                        }
                        let next = y as usize * width + x as usize;
                        if left.get(next) == Some(&true) {
                            left[next] = false;
                            open.push(next);
                        }
                    }
                }
                flooded.push(area);
            }
            prop_assert_eq!(regions.areas, flooded);
        }
    }
}
