//! Inputs of any number of axes as rows, and whether the fast path takes them.

use burn::backend::Dispatch;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Device, Tensor};

use crate::flex;

type Dispatched = FloatTensor<Dispatch>;

/// Whether the fast path takes `x` and the bias; the matrix has to be looked at as well.
pub(super) fn supports<const D: usize>(x: &Tensor<D>, bias: Option<&Tensor<1>>) -> bool {
    flex::supports(x) && bias.is_none_or(flex::supports)
}

/// Whether the fast path takes `weight` as a frozen matrix in bf16: on `flex`, and not empty.
pub(super) fn supports_half(weight: &Tensor<2>) -> bool {
    weight.dtype() == DType::BF16
        && weight.device() == Device::flex()
        && weight.shape().num_elements() > 0
}

/// Runs an operation of the fast path on the rows of `x`, with a zero in the place of an absent bias.
pub(super) fn over_rows<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    outputs: usize,
    run: impl FnOnce(Dispatched, Dispatched, Dispatched) -> Dispatched,
) -> Tensor<D> {
    let mut shape = x.dims();
    let inputs = shape[D - 1];
    let rows = shape.iter().product::<usize>() / inputs;
    shape[D - 1] = outputs;
    let bias = bias.unwrap_or_else(|| Tensor::zeros([1], &x.device()));
    let out = run(
        x.reshape([rows, inputs]).into_dispatch(),
        weight.into_dispatch(),
        bias.into_dispatch(),
    );
    Tensor::<2>::from_dispatch(out).reshape(shape)
}
