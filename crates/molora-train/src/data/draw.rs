//! Random draws whose values never change with a platform or a crate version.
//!
//! `rand` does not promise that for its ranges and shuffles, and a resumed run has to draw what the
//! uninterrupted one would have drawn; so these use nothing but `next_u64`.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::Rng;

/// A whole number below `bound`, all equally likely (Lemire, arXiv:1805.10941, algorithm 5).
///
/// # Panics
/// If `bound` is 0.
pub(crate) fn below(rng: &mut Xoshiro256PlusPlus, bound: u64) -> u64 {
    assert!(bound > 0, "nothing lies below 0");
    // Of the 2^64 words, `2^64 mod bound` too many would favour some results: those are drawn anew.
    let surplus = bound.wrapping_neg() % bound;
    loop {
        let product = u128::from(rng.next_u64()) * u128::from(bound);
        if product as u64 >= surplus {
            return (product >> 64) as u64;
        }
    }
}

/// Puts `items` in a random order, all orders equally likely (Fisher and Yates).
pub(crate) fn shuffle<T>(rng: &mut Xoshiro256PlusPlus, items: &mut [T]) {
    for last in (1..items.len()).rev() {
        let other = below(rng, last as u64 + 1) as usize;
        items.swap(last, other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_xoshiro::rand_core::SeedableRng;

    #[test]
    fn draws_are_even_and_in_range() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let mut counts = [0_usize; 7];
        for _ in 0..70_000 {
            counts[below(&mut rng, 7) as usize] += 1;
        }
        // Standard deviation of one count: sqrt(70000 * 6 / 49) = 93.
        assert!(
            counts.iter().all(|&count| count.abs_diff(10_000) < 5 * 93),
            "{counts:?}"
        );
    }

    #[test]
    fn all_orders_are_equally_likely() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(2);
        let mut counts = std::collections::BTreeMap::new();
        for _ in 0..6_000 {
            let mut items = [0, 1, 2];
            shuffle(&mut rng, &mut items);
            *counts.entry(items).or_insert(0_usize) += 1;
        }
        assert_eq!(counts.len(), 6);
        // Standard deviation of one count: sqrt(6000 * 5 / 36) = 29.
        assert!(
            counts.values().all(|&count| count.abs_diff(1_000) < 5 * 29),
            "{counts:?}"
        );
    }
}
