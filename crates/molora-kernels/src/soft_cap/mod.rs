//! A soft bound of scores.

#[cfg(feature = "flex")]
mod backend;
#[cfg(feature = "flex")]
mod flex;
pub(crate) mod portable;

#[cfg(feature = "flex")]
use burn::backend::Dispatch;
use burn::tensor::Tensor;

#[cfg(feature = "flex")]
use self::backend::SoftCapOps;

/// Computes `cap * tanh(x / cap)`, element by element: about `x` near zero, and never beyond `cap`.
///
/// # Source
/// Gemma Team, Gemma 2, arXiv:2408.00118, section 2 (logit soft-capping).
pub fn soft_cap<const D: usize>(x: Tensor<D>, cap: f64) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if crate::flex::supports(&x) {
        return Tensor::from_dispatch(Dispatch::fast_soft_cap(x.into_dispatch(), cap as f32));
    }
    portable::soft_cap(x, cap)
}

#[cfg(test)]
pub(crate) mod tests {
    use molora_testkit::{assert_close, device};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Case, Oracle};

    const CAP: f64 = 3.0;

    pub(crate) const CASES: &[Case] = &[Case {
        name: "soft_cap",
        others: |_| vec![],
        fast: |t| soft_cap(t[0].clone(), CAP),
        plain: Some(|t| portable::soft_cap(t[0].clone(), CAP)),
        is_row_wise: true,
        tiny: Some((|x| soft_cap(x, 0.5), 1.0)),
    }];

    #[test]
    fn known_values() {
        let x = Tensor::<1>::from_floats([-90.0, -1.5, 0.0, 3.0, 1e30], &device());
        let expected = [-3.0, -1.386_351_5, 0.0, 2.284_782_5, 3.0];
        assert_close(soft_cap(x.clone(), CAP), expected, 1e-6, "soft cap");
        assert_close(
            portable::soft_cap(x, CAP),
            expected,
            1e-6,
            "portable soft cap",
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn equals_the_portable_definition(rows in 1usize..40, cols in 1usize..700, seed: u64) {
            let mut oracle = Oracle::new(seed);
            let x = oracle.tensor([rows, cols], 3.0, true);
            oracle.check(
                &[x],
                |t| soft_cap(t[0].matrix(), CAP),
                |t| portable::soft_cap(t[0].matrix(), CAP),
            );
        }
    }
}
