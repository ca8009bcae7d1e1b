//! Products of rows of bytes with a matrix of blocks of 8 or 4 bits, with AVX-512-VNNI: sums of a block are
//! whole numbers, and the matrix is read once, as it lies, without decoding it.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::ops::Range;

use super::avx512::Processor;
use super::matrix::Blocks;
use super::rows::{AHEAD, fill};
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
    fn new<const BITS: usize>(_: Processor, x: &[f32], inner: usize) -> Self {
        let rows = x.len() / inner;
        let chunks = inner.div_ceil(chunk(BITS));
        let all = rows * chunks;
        let mut bytes = Self {
            codes: vec![0; all * chunk(BITS)],
            offsets: vec![0; all * LANES],
            scales: vec![0.0; all * LANES],
            chunks,
        };
        let codes = bytes.codes.chunks_exact_mut(chunk(BITS));
        let offsets = bytes.offsets.chunks_exact_mut(LANES);
        let scales = bytes.scales.chunks_exact_mut(LANES);
        let targets = codes.zip(offsets.zip(scales));
        let numbers = x
            .chunks_exact(inner)
            .flat_map(|row| row.chunks(chunk(BITS)));
        for (numbers, (codes, (offsets, scales))) in numbers.zip(targets) {
            // SAFETY: the processor has the instructions, and the targets are those of a chunk.
            unsafe { round_chunk::<BITS>(numbers, codes, offsets, scales) }
        }
        bytes
    }
}

/// Writes codes, offsets and scales of the blocks of a chunk.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn round_chunk<const BITS: usize>(
    numbers: &[f32],
    codes: &mut [i8],
    offsets: &mut [i32],
    scales: &mut [f32],
) {
    assert!(codes.len() == chunk(BITS) && offsets.len() == LANES && scales.len() == LANES);
    let lanes = LANES / (chunk(BITS) / BLOCK);
    let scales = scales.chunks_exact_mut(lanes);
    for (block, (numbers, scales)) in numbers.chunks(BLOCK).zip(scales).enumerate() {
        let (low, high, scale) = round_block(numbers);
        scales.fill(scale);
        // Of 4 bits, the first halves of all blocks meet the low halves of the matrix's bytes.
        let places = match BITS {
            8 => [block * BLOCK, block * BLOCK + BLOCK / 2],
            _ => [block * BLOCK / 2, chunk(BITS) / 2 + block * BLOCK / 2],
        };
        for (place, part) in places.into_iter().zip([low, high]) {
            let target = &mut codes[place..place + BLOCK / 2];
            // SAFETY: the target has 16 bytes.
            unsafe { _mm_storeu_si128(target.as_mut_ptr().cast(), part) };
        }
    }
    let zero = _mm512_set1_epi8((1u8 << (BITS - 1)) as i8);
    let mut sums = _mm512_setzero_si512();
    for codes in codes.chunks_exact(4 * LANES) {
        // SAFETY: it has 64 bytes.
        let codes = unsafe { _mm512_loadu_si512(codes.as_ptr().cast()) };
        sums = _mm512_dpbusd_epi32(sums, zero, codes);
    }
    let sums = _mm512_sub_epi32(_mm512_setzero_si512(), sums);
    // SAFETY: there are as many offsets as lanes.
    unsafe { _mm512_storeu_si512(offsets.as_mut_ptr().cast(), sums) };
}

/// The codes of the two halves of a block, and its scale.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn round_block(numbers: &[f32]) -> (__m128i, __m128i, f32) {
    let mask = u32::MAX >> (BLOCK - numbers.len().min(BLOCK));
    // SAFETY: the masks end with the numbers.
    let [low, high] = unsafe {
        [
            _mm512_maskz_loadu_ps(mask as u16, numbers.as_ptr()),
            _mm512_maskz_loadu_ps((mask >> LANES) as u16, numbers.as_ptr().wrapping_add(LANES)),
        ]
    };
    let [low_size, high_size] = [_mm512_abs_ps(low), _mm512_abs_ps(high)];
    let infinity = _mm512_set1_ps(f32::INFINITY);
    let is_finite = |size| _mm512_cmp_ps_mask::<_CMP_LT_OQ>(size, infinity);
    if is_finite(low_size) & is_finite(high_size) != u16::MAX {
        // No code stands for an infinity or a NaN.
        return (_mm_setzero_si128(), _mm_setzero_si128(), f32::NAN);
    }
    let largest = _mm512_reduce_max_ps(_mm512_max_ps(low_size, high_size));
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    let inverse = _mm512_set1_ps(inverse);
    // To nearest, ties to even.
    let code = |x| _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(x, inverse)));
    (code(low), code(high), largest / 127.0)
}

/// Numbers of a row of the matrix in a register.
const fn chunk(bits: usize) -> usize {
    64 * 8 / bits
}

/// `x * W^T + bias` for rows of `x` that are rounded to bytes.
pub(super) fn product(
    processor: Processor,
    x: &[f32],
    weight: Blocks<'_>,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let [outputs, inner] = weight.dims;
    let rows = x.len() / inner;
    let x = match weight.bits {
        8 => Bytes::new::<8>(processor, x, inner),
        _ => Bytes::new::<4>(processor, x, inner),
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
    // The rows that follow these, but not too near.
    let ahead = (R * blocks * bytes).max(AHEAD);
    let mut sums = [[_mm512_setzero_ps(); M]; R];
    for index in 0..x.chunks {
        let block = index * in_chunk;
        let count = in_chunk.min(blocks - block);
        let mask = u64::MAX >> (64 - count * bytes);
        // SAFETY: the masks end with the blocks of the row, the chunks of `x` are whole, and asking for memory ahead
        // reads nothing.
        unsafe {
            let stored: [_; R] = std::array::from_fn(|r| {
                let at = codes[r].add(block * bytes);
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(ahead).cast());
                let stored = _mm512_maskz_loadu_epi8(mask, at.cast());
                let high = _mm512_srli_epi16::<4>(stored);
                match BITS {
                    8 => [stored; 2],
                    _ => [stored, high].map(|half| _mm512_and_si512(half, nibble)),
                }
            });
            let scales: [_; R] = std::array::from_fn(|r| {
                let at = scales[r].add(block).cast();
                let scale = _mm_maskz_loadu_epi16(0xff >> (8 - count), at);
                let scale = _mm_castsi128_ps(_mm_slli_epi32::<16>(_mm_cvtepu16_epi32(scale)));
                _mm512_permutexvar_ps(lanes, _mm512_castps128_ps512(scale))
            });
            #[expect(
                clippy::needless_range_loop,
                reason = "sums are by row of the matrix first"
            )]
            for m in 0..M {
                let chunk_of_x = m * x.chunks + index;
                let x = x_codes.add(chunk_of_x * chunk(BITS));
                let low_x = _mm512_loadu_si512(x.cast());
                let high_x = match BITS {
                    8 => low_x,
                    _ => _mm512_loadu_si512(x.add(64).cast()),
                };
                let offset = _mm512_loadu_si512(x_offsets.add(chunk_of_x * LANES).cast());
                let x_scale = _mm512_loadu_ps(x_scales.add(chunk_of_x * LANES));
                for r in 0..R {
                    let [low, high] = stored[r];
                    let sum = _mm512_dpbusd_epi32(offset, low, low_x);
                    let sum = match BITS {
                        8 => sum,
                        _ => _mm512_dpbusd_epi32(sum, high, high_x),
                    };
                    let scale = _mm512_mul_ps(scales[r], x_scale);
                    sums[r][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, sums[r][m]);
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
mod tests;
