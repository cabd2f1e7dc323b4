//! How many bits of a 16-bit sample a camera uses. Many cameras deliver 10, 12 or 14 bits in files of 16, which would be nearly black.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Number of 16-bit images after which a smaller depth is suspected.
const ENOUGH: u32 = 20;

/// The depth of 16-bit samples, and what was seen of them. Clones share what was seen.
#[derive(Debug, Clone)]
pub struct BitDepth {
    bits: u32,
    seen: Arc<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Number of 16-bit images.
    images: AtomicU32,
    /// The largest sample in them.
    largest: AtomicU32,
}

impl Default for BitDepth {
    fn default() -> BitDepth {
        BitDepth::new(16)
    }
}

impl BitDepth {
    /// `bits` is from 9 to 16.
    pub fn new(bits: u32) -> BitDepth {
        BitDepth {
            bits,
            seen: Arc::default(),
        }
    }

    pub fn bits(&self) -> u32 {
        self.bits
    }

    pub fn largest_sample(&self) -> u16 {
        (u16::MAX) >> (16 - self.bits)
    }

    /// Returns the conversion of a sample to 8 bits: v / 257 for 16 bits, rounded.
    pub fn narrow(&self) -> impl Fn(u16) -> u8 + use<> {
        let largest = u32::from(self.largest_sample());
        move |sample| ((u32::from(sample).min(largest) * 255 + largest / 2) / largest) as u8
    }

    /// Notes the largest sample of a 16-bit image.
    ///
    /// # Errors
    /// The sample has more bits than the depth.
    pub fn note(&self, largest: u16) -> Result<(), String> {
        self.seen.largest.fetch_max(u32::from(largest), Relaxed);
        self.seen.images.fetch_add(1, Relaxed);
        match largest > self.largest_sample() {
            false => Ok(()),
            true => Err(format!(
                "a sample of the image is {largest}, but input.bit_depth = {} allows at most {}: set it to the depth that the camera has",
                self.bits,
                self.largest_sample()
            )),
        }
    }

    /// Returns what to say if the images so far seem to use fewer bits than they are read with. It is returned once.
    pub fn warning(&self) -> Option<String> {
        self.suspected().map(|bits| format!(
            "the images of 16 bits per sample use only {bits} bits so far, so they are nearly black to the model: if the camera has {bits} bits, set input.bit_depth = {bits} and train with --bit-depth {bits}"
        ))
    }

    /// Returns the number of bits that all 16-bit images so far have used, if they are enough to tell and it is less than the depth
    /// by 2 or more. It is returned once.
    fn suspected(&self) -> Option<u32> {
        let images = self.seen.images.load(Relaxed);
        if !(ENOUGH..u32::MAX / 2).contains(&images) {
            return None;
        }
        let used = u32::BITS - self.seen.largest.load(Relaxed).leading_zeros();
        // From here on, the count is out of the range.
        let again = u32::MAX / 2;
        let is_first = self.seen.images.swap(again, Relaxed) < again;
        (is_first && used + 2 <= self.bits).then_some(used.max(9))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_sample_is_white() {
        for (bits, largest) in [(10, 1023), (12, 4095), (14, 16_383), (16, 65_535)] {
            let narrow = BitDepth::new(bits).narrow();
            assert_eq!(
                (narrow(0), narrow(largest), narrow(largest / 2)),
                (0, 255, 127),
                "{bits}"
            );
        }
        let narrow = BitDepth::default().narrow();
        for sample in 0..=u16::MAX {
            let expected = ((u32::from(sample) + 128) / 257) as u8;
            assert_eq!(narrow(sample), expected, "{sample}");
        }
    }

    #[test]
    fn a_smaller_depth_is_suspected_once() {
        let depth = BitDepth::default();
        for _ in 0..19 {
            depth.note(4000).unwrap();
            assert_eq!(depth.suspected(), None);
        }
        depth.clone().note(3000).unwrap();
        assert_eq!(depth.suspected(), Some(12));
        assert_eq!(depth.suspected(), None);
        let full = BitDepth::default();
        (0..30).for_each(|_| full.note(40_000).unwrap());
        assert_eq!(full.suspected(), None);
        let twelve = BitDepth::new(12);
        (0..30).for_each(|_| twelve.note(4095).unwrap());
        assert_eq!(twelve.suspected(), None);
        let said = twelve.note(4096).unwrap_err();
        assert!(
            said.contains("is 4096, but input.bit_depth = 12 allows at most 4095"),
            "{said}"
        );
    }
}
