//! Inverted dropout whose mask is a function of a seed and of each element's position.
//!
//! The mask is computed where it is used and again in the backward, so nothing is kept for it, and
//! it is the same on every backend and for any number of threads.

#[cfg(feature = "flex")]
mod backend;
#[cfg(feature = "flex")]
mod flex;
mod mask;
pub(crate) mod portable;

#[cfg(feature = "flex")]
use burn::backend::Dispatch;
use burn::tensor::Tensor;

#[cfg(feature = "flex")]
use self::backend::DropoutOps;
use self::mask::DropMask;
use crate::random::Seed;

/// Sets each element to 0 with the given probability and multiplies the others by
/// `1 / (1 - probability)`, so that the expectation is unchanged.
///
/// Which elements are dropped depends on `seed` and the element's place in row-major order alone.
///
/// # Panics
/// If `probability` is not in `[0, 1)`.
///
/// # Source
/// Srivastava et al., Dropout, JMLR 15 (2014), section 10 (the form that scales in training).
pub fn dropout<const D: usize>(x: Tensor<D>, probability: f64, seed: Seed) -> Tensor<D> {
    let mask = DropMask::new(probability, seed);
    #[cfg(feature = "flex")]
    if crate::flex::supports(&x) {
        let out = Dispatch::fast_dropout(x.into_dispatch(), mask);
        return Tensor::from_dispatch(out);
    }
    portable::dropout(x, mask)
}

/// Computes `dropout(x) * weight` over the last axis: what a low-rank adapter does with its input.
///
/// The same numbers are dropped as by [`dropout`]. The fast path makes the dropped rows a few at a
/// time, in the forward and again in the backward, and keeps `x` alone.
///
/// # Shapes
/// - `x`: `[..., in]`
/// - `weight`: `[in, out]`
/// - returns `[..., out]`
///
/// # Panics
/// If the shapes disagree, or `probability` is not in `[0, 1)`.
pub fn dropout_linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    probability: f64,
    seed: Seed,
) -> Tensor<D> {
    let [inputs, outputs] = weight.dims();
    assert_eq!(x.dims()[D - 1], inputs, "width of x and rows of the weight");
    #[cfg(feature = "flex")]
    if crate::flex::supports(&x) && crate::flex::supports(&weight) {
        let mask = DropMask::new(probability, seed);
        let mut shape = x.dims();
        shape[D - 1] = outputs;
        let x = x.reshape([-1, inputs as i64]).into_dispatch();
        let out = Dispatch::fast_dropout_linear(x, weight.into_dispatch(), mask);
        return Tensor::<2>::from_dispatch(out).reshape(shape);
    }
    portable::dropout_linear(x, weight, probability, seed)
}

#[cfg(test)]
pub(crate) mod tests {
    use burn::tensor::FloatDType;
    use molora_testkit::{autodiff_device, device};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Case, Oracle};

    pub(crate) const CASES: &[Case] = &[
        Case {
            name: "dropout",
            others: |_| vec![],
            fast: |t| dropout(t[0].clone(), 0.2, Seed::new(1)),
            plain: Some(|t| portable::dropout(t[0].clone(), DropMask::new(0.2, Seed::new(1)))),
            is_row_wise: true,
            tiny: Some((|x| dropout(x, 0.0, Seed::new(1)), 1.0)),
        },
        Case {
            name: "dropout_linear",
            others: |[_, width]| vec![[width; 2]],
            fast: |t| dropout_linear(t[0].clone(), t[1].clone(), 0.2, Seed::new(1)),
            plain: Some(|t| {
                portable::dropout_linear(t[0].clone(), t[1].clone(), 0.2, Seed::new(1))
            }),
            is_row_wise: false,
            tiny: None,
        },
    ];

    fn ones(rows: usize, cols: usize) -> Tensor<2> {
        Tensor::ones([rows, cols], &device())
    }

    #[test]
    fn the_share_of_dropped_elements_is_the_probability_and_the_mean_is_kept() {
        for probability in [0.0, 0.05, 0.5, 0.9] {
            let out = dropout(ones(300, 1000), probability, Seed::new(3));
            let dropped = out
                .clone()
                .equal_elem(0.0)
                .float()
                .mean()
                .into_scalar::<f32>();
            assert!(
                (f64::from(dropped) - probability).abs() < 2e-3,
                "{dropped} of {probability}"
            );
            let mean = out.mean().into_scalar::<f32>();
            assert!((mean - 1.0).abs() < 2e-2, "mean {mean} at {probability}");
        }
    }

    #[test]
    fn rows_columns_and_seeds_are_independent() {
        let kept = |seed| dropout(ones(1000, 16), 0.5, Seed::new(seed)) / 2.0;
        let both = |a: Tensor<2>, b: Tensor<2>| (a * b).mean().into_scalar::<f32>();
        let quarter = |share: f32, what| assert!((share - 0.25).abs() < 0.02, "{what}: {share}");
        let first = kept(1);
        quarter(both(first.clone(), kept(2)), "seeds");
        quarter(
            both(
                first.clone().narrow(0, 1, 999),
                first.clone().narrow(0, 0, 999),
            ),
            "rows",
        );
        quarter(
            both(
                first.clone().narrow(1, 1, 15),
                first.clone().narrow(1, 0, 15),
            ),
            "columns",
        );
        first.into_data().assert_eq(&kept(1).into_data(), true);
    }

    #[test]
    fn the_gradient_has_the_mask_of_the_forward() {
        let x = Tensor::<2>::ones([50, 700], &autodiff_device()).require_grad();
        let out = dropout(x.clone() * 1.0, 0.3, Seed::new(5));
        let grad = x.grad(&out.clone().sum().backward()).expect("x is tracked");
        grad.into_data().assert_eq(&out.into_data(), true);
    }

    #[test]
    fn other_number_formats_have_the_same_mask() {
        let narrow = dropout(ones(30, 40).cast(FloatDType::F64), 0.5, Seed::new(5));
        let narrow = narrow.cast(FloatDType::F32).into_data();
        narrow.assert_eq(&dropout(ones(30, 40), 0.5, Seed::new(5)).into_data(), true);
    }

    #[test]
    #[should_panic(expected = "dropout 1 is not in [0, 1)")]
    fn a_probability_of_one_is_refused() {
        dropout(ones(1, 1), 1.0, Seed::new(0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn equals_the_portable_definition(rows in 1usize..60, cols in 1usize..900, seed: u64) {
            let mut oracle = Oracle::new(seed);
            let x = oracle.tensor([rows, cols], 3.0, true);
            let seed = Seed::new(seed);
            oracle.check(
                &[x],
                |t| dropout(t[0].matrix(), 0.2, seed),
                |t| portable::dropout(t[0].matrix(), DropMask::new(0.2, seed)),
            );
        }

        #[test]
        fn the_product_equals_its_portable_definition(
            rows in 1usize..400, inner in 1usize..60, outer in 1usize..40, tracked: [bool; 2],
            seed: u64,
        ) {
            let mut oracle = Oracle::new(seed);
            let inputs = [
                oracle.tensor([rows, inner], 3.0, tracked[0]),
                oracle.tensor([inner, outer], 1.0, tracked[1]),
            ];
            let seed = Seed::new(seed);
            oracle.check(
                &inputs,
                |t| dropout_linear(t[0].matrix(), t[1].matrix(), 0.2, seed),
                |t| portable::dropout_linear(t[0].matrix(), t[1].matrix(), 0.2, seed),
            );
        }
    }
}
