//! Converts an image to the scorer's rows. It is either resized to one row, or scaled and cut into overlapping tiles.

use super::decode::Flat;
use super::resize::resize;
use crate::bundle::Pixels;

/// The positions of an image's rows on its canvas, which is the resized image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    pub width: usize,
    pub height: usize,
    pub channels: usize,
    /// Width of each row.
    pub tile_width: usize,
    /// Height of each row.
    pub tile_height: usize,
    lefts: Vec<usize>,
    tops: Vec<usize>,
}

impl Layout {
    /// Computes the layout of an image of `width` x `height` pixels.
    pub fn of(width: usize, height: usize, pixels: &Pixels) -> Layout {
        let (mut canvas_width, mut canvas_height, mut overlap) = (pixels.width, pixels.height, 0);
        if let Some(tiles) = pixels.tiles {
            canvas_width = scaled(width, tiles.scale, pixels.width);
            canvas_height = scaled(height, tiles.scale, pixels.height);
            overlap = tiles.overlap;
        }
        Layout {
            width: canvas_width,
            height: canvas_height,
            channels: pixels.channels,
            tile_width: pixels.width,
            tile_height: pixels.height,
            lefts: starts(canvas_width, pixels.width, overlap),
            tops: starts(canvas_height, pixels.height, overlap),
        }
    }

    pub fn rows(&self) -> usize {
        self.lefts.len() * self.tops.len()
    }

    /// Returns the left and top of each row, in reading order.
    pub fn positions(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let lefts = &self.lefts;
        self.tops
            .iter()
            .flat_map(move |&top| lefts.iter().map(move |&left| (left, top)))
    }
}

/// Converts an image. Returns the layout and the rows, uint8 [rows, tile height, tile width, channels].
pub fn rows(image: Flat, pixels: &Pixels) -> (Layout, Vec<u8>) {
    let layout = Layout::of(image.width, image.height, pixels);
    let canvas = resize(image, layout.width, layout.height);
    if layout.rows() == 1 {
        return (layout, canvas.pixels);
    }
    let stride = layout.width * layout.channels;
    let mut rows = Vec::with_capacity(layout.rows() * pixels.row_bytes());
    for (left, top) in layout.positions() {
        let columns = left * layout.channels..(left + layout.tile_width) * layout.channels;
        let lines = canvas.pixels.chunks_exact(stride);
        for line in lines.skip(top).take(layout.tile_height) {
            rows.extend_from_slice(&line[columns.clone()]);
        }
    }
    (layout, rows)
}

fn scaled(side: usize, scale: f64, least: usize) -> usize {
    ((side as f64 * scale + 0.5).floor() as usize).max(least)
}

/// Returns the start of each tile along a side. The first starts at 0, the last ends at the far edge, and those between are
/// evenly spaced, with halves rounded up.
pub(super) fn starts(side: usize, tile: usize, overlap: usize) -> Vec<usize> {
    let last = side - tile;
    let gaps = last.div_ceil(tile - overlap);
    if gaps == 0 {
        return vec![0];
    }
    (0..=gaps)
        .map(|i| (2 * i * last + gaps) / (2 * gaps))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_begin_at_the_edge_end_at_the_edge_and_overlap() {
        assert_eq!(starts(64, 64, 16), [0]);
        assert_eq!(starts(100, 64, 16), [0, 36]);
        assert_eq!(starts(300, 64, 16), [0, 47, 94, 142, 189, 236]);
        for side in 64..400 {
            let starts = starts(side, 64, 16);
            assert_eq!(starts[starts.len() - 1] + 64, side);
            assert!(starts.windows(2).all(|w| w[1] - w[0] <= 48), "{side}");
        }
    }
}
