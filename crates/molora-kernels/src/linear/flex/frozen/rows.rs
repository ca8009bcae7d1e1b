//! Products of a few rows, as in decoding, with AVX-512-BF16: the matrix is read once, as it lies.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::ops::Range;

use rayon::prelude::*;

use super::avx512::{Processor, Rounded};
use super::matrix::Frozen;
use crate::linear::flex::half::Half;
use crate::linear::flex::tiles::{LANES, Target, dot};

/// Numbers in a register of bf16.
const PAIRED: usize = 2 * LANES;
/// Numbers of the matrix that a task takes at least: waking a thread for fewer costs more.
const TASK: usize = 64 * 1024;
/// Columns of the product that a task takes at least, so that it reads runs of memory.
const TASK_COLUMNS: usize = 128;
/// Pairs of rows of the matrix that are read side by side.
const SIDE_BY_SIDE: usize = 16;
/// How many bytes ahead memory is asked for.
const AHEAD: usize = 512;

/// The product of up to eight rows.
pub(super) fn product(
    _: Processor,
    rows: usize,
    x: &Rounded,
    weight: Frozen<'_>,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let cols = weight.outer();
    let mut values = Vec::with_capacity(rows * cols);
    let target = Target {
        first: values.as_mut_ptr(),
        rows,
        cols,
    };
    let run = |columns: Range<usize>| {
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
    };
    let least = (TASK / weight.inner()).max(TASK_COLUMNS);
    let share = cols.div_ceil(rayon::current_num_threads());
    let step = share.max(least).next_multiple_of(TASK_COLUMNS);
    if step >= cols {
        run(0..cols);
    } else {
        let starts = (0..cols).into_par_iter().step_by(step);
        starts.for_each(|start| run(start..cols.min(start + step)));
    }
    // SAFETY: the capacity is `rows * cols`, and each column was written.
    unsafe {
        values.set_len(rows * cols);
    }
    values
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
        match (weight.is_transposed, M) {
            (true, ..=2) => rows_of_matrix::<M, 8>(x, weight, bias, columns, target),
            (true, ..=4) => rows_of_matrix::<M, 4>(x, weight, bias, columns, target),
            (true, _) => rows_of_matrix::<M, 2>(x, weight, bias, columns, target),
            (false, ..=4) => columns_of_matrix::<M, 4>(x, weight, bias, columns, target),
            (false, _) => columns_of_matrix::<M, 2>(x, weight, bias, columns, target),
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
        for (m, sum) in sums.into_iter().enumerate() {
            // SAFETY: the caller's rows of the matrix are columns of the target.
            unsafe { *target.first.add(m * target.cols + row) = sum + bias }
        }
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
    let mut sums = [[_mm512_setzero_ps(); M]; R];
    for start in (0..cols).step_by(PAIRED) {
        let mask = u32::MAX >> (PAIRED - PAIRED.min(cols - start));
        for (row, sums) in rows.iter().zip(&mut sums) {
            // SAFETY: the slices above have `cols` numbers, rows of `x` are filled up with zeros,
            // and asking for memory ahead reads nothing.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(
                    row.wrapping_add(start).wrapping_byte_add(AHEAD).cast(),
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

/// `x * W`: products with columns of the matrix, `P` registers of f32 at a time.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn columns_of_matrix<const M: usize, const P: usize>(
    x: &Rounded,
    weight: Frozen<'_>,
    bias: Option<&[f32]>,
    columns: Range<usize>,
    target: Target,
) {
    let zeros = vec![0.0; if bias.is_none() { target.cols } else { 0 }];
    let bias = bias.unwrap_or(&zeros);
    let mut scratch = Vec::new();
    for first in (0..weight.rows).step_by(2 * SIDE_BY_SIDE) {
        let rows = first..weight.rows.min(first + 2 * SIDE_BY_SIDE);
        let part = weight.part(rows, columns.clone(), &mut scratch);
        for column in columns.clone().step_by(P * LANES) {
            let count = (columns.end - column).min(P * LANES);
            let within = column - columns.start..column - columns.start + count;
            // SAFETY: `count` columns of the matrix are columns of the target, and of the bias.
            unsafe {
                let out = target.first.add(column);
                let start = match first {
                    0 => (bias[column..][..count].as_ptr(), 0),
                    _ => (out.cast_const(), target.cols),
                };
                add_rows::<M, P>((x, first / 2), part, within, start, (out, target.cols));
            }
        }
    }
}

/// `out = start + x * W` for some columns of some rows of the matrix, which meet the pairs of `x`
/// from `pair` on; `start` and `out` come with the distance of their rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn add_rows<const M: usize, const P: usize>(
    (x, pair): (&Rounded, usize),
    part: Half<'_>,
    columns: Range<usize>,
    (start, start_stride): (*const f32, usize),
    (out, out_stride): (*mut f32, usize),
) {
    let mask = u64::MAX >> (64 - columns.len());
    let pairs = part.rows.div_ceil(2);
    // The next rows of the matrix: those ahead in this one belong to other columns.
    let ahead = 2 * SIDE_BY_SIDE * part.stride;
    let x: [_; M] = std::array::from_fn(|m| x.row(m)[pair..pair + pairs].as_ptr());
    // In the order that unpacking gives, which is put right at the end.
    let mut sums = [[_mm512_setzero_ps(); P]; M];
    for pair in 0..pairs {
        let even = part.row(2 * pair)[columns.clone()].as_ptr();
        let (odd, odd_mask) = match 2 * pair + 1 < part.rows {
            true => (part.row(2 * pair + 1)[columns.clone()].as_ptr(), mask),
            false => (even, 0),
        };
        for half in 0..P / 2 {
            let (even, odd) = (
                even.wrapping_add(half * PAIRED),
                odd.wrapping_add(half * PAIRED),
            );
            let shift = half * PAIRED;
            // SAFETY: the masks cover the columns; asking for memory ahead reads nothing.
            let [low, high] = unsafe {
                _mm_prefetch::<_MM_HINT_T0>(even.wrapping_add(ahead).cast());
                _mm_prefetch::<_MM_HINT_T0>(odd.wrapping_add(ahead).cast());
                let even = _mm512_maskz_loadu_epi16((mask >> shift) as u32, even.cast());
                let odd = _mm512_maskz_loadu_epi16((odd_mask >> shift) as u32, odd.cast());
                [
                    _mm512_unpacklo_epi16(even, odd),
                    _mm512_unpackhi_epi16(even, odd),
                ]
            };
            for (sums, x) in sums.iter_mut().zip(&x) {
                // SAFETY: the slice of `x` has this pair.
                let x = unsafe { _mm512_set1_epi32(*x.add(pair) as i32) };
                sums[2 * half] = dot(sums[2 * half], x, low);
                sums[2 * half + 1] = dot(sums[2 * half + 1], x, high);
            }
        }
    }
    for (m, sums) in sums.iter().enumerate() {
        for (index, sum) in sums.iter().enumerate() {
            let other = sums[index ^ 1];
            let sum = match index % 2 {
                0 => _mm512_permutex2var_ps(*sum, order(0), other),
                _ => _mm512_permutex2var_ps(other, order(8), *sum),
            };
            let mask = (mask >> (index * LANES)) as u16;
            // SAFETY: the caller promises the columns that the mask covers.
            unsafe {
                let start = start.wrapping_add(m * start_stride + index * LANES);
                let sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, start), sum);
                let out = out.wrapping_add(m * out_stride + index * LANES);
                _mm512_mask_storeu_ps(out, mask, sum);
            }
        }
    }
}

/// Where the columns from `first` on are in two registers of sums: unpacking takes four columns of
/// each quarter of a register into the first, and four into the second.
#[inline]
#[target_feature(enable = "avx512f")]
fn order(first: i32) -> __m512i {
    let (a, b) = (first, first + 16);
    let c = a + 4;
    let d = b + 4;
    _mm512_setr_epi32(
        a,
        a + 1,
        a + 2,
        a + 3,
        b,
        b + 1,
        b + 2,
        b + 3,
        c,
        c + 1,
        c + 2,
        c + 3,
        d,
        d + 1,
        d + 2,
        d + 3,
    )
}
