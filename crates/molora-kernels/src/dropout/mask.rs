//! Which elements are dropped.

use rand::Rng;

use crate::random::Seed;

/// The mask of one call.
#[derive(Debug, Clone, Copy)]
pub(super) struct DropMask {
    key: u64,
    /// Draws below it are dropped.
    threshold: u64,
    /// Factor of the others.
    keep: f32,
}

impl DropMask {
    pub(super) fn new(probability: f64, seed: Seed) -> Self {
        assert!(
            (0.0..1.0).contains(&probability),
            "dropout {probability} is not in [0, 1)"
        );
        Self {
            key: seed.generator().next_u64(),
            threshold: (probability * (1u64 << 32) as f64) as u64,
            keep: (1.0 / (1.0 - probability)) as f32,
        }
    }

    /// The factor of the element at `index`: splitmix64 at that place of its sequence.
    #[inline(always)]
    pub(super) fn factor(self, index: u64) -> f32 {
        let mut z = self
            .key
            .wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        if z >> 32 < self.threshold {
            0.0
        } else {
            self.keep
        }
    }
}
