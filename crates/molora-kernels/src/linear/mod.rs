//! The affine map of a linear layer.

#[cfg(feature = "flex")]
mod backend;
mod blocks;
#[cfg(feature = "flex")]
mod flex;
mod format;
pub(crate) mod portable;
#[cfg(feature = "flex")]
mod rows;

#[cfg(feature = "flex")]
use burn::backend::Dispatch;
use burn::tensor::Tensor;

#[cfg(feature = "flex")]
use self::backend::LinearOps;
pub use self::blocks::{BlockMatrix, linear_blocks};
#[cfg(feature = "flex")]
use self::rows::{over_rows, supports, supports_half};

/// Computes `x * weight + bias` over the last axis.
///
/// With a frozen weight the gradient of `x` is all that the backward computes, and the weight all
/// that is kept for it. A frozen weight may be in bf16, at half the memory, with `x` and `bias` in
/// f32: sums are f32, and the fast path rounds `x` and the gradient to bf16 where the processor
/// multiplies bf16 (as PyTorch's autocast does), for a relative error below `2^-8` of the sum of
/// magnitudes.
///
/// # Shapes
/// - `x`: `[..., in]`
/// - `weight`: `[in, out]`
/// - `bias`: `[out]`
/// - returns `[..., out]`
///
/// # Panics
/// If the shapes disagree, or a weight in bf16 is tracked.
pub fn linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let [inputs, outputs] = weight.dims();
    assert_eq!(x.dims()[D - 1], inputs, "width of x and rows of the weight");
    if let Some(bias) = &bias {
        assert_eq!(bias.dims(), [outputs], "width of the bias");
    }
    #[cfg(feature = "flex")]
    if supports(&x, bias.as_ref()) && crate::flex::supports(&weight) {
        return over_rows(x, weight, bias, outputs, |x, weight, bias| {
            Dispatch::fast_linear(x, weight, bias)
        });
    }
    #[cfg(feature = "flex")]
    if supports(&x, bias.as_ref()) && supports_half(&weight) {
        return over_rows(x, weight, bias, outputs, |x, weight, bias| {
            Dispatch::fast_half_linear(x, weight, bias, false)
        });
    }
    portable::linear(x, weight, bias)
}

/// Computes `x * table^T + bias` over the last axis: products with every row of a table, as a language
/// model's head has them.
///
/// A frozen table may be in bf16, see [`linear`]. Of a few rows of `x` it is read once, as it lies, which is what
/// decoding wants; [`linear`] has no such kernel for bf16.
///
/// # Shapes
/// - `x`: `[..., in]`
/// - `table`: `[out, in]`
/// - `bias`: `[out]`
/// - returns `[..., out]`
///
/// # Panics
/// If the shapes disagree, or a table in bf16 is tracked.
pub fn linear_transposed<const D: usize>(
    x: Tensor<D>,
    table: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let [outputs, inputs] = table.dims();
    assert_eq!(x.dims()[D - 1], inputs, "widths of x and the table");
    if let Some(bias) = &bias {
        assert_eq!(bias.dims(), [outputs], "width of the bias");
    }
    #[cfg(feature = "flex")]
    if supports(&x, bias.as_ref()) && crate::flex::supports(&table) {
        // A view, which the fast path reads as it lies.
        return linear(x, table.transpose(), bias);
    }
    #[cfg(feature = "flex")]
    if supports(&x, bias.as_ref()) && supports_half(&table) {
        return over_rows(x, table, bias, outputs, |x, table, bias| {
            Dispatch::fast_half_linear(x, table, bias, true)
        });
    }
    portable::linear_transposed(x, table, bias)
}

#[cfg(test)]
pub(crate) mod tests {
    use burn::tensor::{FloatDType, TensorData};
    use molora_testkit::{assert_close, autodiff_device, device};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Case, Oracle};

    pub(crate) const CASES: &[Case] = &[
        Case {
            name: "linear",
            others: |[_, width]| vec![[width; 2], [1, width]],
            fast: |t| linear(t[0].clone(), t[1].clone(), Some(t[2].clone().reshape([-1]))),
            plain: Some(|t| {
                portable::linear(t[0].clone(), t[1].clone(), Some(t[2].clone().reshape([-1])))
            }),
            is_row_wise: false,
            tiny: Some((
                |x| linear(x.clone(), Tensor::eye(x.dims()[1], &x.device()), None),
                1.0,
            )),
        },
        Case {
            name: "linear to one column",
            others: |[_, width]| vec![[width, 1]],
            fast: |t| linear(t[0].clone(), t[1].clone(), None),
            plain: Some(|t| portable::linear(t[0].clone(), t[1].clone(), None)),
            is_row_wise: false,
            tiny: None,
        },
        Case {
            name: "linear_transposed",
            others: |[_, width]| vec![[width; 2]],
            fast: |t| linear_transposed(t[0].clone(), t[1].clone(), None),
            plain: Some(|t| portable::linear_transposed(t[0].clone(), t[1].clone(), None)),
            is_row_wise: false,
            tiny: Some((
                |x| linear_transposed(x.clone(), Tensor::eye(x.dims()[1], &x.device()), None),
                1.0,
            )),
        },
        Case {
            name: "linear in bf16",
            others: |[_, width]| vec![[width; 2], [1, width]],
            fast: |t| linear(t[0].clone(), half(&t[1]), Some(t[2].clone().reshape([-1]))),
            plain: None,
            is_row_wise: false,
            tiny: None,
        },
        Case {
            name: "linear_transposed in bf16",
            others: |[_, width]| vec![[width; 2], [1, width]],
            fast: |t| {
                let bias = t[2].clone().reshape([-1]);
                linear_transposed(t[0].clone(), half(&t[1]), Some(bias))
            },
            plain: None,
            is_row_wise: false,
            tiny: None,
        },
        Case {
            name: "linear_blocks",
            others: |[_, width]| vec![[width; 2], [1, width]],
            fast: |t| {
                linear_blocks(
                    t[0].clone(),
                    &blocks(&t[1]),
                    Some(t[2].clone().reshape([-1])),
                )
            },
            plain: None,
            is_row_wise: false,
            tiny: None,
        },
    ];

    fn half(weight: &Tensor<2>) -> Tensor<2> {
        let frozen = weight.clone().set_require_grad(false);
        frozen.cast(FloatDType::BF16)
    }

    fn blocks(weight: &Tensor<2>) -> BlockMatrix {
        BlockMatrix::new(weight.to_data(), 4, &weight.device())
    }

    #[test]
    fn known_values() {
        let x = Tensor::<2>::from_floats([[1.0, 2.0]], &device());
        let weight = Tensor::<2>::from_floats([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], &device());
        let bias = Tensor::from_floats([0.5, 0.0, -0.5], &device());
        let out = linear(x.clone(), weight.clone(), Some(bias));
        assert_close(out, [[9.5, 12.0, 14.5]], 1e-6, "linear");
        assert_close(
            linear(x, weight, None),
            [[9.0, 12.0, 15.0]],
            1e-6,
            "without bias",
        );
    }

    #[test]
    #[should_panic(expected = "width of x")]
    fn another_width_is_refused() {
        linear(
            Tensor::<2>::ones([2, 3], &device()),
            Tensor::ones([2, 3], &device()),
            None,
        );
    }

    /// Output and gradients of the sum of squares, on whole numbers: exact in any order of sums.
    fn whole_numbers(
        run: impl Fn(Tensor<2>, Tensor<2>, Option<Tensor<1>>) -> Tensor<2>,
        [rows, inputs, outputs]: [usize; 3],
    ) -> [TensorData; 4] {
        let draw = |shape: [usize; 2]| {
            let numbers: Vec<f32> = (0..shape[0] * shape[1])
                .map(|i| (i * 7 % 11) as f32)
                .collect();
            let data = TensorData::new(numbers, shape);
            Tensor::<2>::from_data(data, &autodiff_device())
                .sub_scalar(5.0)
                .require_grad()
        };
        let leaves = [
            draw([rows, inputs]),
            draw([inputs, outputs]),
            draw([1, outputs]),
        ];
        let [x, weight, bias] = leaves.clone();
        let out = run(x, weight, Some(bias.reshape([outputs])));
        let grads = out.clone().square().sum().backward();
        let [x, weight, bias] = leaves.map(|leaf| leaf.grad(&grads).unwrap().into_data());
        [out.into_data(), x, weight, bias]
    }

    #[test]
    fn sizes_below_a_register_are_exact_on_whole_numbers() {
        for size in 0..7 * 7 * 7 {
            let sizes = [size % 7 + 1, size / 7 % 7 + 1, size / 49 + 1];
            let expected = whole_numbers(portable::linear, sizes);
            for (actual, expected) in whole_numbers(linear, sizes).iter().zip(expected) {
                actual.assert_eq(&expected, true);
            }
        }
    }

    #[test]
    fn a_table_in_bf16_gives_scores() {
        let x = Tensor::<2>::from_floats([[1.0, 2.0]], &device());
        let table = Tensor::<2>::from_floats([[1.0, 4.0], [0.5, -1.0], [3.0, 0.0]], &device());
        for dtype in [FloatDType::F32, FloatDType::BF16] {
            let table = table.clone().cast(dtype);
            let scores = linear_transposed(x.clone(), table.clone(), None);
            assert_close(scores, [[9.0, -1.5, 3.0]], 1e-6, "scores");
            let bias = Tensor::from_floats([0.5, 1.0, -1.0], &device());
            let scores = linear_transposed(x.clone(), table, Some(bias));
            assert_close(scores, [[9.5, -0.5, 2.0]], 1e-6, "with a bias");
        }
    }

    #[test]
    #[should_panic(expected = "has no gradient")]
    fn a_tracked_weight_in_bf16_is_refused() {
        let device = autodiff_device();
        let weight = Tensor::<2>::ones([3, 2], &device).cast(FloatDType::BF16);
        linear(
            Tensor::<2>::ones([2, 3], &device),
            weight.require_grad(),
            None,
        );
    }

    /// The output, and the gradients of `x` and the bias.
    fn with_gradients(
        run: impl Fn(Tensor<2>, Option<Tensor<1>>) -> Tensor<2>,
        x: Tensor<2>,
        bias: Option<Tensor<1>>,
    ) -> (Tensor<2>, Tensor<2>, Option<Tensor<1>>) {
        let x = x.detach().require_grad();
        let bias = bias.map(|bias| bias.detach().require_grad());
        let out = run(x.clone(), bias.clone());
        let grads = out.clone().sin().sum().backward();
        let to_bias = bias.map(|bias| bias.grad(&grads).unwrap());
        (out, x.grad(&grads).unwrap(), to_bias)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn equals_the_portable_definition(
            rows in 1usize..200, inputs in 8usize..300, outputs in 8usize..300, with_bias: bool,
            tracked: [bool; 3], seed: u64,
        ) {
            let mut oracle = Oracle::new(seed);
            let x = oracle.tensor([rows, inputs], 1.0, tracked[0]);
            let weight = oracle.tensor([inputs, outputs], 1.0, tracked[1]);
            let bias = oracle.tensor([1, outputs], 1.0, with_bias && tracked[2]);
            oracle.check(
                &[x, weight, bias],
                |t| linear(t[0].matrix(), t[1].matrix(), with_bias.then(|| t[2].row())),
                |t| portable::linear(t[0].matrix(), t[1].matrix(), with_bias.then(|| t[2].row())),
            );
        }

        #[test]
        fn bf16_equals_f32_on_the_rounded_weight(
            rows in 1usize..100, inputs in 1usize..300, outputs in 1usize..300, with_bias: bool,
            seed: u64,
        ) {
            let mut oracle = Oracle::new(seed);
            let x = oracle.tensor([rows, inputs], 1.0, true).matrix();
            let bias = oracle.tensor([1, outputs], 1.0, true).row();
            let bias = with_bias.then_some(bias);
            let bound = 1.0 / (inputs as f32).sqrt();
            let weight = oracle.tensor([inputs, outputs], bound, false).matrix();
            let weight = weight.cast(FloatDType::BF16);
            let (out, to_x, to_bias) =
                with_gradients(|x, bias| linear(x, weight.clone(), bias), x.clone(), bias.clone());
            let (expected, expected_to_x, expected_to_bias) =
                with_gradients(|x, bias| portable::linear(x, weight.clone(), bias), x.clone(), bias.clone());
            assert_close(&out, &expected, 1e-2, "output");
            assert_close(&to_x, &expected_to_x, 2e-2, "gradient of x");
            if let (Some(to_bias), Some(expected)) = (to_bias, expected_to_bias) {
                assert_close(&to_bias, &expected, 2e-2, "gradient of the bias");
            }

            let table = weight.transpose();
            let (expected, expected_to_x, _) =
                with_gradients(|x, bias| portable::linear_transposed(x, table.clone(), bias), x.clone(), bias.clone());
            let (out, to_x, _) =
                with_gradients(|x, bias| linear_transposed(x, table.clone(), bias), x, bias);
            assert_close(&out, &expected, 1e-2, "scores");
            assert_close(&to_x, &expected_to_x, 2e-2, "gradient of x from scores");
        }
    }
}
