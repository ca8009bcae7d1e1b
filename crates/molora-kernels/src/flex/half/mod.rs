//! Products with a frozen matrix that is kept in bf16.
//!
//! The matrix lies in memory row by row, once, and serves both `x * W` and `x * W^T`. Where the
//! processor multiplies pairs of bf16 (AVX-512-BF16), `x` is rounded to bf16 (to nearest, ties to
//! even) and products are summed in f32; elsewhere the matrix is widened and all is f32. A few rows
//! of `x`, as in decoding, go through kernels that read the matrix once, as it lies.

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod panel;
mod plain;
#[cfg(target_arch = "x86_64")]
mod rows;
#[cfg(test)]
mod tests;

use burn::tensor::{Shape, bf16};

use super::buffer::{FlexTensor, contiguous, elements, from_values};

/// A matrix in bf16 on one side of a product, as it lies in memory: `rows` of `cols`.
#[derive(Debug, Clone, Copy)]
struct Frozen<'a> {
    values: &'a [bf16],
    rows: usize,
    cols: usize,
    /// Whether the product is with the transposed matrix.
    is_transposed: bool,
}

impl<'a> Frozen<'a> {
    /// # Panics
    /// If `values` are not `rows` of `cols`.
    fn new(values: &'a [bf16], [rows, cols]: [usize; 2], is_transposed: bool) -> Self {
        assert_eq!(values.len(), rows * cols, "size of the frozen matrix");
        Self {
            values,
            rows,
            cols,
            is_transposed,
        }
    }

    fn of(tensor: &'a FlexTensor, is_transposed: bool) -> Self {
        let shape = tensor.layout().shape();
        let values = tensor.as_slice().expect("the operation took bf16");
        Self::new(values, [shape[0], shape[1]], is_transposed)
    }

    /// How many numbers a sum of the product has.
    fn inner(&self) -> usize {
        if self.is_transposed {
            self.cols
        } else {
            self.rows
        }
    }

    /// How many columns the product has.
    fn outer(&self) -> usize {
        if self.is_transposed {
            self.rows
        } else {
            self.cols
        }
    }
}

/// `x * W + bias`, or `x * W^T + bias`, for f32 `x` and `bias` and `W` in bf16.
pub(crate) fn forward(
    x: FlexTensor,
    weight: FlexTensor,
    bias: FlexTensor,
    is_transposed: bool,
) -> FlexTensor {
    let (x, weight, bias) = (contiguous(x), contiguous(weight), contiguous(bias));
    let weight = Frozen::of(&weight, is_transposed);
    affine(&x, weight, Some(elements(&bias)))
}

/// Gradient for `x`: the product with the other side of the matrix.
pub(crate) fn backward_x(weight: FlexTensor, grad: FlexTensor, is_transposed: bool) -> FlexTensor {
    let (weight, grad) = (contiguous(weight), contiguous(grad));
    affine(&grad, Frozen::of(&weight, !is_transposed), None)
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
