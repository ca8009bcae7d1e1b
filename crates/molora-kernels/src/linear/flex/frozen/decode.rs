//! Blocks of 8 or 4 bits decoded to bf16 with AVX-512-BF16.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use burn::tensor::bf16;

use super::avx512::Processor;
use crate::linear::format::BLOCK;

/// Writes the numbers of some blocks of `bytes` each. As [`crate::linear::format::decode`], but numbers below the least
/// normal one become zero, which the products would make of them anyway.
///
/// # Panics
/// If the lengths do not fit.
pub(super) fn decode_blocks(
    _: Processor,
    (codes, bytes): (&[u8], usize),
    scales: &[bf16],
    target: &mut [bf16],
) {
    assert!(bytes == BLOCK || bytes == BLOCK / 2);
    assert!(codes.len() == scales.len() * bytes && target.len() == scales.len() * BLOCK);
    // SAFETY: the processor has the instructions, and the lengths fit.
    unsafe {
        match bytes {
            BLOCK => each_block::<8>(codes, scales, target),
            _ => each_block::<4>(codes, scales, target),
        }
    }
}

/// The loop must have the features of what is to be inlined into it.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn each_block<const BITS: usize>(codes: &[u8], scales: &[bf16], target: &mut [bf16]) {
    let blocks = codes.chunks_exact(BLOCK * BITS / 8).zip(scales);
    for ((codes, scale), target) in blocks.zip(target.chunks_exact_mut(BLOCK)) {
        let scale = _mm512_set1_ps(scale.to_f32());
        // SAFETY: codes and target have the lengths of a block.
        unsafe {
            let numbers = match BITS {
                8 => eight_bits(codes.as_ptr(), scale),
                _ => four_bits(codes.as_ptr(), scale),
            };
            _mm512_storeu_si512(target.as_mut_ptr().cast(), numbers);
        }
    }
}

/// `(code - 128) * scale` of 32 codes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn eight_bits(codes: *const u8, scale: __m512) -> __m512i {
    // SAFETY: the caller promises 32 bytes; both types are 64 bytes of any bits.
    unsafe {
        let number = |codes: __m128i| {
            let codes = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(codes));
            _mm512_mul_ps(_mm512_sub_ps(codes, _mm512_set1_ps(128.0)), scale)
        };
        let low = number(_mm_loadu_si128(codes.cast()));
        let high = number(_mm_loadu_si128(codes.add(16).cast()));
        std::mem::transmute(_mm512_cvtne2ps_pbh(high, low))
    }
}

/// `(code - 8) * scale` of 32 codes, two in a byte: the lower ones are the first half of the block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn four_bits(codes: *const u8, scale: __m512) -> __m512i {
    let all = _mm512_setr_ps(
        -8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0,
    );
    let table = _mm512_mul_ps(all, scale);
    // SAFETY: the caller promises 16 bytes; both types are 64 bytes of any bits.
    unsafe {
        let table = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(table, table));
        let codes = _mm_loadu_si128(codes.cast());
        let nibble = _mm_set1_epi8(15);
        let low = _mm_and_si128(codes, nibble);
        let high = _mm_and_si128(_mm_srli_epi16::<4>(codes), nibble);
        let index = _mm512_cvtepu8_epi16(_mm256_set_m128i(high, low));
        _mm512_permutexvar_epi16(index, table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::format::decode;

    #[test]
    fn every_code_and_scale_is_decoded_as_by_the_definition() {
        let Some(processor) = Processor::detect() else {
            return;
        };
        let codes: Vec<u8> = (0..=255).collect();
        for scale in [0.0, 1.0, -0.37, 3e-5, 1e30, f32::INFINITY, f32::NAN] {
            let scale = bf16::from_f32(scale);
            for bytes in [BLOCK, BLOCK / 2] {
                let scales = vec![scale; codes.len() / bytes];
                let mut found = vec![bf16::ONE; scales.len() * BLOCK];
                decode_blocks(processor, (&codes, bytes), &scales, &mut found);
                let expected = codes.chunks(bytes).flat_map(|codes| decode(codes, scale));
                for (index, (found, expected)) in found.into_iter().zip(expected).enumerate() {
                    let is_same = found == expected || found.is_nan() && expected.is_nan();
                    assert!(is_same, "{scale}, number {index}: {found}, not {expected}");
                }
            }
        }
    }
}
