//! Products of a few rows in f32, as in decoding, with AVX-512: the matrix is read once, as it lies.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::ops::Range;

use super::tiles::{LANES, Target};
use crate::flex::matrix::Matrix;
use crate::flex::simd::vectorised;
use crate::flex::team::{fill_columns, for_each};

/// Rows of `x` that a kernel takes at most.
const FEW: usize = 8;
/// Rows of `W` whose products are added while sums are in registers: they lie side by side in memory.
const BLOCK: usize = 4;
/// Bytes of `W` that one task reads, row by row. Their sums are added afterwards, so that it may not depend on the number
/// of threads.
const PART: usize = 256 * 1024;
/// Most parts of a product.
const MOST: usize = 32;

/// A few rows of `x`: adjacent numbers, and from one row to the next.
#[derive(Debug, Clone, Copy)]
struct Rows<'a> {
    numbers: &'a [f32],
    stride: usize,
    inner: usize,
}

impl Rows<'_> {
    /// The number of row `m` at `index`, to read from.
    fn at(&self, m: usize, index: usize) -> *const f32 {
        self.numbers[m * self.stride + index..].as_ptr()
    }
}

/// `x * weight + bias` for up to eight rows, if this processor has AVX-512.
pub(super) fn product(x: Matrix<'_>, weight: Matrix<'_>, bias: Option<&[f32]>) -> Option<Vec<f32>> {
    let (rows, inner, cols) = (x.num_rows(), x.num_cols(), weight.num_cols());
    let is_suited = (1..=FEW).contains(&rows) && inner > 0 && cols > 0;
    if !is_suited || !is_x86_feature_detected!("avx512f") {
        return None;
    }
    assert_eq!(inner, weight.num_rows(), "inner dimensions");
    assert!(bias.is_none_or(|bias| bias.len() == cols), "bias");
    let x = Rows {
        numbers: x.adjacent()?,
        stride: x.row_stride(),
        inner,
    };
    assert!(
        x.numbers.len() >= (rows - 1) * x.stride + inner,
        "rows of x"
    );
    let transposed = weight.adjacent().is_none();
    // SAFETY: the processor has the instructions; the tasks have all columns or rows, and each its own.
    Some(unsafe {
        match transposed {
            true => by_columns(rows, x, weight.transposed(), bias),
            false => by_rows(rows, x, weight, bias),
        }
    })
}

/// `x * W^T` for a matrix of adjacent rows, some of them in each task.
#[target_feature(enable = "avx512f")]
unsafe fn by_columns(
    rows: usize,
    x: Rows<'_>,
    rows_of: Matrix<'_>,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let run = |columns: Range<usize>, target: Target| {
        // SAFETY: as promised by the caller.
        unsafe {
            match rows {
                1 => transposed::<1, 4>(x, rows_of, bias, columns, target),
                2 => transposed::<2, 4>(x, rows_of, bias, columns, target),
                3 => transposed::<3, 4>(x, rows_of, bias, columns, target),
                4 => transposed::<4, 4>(x, rows_of, bias, columns, target),
                5 => transposed::<5, 4>(x, rows_of, bias, columns, target),
                6 => transposed::<6, 4>(x, rows_of, bias, columns, target),
                7 => transposed::<7, 2>(x, rows_of, bias, columns, target),
                _ => transposed::<FEW, 2>(x, rows_of, bias, columns, target),
            }
        }
    };
    let (cols, bytes) = (rows_of.num_rows(), size_of::<f32>() * x.inner);
    // SAFETY: the tasks have all columns.
    unsafe {
        Target::filled(rows, cols, |target| {
            fill_columns(cols, LANES, bytes, |columns| run(columns, target));
        })
    }
}

/// `x * W` by sums over some rows of `W` in each task, which reads them as they lie.
#[target_feature(enable = "avx512f")]
unsafe fn by_rows(rows: usize, x: Rows<'_>, weight: Matrix<'_>, bias: Option<&[f32]>) -> Vec<f32> {
    let (inner, cols) = (x.inner, weight.num_cols());
    let parts = (inner * cols * size_of::<f32>()).div_ceil(PART).min(MOST);
    let step = inner.div_ceil(parts).next_multiple_of(BLOCK);
    let parts = inner.div_ceil(step);
    let run = |part: usize, target: Target| {
        let of = part * step..inner.min((part + 1) * step);
        let bias = bias.filter(|_| part == 0);
        // SAFETY: as promised by the caller; each part has rows of the target of its own.
        unsafe {
            match rows {
                // Of few columns all sums are in registers from the start to the end.
                1 if cols <= LANES => as_it_lies::<1, 1>(x, weight, bias, of, target),
                1 => as_it_lies::<1, 8>(x, weight, bias, of, target),
                2 => as_it_lies::<2, 8>(x, weight, bias, of, target),
                3 => as_it_lies::<3, 6>(x, weight, bias, of, target),
                4 => as_it_lies::<4, 6>(x, weight, bias, of, target),
                5 => as_it_lies::<5, 4>(x, weight, bias, of, target),
                6 => as_it_lies::<6, 4>(x, weight, bias, of, target),
                7 => as_it_lies::<7, 3>(x, weight, bias, of, target),
                _ => as_it_lies::<FEW, 3>(x, weight, bias, of, target),
            }
        }
    };
    // SAFETY: the parts write their rows whole.
    let mut sums = unsafe {
        Target::filled(parts * rows, cols, |target| {
            for_each(parts, |part| run(part, target.rows_from(part * rows)));
        })
    };
    let (total, others) = sums.split_at_mut(rows * cols);
    vectorised(
        #[inline(always)]
        || {
            for part in others.chunks_exact(rows * cols) {
                for (total, &part) in total.iter_mut().zip(part) {
                    *total += part;
                }
            }
        },
    );
    sums.truncate(rows * cols);
    sums
}

/// The sums over some rows of `W`, block by block: their order is that of the rows. `S` registers of columns at a time.
#[target_feature(enable = "avx512f")]
unsafe fn as_it_lies<const M: usize, const S: usize>(
    x: Rows<'_>,
    weight: Matrix<'_>,
    bias: Option<&[f32]>,
    rows: Range<usize>,
    target: Target,
) {
    let cols = weight.num_cols();
    let step = if cols <= S * LANES { rows.len() } else { BLOCK };
    for first in rows.clone().step_by(step.max(1)) {
        let block = first..rows.end.min(first + step);
        let start = (first == rows.start).then_some(bias);
        for column in (0..cols).step_by(S * LANES) {
            let columns = column..cols.min(column + S * LANES);
            // SAFETY: as promised by the caller.
            unsafe { add_block::<M, S>(x, weight, start, block.clone(), columns, target) }
        }
    }
}

/// Adds the products with some rows of `W` to up to `S` registers of columns, which begin with the bias at the start.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn add_block<const M: usize, const S: usize>(
    x: Rows<'_>,
    weight: Matrix<'_>,
    start: Option<Option<&[f32]>>,
    block: Range<usize>,
    columns: Range<usize>,
    target: Target,
) {
    let column = columns.start;
    let mask = |s: usize| {
        let count = columns.len().saturating_sub(s * LANES).min(LANES);
        ((1u32 << count) - 1) as u16
    };
    let masks: [u16; S] = std::array::from_fn(mask);
    let out = |m: usize, s: usize| {
        let offset = m * target.cols + column + s * LANES;
        target.first.wrapping_add(offset)
    };
    let mut sums = [[_mm512_setzero_ps(); S]; M];
    for (m, sums) in sums.iter_mut().enumerate() {
        for (s, sum) in sums.iter_mut().enumerate() {
            let from = match start {
                Some(None) => continue,
                Some(Some(bias)) => bias.as_ptr().wrapping_add(column + s * LANES),
                None => out(m, s).cast_const(),
            };
            // SAFETY: the mask ends with the columns, which the bias and the caller's target have.
            *sum = unsafe { _mm512_maskz_loadu_ps(masks[s], from) };
        }
    }
    let x: [*const f32; M] = std::array::from_fn(|m| x.at(m, block.start));
    let stride = weight.row_stride();
    for (step, row) in block.enumerate() {
        let row = weight.row(row)[columns.clone()].as_ptr();
        for (s, &mask) in masks.iter().enumerate() {
            let at = row.wrapping_add(s * LANES);
            // SAFETY: the mask ends with the columns of the row, `x` has a number for each row, and asking for memory
            // ahead reads nothing.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(BLOCK * stride).cast());
                let w = _mm512_maskz_loadu_ps(mask, at);
                for (sums, x) in sums.iter_mut().zip(&x) {
                    sums[s] = _mm512_fmadd_ps(_mm512_set1_ps(*x.add(step)), w, sums[s]);
                }
            }
        }
    }
    for (m, sums) in sums.iter().enumerate() {
        for (s, sum) in sums.iter().enumerate() {
            // SAFETY: as for reading.
            unsafe { _mm512_mask_storeu_ps(out(m, s), masks[s], *sum) };
        }
    }
}

/// `x * W^T`: products with rows of `W`, `R` at a time.
#[target_feature(enable = "avx512f")]
unsafe fn transposed<const M: usize, const R: usize>(
    x: Rows<'_>,
    rows_of: Matrix<'_>,
    bias: Option<&[f32]>,
    rows: Range<usize>,
    target: Target,
) {
    let write = |row: usize, sums: [f32; M]| {
        let bias = bias.map_or(0.0, |bias| bias[row]);
        // SAFETY: the caller's rows of the matrix are columns of the target.
        unsafe { target.set_column(0, row, sums.map(|sum| sum + bias)) }
    };
    let whole = rows.len() / R * R;
    for row in rows.clone().take(whole).step_by(R) {
        let sums = dots::<M, R>(x, rows_of, row);
        (row..).zip(sums).for_each(|(row, sums)| write(row, sums));
    }
    for row in rows.skip(whole) {
        let [sums] = dots::<M, 1>(x, rows_of, row);
        write(row, sums);
    }
}

/// Products of `R` rows of a matrix with `M` rows of `x`.
#[inline]
#[target_feature(enable = "avx512f")]
fn dots<const M: usize, const R: usize>(
    x: Rows<'_>,
    rows_of: Matrix<'_>,
    first: usize,
) -> [[f32; M]; R] {
    let rows: [_; R] = std::array::from_fn(|r| rows_of.row(first + r).as_ptr());
    let x_rows: [_; M] = std::array::from_fn(|m| x.at(m, 0));
    // The rows that follow these.
    let ahead = R * rows_of.row_stride();
    let mut sums = [[_mm512_setzero_ps(); M]; R];
    for start in (0..x.inner).step_by(LANES) {
        let mask = u16::MAX >> (LANES - LANES.min(x.inner - start));
        // SAFETY: the mask ends with the numbers of the rows, and asking for memory ahead reads nothing.
        unsafe {
            let x = x_rows.map(|row| _mm512_maskz_loadu_ps(mask, row.add(start)));
            for (row, sums) in rows.iter().zip(&mut sums) {
                let at = row.wrapping_add(start);
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(ahead).cast());
                let w = _mm512_maskz_loadu_ps(mask, at);
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum = _mm512_fmadd_ps(x, w, *sum);
                }
            }
        }
    }
    let mut out = [[0.0; M]; R];
    for (out, sums) in out.iter_mut().flatten().zip(sums.iter().flatten()) {
        *out = _mm512_reduce_add_ps(*sums);
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{assert_product, values};

    /// Numbers between the rows of the matrix.
    const GAP: usize = 3;

    fn check([rows, inner, cols]: [usize; 3], is_transposed: bool, has_bias: bool, seed: u64) {
        let x = values(rows * inner, seed);
        let (height, width) = match is_transposed {
            true => (cols, inner),
            false => (inner, cols),
        };
        let numbers = values(height * (width + GAP), seed ^ 1);
        let bias = values(cols, seed ^ 2);
        let bias = has_bias.then_some(bias.as_slice());
        let number = |i: usize, o: usize| match is_transposed {
            true => numbers[o * (width + GAP) + i],
            false => numbers[i * (width + GAP) + o],
        };
        let weight = Matrix::new(&numbers, height, width, width + GAP);
        let weight = match is_transposed {
            true => weight.transposed(),
            false => weight,
        };
        let Some(actual) = product(Matrix::new(&x, rows, inner, inner), weight, bias) else {
            return; // another processor
        };
        let what = format!("[{rows}, {inner}] x [{inner}, {cols}] transposed: {is_transposed}");
        assert_product(&actual, &x, [rows, inner, cols], number, bias, &what);
    }

    #[test]
    fn every_number_of_rows_and_every_tail() {
        for rows in 1..=FEW {
            for (inner, cols) in [(1, 1), (15, 130), (16, 16), (17, 33), (70, 8), (33, 400)] {
                for is_transposed in [false, true] {
                    check([rows, inner, cols], is_transposed, rows % 2 == 0, 7);
                }
            }
        }
        let x = vec![1.0; 9 * 16];
        assert!(product(Matrix::new(&x, 9, 16, 16), Matrix::new(&x, 16, 9, 9), None).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn any_shape(
            rows in 1..=FEW, inner in 1usize..200, cols in 1usize..700, is_transposed: bool, has_bias: bool,
            seed: u64,
        ) {
            check([rows, inner, cols], is_transposed, has_bias, seed);
        }
    }

    #[test]
    fn nan_and_infinities_stay_in_their_row() {
        let (inner, cols) = (40, 70);
        let ones = vec![1.0; inner * cols];
        for first in [f32::INFINITY, f32::NEG_INFINITY, 1e-40, f32::NAN] {
            let mut x = vec![0.0; 3 * inner];
            x[inner + 3] = first;
            let x = Matrix::new(&x, 3, inner, inner);
            for weight in [
                Matrix::new(&ones, inner, cols, cols),
                Matrix::new(&ones, cols, inner, inner).transposed(),
            ] {
                let Some(out) = product(x, weight, None) else {
                    return;
                };
                let is_first = |value: &f32| *value == first || value.is_nan() && first.is_nan();
                assert!(out[cols..2 * cols].iter().all(is_first));
                assert!(
                    out[..cols]
                        .iter()
                        .chain(&out[2 * cols..])
                        .all(|value| *value == 0.0)
                );
            }
        }
    }

    #[test]
    fn the_same_bits_for_any_number_of_threads() {
        let (x, numbers) = (values(5 * 300, 1), values(300 * 4000, 2));
        let x = Matrix::new(&x, 5, 300, 300);
        for weight in [
            Matrix::new(&numbers, 300, 4000, 4000),
            Matrix::new(&numbers, 4000, 300, 300).transposed(),
        ] {
            let run = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                let pool = pool.expect("threads can be started");
                let alone = pool.install(|| product(x, weight, None));
                let together = || crate::flex::team::together(|| product(x, weight, None));
                assert_eq!(alone, pool.install(together));
                alone
            };
            assert_eq!(run(1), run(3));
            assert_eq!(run(1), run(8));
        }
    }
}
