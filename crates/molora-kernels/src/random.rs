//! Seeded random draws that are the same on every backend.
//!
//! Draws are made on the host by xoshiro256++ and then moved to the device, because backends'
//! own generators differ from each other and cannot be saved. A [`Seed`] is a value: it is split
//! by names and numbers (`seed.child("layer.0.query").index(step)`) instead of being advanced, so
//! the same run seed gives the same parameter whatever else is drawn before it, and a resumed run
//! needs no generator state for initial values and dropout masks.

use burn::tensor::{Device, Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

/// A key from which random streams are derived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed(u64);

impl Seed {
    /// The root key of a run.
    pub fn new(seed: u64) -> Self {
        Self(mix(seed ^ 0x6d6f_6c6f_7261_0001))
    }

    /// The key of a named part, for example of a parameter by its path.
    #[must_use]
    pub fn child(self, name: &str) -> Self {
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self(mix(self.0 ^ mix(hash)))
    }

    /// The key of a numbered part, for example of a step.
    #[must_use]
    pub fn index(self, index: u64) -> Self {
        Self(mix(self.0.wrapping_add(mix(index ^ 0x9e37_79b9_7f4a_7c15))))
    }

    /// The key as a number, for generators that are seeded by one.
    pub fn value(self) -> u64 {
        self.0
    }

    /// A generator that starts at this key.
    pub fn generator(self) -> Xoshiro256PlusPlus {
        Xoshiro256PlusPlus::seed_from_u64(self.0)
    }
}

/// The finaliser of splitmix64: a bijection that spreads every input bit over all output bits.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number in `[0, 1)` with 53 random bits.
pub fn unit(generator: &mut impl Rng) -> f64 {
    (generator.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// A tensor of independent draws from `U(-bound, bound)`.
pub fn uniform<const D: usize>(
    shape: [usize; D],
    bound: f64,
    seed: Seed,
    device: &Device,
) -> Tensor<D> {
    let mut generator = seed.generator();
    fill(shape, device, || {
        ((2.0 * unit(&mut generator) - 1.0) * bound) as f32
    })
}

/// A tensor of independent draws from `N(0, std^2)`, by the Box-Muller transform.
pub fn normal<const D: usize>(
    shape: [usize; D],
    std: f64,
    seed: Seed,
    device: &Device,
) -> Tensor<D> {
    let mut generator = seed.generator();
    fill(shape, device, || {
        // 1 - u lies in (0, 1], where the logarithm is finite.
        let radius = (-2.0 * (1.0 - unit(&mut generator)).ln()).sqrt();
        let angle = std::f64::consts::TAU * unit(&mut generator);
        (std * radius * angle.cos()) as f32
    })
}

/// The factors of inverted dropout: each entry is 0 with probability `probability`, else
/// `1 / (1 - probability)`, so that the expectation of a product with it is unchanged.
///
/// # Panics
/// If `probability` is not in `[0, 1)`.
pub fn dropout_mask<const D: usize>(
    shape: [usize; D],
    probability: f64,
    seed: Seed,
    device: &Device,
) -> Tensor<D> {
    assert!(
        (0.0..1.0).contains(&probability),
        "dropout {probability} is not in [0, 1)"
    );
    // Two 32-bit draws from each 64-bit output: masks are the largest random tensors of a step.
    let threshold = (probability * (1u64 << 32) as f64) as u32;
    let keep = (1.0 / (1.0 - probability)) as f32;
    let mut generator = seed.generator();
    let (mut pair, mut half) = (0u64, false);
    fill(shape, device, || {
        pair = if half {
            pair >> 32
        } else {
            generator.next_u64()
        };
        half = !half;
        if (pair as u32) < threshold { 0.0 } else { keep }
    })
}

fn fill<const D: usize>(
    shape: [usize; D],
    device: &Device,
    mut draw: impl FnMut() -> f32,
) -> Tensor<D> {
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| draw()).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.into_data().try_to_vec().expect("f32 data")
    }

    fn mean_and_variance(values: &[f32]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        (
            mean,
            values
                .iter()
                .map(|&v| (f64::from(v) - mean).powi(2))
                .sum::<f64>()
                / n,
        )
    }

    #[test]
    fn seeds_split_by_name_and_index() {
        let seed = Seed::new(7);
        assert_eq!(seed.child("a").index(3), Seed::new(7).child("a").index(3));
        let keys = [
            seed,
            seed.child("a"),
            seed.child("b"),
            seed.index(0),
            seed.index(1),
        ];
        for (i, a) in keys.iter().enumerate() {
            assert!(keys[i + 1..].iter().all(|b| a != b));
        }
    }

    #[test]
    fn draws_have_their_moments() {
        let device = molora_testkit::device();
        let (mean, variance) =
            mean_and_variance(&values(uniform([200, 100], 0.5, Seed::new(1), &device)));
        assert!(mean.abs() < 0.01 && (variance - 0.25 / 3.0).abs() < 0.002);
        let (mean, variance) =
            mean_and_variance(&values(normal([200, 100], 2.0, Seed::new(2), &device)));
        assert!(mean.abs() < 0.05 && (variance - 4.0).abs() < 0.15);
    }

    #[test]
    fn dropout_keeps_the_expectation_and_repeats() {
        let device = molora_testkit::device();
        let mask = values(dropout_mask([101, 99], 0.05, Seed::new(3), &device));
        let zeros = mask.iter().filter(|&&v| v == 0.0).count() as f64 / mask.len() as f64;
        assert!((zeros - 0.05).abs() < 0.01, "share of zeros {zeros}");
        assert!(
            mask.iter()
                .all(|&v| v == 0.0 || (v - 1.0 / 0.95).abs() < 1e-6)
        );
        assert_eq!(
            mask,
            values(dropout_mask([101, 99], 0.05, Seed::new(3), &device))
        );
    }
}
