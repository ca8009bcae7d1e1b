//! The fast path for the CPU backend `flex` in f32.
//!
//! [`FastOps`] is what `burn` routes to: called on a plain tensor it runs the kernel, called on a
//! tensor with gradients it runs the kernel and records the hand-written backward (`autodiff.rs`),
//! which calls [`BackwardKernels`]. Each operation's kernels live in a file of their own; the loops
//! are plain code over slices, compiled once per instruction set by `pulp`.

mod attention;
mod autodiff;
mod buffer;
mod cross_entropy;
mod dropout;
mod gelu;
mod half;
mod layer_norm;
mod linear;
mod low_rank_mix;
mod math;
mod matrix;
mod rms_norm;
mod silu_gate;
mod simd;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod top_k;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Flex, backend_extension};
use burn::tensor::{DType, Device, Tensor};

pub(crate) use self::attention::Rules;
pub(crate) use self::half::BlockShape;
pub(crate) use self::low_rank_mix::time_mix;
pub(crate) use self::top_k::top_k_mask;
use crate::cross_entropy::Labels;
use crate::dropout::DropMask;
use crate::low_rank_mix::MixShape;

/// Whether the fast path takes `tensor`: f32 on `flex`, and not empty. Must hold for every float
/// input of an operation: a tensor of another backend would panic in [`FastOps`].
pub(crate) fn takes<const D: usize>(tensor: &Tensor<D>) -> bool {
    // Devices are equal whether or not they track gradients.
    tensor.dtype() == DType::F32
        && tensor.device() == Device::flex()
        && tensor.shape().num_elements() > 0
}

/// Whether the fast path takes `weight` as a frozen matrix in bf16: on `flex`, and not empty.
pub(crate) fn takes_half(weight: &Tensor<2>) -> bool {
    weight.dtype() == DType::BF16
        && weight.device() == Device::flex()
        && weight.shape().num_elements() > 0
}

/// The operations with a fast path, for tensors with and without gradients.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait FastOps: Backend {
    /// As [`crate::gelu`].
    fn fast_gelu(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// As [`crate::gelu_tanh`].
    fn fast_gelu_tanh(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// As [`crate::silu_gate`].
    fn fast_silu_gate(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;

    /// As [`crate::softmax_cross_entropy`].
    fn fast_cross_entropy(logits: FloatTensor<Self>, labels: Labels) -> FloatTensor<Self>;

    /// As [`crate::rms_norm`].
    fn fast_rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self>;

    /// As [`crate::dropout`]; it is its own backward, applied to the gradient.
    fn fast_dropout(x: FloatTensor<Self>, mask: DropMask) -> FloatTensor<Self>;

    /// As [`crate::dropout_linear`], on `[rows, in]`.
    fn fast_dropout_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        mask: DropMask,
    ) -> FloatTensor<Self>;

    /// As [`crate::layer_norm`].
    fn fast_layer_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self>;

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

    /// As [`crate::linear`], on `[rows, in]`.
    fn fast_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// As [`crate::linear`] or [`crate::linear_transposed`] on `[rows, in]`, with a frozen weight in
    /// bf16.
    fn fast_half_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        is_transposed: bool,
    ) -> FloatTensor<Self>;

    /// As [`crate::linear_blocks`] on `[rows, in]`.
    fn fast_block_linear(
        x: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: BlockShape,
    ) -> FloatTensor<Self>;
}

/// The backward kernels of a backend, on tensors without gradients.
pub(crate) trait BackwardKernels: FastOps {
    /// See [`gelu::backward`].
    fn fast_gelu_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self>;

    /// See [`gelu::backward_tanh`].
    fn fast_gelu_tanh_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self>;

    /// See [`silu_gate::backward`].
    fn fast_silu_gate_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`cross_entropy::backward`].
    fn fast_cross_entropy_backward(
        logits: FloatTensor<Self>,
        labels: &Labels,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// See [`rms_norm::backward_x`].
    fn fast_rms_norm_backward_x(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self>;

    /// See [`rms_norm::backward_weight`].
    fn fast_rms_norm_backward_weight(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self>;

    /// See [`layer_norm::backward_x`].
    fn fast_layer_norm_backward_x(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self>;

    /// See [`layer_norm::backward_affine`].
    fn fast_layer_norm_backward_affine(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        epsilon: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

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

    /// See [`linear::backward_x`].
    fn fast_linear_backward_x(
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// See [`linear::backward_weight`].
    fn fast_linear_backward_weight(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// See [`dropout::backward_linear_x`].
    fn fast_dropout_linear_backward_x(
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        mask: DropMask,
    ) -> FloatTensor<Self>;

    /// See [`dropout::backward_linear_weight`].
    fn fast_dropout_linear_backward_weight(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        mask: DropMask,
    ) -> FloatTensor<Self>;

    /// See [`half::backward_x_blocks`].
    fn fast_block_linear_backward_x(
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        shape: BlockShape,
    ) -> FloatTensor<Self>;

    /// See [`half::backward_x`].
    fn fast_half_linear_backward_x(
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        is_transposed: bool,
    ) -> FloatTensor<Self>;
}

impl FastOps for Flex {
    fn fast_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        gelu::forward(x)
    }

    fn fast_gelu_tanh(x: FloatTensor<Self>) -> FloatTensor<Self> {
        gelu::forward_tanh(x)
    }

    fn fast_silu_gate(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        silu_gate::forward(gate, up)
    }

    fn fast_cross_entropy(logits: FloatTensor<Self>, labels: Labels) -> FloatTensor<Self> {
        cross_entropy::forward(logits, &labels)
    }

    fn fast_rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        rms_norm::forward(x, weight, epsilon)
    }

    fn fast_dropout(x: FloatTensor<Self>, mask: DropMask) -> FloatTensor<Self> {
        dropout::apply(x, mask)
    }

    fn fast_layer_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        layer_norm::forward(x, gamma, beta, epsilon)
    }

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

    fn fast_dropout_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        mask: DropMask,
    ) -> FloatTensor<Self> {
        dropout::forward_linear(x, weight, mask)
    }

    fn fast_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        linear::forward(x, weight, bias)
    }

    fn fast_half_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        is_transposed: bool,
    ) -> FloatTensor<Self> {
        half::forward(x, weight, bias, is_transposed)
    }

    fn fast_block_linear(
        x: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: BlockShape,
    ) -> FloatTensor<Self> {
        half::forward_blocks(x, [codes, scales], bias, shape)
    }
}

impl BackwardKernels for Flex {
    fn fast_gelu_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        gelu::backward(x, grad)
    }

    fn fast_gelu_tanh_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        gelu::backward_tanh(x, grad)
    }

    fn fast_silu_gate_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        silu_gate::backward(gate, up, grad)
    }

    fn fast_cross_entropy_backward(
        logits: FloatTensor<Self>,
        labels: &Labels,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        cross_entropy::backward(logits, labels, grad)
    }

    fn fast_rms_norm_backward_x(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        rms_norm::backward_x(x, weight, grad, epsilon)
    }

    fn fast_rms_norm_backward_weight(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        rms_norm::backward_weight(x, grad, epsilon)
    }

    fn fast_layer_norm_backward_x(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        layer_norm::backward_x(x, gamma, grad, epsilon)
    }

    fn fast_layer_norm_backward_affine(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        epsilon: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        layer_norm::backward_affine(x, grad, epsilon)
    }

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

    fn fast_linear_backward_x(
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        linear::backward_x(weight, grad)
    }

    fn fast_linear_backward_weight(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        linear::backward_weight(x, grad)
    }

    fn fast_dropout_linear_backward_x(
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        mask: DropMask,
    ) -> FloatTensor<Self> {
        dropout::backward_linear_x(weight, grad, mask)
    }

    fn fast_dropout_linear_backward_weight(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        mask: DropMask,
    ) -> FloatTensor<Self> {
        dropout::backward_linear_weight(x, grad, mask)
    }

    fn fast_half_linear_backward_x(
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        is_transposed: bool,
    ) -> FloatTensor<Self> {
        half::backward_x(weight, grad, is_transposed)
    }

    fn fast_block_linear_backward_x(
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        shape: BlockShape,
    ) -> FloatTensor<Self> {
        half::backward_x_blocks([codes, scales], grad, shape)
    }
}
