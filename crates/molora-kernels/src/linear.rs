//! The affine map of a linear layer.

use burn::tensor::Tensor;

/// Computes `x * weight + bias` over the last axis.
///
/// With a frozen weight the gradient of `x` is all that the backward computes, and the weight all
/// that is kept for it.
///
/// # Shapes
/// - `x`: `[..., in]`
/// - `weight`: `[in, out]`
/// - `bias`: `[out]`
/// - returns `[..., out]`
///
/// # Panics
/// If the shapes disagree.
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
    if crate::flex::takes(&x)
        && crate::flex::takes(&weight)
        && bias.as_ref().is_none_or(crate::flex::takes)
    {
        use crate::flex::FastOps;
        let mut shape = x.dims();
        let rows = shape.iter().product::<usize>() / inputs;
        shape[D - 1] = outputs;
        let bias = bias.unwrap_or_else(|| Tensor::zeros([outputs], &weight.device()));
        let out = burn::backend::Dispatch::fast_linear(
            x.reshape([rows, inputs]).into_dispatch(),
            weight.into_dispatch(),
            bias.into_dispatch(),
        );
        return Tensor::<2>::from_dispatch(out).reshape(shape);
    }
    portable(x, weight, bias)
}

/// The definition by `burn`'s own linear map.
pub fn portable<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    burn::tensor::module::linear(x, weight, bias)
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use molora_testkit::{assert_close, autodiff_device, device};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::Oracle;

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
            let expected = whole_numbers(portable, sizes);
            for (actual, expected) in whole_numbers(linear, sizes).iter().zip(expected) {
                actual.assert_eq(&expected, true);
            }
        }
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
                |t| portable(t[0].matrix(), t[1].matrix(), with_bias.then(|| t[2].row())),
            );
        }
    }
}
