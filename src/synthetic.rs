//! Synthetic records: conditions on them, the anomalies that are put among them, their form as records, and whether they give away
//! records of the training data.

pub mod anomalies;
pub mod conditions;
pub mod privacy;
pub mod quality;
pub mod records;

/// Returns the random numbers of one sample, apart from the noise that it is drawn from. They depend on nothing else.
fn numbers(seed: u64, sample: u64, purpose: u64) -> fastrand::Rng {
    // Weyl sequences with different odd steps, mixed by the generator's own seeding.
    let mixed = seed
        .wrapping_add(sample.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .wrapping_add(purpose.wrapping_mul(0xd1b5_4a32_d192_ed03));
    let mut numbers = fastrand::Rng::with_seed(mixed);
    numbers.u64(..);
    numbers
}
