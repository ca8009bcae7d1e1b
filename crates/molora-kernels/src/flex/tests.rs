//! The fast path as a whole.

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
