//! Forward and backward of each operation at MiniLM's shape, fast path against portable.
//!
//! `cargo bench -p molora-kernels`; a filter such as `gelu` runs a part.

use burn::tensor::{Device, Distribution, Tensor};
use divan::Bencher;
use molora_kernels as fast;
use molora_kernels::portable;

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
