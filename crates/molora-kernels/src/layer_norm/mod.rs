//! Layer norm.

#[cfg(feature = "flex")]
mod backend;
#[cfg(feature = "flex")]
mod flex;
pub(crate) mod portable;

#[cfg(feature = "flex")]
use burn::backend::Dispatch;
use burn::tensor::Tensor;

#[cfg(feature = "flex")]
use self::backend::LayerNormOps;

/// Normalises each row of the last axis: `(x - mean) / sqrt(variance + epsilon) * gamma + beta`,
/// with the population variance.
///
/// # Shapes
/// - `x`: `[..., width]`
/// - `gamma`, `beta`: `[width]`
/// - returns `[..., width]`
///
/// # Panics
/// If `gamma` or `beta` has another width than `x`.
///
/// # Source
/// Ba et al., Layer Normalization, arXiv:1607.06450, eq. 4.
pub fn layer_norm<const D: usize>(
    x: Tensor<D>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f64,
) -> Tensor<D> {
    let width = x.dims()[D - 1];
    assert_eq!(
        (gamma.dims(), beta.dims()),
        ([width], [width]),
        "width of gamma and beta"
    );
    #[cfg(feature = "flex")]
    if crate::flex::supports(&x) && crate::flex::supports(&gamma) && crate::flex::supports(&beta) {
        return Tensor::from_dispatch(Dispatch::fast_layer_norm(
            x.into_dispatch(),
            gamma.into_dispatch(),
            beta.into_dispatch(),
            epsilon as f32,
        ));
    }
    portable::layer_norm(x, gamma, beta, epsilon)
}

#[cfg(test)]
pub(crate) mod tests {
    use molora_testkit::{assert_close, device};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Case, Oracle};

    pub(crate) const CASES: &[Case] = &[Case {
        name: "layer_norm",
        others: |[_, width]| vec![[1, width]; 2],
        fast: |t| {
            layer_norm(
                t[0].clone(),
                t[1].clone().reshape([-1]),
                t[2].clone().reshape([-1]),
                1e-5,
            )
        },
        plain: Some(|t| {
            portable::layer_norm(
                t[0].clone(),
                t[1].clone().reshape([-1]),
                t[2].clone().reshape([-1]),
                1e-5,
            )
        }),
        is_row_wise: true,
        tiny: None,
    }];

    #[test]
    fn known_values() {
        let x = Tensor::<2>::from_floats([[1.0, 2.0, 3.0, 4.0], [7.0, 7.0, 7.0, 7.0]], &device());
        let gamma = Tensor::from_floats([1.0, 1.0, 2.0, 1.0], &device());
        let beta = Tensor::from_floats([0.0, 0.0, 0.0, 1.0], &device());
        let expected = [
            [-1.341_635_4, -0.447_211_8, 0.894_423_6, 2.341_635_4],
            [0., 0., 0., 1.],
        ];
        let out = layer_norm(x.clone(), gamma.clone(), beta.clone(), 1e-5);
        assert_close(out, expected, 1e-6, "layer norm");
        assert_close(
            portable::layer_norm(x, gamma, beta, 1e-5),
            expected,
            1e-6,
            "portable layer norm",
        );
    }

    #[test]
    fn a_row_with_nan_does_not_touch_the_others() {
        let x = Tensor::<2>::from_floats([[1.0, f32::NAN], [1.0, 2.0]], &device());
        let (gamma, beta) = (Tensor::ones([2], &device()), Tensor::zeros([2], &device()));
        let out = layer_norm(x, gamma, beta, 0.0)
            .to_data()
            .try_to_vec::<f32>()
            .unwrap();
        assert!(out[0].is_nan() && out[1].is_nan());
        assert_eq!(out[2..], [-1.0, 1.0]);
    }

    #[test]
    fn a_row_that_varies_little_keeps_its_digits() {
        let x = Tensor::<2>::from_floats([[1.7, 1.700_5]], &device());
        let (gamma, beta) = (Tensor::ones([2], &device()), Tensor::zeros([2], &device()));
        let half = f64::from(1.700_5f32 - 1.7f32) / 2.0;
        let expected = (half / (half * half + 1e-5).sqrt()) as f32;
        let out = layer_norm(x, gamma, beta, 1e-5);
        assert_close(out, [[-expected, expected]], 1e-6, "layer norm");
    }

    #[test]
    #[should_panic(expected = "width of gamma")]
    fn another_width_is_refused() {
        let (gamma, beta) = (Tensor::ones([3], &device()), Tensor::zeros([3], &device()));
        layer_norm(Tensor::<2>::ones([2, 2], &device()), gamma, beta, 1e-5);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        // From 8 on: at widths 1 and 2 the gradient of `x` is zero but for epsilon, a difference of
        // numbers of the size of `grad`.
        #[test]
        fn equals_the_portable_definition(
            rows in 1usize..90, width in 8usize..500, tracked: [bool; 3], seed: u64,
        ) {
            let mut oracle = Oracle::new(seed);
            let x = oracle.tensor([rows, width], 2.0, tracked[0]);
            let gamma = oracle.tensor([1, width], 1.0, tracked[1]);
            let beta = oracle.tensor([1, width], 1.0, tracked[2]);
            oracle.check(
                &[x, gamma, beta],
                |t| layer_norm(t[0].matrix(), t[1].row(), t[2].row(), 1e-5),
                |t| portable::layer_norm(t[0].matrix(), t[1].row(), t[2].row(), 1e-5),
            );
        }
    }
}
