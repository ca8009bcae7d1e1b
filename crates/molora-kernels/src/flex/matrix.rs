//! Strided views of matrices in slices, and their product by the crate `gemm`.

use std::marker::PhantomData;
use std::ops::Range;

use gemm::Parallelism;

/// A matrix whose elements lie in a slice, `row_stride` and `col_stride` elements apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// `rows` of `cols` adjacent elements, the rows `row_stride` elements apart.
    ///
    /// # Panics
    /// If the last element lies outside of `data`.
    pub(crate) fn new(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(span(rows, cols, row_stride) <= data.len());
        Self {
            data,
            rows,
            cols,
            row_stride,
            col_stride: 1,
        }
    }

    pub(crate) fn num_rows(self) -> usize {
        self.rows
    }

    pub(crate) fn num_cols(self) -> usize {
        self.cols
    }

    /// Elements from one row to the next.
    pub(crate) fn row_stride(self) -> usize {
        self.row_stride
    }

    /// The slice that starts with the first element.
    pub(crate) fn data(self) -> &'a [f32] {
        self.data
    }

    /// The slice with the elements, if those of a row are adjacent.
    pub(crate) fn adjacent(self) -> Option<&'a [f32]> {
        (self.col_stride == 1).then_some(self.data)
    }

    /// The same elements with the axes exchanged.
    pub(crate) fn transposed(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }

    /// One row of a matrix that is not transposed.
    ///
    /// # Panics
    /// If there is no such row, or its elements are not adjacent.
    pub(crate) fn row(self, row: usize) -> &'a [f32] {
        assert!(row < self.rows && self.col_stride == 1);
        &self.data[row * self.row_stride..][..self.cols]
    }

    /// `count` rows from row `first` on.
    ///
    /// # Panics
    /// If there are fewer rows.
    pub(crate) fn rows(self, first: usize, count: usize) -> Self {
        assert!(first + count <= self.rows);
        // Without rows there may be no elements to start from.
        let start = if count == 0 {
            0
        } else {
            first * self.row_stride
        };
        Self {
            data: &self.data[start..],
            rows: count,
            ..self
        }
    }
}

/// A matrix to write to: rows of adjacent elements, `row_stride` elements apart. Several may
/// interleave in one slice, as the heads of attention do.
#[derive(Debug)]
pub(crate) struct MatrixMut<'a> {
    first: *mut f32,
    rows: usize,
    cols: usize,
    row_stride: usize,
    slice: PhantomData<&'a mut [f32]>,
}

// SAFETY: a `MatrixMut` is an exclusive borrow of its elements, as `&mut [f32]` is.
#[allow(unsafe_code)]
unsafe impl Send for MatrixMut<'_> {}

impl<'a> MatrixMut<'a> {
    /// The whole of `data` as `rows` of `cols`, the rows `row_stride` apart.
    ///
    /// # Panics
    /// If the last element lies outside of `data`.
    pub(crate) fn new(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(span(rows, cols, row_stride) <= data.len());
        assert!(rows <= 1 || cols <= row_stride, "rows overlap");
        Self {
            first: data.as_mut_ptr(),
            rows,
            cols,
            row_stride,
            slice: PhantomData,
        }
    }

    /// Cuts `data`, `rows` of `parts * cols` elements, into `parts` matrices of `cols` columns.
    ///
    /// # Panics
    /// If `data` has another length.
    pub(crate) fn columns(
        data: &'a mut [f32],
        rows: usize,
        cols: usize,
        parts: usize,
    ) -> Vec<Self> {
        let row_stride = cols * parts;
        assert_eq!(data.len(), rows * row_stride);
        let start = data.as_mut_ptr();
        (0..parts)
            .map(|part| Self {
                // `wrapping`, because without rows there is nothing to point to.
                first: start.wrapping_add(part * cols),
                rows,
                cols,
                row_stride,
                slice: PhantomData,
            })
            .collect()
    }

    /// Some columns of `data`, which is `rows` of `cols`.
    ///
    /// # Panics
    /// If `data` has another length, or there are fewer columns.
    pub(crate) fn some_columns(
        data: &'a mut [f32],
        [rows, cols]: [usize; 2],
        columns: Range<usize>,
    ) -> Self {
        assert_eq!(data.len(), rows * cols);
        assert!(columns.start <= columns.end && columns.end <= cols);
        Self {
            first: data.as_mut_ptr().wrapping_add(columns.start),
            rows,
            cols: columns.len(),
            row_stride: cols,
            slice: PhantomData,
        }
    }

    /// `count` rows from row `first` on.
    ///
    /// # Panics
    /// If there are fewer rows.
    pub(crate) fn rows(&mut self, first: usize, count: usize) -> MatrixMut<'_> {
        assert!(first + count <= self.rows);
        MatrixMut {
            first: self.first.wrapping_add(first * self.row_stride),
            rows: count,
            cols: self.cols,
            row_stride: self.row_stride,
            slice: PhantomData,
        }
    }

    /// One row.
    ///
    /// # Panics
    /// If there is no such row.
    pub(crate) fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows);
        // SAFETY: the constructors checked that all rows lie in the borrowed slice, no other
        // `MatrixMut` holds the same columns, and `&mut self` is the only use of this one.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts_mut(self.first.add(row * self.row_stride), self.cols)
        }
    }
}

/// Elements from the first to the last of a matrix.
fn span(rows: usize, cols: usize, row_stride: usize) -> usize {
    if rows == 0 || cols == 0 {
        0
    } else {
        (rows - 1) * row_stride + cols
    }
}

/// What a product does with the destination's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Into {
    /// Overwrites them.
    Replace,
    /// Adds to them.
    Add,
}

/// `target = factor * left * right`, or `target += ...`, on the calling thread.
///
/// # Panics
/// If the shapes do not fit.
pub(crate) fn multiply(
    target: &mut MatrixMut<'_>,
    mode: Into,
    factor: f32,
    left: Matrix<'_>,
    right: Matrix<'_>,
) {
    multiply_on(Parallelism::None, target, mode, factor, left, right);
}

/// As [`multiply`], on all threads if the product is large enough.
pub(crate) fn multiply_parallel(
    target: &mut MatrixMut<'_>,
    mode: Into,
    factor: f32,
    left: Matrix<'_>,
    right: Matrix<'_>,
) {
    // 0 stands for all threads. They share out tiles of the target: no sum depends on them.
    multiply_on(Parallelism::Rayon(0), target, mode, factor, left, right);
}

fn multiply_on(
    threads: Parallelism,
    target: &mut MatrixMut<'_>,
    mode: Into,
    factor: f32,
    left: Matrix<'_>,
    right: Matrix<'_>,
) {
    assert_eq!(left.cols, right.rows, "inner dimensions");
    assert_eq!(
        (target.rows, target.cols),
        (left.rows, right.cols),
        "target shape"
    );
    // SAFETY: the constructors of the views checked that every element lies in its slice, the
    // assertions above that the views have the shapes given here, and `target` is exclusive.
    #[allow(unsafe_code)]
    unsafe {
        gemm::gemm(
            target.rows,
            target.cols,
            left.cols,
            target.first,
            1,
            target.row_stride as isize,
            mode == Into::Add,
            left.data.as_ptr(),
            left.col_stride as isize,
            left.row_stride as isize,
            right.data.as_ptr(),
            right.col_stride as isize,
            right.row_stride as isize,
            1.0,
            factor,
            false,
            false,
            false,
            threads,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `[[0, 1, 2], [3, 4, 5]]` and so on.
    fn counting(len: usize) -> Vec<f32> {
        (0..len).map(|i| i as f32).collect()
    }

    #[test]
    fn multiply_takes_strides_on_every_side() {
        let (left, right) = (counting(8), counting(6));
        let left = Matrix::new(&left, 2, 3, 4); // [[0, 1, 2], [4, 5, 6]]
        let right = Matrix::new(&right, 2, 3, 3).transposed(); // [[0, 3], [1, 4], [2, 5]]
        let mut out = vec![7.0; 6];
        let mut target = MatrixMut::new(&mut out, 2, 2, 3);
        multiply(&mut target, Into::Replace, 2.0, left, right);
        multiply(&mut target, Into::Add, -1.0, left, right);
        assert_eq!(out, [5.0, 14.0, 7.0, 17.0, 62.0, 7.0]);
    }

    #[test]
    fn columns_interleave() {
        let mut out = vec![0.0; 8];
        for (part, mut matrix) in MatrixMut::columns(&mut out, 2, 2, 2)
            .into_iter()
            .enumerate()
        {
            matrix.row(0).fill(part as f32);
            matrix.rows(1, 1).row(0).fill(part as f32 + 10.0);
        }
        assert_eq!(out, [0.0, 0.0, 1.0, 1.0, 10.0, 10.0, 11.0, 11.0]);
    }

    #[test]
    #[should_panic(expected = "span")]
    fn a_matrix_outside_of_its_slice_is_refused() {
        Matrix::new(&[0.0; 5], 2, 3, 3);
    }
}
