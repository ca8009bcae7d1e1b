//! Products of f32 with f32 matrices of any strides.

use super::kernel::SINGLE;
use super::{COLUMNS, Words, multiply};
use crate::flex::matrix::Matrix;

/// Fewer rows are not worth laying out the matrix.
const LEAST_ROWS: usize = 16;
/// With fewer columns, most of a panel would be empty.
const LEAST_COLUMNS: usize = COLUMNS / 2;

/// `x * weight + bias` if this processor has AVX-512 and the shapes suit it.
pub(crate) fn product(x: Matrix<'_>, weight: Matrix<'_>, bias: Option<&[f32]>) -> Option<Vec<f32>> {
    let (rows, cols) = (x.num_rows(), weight.num_cols());
    let is_suited = rows >= LEAST_ROWS && cols >= LEAST_COLUMNS && x.num_cols() > 0;
    if !is_suited || !is_x86_feature_detected!("avx512f") {
        return None;
    }
    assert_eq!(x.num_cols(), weight.num_rows(), "inner dimensions");
    assert!(bias.is_none_or(|bias| bias.len() == cols), "bias");
    let words = Words {
        words: words(x.adjacent()?),
        stride: x.row_stride(),
        inner: x.num_cols(),
    };
    // SAFETY: the processor has AVX-512F, which is all that the panel and the tiles need.
    unsafe {
        Some(multiply(
            &SINGLE,
            words,
            [rows, cols],
            bias,
            || (),
            |panel, (), inner, columns| panel.fill_single(weight, inner, columns),
        ))
    }
}

/// The bits of some numbers.
fn words(numbers: &[f32]) -> &[u32] {
    // SAFETY: both types have the same size and alignment, and any bits are a `u32`.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), numbers.len()) }
}
