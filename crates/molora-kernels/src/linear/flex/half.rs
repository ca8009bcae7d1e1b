//! Views of matrices in bf16.

use burn::tensor::bf16;

/// A part of a matrix in bf16: rows of adjacent numbers, `stride` apart.
#[derive(Debug, Clone, Copy)]
pub(super) struct Half<'a> {
    values: &'a [bf16],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) stride: usize,
}

impl<'a> Half<'a> {
    /// `rows` of `cols` adjacent numbers, the rows `stride` apart, from the first of `values` on.
    #[inline]
    pub(super) fn new(values: &'a [bf16], rows: usize, cols: usize, stride: usize) -> Self {
        Self {
            values,
            rows,
            cols,
            stride,
        }
    }

    /// One row.
    ///
    /// # Panics
    /// If there is no such row.
    pub(super) fn row(&self, row: usize) -> &'a [bf16] {
        assert!(row < self.rows);
        &self.values[row * self.stride..][..self.cols]
    }
}
