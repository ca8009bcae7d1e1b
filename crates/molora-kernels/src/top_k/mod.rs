//! Which entries are the largest of their row.

#[cfg(feature = "flex")]
mod flex;
pub(crate) mod portable;

use burn::tensor::{Bool, Tensor};

/// True for the `k` largest of each row of the last axis, ties going to the lower index; NaN counts
/// as neither larger nor smaller than anything, so that it is always among them.
///
/// An entry's rank is the number of entries before it, counted over all pairs: deterministic, at
/// `E^2` comparisons per row of `E`, without a sync with the host but on a CPU. No gradient.
///
/// # Shapes
/// - `scores`: `[..., E]`
/// - returns `[..., E]`
pub fn top_k_mask<const D: usize>(scores: Tensor<D>, k: usize) -> Tensor<D, Bool> {
    #[cfg(feature = "flex")]
    if crate::flex::supports(&scores) {
        return flex::top_k_mask(scores, k);
    }
    portable::top_k_mask(scores, k)
}

#[cfg(test)]
pub(crate) mod tests {
    use burn::tensor::TensorData;
    use molora_testkit::device;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Case, values};

    pub(crate) const CASES: &[Case] = &[Case {
        name: "top_k_mask",
        others: |_| vec![],
        fast: |t| top_k_mask(t[0].clone(), 3).float(),
        plain: Some(|t| portable::top_k_mask(t[0].clone(), 3).float()),
        is_row_wise: true,
        tiny: None,
    }];

    fn selected(scores: [f32; 4], k: usize) -> Vec<bool> {
        let run = |run: fn(Tensor<1>, usize) -> Tensor<1, Bool>| {
            let out = run(Tensor::from_floats(scores, &device()), k).into_data();
            out.try_to_vec::<bool>().unwrap()
        };
        let fast = run(top_k_mask);
        assert_eq!(fast, run(portable::top_k_mask));
        fast
    }

    #[test]
    fn ties_go_to_the_lower_index() {
        assert_eq!(
            selected([1.0, 3.0, 1.0, 0.0], 2),
            [true, true, false, false]
        );
        assert_eq!(selected([5.0; 4], 3), [true, true, true, false]);
    }

    #[test]
    fn infinities_and_nan_have_a_place() {
        let scores = [f32::NEG_INFINITY, f32::INFINITY, f32::NAN, 0.0];
        assert_eq!(selected(scores, 1), [false, true, true, false]);
        assert_eq!(selected(scores, 2), [false, true, true, true]);
    }

    #[test]
    fn more_than_there_are_is_all_and_none_is_none() {
        assert_eq!(selected([1.0, 2.0, 3.0, 4.0], 9), [true; 4]);
        assert_eq!(selected([1.0, 2.0, 3.0, 4.0], 0), [false; 4]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn equals_the_portable_definition(
            rows in 1usize..90, width in 1usize..70, k in 0usize..9, seed: u64,
        ) {
            // Coarse, so that there are ties.
            let scores = values(rows * width, seed);
            let scores: Vec<f32> = scores.iter().map(|v| (v * 20.0).round()).collect();
            let scores = TensorData::new(scores, [rows, 1, width]);
            let scores = Tensor::<3>::from_data(scores, &device());
            let fast = top_k_mask(scores.clone(), k).into_data();
            fast.assert_eq(&portable::top_k_mask(scores, k).into_data(), true);
        }
    }
}
