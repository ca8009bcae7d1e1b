//! Products with a frozen matrix that is kept in bf16, or in blocks of 8 or 4 bits.
//!
//! The matrix lies in memory row by row, once, and serves both `x * W` and `x * W^T`. Where the
//! processor multiplies pairs of bf16 (AVX-512-BF16), `x` is rounded to bf16 (to nearest, ties to
//! even) and products are summed in f32; elsewhere the matrix is widened and all is f32. Blocks are decoded
//! to bf16 part by part. A few rows of `x`, as in decoding, go through kernels that read the rows of the
//! matrix once, as they lie. Where the matrix is of blocks, and there is no gradient or one token of each sequence, `x` is
//! rounded to bytes too, and products are those of whole numbers (AVX-512-VNNI).

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod bytes;
#[cfg(target_arch = "x86_64")]
mod decode;
mod matrix;
mod plain;
#[cfg(target_arch = "x86_64")]
mod rows;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod whole;

use burn::tensor::Shape;

use self::matrix::{Blocks, Frozen, Numbers};
use super::given;
use crate::flex::buffer::{FlexTensor, contiguous, elements, from_values};

/// How a matrix of blocks is to be read.
#[derive(Debug, Clone, Copy)]
pub(in crate::linear) struct BlockShape {
    pub(in crate::linear) bits: usize,
    pub(in crate::linear) num_cols: usize,
    /// Whether `x` has one token of each sequence, and may be rounded to bytes.
    pub(in crate::linear) is_step: bool,
}

/// `x * W + bias`, or `x * W^T + bias`, for f32 `x` and `bias` and `W` in bf16.
pub(in crate::linear) fn forward(
    x: FlexTensor,
    weight: FlexTensor,
    bias: FlexTensor,
    is_transposed: bool,
) -> FlexTensor {
    let (x, weight, bias) = (contiguous(x), contiguous(weight), contiguous(bias));
    let weight = half(&weight, is_transposed);
    affine(&x, weight, given(&bias, weight.outer()))
}

/// Gradient for `x`: the product with the other side of the matrix.
pub(in crate::linear) fn backward_x(
    weight: FlexTensor,
    grad: FlexTensor,
    is_transposed: bool,
) -> FlexTensor {
    let (weight, grad) = (contiguous(weight), contiguous(grad));
    affine(&grad, half(&weight, !is_transposed), None)
}

/// `x * W^T + bias` for a matrix of blocks. With a gradient, `x` is rounded to bytes in a step alone.
pub(in crate::linear) fn forward_blocks(
    x: FlexTensor,
    [codes, scales]: [FlexTensor; 2],
    bias: FlexTensor,
    shape: BlockShape,
    has_gradient: bool,
) -> FlexTensor {
    let [x, bias, codes, scales] = [x, bias, codes, scales].map(contiguous);
    let weight = blocks(&codes, &scales, shape);
    let bias = given(&bias, weight.dims[0]);
    #[cfg(target_arch = "x86_64")]
    if (shape.is_step || !has_gradient)
        && let Some(processor) = avx512::Processor::detect()
    {
        let product = match shape.is_step {
            true => bytes::product,
            false => whole::product,
        };
        let values = product(processor, elements(&x), weight, bias);
        let rows = x.layout().shape()[0];
        return from_values(values, Shape::from([rows, weight.dims[0]]));
    }
    affine(
        &x,
        Frozen::new(Numbers::Blocks(weight), weight.dims, true),
        bias,
    )
}

/// As [`backward_x`] for a matrix of blocks.
pub(in crate::linear) fn backward_x_blocks(
    parts: [FlexTensor; 2],
    grad: FlexTensor,
    shape: BlockShape,
) -> FlexTensor {
    let [codes, scales] = parts.map(contiguous);
    let grad = contiguous(grad);
    let weight = blocks(&codes, &scales, shape);
    affine(
        &grad,
        Frozen::new(Numbers::Blocks(weight), weight.dims, false),
        None,
    )
}

fn half(weight: &FlexTensor, is_transposed: bool) -> Frozen<'_> {
    let shape = weight.layout().shape();
    let values = weight.as_slice().expect("the operation took bf16");
    Frozen::new(Numbers::Half(values), [shape[0], shape[1]], is_transposed)
}

fn blocks<'a>(codes: &'a FlexTensor, scales: &'a FlexTensor, shape: BlockShape) -> Blocks<'a> {
    Blocks {
        codes: codes.as_slice().expect("codes are bytes"),
        scales: scales.as_slice().expect("scales are bf16"),
        bits: shape.bits,
        dims: [codes.layout().shape()[0], shape.num_cols],
    }
}

fn affine(x: &FlexTensor, weight: Frozen<'_>, bias: Option<&[f32]>) -> FlexTensor {
    let rows = x.layout().shape()[0];
    let values = product(elements(x), weight, bias);
    from_values(values, Shape::from([rows, weight.outer()]))
}

/// Rows of `x` times the matrix plus `bias`, by the best kernels of this processor.
fn product(x: &[f32], weight: Frozen<'_>, bias: Option<&[f32]>) -> Vec<f32> {
    assert_eq!(x.len() % weight.inner(), 0, "whole rows of x");
    assert!(bias.is_none_or(|bias| bias.len() == weight.outer()), "bias");
    #[cfg(target_arch = "x86_64")]
    if let Some(processor) = avx512::Processor::detect() {
        return processor.product(x, weight, bias);
    }
    plain::product(x, weight, bias)
}
