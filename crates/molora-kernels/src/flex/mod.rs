//! The fast path for the CPU backend `flex` in f32.
//!
//! [`FastOps`] is what `burn` routes to: called on a plain tensor it runs the kernel, called on a
//! tensor with gradients it runs the kernel and records the hand-written backward (`autodiff.rs`),
//! which calls [`BackwardKernels`]. Each operation's kernels live in a file of their own; the loops
//! are plain code over slices, compiled once per instruction set by `pulp`.

mod attention;
mod autodiff;
mod buffer;
mod gelu;
mod layer_norm;
mod linear;
mod math;
mod matrix;
mod simd;

use burn::backend::tensor::{BoolTensor, FloatTensor};
use burn::backend::{Backend, Flex, backend_extension};
use burn::tensor::{DType, Device, Tensor};

/// Whether the fast path takes `tensor`. Must hold for every float input of an operation: a tensor
/// of another backend would panic in [`FastOps`].
pub(crate) fn takes<const D: usize>(tensor: &Tensor<D>) -> bool {
    // Devices are equal whether or not they track gradients.
    tensor.dtype() == DType::F32 && tensor.device() == Device::flex()
}

/// The operations with a fast path, for tensors with and without gradients.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait FastOps: Backend {
    /// As [`crate::gelu`].
    fn fast_gelu(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// As [`crate::layer_norm`].
    fn fast_layer_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self>;

    /// As [`crate::attention`].
    fn fast_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        mask: BoolTensor<Self>,
        num_heads: usize,
    ) -> FloatTensor<Self>;

    /// As [`crate::linear`], on `[rows, in]`.
    fn fast_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

/// The backward kernels of a backend, on tensors without gradients.
pub(crate) trait BackwardKernels: FastOps {
    /// See [`gelu::backward`].
    fn fast_gelu_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self>;

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
        inputs: [FloatTensor<Self>; 3],
        mask: BoolTensor<Self>,
        num_heads: usize,
        grad: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 3];

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
}

impl FastOps for Flex {
    fn fast_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        gelu::forward(x)
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
        mask: BoolTensor<Self>,
        num_heads: usize,
    ) -> FloatTensor<Self> {
        attention::forward([query, key, value], mask, num_heads)
    }

    fn fast_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        linear::forward(x, weight, bias)
    }
}

impl BackwardKernels for Flex {
    fn fast_gelu_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        gelu::backward(x, grad)
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
        inputs: [FloatTensor<Self>; 3],
        mask: BoolTensor<Self>,
        num_heads: usize,
        grad: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 3] {
        attention::backward(inputs, mask, num_heads, grad)
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
}
