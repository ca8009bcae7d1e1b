//! Forward and backward of each operation at MiniLM's shape, fast path against portable.
//!
//! `cargo bench -p molora-kernels`; a filter such as `gelu` runs a part.

use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use divan::Bencher;
use molora_kernels as fast;
use molora_kernels::{AttentionOptions, LowRankMix, portable};

const BATCH: usize = 16;
const TOKENS: usize = 64;
const WIDTH: usize = 384;
const HIDDEN: usize = 1536;
const HEADS: usize = 12;

fn main() {
    divan::main();
}

/// Times forward and backward from a tracked `x` of `width`.
fn train(bencher: Bencher<'_, '_>, width: usize, run: impl Fn(Tensor<3>) -> Tensor<3> + Sync) {
    let device = Device::flex().autodiff();
    let x = Tensor::<3>::random([BATCH, TOKENS, width], Distribution::Default, &device);
    let x = x.require_grad();
    let upstream = Tensor::ones(run(x.clone()).shape(), &device);
    bencher.bench_local(|| (run(x.clone()) * upstream.clone()).sum().backward());
}

/// Times the forward alone, without gradients.
fn infer(bencher: Bencher<'_, '_>, width: usize, run: impl Fn(Tensor<3>) -> Tensor<3> + Sync) {
    let x = random([BATCH, TOKENS, width]);
    bencher.bench_local(|| run(x.clone()));
}

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex())
}

/// What `train` itself costs: the product with the upstream gradient and the sum.
#[divan::bench(args = [WIDTH, HIDDEN])]
fn overhead_train(bencher: Bencher<'_, '_>, width: usize) {
    train(bencher, width, |x| x * 1.0);
}

macro_rules! compare {
    ($name:ident, $width:expr, $setup:expr, |$op:ident, $held:ident, $x:ident| $run:expr) => {
        mod $name {
            use super::*;

            #[divan::bench]
            fn fast_infer(bencher: Bencher<'_, '_>) {
                use fast as $op;
                let $held = $setup;
                infer(bencher, $width, |$x| $run);
            }

            #[divan::bench]
            fn fast_train(bencher: Bencher<'_, '_>) {
                use fast as $op;
                let $held = $setup;
                train(bencher, $width, |$x| $run);
            }

            #[divan::bench]
            fn portable_infer(bencher: Bencher<'_, '_>) {
                use portable as $op;
                let $held = $setup;
                infer(bencher, $width, |$x| $run);
            }

            #[divan::bench]
            fn portable_train(bencher: Bencher<'_, '_>) {
                use portable as $op;
                let $held = $setup;
                train(bencher, $width, |$x| $run);
            }
        }
    };
}

/// `$op` of the code `$x` of rank 8 with the rest from [`mix`].
macro_rules! mixed {
    ($op:ident, $held:ident, $x:ident) => {{
        let (weights, rank_scale, b, base) = &$held;
        let mix = LowRankMix {
            low: $x,
            weights: Some(weights.clone()),
            is_selection: false,
            rank_scale: Some(rank_scale.clone()),
            factor: 2.0,
            b: b.clone(),
        };
        $op::low_rank_mix(Some(base.clone() * 1.0), mix)
    }};
}

compare!(gelu, HIDDEN, (), |op, _held, x| op::gelu(x));
compare!(
    layer_norm,
    WIDTH,
    (random([WIDTH]), random([WIDTH])),
    |op, held, x| { op::layer_norm(x, held.0.clone(), held.1.clone(), 1e-12) }
);
compare!(attention, WIDTH, (), |op, _held, x| op::attention(
    x.clone(),
    x.clone(),
    x,
    None,
    HEADS
));
compare!(
    linear_384_384,
    WIDTH,
    (random([WIDTH, WIDTH]), random([WIDTH])),
    |op, held, x| { op::linear(x, held.0.clone(), Some(held.1.clone())) }
);
compare!(
    linear_384_1536,
    WIDTH,
    (random([WIDTH, HIDDEN]), random([HIDDEN])),
    |op, held, x| { op::linear(x, held.0.clone(), Some(held.1.clone())) }
);
compare!(
    linear_1536_384,
    HIDDEN,
    (random([HIDDEN, WIDTH]), random([WIDTH])),
    |op, held, x| { op::linear(x, held.0.clone(), Some(held.1.clone())) }
);

compare!(gelu_tanh, HIDDEN, (), |op, _held, x| op::gelu_tanh(x));
compare!(
    silu_gate,
    HIDDEN,
    random([BATCH, TOKENS, HIDDEN]),
    |op, held, x| { op::silu_gate(x, held.clone()) }
);
compare!(rms_norm, WIDTH, random([WIDTH]), |op, held, x| {
    op::rms_norm(x, held.clone(), 1e-6)
});
// One third of the heads have keys of their own; keys and values are the first third of `x`.
compare!(
    attention_causal_grouped,
    WIDTH,
    AttentionOptions::new(HEADS)
        .with_num_kv_heads(4)
        .with_causal(0),
    |op, held, x| {
        let keys = x.clone().narrow(2, 0, WIDTH / 3);
        op::attention_with(x, keys.clone(), keys, &held)
    }
);
// The same tokens as two rows of 512, and packed as eight sequences of 64 in each.
compare!(
    attention_long_causal,
    WIDTH,
    AttentionOptions::new(HEADS).with_causal(0),
    |op, held, x| {
        let x = x.reshape([2, 512, WIDTH]);
        op::attention_with(x.clone(), x.clone(), x, &held)
    }
);
compare!(
    attention_long_packed,
    WIDTH,
    AttentionOptions::new(HEADS)
        .with_causal(0)
        .with_segments(Some(segments())),
    |op, held, x| {
        let x = x.reshape([2, 512, WIDTH]);
        op::attention_with(x.clone(), x.clone(), x, &held)
    }
);
compare!(
    attention_bias,
    WIDTH,
    AttentionOptions::new(HEADS)
        .with_scale(1.0)
        .with_bias(Some(random([1, HEADS, TOKENS, TOKENS]))),
    |op, held, x| op::attention_with(x.clone(), x.clone(), x, &held)
);
// The logits of 256 tokens over a vocabulary of 12,288.
compare!(cross_entropy, 3 * 4096 / 4, targets(), |op, held, x| {
    let logits = x.reshape([256, 12_288]);
    op::softmax_cross_entropy(logits, held.clone()).reshape([1, 1, 256])
});

fn segments() -> Tensor<2, Int> {
    let positions = Tensor::<1, Int>::arange(0..512, &Device::flex());
    positions.div_scalar(64).reshape([1, 512]).expand([2, 512])
}

fn targets() -> Tensor<1, Int> {
    Tensor::<1, Int>::arange(0..256, &Device::flex()).mul_scalar(40)
}

/// A mix of rank 8 where each token selects two of the experts, with all work or theirs alone.
fn top_2(bencher: Bencher<'_, '_>, experts: usize, is_selection: bool) {
    let (_, rank_scale, b, base) = mix(experts);
    let chosen = (0..BATCH * TOKENS * experts).map(|i| {
        let (token, expert) = (i / experts, i % experts);
        let is_chosen = [token * 7 % experts, (token * 7 + 1) % experts].contains(&expert);
        if is_chosen { 0.5 } else { 0.0 }
    });
    let chosen = TensorData::new(chosen.collect::<Vec<f32>>(), [BATCH, TOKENS, experts]);
    let weights = Tensor::<3>::from_data(chosen, &Device::flex()).autodiff();
    let weights = weights.require_grad();
    train(bencher, 8, |low| {
        let mix = LowRankMix {
            low,
            weights: Some(weights.clone()),
            is_selection,
            rank_scale: Some(rank_scale.clone()),
            factor: 2.0,
            b: b.clone(),
        };
        fast::low_rank_mix(Some(base.clone() * 1.0), mix)
    });
}

#[divan::bench(args = [4, 8, 12, 16, 32, 64])]
fn low_rank_mix_top_2(bencher: Bencher<'_, '_>, experts: usize) {
    top_2(bencher, experts, true);
}

#[divan::bench(args = [4, 8, 12, 16, 32, 64])]
fn low_rank_mix_top_2_dense(bencher: Bencher<'_, '_>, experts: usize) {
    top_2(bencher, experts, false);
}

compare!(low_rank_mix_3, 8, mix(3), |op, held, x| mixed!(op, held, x));
compare!(low_rank_mix_64, 8, mix(64), |op, held, x| mixed!(
    op, held, x
));

/// A tracked weight of each of `experts` experts, their rank scale and up-projections, and a base.
fn mix(experts: usize) -> (Tensor<3>, Tensor<1>, Tensor<2>, Tensor<3>) {
    let weights = random([BATCH, TOKENS, experts]).autodiff().require_grad();
    let b = random([experts * 8, WIDTH]).autodiff().require_grad();
    (weights, random([8]), b, random([BATCH, TOKENS, WIDTH]))
}

/// Dropout at the width of an adapter's input.
#[divan::bench]
fn dropout_train(bencher: Bencher<'_, '_>) {
    train(bencher, WIDTH, |x| {
        fast::dropout(x, 0.05, fast::random::Seed::new(1))
    });
}

/// The down-projection of an adapter of rank 8.
#[divan::bench]
fn linear_384_8_train(bencher: Bencher<'_, '_>) {
    let weight = random([WIDTH, 8]);
    train(bencher, WIDTH, |x| fast::linear(x, weight.clone(), None));
}
