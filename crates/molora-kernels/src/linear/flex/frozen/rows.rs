//! Products of a few rows, as in decoding, with AVX-512-BF16: the matrix is read once, as it lies.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::ops::Range;

use super::avx512::{Processor, Rounded};
use super::matrix::Frozen;
use crate::flex::team::fill_columns;
use crate::linear::flex::half::Half;
use crate::linear::flex::tiles::{LANES, Target, dot};

/// Numbers in a register of bf16.
const PAIRED: usize = 2 * LANES;
/// Rows of the matrix that a task takes a multiple of.
const TASK_ROWS: usize = 16;
/// How many bytes ahead memory is asked for at least.
pub(super) const AHEAD: usize = 4096;

/// The product of up to eight rows with the transposed matrix.
pub(super) fn product(
    _: Processor,
    rows: usize,
    x: &Rounded,
    weight: Frozen<'_>,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    assert!(weight.is_transposed, "sums along the rows of the matrix");
    let bytes = 2 * weight.inner();
    fill(rows, bytes, weight.outer(), |target, columns| {
        // SAFETY: the processor has the instructions; each task has columns of its own.
        unsafe {
            match target.rows {
                1 => some::<1>(x, weight, bias, columns, target),
                2 => some::<2>(x, weight, bias, columns, target),
                3 => some::<3>(x, weight, bias, columns, target),
                4 => some::<4>(x, weight, bias, columns, target),
                5 => some::<5>(x, weight, bias, columns, target),
                6 => some::<6>(x, weight, bias, columns, target),
                7 => some::<7>(x, weight, bias, columns, target),
                8 => some::<8>(x, weight, bias, columns, target),
                rows => unreachable!("{rows} rows are many"),
            }
        }
    })
}

/// `rows` of `cols` numbers of a product with a matrix of `cols` rows of so many `bytes`; `run` writes
/// all rows of some columns, which are of one task alone.
pub(super) fn fill(
    rows: usize,
    bytes: usize,
    cols: usize,
    run: impl Fn(Target, Range<usize>) + Sync,
) -> Vec<f32> {
    // SAFETY: the tasks have all columns.
    unsafe {
        Target::filled(rows, cols, |target| {
            fill_columns(cols, TASK_ROWS, bytes * rows, |columns| {
                run(target, columns)
            });
        })
    }
}

/// Columns of the product of `M` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn some<const M: usize>(
    x: &Rounded,
    weight: Frozen<'_>,
    bias: Option<&[f32]>,
    columns: Range<usize>,
    target: Target,
) {
    // SAFETY: as promised by the caller.
    unsafe {
        match M {
            0..=2 => rows_of_matrix::<M, 8>(x, weight, bias, columns, target),
            3..=4 => rows_of_matrix::<M, 4>(x, weight, bias, columns, target),
            _ => rows_of_matrix::<M, 2>(x, weight, bias, columns, target),
        }
    }
}

/// `x * W^T`: products with rows of the matrix, `R` at a time.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn rows_of_matrix<const M: usize, const R: usize>(
    x: &Rounded,
    weight: Frozen<'_>,
    bias: Option<&[f32]>,
    rows: Range<usize>,
    target: Target,
) {
    let write = |row: usize, sums: [f32; M]| {
        let bias = bias.map_or(0.0, |bias| bias[row]);
        // SAFETY: the caller's rows of the matrix are columns of the target.
        unsafe { target.set_column(0, row, sums.map(|sum| sum + bias)) }
    };
    let scratch = &mut Vec::new();
    let whole = rows.len() / R * R;
    for row in rows.clone().take(whole).step_by(R) {
        let part = weight.part(row..row + R, 0..weight.cols, scratch);
        let sums = dots::<M, R>(x, part);
        (row..).zip(sums).for_each(|(row, sums)| write(row, sums));
    }
    for row in rows.skip(whole) {
        let [sums] = dots::<M, 1>(x, weight.part(row..row + 1, 0..weight.cols, scratch));
        write(row, sums);
    }
}

/// Products of `R` rows of the matrix with `M` rows of `x`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn dots<const M: usize, const R: usize>(x: &Rounded, part: Half<'_>) -> [[f32; M]; R] {
    let cols = part.cols;
    let rows: [_; R] = std::array::from_fn(|r| part.row(r).as_ptr());
    let x: [_; M] = std::array::from_fn(|m| x.row(m)[..cols.div_ceil(PAIRED) * LANES].as_ptr());
    // The rows that follow these, but not too near.
    let ahead = (2 * R * part.stride).max(AHEAD);
    let mut sums = [[_mm512_setzero_ps(); M]; R];
    for start in (0..cols).step_by(PAIRED) {
        let mask = u32::MAX >> (PAIRED - PAIRED.min(cols - start));
        for (row, sums) in rows.iter().zip(&mut sums) {
            // SAFETY: the slices above have `cols` numbers, rows of `x` are filled up with zeros,
            // and asking for memory ahead reads nothing.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(
                    row.wrapping_add(start).wrapping_byte_add(ahead).cast(),
                );
                let w = _mm512_maskz_loadu_epi16(mask, row.add(start).cast());
                for (sum, x) in sums.iter_mut().zip(&x) {
                    *sum = dot(*sum, _mm512_loadu_si512(x.add(start / 2).cast()), w);
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
