//! Overlapping tiles that cover an image of any size, and what a function returns for them, blended. The image keeps its size: one
//! that is smaller than a tile is continued by reflection.

use std::f64::consts::PI;

use super::tiles::starts;

/// Share of a tile's side that it has in common with the next one.
const OVERLAP: f64 = 0.25;

/// The tiles of an image. All images and tiles are float32 [C, H, W].
#[derive(Debug, Clone)]
pub struct Overlap {
    /// Height and width of the image.
    image: [usize; 2],
    /// Height and width of a tile.
    tile: [usize; 2],
    /// Where tiles start, by row and by column.
    starts: [Vec<usize>; 2],
    /// The weight of each row and column of a tile.
    window: [Vec<f32>; 2],
    /// The sum of the weights at each row and column of the image.
    weights: [Vec<f32>; 2],
}

impl Overlap {
    /// `image` and `tile`: height and width, above 0.
    pub fn new(image: [usize; 2], tile: [usize; 2]) -> Overlap {
        let axis = [0, 1];
        let starts = axis.map(|a| match image[a] <= tile[a] {
            true => vec![0],
            false => {
                let common = (tile[a] as f64 * OVERLAP) as usize;
                starts(image[a], tile[a], common.min(tile[a] - 1))
            }
        });
        let window = axis.map(|a| window(tile[a]));
        let weights = axis.map(|a| {
            let mut sums = vec![0.0; image[a]];
            for &start in &starts[a] {
                for (sum, weight) in sums[start..].iter_mut().zip(&window[a]) {
                    *sum += weight;
                }
            }
            sums
        });
        Overlap {
            image,
            tile,
            starts,
            window,
            weights,
        }
    }

    /// The number of tiles.
    pub fn tiles(&self) -> usize {
        self.starts[0].len() * self.starts[1].len()
    }

    /// Returns tile number `i`, in reading order.
    ///
    /// # Panics
    /// If there is no such tile.
    pub fn cut(&self, image: &[f32], i: usize) -> Vec<f32> {
        let [height, width] = self.image;
        let [tile_height, tile_width] = self.tile;
        let (top, left) = self.start(i);
        let mut tile =
            Vec::with_capacity(image.len() / (height * width) * tile_height * tile_width);
        for plane in image.chunks_exact(height * width) {
            for y in 0..tile_height {
                let row = &plane[reflected(top + y, height) * width..][..width];
                match left + tile_width <= width {
                    true => tile.extend_from_slice(&row[left..left + tile_width]),
                    false => {
                        tile.extend((left..left + tile_width).map(|x| row[reflected(x, width)]))
                    }
                }
            }
        }
        tile
    }

    /// Returns the blended results of `run` for all tiles of an image, [channels, H, W]. Weights fall smoothly to a tile's edges,
    /// where a network sees least of what is around.
    ///
    /// # Errors
    /// Those of `run`, which must return [channels, tile height, tile width].
    pub fn blend<E>(
        &self,
        image: &[f32],
        channels: usize,
        mut run: impl FnMut(&[f32]) -> Result<Vec<f32>, E>,
    ) -> Result<Vec<f32>, E> {
        if self.image == self.tile {
            return run(image);
        }
        let [height, width] = self.image;
        let [tile_height, tile_width] = self.tile;
        let mut blended = vec![0.0; channels * height * width];
        for i in 0..self.tiles() {
            let (top, left) = self.start(i);
            let found = run(&self.cut(image, i))?;
            let planes = blended.chunks_exact_mut(height * width);
            for (plane, found) in planes.zip(found.chunks_exact(tile_height * tile_width)) {
                let rows = plane[top * width..].chunks_exact_mut(width);
                let rows = rows.zip(found.chunks_exact(tile_width)).enumerate();
                for (y, (row, found)) in rows {
                    let by_row = self.window[0][y] / self.weights[0][top + y];
                    let values = row[left..].iter_mut().zip(found).enumerate();
                    for (x, (sum, value)) in values {
                        *sum += value * by_row * (self.window[1][x] / self.weights[1][left + x]);
                    }
                }
            }
        }
        Ok(blended)
    }

    /// Top and left of a tile.
    fn start(&self, i: usize) -> (usize, usize) {
        let [tops, lefts] = &self.starts;
        (tops[i / lefts.len()], lefts[i % lefts.len()])
    }
}

/// Hann's window at the pixels' centres: sin²(π (i + ½) / n), never 0.
fn window(side: usize) -> Vec<f32> {
    let weight = |i| ((i as f64 + 0.5) / side as f64 * PI).sin().powi(2) as f32;
    (0..side).map(weight).collect()
}

/// The place in 0..`side` that place `i` of the continued image shows: … 2 1 | 0 1 2 … n-1 | n-2 n-3 …
fn reflected(i: usize, side: usize) -> usize {
    if side == 1 {
        return 0;
    }
    let period = 2 * (side - 1);
    let at = i % period;
    at.min(period - at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(height: usize, width: usize) -> Vec<f32> {
        (0..2 * height * width)
            .map(|i| (i as f32 * 0.37).sin())
            .collect()
    }

    #[test]
    fn blended_tiles_are_the_image() {
        for (height, width) in [(1, 1), (3, 50), (8, 8), (9, 8), (16, 33), (100, 7)] {
            let image = image(height, width);
            let tiles = Overlap::new([height, width], [8, 8]);
            let same = tiles.blend(&image, 2, |tile| {
                assert_eq!(tile.len(), 2 * 8 * 8);
                Ok::<_, ()>(tile.to_vec())
            });
            for (got, want) in same.unwrap().iter().zip(&image) {
                assert!((got - want).abs() < 1e-6, "{height}x{width}: {got} {want}");
            }
        }
    }

    #[test]
    fn a_small_image_is_continued_by_reflection() {
        let tiles = Overlap::new([1, 3], [2, 8]);
        let tile = tiles.cut(&[1.0, 2.0, 3.0], 0);
        let row = [1.0, 2.0, 3.0, 2.0, 1.0, 2.0, 3.0, 2.0];
        assert_eq!(tile, [row, row].concat());
    }

    #[test]
    fn neighbours_change_into_each_other_without_a_step() {
        let tiles = Overlap::new([8, 14], [8, 8]);
        let mut number = 0.0;
        let mixed = tiles.blend(&image(8, 14), 1, |_| {
            number += 1.0;
            Ok::<_, ()>(vec![number; 64])
        });
        let row = &mixed.unwrap()[..14];
        assert_eq!((row[0], row[13]), (1.0, 2.0));
        assert!(
            row.windows(2)
                .all(|pair| (0.0..0.95).contains(&(pair[1] - pair[0]))),
            "{row:?}"
        );
    }
}
