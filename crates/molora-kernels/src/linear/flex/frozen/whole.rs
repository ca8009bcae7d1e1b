//! Products of many rows of bytes with a matrix of blocks of 8 or 4 bits, as in reading a prompt, with AVX-512-VNNI.
//!
//! As in `bytes`, rows of `x` are rounded to bytes with a scale for every block, and sums of a block are whole numbers.
//! Of the matrix, panels of some columns of the product are laid out as the instructions read them.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::hint::black_box;
use std::ops::Range;

use rayon::prelude::*;

use super::avx512::Processor;
use super::bytes::round_block;
use super::matrix::Blocks;
use crate::linear::flex::tiles::{
    COLUMNS, LANES, REGISTERS, ROWS, Start, Target, fill_square, padded, read, write,
};
use crate::linear::format::{BLOCK, block_bytes};

/// Words of four codes in a block.
const WORDS: usize = BLOCK / 4;
/// Blocks of the inner axis that are summed at once, an even number: their panel stays in the fastest cache.
const DEPTH: usize = 12;
/// Rows of `x` that a task takes at least: it lays out its panels itself.
const TASK_ROWS: usize = 32 * ROWS;

/// Rows of `x` as whole multiples of a scale for every block: `x = scale * code`.
///
/// Codes of the matrix are stored without a sign; `offsets` are the sums of a block's codes of `x` times what stands
/// for zero there, negative, so that sums which begin with them are right.
#[derive(Debug)]
struct Rounded {
    codes: Vec<i8>,
    offsets: Vec<i32>,
    scales: Vec<f32>,
    /// Blocks of a row, an even number: the last may be empty.
    blocks: usize,
}

impl Rounded {
    fn new(_: Processor, x: &[f32], inner: usize, bits: usize) -> Self {
        let (rows, blocks) = (x.len() / inner, inner.div_ceil(2 * BLOCK) * 2);
        let mut rounded = Self {
            codes: vec![0; rows * blocks * BLOCK],
            offsets: vec![0; rows * blocks],
            scales: vec![0.0; rows * blocks],
            blocks,
        };
        let codes = rounded.codes.par_chunks_mut(blocks * BLOCK);
        let offsets = rounded.offsets.par_chunks_mut(blocks);
        let scales = rounded.scales.par_chunks_mut(blocks);
        let targets = codes.zip(offsets.zip(scales));
        let all = x.par_chunks_exact(inner).zip(targets).with_min_len(16);
        all.for_each(|(row, (codes, (offsets, scales)))| {
            let targets = codes
                .chunks_exact_mut(BLOCK)
                .zip(offsets.iter_mut().zip(scales));
            for (numbers, (codes, (offset, scale))) in row.chunks(BLOCK).zip(targets) {
                // SAFETY: the processor has the instructions, and a block has 32 codes.
                (*offset, *scale) = unsafe { write_block(numbers, bits, codes) };
            }
        });
        rounded
    }
}

/// Writes the codes of a block, and returns its offset and its scale.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn write_block(numbers: &[f32], bits: usize, codes: &mut [i8]) -> (i32, f32) {
    assert_eq!(codes.len(), BLOCK);
    let (low, high, scale) = round_block(numbers);
    let both = _mm256_set_m128i(high, low);
    // SAFETY: there are 32 bytes.
    unsafe { _mm256_storeu_si256(codes.as_mut_ptr().cast(), both) };
    let zero = _mm512_set1_epi8((1u8 << (bits - 1)) as i8);
    let sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), zero, _mm512_zextsi256_si512(both));
    (-_mm512_reduce_add_epi32(sums), scale)
}

/// Codes and scales of [`COLUMNS`] columns of the product.
#[derive(Debug)]
struct Panel {
    /// Words of each block, for each those of all columns.
    words: Vec<u32>,
    /// Scales of each block.
    scales: Vec<f32>,
}

impl Panel {
    fn new() -> Self {
        Self {
            words: vec![0; DEPTH * WORDS * COLUMNS],
            scales: vec![0.0; DEPTH * COLUMNS],
        }
    }

    /// Lays out some blocks of some rows of the matrix, zeros beyond its end.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn fill(&mut self, weight: Blocks<'_>, blocks: Range<usize>, columns: Range<usize>) {
        let (of_row, bytes) = (weight.dims[1].div_ceil(BLOCK), block_bytes(weight.bits));
        let nibble = _mm512_set1_epi8(15);
        // Halves of two blocks side by side.
        let order = _mm512_setr_epi64(0, 1, 4, 5, 2, 3, 6, 7);
        let squares = self.words.chunks_exact_mut(2 * WORDS * COLUMNS);
        for (block, target) in blocks.clone().step_by(2).zip(squares) {
            let count = of_row.saturating_sub(block).min(2);
            let column = |column: usize| {
                if column >= columns.len() || count == 0 {
                    return _mm512_setzero_si512();
                }
                let start = ((columns.start + column) * of_row + block) * bytes;
                let codes = &weight.codes[start..start + count * bytes];
                let mask = u64::MAX >> (64 - codes.len());
                // SAFETY: the mask ends with the codes.
                let codes = unsafe { _mm512_maskz_loadu_epi8(mask, codes.as_ptr().cast()) };
                match weight.bits {
                    8 => codes,
                    _ => {
                        let codes = _mm512_castsi512_si256(codes);
                        let high = _mm256_srli_epi16::<4>(codes);
                        let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(codes), high);
                        _mm512_permutexvar_epi64(order, _mm512_and_si512(both, nibble))
                    }
                }
            };
            fill_square(target, column);
        }
        for (block, scales) in blocks.zip(self.scales.chunks_exact_mut(COLUMNS)) {
            scales.fill(0.0);
            if block < of_row {
                for (row, scale) in columns.clone().zip(scales) {
                    *scale = weight.scales[row * of_row + block].to_f32();
                }
            }
        }
    }
}

/// `x * W^T + bias` for rows of `x` that are rounded to bytes.
pub(super) fn product(
    processor: Processor,
    x: &[f32],
    weight: Blocks<'_>,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let [cols, inner] = weight.dims;
    let rows = x.len() / inner;
    let x = &Rounded::new(processor, x, inner, weight.bits);
    let panels = cols.div_ceil(COLUMNS);
    // Some for each thread, so that one that comes late does less.
    let wanted = (3 * rayon::current_num_threads()).div_ceil(panels);
    let task_rows = rows.div_ceil(wanted).next_multiple_of(ROWS).max(TASK_ROWS);
    let parts = rows.div_ceil(task_rows);
    let run = |panel: &mut Panel, target: Target, task: usize| {
        let (column, row) = (task / parts * COLUMNS, task % parts * task_rows);
        let rows = row..rows.min(row + task_rows);
        for first in (0..x.blocks).step_by(DEPTH) {
            let blocks = first..x.blocks.min(first + DEPTH);
            let start = match first {
                0 => Start::Bias(padded(bias, column)),
                _ => Start::Add,
            };
            // SAFETY: the processor has the instructions; each task has rows and columns of its own.
            unsafe {
                panel.fill(weight, blocks.clone(), column..cols.min(column + COLUMNS));
                add_panel(x, panel, blocks, &start, rows.clone(), column, target);
            }
        }
    };
    let all = |target| match panels * parts {
        1 => run(&mut Panel::new(), target, 0),
        tasks => (0..tasks)
            .into_par_iter()
            .for_each_init(Panel::new, |panel, task| run(panel, target, task)),
    };
    // SAFETY: the tasks have all rows and columns, and the first blocks of each write its own.
    unsafe { Target::filled(rows, cols, all) }
}

/// Adds the products of some rows with a panel.
unsafe fn add_panel(
    x: &Rounded,
    panel: &Panel,
    blocks: Range<usize>,
    start: &Start,
    rows: Range<usize>,
    column: usize,
    target: Target,
) {
    let mask = u64::MAX >> (COLUMNS - COLUMNS.min(target.cols - column));
    for row in rows.clone().step_by(ROWS) {
        let blocks = blocks.clone();
        // SAFETY: as promised by the caller.
        unsafe {
            let out = target.first.add(row * target.cols + column);
            let to = (out, target.cols, mask);
            match rows.end - row {
                1 => tile::<1>(x, row, panel, blocks, start, to),
                2 => tile::<2>(x, row, panel, blocks, start, to),
                3 => tile::<3>(x, row, panel, blocks, start, to),
                4 => tile::<4>(x, row, panel, blocks, start, to),
                5 => tile::<5>(x, row, panel, blocks, start, to),
                _ => tile::<ROWS>(x, row, panel, blocks, start, to),
            }
        }
    }
}

/// Adds the products of `M` rows with a panel, with all sums in registers.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn tile<const M: usize>(
    x: &Rounded,
    row: usize,
    panel: &Panel,
    blocks: Range<usize>,
    start: &Start,
    (out, cols, mask): (*mut f32, usize, u64),
) {
    assert!(blocks.len() <= DEPTH && blocks.end <= x.blocks);
    assert!((row + M) * x.blocks <= x.scales.len());
    // SAFETY: the assertions cover the reads of `x`, of which there are as many offsets as scales and 32 times as many
    // codes, and of the panel; the caller and the masks those of `out`.
    unsafe {
        let mut sums = read::<M>(start, out, cols, mask);
        for (index, block) in blocks.enumerate() {
            let words = panel.words.as_ptr().add(index * WORDS * COLUMNS);
            let scales = panel.scales.as_ptr().add(index * COLUMNS);
            let at = |m: usize| (row + m) * x.blocks + block;
            let (pairs, rest) = sums.as_chunks_mut::<2>();
            for (pair, sums) in pairs.iter_mut().enumerate() {
                add_block(x, [at(2 * pair), at(2 * pair + 1)], words, scales, sums);
            }
            for sums in rest.as_chunks_mut::<1>().0 {
                add_block(x, [at(M - 1)], words, scales, sums);
            }
        }
        write(&sums, out, cols, mask);
    }
}

/// Adds the products of a block of each of `P` rows, which are at some places among all blocks of `x`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn add_block<const P: usize>(
    x: &Rounded,
    at: [usize; P],
    words: *const u32,
    scales: *const f32,
    sums: &mut [[__m512; REGISTERS]; P],
) {
    // Read again for every row: there are too many words to keep them in registers.
    let words = black_box(words);
    // SAFETY: as promised by the caller.
    unsafe {
        let codes = at.map(|at| x.codes.as_ptr().add(at * BLOCK).cast::<i32>());
        let mut whole = at.map(|at| [_mm512_set1_epi32(*x.offsets.as_ptr().add(at)); REGISTERS]);
        for word in 0..WORDS {
            let w: [_; REGISTERS] = std::array::from_fn(|part| {
                _mm512_loadu_si512(words.add(word * COLUMNS + part * LANES).cast())
            });
            for (whole, codes) in whole.iter_mut().zip(codes) {
                let x = _mm512_set1_epi32(codes.add(word).read_unaligned());
                for (whole, w) in whole.iter_mut().zip(w) {
                    *whole = _mm512_dpbusd_epi32(*whole, w, x);
                }
            }
        }
        for ((sums, whole), at) in sums.iter_mut().zip(whole).zip(at) {
            let x_scale = _mm512_set1_ps(*x.scales.as_ptr().add(at));
            for (part, (sum, whole)) in sums.iter_mut().zip(whole).enumerate() {
                let scale = _mm512_mul_ps(_mm512_loadu_ps(scales.add(part * LANES)), x_scale);
                *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), scale, *sum);
            }
        }
    }
}
