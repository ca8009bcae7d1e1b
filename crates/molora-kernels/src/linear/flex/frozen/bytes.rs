//! Products of rows of bytes with a matrix of blocks of 8 or 4 bits, with AVX-512-VNNI: sums of a block are
//! whole numbers, and the matrix is read once, as it lies, without decoding it.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::ops::Range;

use super::avx512::Processor;
use super::matrix::Blocks;
use super::rows::{AHEAD, fill};
use crate::flex::simd::vectorised;
use crate::linear::flex::tiles::{LANES, Target};
use crate::linear::format::{BLOCK, block_bytes};

/// Rows of the matrix that all rows of `x` meet before the next are read.
const SIDE_BY_SIDE: usize = 16;
/// Rows of `x` that a kernel takes at most.
const FEW: usize = 8;

/// Rows of `x` as whole multiples of a scale for every 32 numbers: `x = scale * code` with codes from -127
/// to 127.
///
/// A chunk is what a register of the matrix holds: two blocks of 8 bits, or four of 4. The instruction
/// multiplies codes of the matrix as they are stored, without a sign; `offsets` are the sums of codes of `x`
/// times what stands for zero there, negative, so that sums which begin with them are right.
#[derive(Debug)]
struct Bytes {
    /// In the order of the matrix's numbers in registers; zeros fill the last chunk.
    codes: Vec<i8>,
    /// A register for each chunk.
    offsets: Vec<i32>,
    /// The scale of the block that each lane sums, a register for each chunk.
    scales: Vec<f32>,
    /// Chunks of a row.
    chunks: usize,
}

impl Bytes {
    fn new<const BITS: usize>(x: &[f32], inner: usize) -> Self {
        let rows = x.len() / inner;
        let chunks = inner.div_ceil(chunk(BITS));
        let all = rows * chunks;
        let mut bytes = Self {
            codes: Vec::with_capacity(all * chunk(BITS)),
            offsets: Vec::with_capacity(all * LANES),
            scales: Vec::with_capacity(all * LANES),
            chunks,
        };
        for row in x.chunks_exact(inner) {
            for numbers in row.chunks(chunk(BITS)) {
                let mut blocks = [[0; BLOCK]; 4];
                let mut scales = [0.0; 4];
                vectorised(
                    #[inline(always)]
                    || round(numbers, &mut blocks, &mut scales),
                );
                bytes.push::<BITS>(&blocks[..chunk(BITS) / BLOCK], &scales);
            }
        }
        bytes
    }

    /// Appends a chunk of so many blocks.
    fn push<const BITS: usize>(&mut self, blocks: &[[i8; BLOCK]], scales: &[f32; 4]) {
        let lanes = LANES / (chunk(BITS) / BLOCK);
        let halves = if BITS == 8 { 1 } else { 2 };
        for half in 0..halves {
            let part = BLOCK / halves * half..BLOCK / halves * (half + 1);
            blocks
                .iter()
                .for_each(|codes| self.codes.extend(&codes[part.clone()]));
        }
        let zero = 1 << (BITS - 1);
        for (codes, scale) in blocks.iter().zip(scales) {
            let width = BLOCK / halves / lanes;
            for lane in 0..lanes {
                let sums = (0..halves)
                    .flat_map(|half| &codes[BLOCK / halves * half..][lane * width..][..width]);
                self.offsets
                    .push(-zero * sums.map(|&code| i32::from(code)).sum::<i32>());
                self.scales.push(*scale);
            }
        }
    }
}

/// Codes and scales of the blocks of some numbers.
#[inline(always)]
fn round(numbers: &[f32], blocks: &mut [[i8; BLOCK]; 4], scales: &mut [f32; 4]) {
    for (numbers, (codes, scale)) in numbers.chunks(BLOCK).zip(blocks.iter_mut().zip(scales)) {
        let mut block = [0.0f32; BLOCK];
        block[..numbers.len()].copy_from_slice(numbers);
        let largest = block.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        // No code stands for an infinity or a NaN, and `max` drops a NaN.
        *scale = match block.iter().all(|x| x.is_finite()) {
            true => largest / 127.0,
            false => f32::NAN,
        };
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        for (code, x) in codes.iter_mut().zip(block) {
            *code = (x * inverse).round_ties_even() as i8;
        }
    }
}

/// Numbers of a row of the matrix in a register.
const fn chunk(bits: usize) -> usize {
    64 * 8 / bits
}

/// `x * W^T + bias` for rows of `x` that are rounded to bytes.
pub(super) fn product(
    _: Processor,
    x: &[f32],
    weight: Blocks<'_>,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let [outputs, inner] = weight.dims;
    let rows = x.len() / inner;
    let x = match weight.bits {
        8 => Bytes::new::<8>(x, inner),
        _ => Bytes::new::<4>(x, inner),
    };
    let bytes = inner.div_ceil(BLOCK) * (block_bytes(weight.bits) + 2);
    fill(rows, bytes, outputs, |target, columns| {
        // SAFETY: the processor has the instructions; each task has columns of its own.
        unsafe {
            match weight.bits {
                8 => all_rows::<8>(&x, weight, bias, columns, target),
                _ => all_rows::<4>(&x, weight, bias, columns, target),
            }
        }
    })
}

/// Some columns of the product.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn all_rows<const BITS: usize>(
    x: &Bytes,
    weight: Blocks<'_>,
    bias: Option<&[f32]>,
    columns: Range<usize>,
    target: Target,
) {
    for start in columns.clone().step_by(SIDE_BY_SIDE) {
        let rows = start..columns.end.min(start + SIDE_BY_SIDE);
        for first in (0..target.rows).step_by(FEW) {
            let rows = rows.clone();
            // SAFETY: as promised by the caller.
            unsafe {
                match target.rows - first {
                    1 => some::<BITS, 1, 8>(x, first, weight, bias, rows, target),
                    2 => some::<BITS, 2, 4>(x, first, weight, bias, rows, target),
                    3 => some::<BITS, 3, 4>(x, first, weight, bias, rows, target),
                    4 => some::<BITS, 4, 4>(x, first, weight, bias, rows, target),
                    5 => some::<BITS, 5, 2>(x, first, weight, bias, rows, target),
                    6 => some::<BITS, 6, 2>(x, first, weight, bias, rows, target),
                    7 => some::<BITS, 7, 2>(x, first, weight, bias, rows, target),
                    _ => some::<BITS, FEW, 2>(x, first, weight, bias, rows, target),
                }
            }
        }
    }
}

/// Products of `M` rows of `x` from `first` on with some rows of the matrix, `R` at a time.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn some<const BITS: usize, const M: usize, const R: usize>(
    x: &Bytes,
    first: usize,
    weight: Blocks<'_>,
    bias: Option<&[f32]>,
    rows: Range<usize>,
    target: Target,
) {
    let write = |row: usize, sums: [f32; M]| {
        let bias = bias.map_or(0.0, |bias| bias[row]);
        // SAFETY: the caller's rows of the matrix are columns of the target.
        unsafe { target.set_column(first, row, sums.map(|sum| sum + bias)) }
    };
    let whole = rows.len() / R * R;
    for row in rows.clone().take(whole).step_by(R) {
        let sums = sums::<BITS, M, R>(x, first, weight, row);
        (row..).zip(sums).for_each(|(row, sums)| write(row, sums));
    }
    for row in rows.skip(whole) {
        let [sums] = sums::<BITS, M, 1>(x, first, weight, row);
        write(row, sums);
    }
}

/// Products of `M` rows of `x` with `R` rows of the matrix.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn sums<const BITS: usize, const M: usize, const R: usize>(
    x: &Bytes,
    first: usize,
    weight: Blocks<'_>,
    row: usize,
) -> [[f32; M]; R] {
    let blocks = weight.dims[1].div_ceil(BLOCK);
    let in_chunk = chunk(BITS) / BLOCK;
    let bytes = block_bytes(BITS);
    // Slices, so that what is read below is known to be there.
    let codes: [_; R] = std::array::from_fn(|r| {
        weight.codes[(row + r) * blocks * bytes..][..blocks * bytes].as_ptr()
    });
    let scales: [_; R] =
        std::array::from_fn(|r| weight.scales[(row + r) * blocks..][..blocks].as_ptr());
    let all = first * x.chunks..(first + M) * x.chunks;
    let x_codes = x.codes[all.start * chunk(BITS)..all.end * chunk(BITS)].as_ptr();
    let x_offsets = x.offsets[all.start * LANES..all.end * LANES].as_ptr();
    let x_scales = x.scales[all.start * LANES..all.end * LANES].as_ptr();
    let lanes = lanes_of_blocks::<BITS>();
    let nibble = _mm512_set1_epi8(15);
    let mut sums = [[_mm512_setzero_ps(); M]; R];
    for index in 0..x.chunks {
        let block = index * in_chunk;
        let count = in_chunk.min(blocks - block);
        let mask = u64::MAX >> (64 - count * bytes);
        for ((codes, scales), sums) in codes.iter().zip(&scales).zip(&mut sums) {
            // SAFETY: the masks end with the blocks of the row, the chunks of `x` are whole, and asking
            // for memory ahead reads nothing.
            unsafe {
                let at = codes.add(block * bytes);
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD).cast());
                let stored = _mm512_maskz_loadu_epi8(mask, at.cast());
                let scale = _mm_maskz_loadu_epi16(0xff >> (8 - count), scales.add(block).cast());
                let scale = _mm_castsi128_ps(_mm_slli_epi32::<16>(_mm_cvtepu16_epi32(scale)));
                let scale = _mm512_permutexvar_ps(lanes, _mm512_castps128_ps512(scale));
                for (m, total) in sums.iter_mut().enumerate() {
                    let chunk_of_x = m * x.chunks + index;
                    let x = x_codes.add(chunk_of_x * chunk(BITS));
                    let sum = _mm512_loadu_si512(x_offsets.add(chunk_of_x * LANES).cast());
                    let sum = match BITS {
                        8 => _mm512_dpbusd_epi32(sum, stored, _mm512_loadu_si512(x.cast())),
                        _ => {
                            let low = _mm512_and_si512(stored, nibble);
                            let high = _mm512_and_si512(_mm512_srli_epi16::<4>(stored), nibble);
                            let sum = _mm512_dpbusd_epi32(sum, low, _mm512_loadu_si512(x.cast()));
                            _mm512_dpbusd_epi32(sum, high, _mm512_loadu_si512(x.add(64).cast()))
                        }
                    };
                    let scale =
                        _mm512_mul_ps(scale, _mm512_loadu_ps(x_scales.add(chunk_of_x * LANES)));
                    *total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, *total);
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

/// The block of a chunk that each lane sums.
#[inline]
#[target_feature(enable = "avx512f")]
fn lanes_of_blocks<const BITS: usize>() -> __m512i {
    match BITS {
        8 => _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1),
        _ => _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3),
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::bf16;
    use proptest::prelude::*;

    use super::*;
    use crate::linear::format::{decode, encode_row};
    use crate::testing::values;

    /// A matrix of blocks.
    struct Matrix {
        codes: Vec<u8>,
        scales: Vec<bf16>,
        bits: usize,
        dims: [usize; 2],
    }

    impl Matrix {
        fn new(dims: [usize; 2], bits: usize, seed: u64) -> Self {
            let [rows, inner] = dims;
            let blocks = inner.div_ceil(BLOCK);
            let mut codes = vec![0; rows * blocks * block_bytes(bits)];
            let mut scales = vec![bf16::ZERO; rows * blocks];
            for (row, numbers) in values(rows * inner, seed).chunks(inner).enumerate() {
                let codes = &mut codes[row * blocks * block_bytes(bits)..];
                encode_row(numbers, bits, codes, &mut scales[row * blocks..]);
            }
            Self {
                codes,
                scales,
                bits,
                dims,
            }
        }

        fn blocks(&self) -> Blocks<'_> {
            Blocks {
                codes: &self.codes,
                scales: &self.scales,
                bits: self.bits,
                dims: self.dims,
            }
        }
    }

    /// `x` rounded as the product rounds it, by the definition.
    fn rounded(x: &[f32], inner: usize) -> Vec<f64> {
        let round = |block: &[f32]| -> Vec<f64> {
            let largest = block.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            let code = |x: &f32| match largest {
                0.0 => 0.0,
                _ => f64::from((x * (127.0 / largest)).round_ties_even()),
            };
            let scale = f64::from(largest / 127.0);
            block.iter().map(|x| code(x) * scale).collect()
        };
        x.chunks(inner)
            .flat_map(|row| row.chunks(BLOCK).flat_map(round).collect::<Vec<_>>())
            .collect()
    }

    fn check(
        [rows, inner, outputs]: [usize; 3],
        bits: usize,
        has_bias: bool,
        x: &[f32],
        seed: u64,
    ) {
        let Some(processor) = Processor::detect() else {
            return;
        };
        let matrix = Matrix::new([outputs, inner], bits, seed ^ 1);
        let bias = values(outputs, seed ^ 2);
        let bias = has_bias.then_some(bias.as_slice());
        let found = product(processor, x, matrix.blocks(), bias);
        assert_eq!(found.len(), rows * outputs);
        let per_row = inner.div_ceil(BLOCK);
        let numbers = |o: usize| -> Vec<f64> {
            let blocks = o * per_row..(o + 1) * per_row;
            let decoded = blocks.flat_map(|block| {
                let codes = &matrix.codes[block * block_bytes(bits)..][..block_bytes(bits)];
                // The numbers before they are rounded to bf16.
                let scale = matrix.scales[block].to_f64();
                let exact = decode(codes, bf16::ONE);
                exact.map(|number| number.to_f64() * scale)
            });
            decoded.take(inner).collect()
        };
        let x = rounded(x, inner);
        for o in 0..outputs {
            let numbers = numbers(o);
            for (row, x) in x.chunks(inner).enumerate() {
                let terms = x.iter().zip(&numbers).map(|(x, w)| x * w);
                let size = terms.clone().map(f64::abs).sum::<f64>().max(1.0);
                let expected = terms.sum::<f64>() + bias.map_or(0.0, |bias| bias[o].into());
                let error = (f64::from(found[row * outputs + o]) - expected).abs();
                assert!(
                    error < 2e-6 * size,
                    "[{rows}, {inner}] x {outputs}, {bits} bits: {error}"
                );
            }
        }
    }

    #[test]
    fn every_number_of_rows_and_every_tail() {
        for rows in 1..=20 {
            for (inner, outputs) in [(1, 1), (31, 65), (33, 17), (64, 64), (96, 9), (129, 33)] {
                for bits in [8, 4] {
                    let x = values(rows * inner, rows as u64);
                    check([rows, inner, outputs], bits, rows % 2 == 0, &x, rows as u64);
                }
            }
        }
    }

    #[test]
    fn extremes_are_exact() {
        for bits in [8, 4] {
            // All at the ends of their ranges, and blocks of zeros.
            let x: Vec<f32> = (0..2 * 200)
                .map(|i| match i / BLOCK % 3 {
                    0 => 1e30,
                    1 => -1e30,
                    _ => 0.0,
                })
                .collect();
            check([2, 200, 20], bits, true, &x, 3);
            let small: Vec<f32> = x.iter().map(|x| x * 1e-38).collect();
            check([2, 200, 20], bits, true, &small, 3);
        }
    }

    #[test]
    fn numbers_that_are_none_stay_so() {
        let Some(processor) = Processor::detect() else {
            return;
        };
        let matrix = Matrix::new([3, 64], 4, 1);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![1.0; 128];
            x[40] = bad;
            let out = product(processor, &x, matrix.blocks(), None);
            assert!(out[..3].iter().all(|value| !value.is_finite()), "{out:?}");
            assert!(out[3..].iter().all(|value| value.is_finite()), "{out:?}");
        }
    }

    #[test]
    fn the_same_bits_for_any_number_of_threads() {
        let Some(processor) = Processor::detect() else {
            return;
        };
        let matrix = Matrix::new([2000, 200], 4, 1);
        let x = values(3 * 200, 2);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.expect("threads can be started")
                .install(|| product(processor, &x, matrix.blocks(), None))
        };
        assert_eq!(run(1), run(3));
        assert_eq!(run(1), run(8));
    }

    #[test]
    fn a_row_does_not_depend_on_the_others() {
        let Some(processor) = Processor::detect() else {
            return;
        };
        for bits in [8, 4] {
            let matrix = Matrix::new([50, 300], bits, 1);
            let x = values(11 * 300, 2);
            let all = product(processor, &x, matrix.blocks(), None);
            for (row, x) in x.chunks(300).enumerate() {
                let alone = product(processor, x, matrix.blocks(), None);
                assert_eq!(alone, all[row * 50..][..50], "{bits} bits, row {row}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn any_shape(
            rows in 1usize..20, inner in 1usize..300, outputs in 1usize..200, is_small: bool,
            has_bias: bool, seed: u64,
        ) {
            let x = values(rows * inner, seed);
            check([rows, inner, outputs], if is_small { 4 } else { 8 }, has_bias, &x, seed);
        }
    }
}
