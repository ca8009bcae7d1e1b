//! The Gaussian error linear unit.

#[cfg(feature = "flex")]
mod backend;
#[cfg(feature = "flex")]
mod flex;
pub(crate) mod portable;

#[cfg(feature = "flex")]
use burn::backend::Dispatch;
use burn::tensor::Tensor;

#[cfg(feature = "flex")]
use self::backend::GeluOps;

/// Computes the exact GELU, `x * P(X <= x)` for a standard normal `X`, element by element.
///
/// The gradient is exact too; that of `burn`'s own GELU is the tanh approximation's on backends
/// without a kernel for it.
///
/// # Source
/// Hendrycks and Gimpel, Gaussian Error Linear Units, arXiv:1606.08415, section 2.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if crate::flex::supports(&x) {
        return Tensor::from_dispatch(Dispatch::fast_gelu(x.into_dispatch()));
    }
    portable::gelu(x)
}

/// Computes the tanh approximation of GELU, `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))`,
/// element by element.
///
/// # Source
/// Hendrycks and Gimpel, Gaussian Error Linear Units, arXiv:1606.08415, section 2.
pub fn gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if crate::flex::supports(&x) {
        return Tensor::from_dispatch(Dispatch::fast_gelu_tanh(x.into_dispatch()));
    }
    portable::gelu_tanh(x)
}

#[cfg(test)]
pub(crate) mod tests {
    use burn::tensor::TensorData;
    use molora_testkit::{assert_close, device};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Case, Oracle, values};

    pub(crate) const CASES: &[Case] = &[
        Case {
            name: "gelu",
            others: |_| vec![],
            fast: |t| gelu(t[0].clone()),
            plain: Some(|t| portable::gelu(t[0].clone())),
            is_row_wise: true,
            tiny: Some((gelu, 0.5)),
        },
        Case {
            name: "gelu_tanh",
            others: |_| vec![],
            fast: |t| gelu_tanh(t[0].clone()),
            plain: Some(|t| portable::gelu_tanh(t[0].clone())),
            is_row_wise: true,
            tiny: Some((gelu_tanh, 0.5)),
        },
    ];

    #[test]
    fn known_values() {
        let x = Tensor::<1>::from_floats([-1.0, 0.0, 1.0, 3.0], &device());
        let expected = [-0.158_655_25, 0.0, 0.841_344_7, 2.995_950_3];
        assert_close(gelu(x.clone()), expected, 1e-6, "gelu");
        assert_close(portable::gelu(x), expected, 1e-6, "portable gelu");
    }

    #[test]
    fn known_values_of_the_approximation() {
        let x = Tensor::<1>::from_floats([-1.0, 0.0, 1.0, 3.0], &device());
        let expected = [-0.158_808, 0.0, 0.841_192, 2.996_362_7];
        assert_close(gelu_tanh(x.clone()), expected, 1e-6, "gelu tanh");
        assert_close(portable::gelu_tanh(x), expected, 1e-6, "portable gelu tanh");
    }

    #[test]
    fn infinities_and_nan_go_through() {
        let x = [f32::INFINITY, f32::NAN, f32::NEG_INFINITY, 1e30, -1e30];
        let x = Tensor::<1>::from_floats(x, &device().autodiff()).require_grad();
        let out = gelu(x.clone());
        let values = out.to_data().try_to_vec::<f32>().unwrap();
        assert_eq!(values[0], f32::INFINITY);
        assert!(values[1].is_nan() && values[2].is_nan());
        assert_eq!(values[3..], [1e30, 0.0]);
        let grads = x
            .grad(&out.sum().backward())
            .unwrap()
            .to_data()
            .try_to_vec::<f32>()
            .unwrap();
        assert_eq!(grads[0], 1.0);
        assert!(grads[1].is_nan());
        assert_eq!(grads[2..], [0.0, 1.0, 0.0]);
    }

    #[test]
    fn the_sum_over_a_large_tensor_does_not_depend_on_where_it_is_cut() {
        // More than one task: the element at a position has the value it has alone.
        let data = values(100_000, 7);
        let all = gelu(Tensor::<1>::from_data(
            TensorData::from(&data[..]),
            &device(),
        ));
        let part = gelu(Tensor::<1>::from_data(
            TensorData::from(&data[50_001..50_038]),
            &device(),
        ));
        all.slice(50_001..50_038)
            .into_data()
            .assert_eq(&part.into_data(), true);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn equals_the_portable_definition(rows in 1usize..40, cols in 1usize..700, seed: u64) {
            let mut oracle = Oracle::new(seed);
            let x = oracle.tensor([rows, cols], 3.0, true);
            oracle.check(&[x], |t| gelu(t[0].matrix()), |t| portable::gelu(t[0].matrix()));
        }

        #[test]
        fn the_approximation_equals_its_portable_definition(
            rows in 1usize..40, cols in 1usize..700, seed: u64,
        ) {
            let mut oracle = Oracle::new(seed);
            let x = oracle.tensor([rows, cols], 3.0, true);
            oracle.check(&[x], |t| gelu_tanh(t[0].matrix()), |t| portable::gelu_tanh(t[0].matrix()));
        }
    }
}
