//! The fast path for the CPU backend `flex` in f32.
//!
//! [`FastOps`] is what `burn` routes to: called on a plain tensor it runs the kernel, called on a
//! tensor with gradients it runs the kernel and records the hand-written backward (`autodiff.rs`),
//! which calls [`BackwardKernels`]. Each operation's kernels live in a file of their own; the loops
//! are plain code over slices, compiled once per instruction set by `pulp`.

mod attention;
mod autodiff;
pub(crate) mod buffer;
mod low_rank_mix;
pub(crate) mod math;
pub(crate) mod matrix;
pub(crate) mod simd;
#[cfg(test)]
mod tests;
pub(crate) mod views;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Flex, backend_extension};
use burn::tensor::{DType, Device, Tensor};

pub(crate) use self::attention::Rules;
pub(crate) use self::low_rank_mix::time_mix;
use crate::low_rank_mix::MixShape;

/// Whether the fast path takes `tensor`: f32 on `flex`, and not empty. Must hold for every float
/// input of an operation: a tensor of another backend would panic in [`FastOps`].
pub(crate) fn takes<const D: usize>(tensor: &Tensor<D>) -> bool {
    // Devices are equal whether or not they track gradients.
    tensor.dtype() == DType::F32
        && tensor.device() == Device::flex()
        && tensor.shape().num_elements() > 0
}

/// The operations with a fast path, for tensors with and without gradients.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait FastOps: Backend {
    /// As [`crate::attention_with`]; without a bias any tensor stands in for it.
    fn fast_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        rules: Rules,
    ) -> FloatTensor<Self>;

    /// As [`crate::low_rank_mix`]; without a base any tensor stands in for it.
    fn fast_low_rank_mix(
        base: FloatTensor<Self>,
        low: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        rank_scale: FloatTensor<Self>,
        b: FloatTensor<Self>,
        shape: MixShape,
    ) -> FloatTensor<Self>;
}

/// The backward kernels of a backend, on tensors without gradients.
pub(crate) trait BackwardKernels: FastOps {
    /// See [`attention::backward`].
    fn fast_attention_backward(
        inputs: [FloatTensor<Self>; 4],
        rules: &Rules,
        grad: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 3];

    /// See [`attention::backward_bias`].
    fn fast_attention_backward_bias(
        inputs: [FloatTensor<Self>; 4],
        rules: &Rules,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// Gradients of code, weights, rank scale and, if wanted, `b`; see [`low_rank_mix::backward`].
    fn fast_low_rank_mix_backward(
        operands: [FloatTensor<Self>; 4],
        shape: MixShape,
        grad: FloatTensor<Self>,
        wants_b: bool,
    ) -> [Option<FloatTensor<Self>>; 4];
}

impl FastOps for Flex {
    fn fast_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        rules: Rules,
    ) -> FloatTensor<Self> {
        attention::forward([query, key, value, bias], &rules)
    }

    fn fast_low_rank_mix(
        base: FloatTensor<Self>,
        low: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        rank_scale: FloatTensor<Self>,
        b: FloatTensor<Self>,
        shape: MixShape,
    ) -> FloatTensor<Self> {
        low_rank_mix::forward(base, [low, weights, rank_scale, b], shape)
    }
}

impl BackwardKernels for Flex {
    fn fast_attention_backward(
        inputs: [FloatTensor<Self>; 4],
        rules: &Rules,
        grad: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 3] {
        attention::backward(inputs, rules, grad)
    }

    fn fast_attention_backward_bias(
        inputs: [FloatTensor<Self>; 4],
        rules: &Rules,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        attention::backward_bias(inputs, rules, grad)
    }

    fn fast_low_rank_mix_backward(
        operands: [FloatTensor<Self>; 4],
        shape: MixShape,
        grad: FloatTensor<Self>,
        wants_b: bool,
    ) -> [Option<FloatTensor<Self>>; 4] {
        low_rank_mix::backward(operands, shape, grad, wants_b)
    }
}
