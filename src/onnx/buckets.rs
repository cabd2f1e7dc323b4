//! Batches are padded to one of a few sizes, so that memory arenas stop growing after the warm-up. On the CPU, all
//! sizes are multiples of 16. Vectorised kernels treat the last few elements differently, and a score must not depend
//! on the position of its row.

const SMALLEST: usize = 16;

/// The sizes of batches, in ascending order.
#[derive(Debug, Clone)]
pub struct Buckets(Vec<usize>);

impl Buckets {
    /// Returns the sizes for batches of up to `max_records` records. At most half of a padded batch is padding.
    pub fn up_to(max_records: usize) -> Buckets {
        let largest = max_records.next_multiple_of(SMALLEST);
        let doubling = std::iter::successors(Some(2 * SMALLEST), |size| Some(size * 2));
        let between = doubling.flat_map(|size| [size, size / 2 * 3]);
        let smaller = std::iter::once(SMALLEST).chain(between);
        let smaller = smaller.take_while(|&size| size < largest);
        Buckets(smaller.chain([largest]).collect())
    }

    /// Returns the sizes for batches of up to `most` records on a GPU, whose kernels do not need multiples of 16.
    pub fn doubling(most: usize) -> Buckets {
        let doubling = std::iter::successors(Some(1), |size| Some(size * 2));
        Buckets(
            doubling
                .take_while(|&size| size < most)
                .chain([most])
                .collect(),
        )
    }

    /// Returns the size for scoring each record alone.
    pub fn one() -> Buckets {
        Buckets(vec![1])
    }

    pub fn sizes(&self) -> &[usize] {
        &self.0
    }

    pub fn largest(&self) -> usize {
        self.0[self.0.len() - 1]
    }

    /// Returns the size to which `records` records are padded. `records` must not exceed the largest size.
    pub fn fit(&self, records: usize) -> usize {
        let bucket = self.0.iter().copied().find(|&b| b >= records);
        bucket.expect("a part is no larger than the largest bucket")
    }
}

/// Returns `part`, or a copy in `buffer` that is padded with zeros to `length` values.
pub fn padded<'p, T: Copy + Default>(
    part: &'p [T],
    length: usize,
    buffer: &'p mut Vec<T>,
) -> &'p [T] {
    if part.len() == length {
        return part;
    }
    buffer.clear();
    buffer.extend_from_slice(part);
    buffer.resize(length, T::default());
    buffer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_multiples_of_sixteen_and_reach_the_largest_batch() {
        assert_eq!(Buckets::up_to(1).sizes(), [16]);
        assert_eq!(
            Buckets::up_to(256).sizes(),
            [16, 32, 48, 64, 96, 128, 192, 256]
        );
        assert_eq!(Buckets::up_to(100).sizes(), [16, 32, 48, 64, 96, 112]);
        assert_eq!(Buckets::up_to(100).fit(65), 96);
        assert_eq!(Buckets::doubling(1).sizes(), [1]);
        assert_eq!(Buckets::doubling(48).sizes(), [1, 2, 4, 8, 16, 32, 48]);
    }
}
