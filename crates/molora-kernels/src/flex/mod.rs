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
mod top_k;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Flex, backend_extension};
use burn::tensor::{DType, Device, Tensor};

pub(crate) use self::attention::Rules;
pub(crate) use self::half::BlockShape;
pub(crate) use self::low_rank_mix::MixShape;
pub(crate) use self::top_k::top_k_mask;
use crate::cross_entropy::Labels;
use crate::dropout::DropMask;

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

#[cfg(test)]
mod tests {
    use burn::tensor::{FloatDType, TensorData};

    use super::*;
    use crate::testing::values;

    #[test]
    fn only_filled_f32_tensors_are_taken() {
        let device = Device::flex();
        let tensor = Tensor::<2>::ones([2, 3], &device);
        assert!(takes(&tensor));
        assert!(takes(&Tensor::<2>::ones([2, 3], &device.autodiff())));
        assert!(!takes(&tensor.clone().cast(FloatDType::F64)));
        assert!(!takes(&tensor.cast(FloatDType::BF16)));
        assert!(!takes(&Tensor::<2>::ones([0, 3], &Device::flex())));
    }

    /// One operation after the other with its backward: the bits of every gradient.
    fn gradients() -> Vec<TensorData> {
        let device = Device::flex().autodiff();
        let leaf = |shape: [usize; 2], seed| {
            let data = TensorData::new(values(shape[0] * shape[1], seed), shape);
            Tensor::<2>::from_data(data, &device).require_grad()
        };
        let (x, weight) = (leaf([600, 192], 1), leaf([192, 192], 2));
        let (gamma, beta) = (leaf([1, 192], 3), leaf([1, 192], 4));

        let hidden = crate::linear(x.clone(), weight.clone(), Some(beta.clone().reshape([192])));
        let (scale, shift) = (gamma.clone().reshape([192]), beta.clone().reshape([192]));
        let hidden = crate::gelu(crate::layer_norm(hidden, scale, shift, 1e-5));
        let hidden = hidden.reshape([2, 300, 192]);
        let out = crate::attention(hidden.clone(), hidden.clone(), hidden, None, 3);
        let bias = x.clone().reshape([1, 1, 600, 192]).narrow(2, 0, 300);
        let bias = bias
            .repeat_dim(3, 2)
            .narrow(3, 0, 300)
            .expand([1, 3, 300, 300]);
        let options = crate::AttentionOptions::new(3)
            .with_num_kv_heads(1)
            .with_causal(0)
            .with_bias(Some(bias));
        let narrow = out.clone().narrow(2, 0, 64);
        let out = crate::attention_with(out, narrow.clone(), narrow, &options);
        let out = crate::rms_norm(out, gamma.clone().reshape([192]), 1e-5);
        let out = crate::silu_gate(out.clone(), crate::gelu_tanh(out)).reshape([600, 192]);
        let targets = Tensor::arange(0..600, &device).remainder_scalar(192);
        let grads = crate::softmax_cross_entropy(out, targets).sum().backward();
        [x, weight, gamma, beta]
            .map(|leaf| leaf.grad(&grads).expect("every leaf is used").into_data())
            .into()
    }

    /// Outputs and gradients of the operations without a matrix product, odd lengths on purpose.
    fn row_wise() -> Vec<TensorData> {
        let device = Device::flex().autodiff();
        let leaf = |shape: [usize; 2], seed| {
            let data = TensorData::new(values(shape[0] * shape[1], seed), shape);
            Tensor::<2>::from_data(data, &device).require_grad()
        };
        let (x, gamma) = (leaf([37, 301], 1), leaf([1, 301], 2));
        let row = gamma.clone().reshape([301]);
        let targets = Tensor::arange(0..37, &device);
        let outputs = [
            crate::gelu(x.clone()).sum_dim(1),
            crate::gelu_tanh(x.clone()).sum_dim(1),
            crate::silu_gate(x.clone(), x.clone() * 2.0).sum_dim(1),
            crate::layer_norm(x.clone(), row.clone(), row.clone(), 1e-5).sum_dim(1),
            crate::rms_norm(x.clone(), row, 1e-5).sum_dim(1),
            crate::softmax_cross_entropy(x.clone() * 9.0, targets).reshape([37, 1]),
        ];
        let mut data: Vec<_> = outputs.iter().map(Tensor::to_data).collect();
        let grads = Tensor::cat(outputs.to_vec(), 1).square().sum().backward();
        let grads = [x, gamma].map(|leaf| leaf.grad(&grads).expect("it is used").into_data());
        data.extend(grads);
        data
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let [expected, others @ ..] = simd::tests::on_every_instruction_set(row_wise);
        for other in others {
            for (actual, expected) in other.iter().zip(&expected) {
                actual.assert_eq(expected, true);
            }
        }
    }

    #[test]
    fn gradients_are_the_same_bits_for_any_number_of_threads() {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.expect("threads can be started").install(gradients)
        };
        let expected = run(1);
        for threads in [2, 3, 5] {
            for (actual, expected) in run(threads).iter().zip(&expected) {
                actual.assert_eq(expected, true);
            }
        }
    }
}
