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
    let out = [2, 16].into_iter().fold(out, |out, experts| {
        let mixed = low_rank_mix(out, x.clone(), weight.clone(), experts);
        mixed.reshape([600, 192])
    });
    let targets = Tensor::arange(0..600, &device).remainder_scalar(192);
    let grads = crate::softmax_cross_entropy(out, targets).sum().backward();
    [x, weight, gamma, beta]
        .map(|leaf| leaf.grad(&grads).expect("every leaf is used").into_data())
        .into()
}

/// Adds the two experts that each row selects, of rank 3; of two experts in one product, of many alone.
fn low_rank_mix(base: Tensor<2>, x: Tensor<2>, weight: Tensor<2>, experts: usize) -> Tensor<3> {
    let rows = base.dims()[0];
    let selected = (0..rows * experts).map(|index| {
        let (row, expert) = (index / experts, index % experts);
        f32::from((expert + experts - row % experts) % experts < 2)
    });
    let selected = TensorData::new(selected.collect(), [1, rows, experts]);
    let weights = x.clone().narrow(1, 0, experts).unsqueeze::<3>();
    let mix = crate::LowRankMix {
        low: x.narrow(1, 20, 3).unsqueeze(),
        weights: Some(weights * Tensor::from_data(selected, &base.device())),
        is_selection: true,
        rank_scale: None,
        factor: 0.5,
        b: weight.narrow(0, 0, 3 * experts),
    };
    crate::low_rank_mix(Some(base.unsqueeze()), mix)
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

/// Rows of ordinary numbers, each with one number of another kind somewhere.
fn with_one_of(kind: f32, rows: usize, cols: usize) -> Tensor<2> {
    let mut numbers = values(rows * cols, 7);
    for row in 1..rows {
        numbers[row * cols + row * 5 % cols] = kind;
    }
    Tensor::from_data(
        TensorData::new(numbers, [rows, cols]),
        &Device::flex().autodiff(),
    )
}

/// The operations on rows, by the fast path and by their definitions.
type Pair = (
    &'static str,
    fn(Tensor<2>) -> Tensor<2>,
    fn(Tensor<2>) -> Tensor<2>,
);

const PAIRS: [Pair; 8] = {
    use crate::portable as plain;
    fn ones(x: &Tensor<2>) -> Tensor<1> {
        Tensor::ones([x.dims()[1]], &x.device())
    }
    fn heads(x: Tensor<2>) -> Tensor<3> {
        x.unsqueeze()
    }
    [
        ("gelu", crate::gelu, plain::gelu),
        ("gelu_tanh", crate::gelu_tanh, plain::gelu_tanh),
        (
            "silu_gate",
            |x| crate::silu_gate(x.clone(), x),
            |x| plain::silu_gate(x.clone(), x),
        ),
        (
            "layer_norm",
            |x| crate::layer_norm(x.clone(), ones(&x), ones(&x), 1e-5),
            |x| plain::layer_norm(x.clone(), ones(&x), ones(&x), 1e-5),
        ),
        (
            "rms_norm",
            |x| crate::rms_norm(x.clone(), ones(&x), 1e-5),
            |x| plain::rms_norm(x.clone(), ones(&x), 1e-5),
        ),
        (
            "linear",
            |x| crate::linear(x.clone(), ones(&x).unsqueeze_dim(1), None),
            |x| plain::linear(x.clone(), ones(&x).unsqueeze_dim(1), None),
        ),
        (
            "attention",
            |x| crate::attention(heads(x.clone()), heads(x.clone()), heads(x), None, 3).squeeze(),
            |x| plain::attention(heads(x.clone()), heads(x.clone()), heads(x), None, 3).squeeze(),
        ),
        (
            "cross entropy",
            |x| {
                let targets = Tensor::zeros([x.dims()[0]], &x.device());
                crate::softmax_cross_entropy(x, targets).unsqueeze_dim(1)
            },
            |x| {
                let targets = Tensor::zeros([x.dims()[0]], &x.device());
                plain::softmax_cross_entropy(x, targets).unsqueeze_dim(1)
            },
        ),
    ]
};

/// Denormals are no zeros, infinities stay what they are, and NaN is not lost, as in the definitions.
#[test]
fn numbers_of_every_kind_go_where_the_definitions_send_them() {
    let kinds = [
        1e-40,
        -f32::from_bits(1),
        f32::MIN_POSITIVE,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
    ];
    for (kind, (name, fast, plain)) in kinds.into_iter().flat_map(|k| PAIRS.map(|p| (k, p))) {
        let x = with_one_of(kind, 20, 33);
        let [found, expected] = [fast, plain].map(|run| {
            let out = run(x.clone()).into_data();
            out.try_to_vec::<f32>().expect("f32")
        });
        for (index, (found, expected)) in found.into_iter().zip(expected).enumerate() {
            let is_same = found == expected
                || found.is_nan() && expected.is_nan()
                || (found - expected).abs() <= 4e-6 * expected.abs().max(1.0);
            assert!(
                is_same,
                "{name} with {kind:e} at {index}: {found:e}, not {expected:e}"
            );
        }
    }
}

#[test]
fn a_denormal_is_not_taken_for_zero() {
    let tiny = [1e-40, -1e-40, f32::from_bits(3), -f32::from_bits(1)];
    let device = Device::flex();
    let x = Tensor::<2>::from_floats([tiny], &device);
    let ones = Tensor::<2>::ones([1, 4], &device);
    let check = |out: Tensor<2>, factor: f64| {
        let out = out.into_data().try_to_vec::<f32>().expect("f32");
        for (out, x) in out.into_iter().zip(tiny) {
            // Half of the least number, and what its sum with another may lose.
            let error = (f64::from(out) - factor * f64::from(x)).abs();
            assert!(
                error <= 2.0 * f64::from(f32::from_bits(1)),
                "{out:e} of {x:e}"
            );
        }
    };
    check(crate::gelu(x.clone()), 0.5);
    check(crate::gelu_tanh(x.clone()), 0.5);
    check(crate::silu_gate(ones.clone() * 40.0, x.clone()), 40.0);
    check(
        crate::dropout(x.clone(), 0.0, crate::random::Seed::new(1)),
        1.0,
    );
    let identity = Tensor::<2>::eye(4, &device);
    check(crate::linear(x.clone(), identity.clone(), None), 1.0);
    check(crate::linear_transposed(x.clone(), identity), 1.0);
    // Equal scores: the mean of four equal rows.
    let [query, value] = [ones, x].map(|row| row.expand([4, 4]).unsqueeze::<3>());
    let mean = crate::attention(query.clone(), query, value, None, 1);
    check(mean.narrow(1, 0, 1).reshape([1, 4]), 1.0);
}
