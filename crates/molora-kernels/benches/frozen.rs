//! Products with a frozen matrix: f32 against bf16, at the shapes of training and of decoding.
//!
//! `cargo bench -p molora-kernels --bench frozen`; a filter such as `x_w` runs a part.

use burn::tensor::{Device, Distribution, FloatDType, Tensor};
use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use molora_kernels::{linear, linear_transposed};

/// Rows of `x`, inner size, columns of the product.
const SHAPES: [[usize; 3]; 7] = [
    [1024, 384, 384],
    [1024, 384, 1536],
    [1024, 1536, 384],
    [1, 576, 1536],
    [8, 576, 1536],
    [1, 576, 49152],
    [8, 576, 49152],
];
const TYPES: [FloatDType; 2] = [FloatDType::F32, FloatDType::BF16];

fn main() {
    divan::main();
}

fn random(shape: [usize; 2]) -> Tensor<2> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex())
}

/// Counts the floating-point operations.
fn bench(
    bencher: Bencher<'_, '_>,
    index: usize,
    dtype: FloatDType,
    run: impl Fn(Tensor<2>, Tensor<2>) -> Tensor<2> + Sync,
    is_transposed: bool,
) {
    let [rows, inner, outer] = SHAPES[index];
    let x = random([rows, inner]);
    let weight = match is_transposed {
        true => random([outer, inner]),
        false => random([inner, outer]),
    };
    let weight = weight.cast(dtype);
    bencher
        .counter(ItemsCount::new(2 * rows * inner * outer))
        .bench_local(|| run(black_box(x.clone()), weight.clone()));
}

#[divan::bench(args = 0..SHAPES.len(), consts = [0, 1])]
fn x_w<const TYPE: usize>(bencher: Bencher<'_, '_>, shape: usize) {
    bench(
        bencher,
        shape,
        TYPES[TYPE],
        |x, w| linear(x, w, None),
        false,
    );
}

/// As the head of a language model, and as the gradient of `x`.
#[divan::bench(args = 0..SHAPES.len(), consts = [0, 1])]
fn x_w_transposed<const TYPE: usize>(bencher: Bencher<'_, '_>, shape: usize) {
    bench(
        bencher,
        shape,
        TYPES[TYPE],
        |x, table| linear_transposed(x, table, None),
        true,
    );
}
