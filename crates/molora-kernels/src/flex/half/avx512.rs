//! Products with AVX-512-BF16.
//!
//! The sum runs in blocks, for which `x` is rounded to bf16 once. Of the matrix, panels of
//! [`COLUMNS`] columns of the product are laid out as the instruction reads them, which costs little
//! beside the product of many rows. Each number of the product is summed in one order, whatever is
//! done by which thread.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::ops::Range;

use rayon::prelude::*;

use burn::tensor::bf16;

use super::matrix::Frozen;
use super::panel::{COLUMNS, LANES, Panel};
use super::rows;

/// Rows of a tile, whose sums fill 24 of the 32 registers.
const TILE: usize = 6;
/// Numbers that are summed at once: their panel takes a part of the second-level cache.
const BLOCK: usize = 768;
/// Rows of `x` that a task takes at least: it lays out its panel itself.
const TASK_ROWS: usize = 16 * TILE;
/// So many rows or fewer are not worth laying out the matrix.
const FEW: usize = 8;

/// Proof that the processor has the instructions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Processor(());

/// Rows of `x` in bf16, in pairs; zeros behind each row fill whole registers.
#[derive(Debug)]
pub(super) struct Rounded {
    words: Vec<u32>,
    /// Words of a row.
    pub(super) stride: usize,
}

impl Rounded {
    /// The pairs from row `row` on.
    pub(super) fn row(&self, row: usize) -> &[u32] {
        &self.words[row * self.stride..]
    }
}

/// The product while it is made: rows of adjacent numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    pub(super) first: *mut f32,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

// SAFETY: whoever writes through copies of a target on several threads keeps to elements of its own.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

impl Processor {
    pub(super) fn detect() -> Option<Self> {
        let has_all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512bf16");
        has_all.then_some(Self(()))
    }

    /// See [`super::product`].
    pub(super) fn product(self, x: &[f32], weight: Frozen<'_>, bias: Option<&[f32]>) -> Vec<f32> {
        let (inner, outer) = (weight.inner(), weight.outer());
        let rows = x.len() / inner;
        let mut values = Vec::with_capacity(rows * outer);
        let target = Target {
            first: values.as_mut_ptr(),
            rows,
            cols: outer,
        };
        if rows <= FEW {
            let x = self.rounded(x, inner, 0..inner);
            rows::product(self, &x, weight, bias, target);
        } else {
            for start in (0..inner).step_by(BLOCK) {
                let block = start..inner.min(start + BLOCK);
                let x = self.rounded(x, inner, block.clone());
                add_block(&x, weight, block, bias, target);
            }
        }
        // SAFETY: the capacity is `rows * outer`; the few rows, or the first block, wrote them all.
        unsafe {
            values.set_len(rows * outer);
        }
        values
    }

    /// The columns `block` of `x` in bf16.
    fn rounded(self, x: &[f32], inner: usize, block: Range<usize>) -> Rounded {
        let stride = block.len().div_ceil(2).next_multiple_of(LANES);
        let mut words = vec![0; x.len() / inner * stride];
        let round = |(row, words): (usize, &mut [u32])| {
            let numbers = &x[row * inner..][block.clone()];
            // SAFETY: `self` proves that the instructions are there.
            unsafe { round_row(numbers, words) }
        };
        if words.len() <= 16 * 1024 {
            words.chunks_mut(stride).enumerate().for_each(round);
        } else {
            let rows = words.par_chunks_mut(stride).with_min_len(16);
            rows.enumerate().for_each(round);
        }
        Rounded { words, stride }
    }
}

/// Rounds to bf16, to nearest, ties to even; denormals to zero.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn round_row(numbers: &[f32], words: &mut [u32]) {
    for (numbers, words) in numbers.chunks(2 * LANES).zip(words.chunks_exact_mut(LANES)) {
        let mask = u32::MAX >> (2 * LANES - numbers.len());
        // SAFETY: the masks cover the numbers of this chunk alone, and it has `LANES` words.
        unsafe {
            let low = _mm512_maskz_loadu_ps(mask as u16, numbers.as_ptr());
            let high =
                _mm512_maskz_loadu_ps((mask >> LANES) as u16, numbers.as_ptr().wrapping_add(LANES));
            let pairs: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(words.as_mut_ptr().cast(), pairs);
        }
    }
}

/// Adds the products of one block of the sum; the first block starts from the bias.
fn add_block(
    x: &Rounded,
    weight: Frozen<'_>,
    block: Range<usize>,
    bias: Option<&[f32]>,
    target: Target,
) {
    let panels = target.cols.div_ceil(COLUMNS);
    let wanted = (4 * rayon::current_num_threads()).div_ceil(panels);
    let task_rows = target
        .rows
        .div_ceil(wanted)
        .next_multiple_of(TILE)
        .max(TASK_ROWS);
    let parts = target.rows.div_ceil(task_rows);
    let pairs = block.len().div_ceil(2);
    let run = |(panel, scratch): &mut (Panel, Vec<bf16>), task: usize| {
        let (column, row) = (task / parts * COLUMNS, task % parts * task_rows);
        let rows = row..target.rows.min(row + task_rows);
        let start = match block.start {
            0 => Start::Bias(padded(bias, column)),
            _ => Start::Add,
        };
        let columns = column..target.cols.min(column + COLUMNS);
        let half = match weight.is_transposed {
            true => weight.part(columns, block.clone(), scratch),
            false => weight.part(block.clone(), columns, scratch),
        };
        // SAFETY: only a `Processor` calls this; each task has rows and columns of its own.
        unsafe {
            panel.fill(half, weight.is_transposed);
            add_panel(x, panel, pairs, &start, rows, column, target);
        }
    };
    let room = || (Panel::new(BLOCK), Vec::new());
    let tasks = panels * parts;
    if tasks == 1 {
        run(&mut room(), 0);
    } else {
        let tasks = (0..tasks).into_par_iter();
        tasks.for_each_init(room, run);
    }
}

/// What the sums of a tile start from.
// One for each task, on the stack: no reason to put the larger one elsewhere.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
enum Start {
    /// A number for each column.
    Bias([f32; COLUMNS]),
    /// What the target holds.
    Add,
}

/// The bias of a panel's columns; 0 where there is none.
fn padded(bias: Option<&[f32]>, column: usize) -> [f32; COLUMNS] {
    let mut padded = [0.0; COLUMNS];
    if let Some(bias) = bias {
        let bias = &bias[column..];
        let count = bias.len().min(COLUMNS);
        padded[..count].copy_from_slice(&bias[..count]);
    }
    padded
}

/// Adds the products of `rows` with a panel that starts at `column`.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn add_panel(
    x: &Rounded,
    panel: &Panel,
    pairs: usize,
    start: &Start,
    rows: Range<usize>,
    column: usize,
    target: Target,
) {
    let mask = u64::MAX >> (COLUMNS - COLUMNS.min(target.cols - column));
    for row in rows.clone().step_by(TILE) {
        let x_rows = x.row(row);
        // SAFETY: the rows and columns from here on are inside of the target.
        unsafe {
            let out = target.first.add(row * target.cols + column);
            let part = (x_rows, x.stride, panel, pairs);
            match rows.end - row {
                1 => tile::<1>(part, start, out, target.cols, mask),
                2 => tile::<2>(part, start, out, target.cols, mask),
                3 => tile::<3>(part, start, out, target.cols, mask),
                4 => tile::<4>(part, start, out, target.cols, mask),
                5 => tile::<5>(part, start, out, target.cols, mask),
                _ => tile::<TILE>(part, start, out, target.cols, mask),
            }
        }
    }
}

/// `M` rows of the product; bits of `mask` for the columns that are there.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn tile<const M: usize>(
    (x, stride, panel, pairs): (&[u32], usize, &Panel, usize),
    start: &Start,
    out: *mut f32,
    cols: usize,
    mask: u64,
) {
    const REGISTERS: usize = COLUMNS / LANES;
    assert!(x.len() >= (M - 1) * stride + pairs && panel.words().len() >= pairs * COLUMNS);
    let masks: [__mmask16; REGISTERS] = std::array::from_fn(|part| (mask >> (part * LANES)) as u16);
    let mut sums = [[_mm512_setzero_ps(); REGISTERS]; M];
    // SAFETY: the assertion covers the reads of `x` and the panel, the caller and the masks those
    // of `out`.
    unsafe {
        for (row, sums) in sums.iter_mut().enumerate() {
            for (part, sum) in sums.iter_mut().enumerate() {
                *sum = match start {
                    Start::Bias(bias) => _mm512_loadu_ps(bias.as_ptr().add(part * LANES)),
                    Start::Add => {
                        let out = out.wrapping_add(row * cols + part * LANES);
                        _mm512_maskz_loadu_ps(masks[part], out)
                    }
                };
            }
        }
        let (x, words) = (x.as_ptr(), panel.words().as_ptr());
        for pair in 0..pairs {
            let w: [__m512i; REGISTERS] = std::array::from_fn(|part| {
                _mm512_loadu_si512(words.add(pair * COLUMNS + part * LANES).cast())
            });
            for (row, sums) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_epi32(*x.add(row * stride + pair) as i32);
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = dot(*sum, x, w);
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for (part, sum) in sums.iter().enumerate() {
                let out = out.wrapping_add(row * cols + part * LANES);
                _mm512_mask_storeu_ps(out, masks[part], *sum);
            }
        }
    }
}

/// Adds to each sum the products of its two pairs of bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn dot(sum: __m512, x: __m512i, w: __m512i) -> __m512 {
    // SAFETY: both types are 64 bytes of any bits.
    let [x, w] = [x, w].map(|pairs| unsafe { std::mem::transmute::<__m512i, __m512bh>(pairs) });
    _mm512_dpbf16_ps(sum, x, w)
}
