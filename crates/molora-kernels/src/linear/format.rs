//! Blocks of numbers of 8 or 4 bits.

use burn::tensor::bf16;

/// Numbers of a row that share a scale.
pub(super) const BLOCK: usize = 32;

/// Bytes of a block.
pub(super) fn block_bytes(bits: usize) -> usize {
    BLOCK * bits / 8
}

/// The code of zero.
pub(super) fn zero(bits: usize) -> f32 {
    if bits == 8 { 128.0 } else { 8.0 }
}

/// Writes the codes of a block and returns its scale.
#[inline(always)]
pub(super) fn encode(numbers: &[f32; BLOCK], bits: usize, codes: &mut [u8]) -> bf16 {
    let largest = numbers.iter().copied();
    let largest = largest.fold(
        0.0f32,
        |most, x| if x.abs() > most.abs() { x } else { most },
    );
    let zero = zero(bits);
    // 4 bits have one code more below zero than above it, and the largest number gets that one. Of 8 bits that would
    // win a hundredth of a scale, and lose up to a whole one where the block has the same number with the other sign.
    let scale = match bits {
        8 => bf16::from_f32(largest.abs() / 127.0),
        _ => bf16::from_f32(largest / -zero),
    };
    let inverse = match scale.to_f32() {
        0.0 => 0.0,
        scale => 1.0 / scale,
    };
    // To the nearest: a conversion to bytes drops what follows the point, and ends at 0.
    let code = |x: f32| (x * inverse + zero + 0.5).min(2.0 * zero - 1.0) as u8;
    if bits == 8 {
        for (out, &x) in codes.iter_mut().zip(numbers) {
            *out = code(x);
        }
    } else {
        let (low, high) = numbers.split_at(BLOCK / 2);
        for (out, (&low, &high)) in codes.iter_mut().zip(low.iter().zip(high)) {
            *out = code(low) | code(high) << 4;
        }
    }
    scale
}

/// Writes the codes and scales of a row of numbers; zeros fill its last block.
#[inline(always)]
pub(super) fn encode_row(row: &[f32], bits: usize, codes: &mut [u8], scales: &mut [bf16]) {
    let codes = codes.chunks_exact_mut(block_bytes(bits));
    for ((numbers, codes), scale) in row.chunks(BLOCK).zip(codes).zip(scales) {
        let mut block = [0.0; BLOCK];
        block[..numbers.len()].copy_from_slice(numbers);
        *scale = encode(&block, bits, codes);
    }
}

/// The numbers of a block in bf16.
#[cfg(feature = "flex")]
#[inline(always)]
pub(super) fn decode(codes: &[u8], scale: bf16) -> [bf16; BLOCK] {
    let scale = scale.to_f32();
    let number = |code: u8, zero: f32| {
        // To nearest, ties to even; numbers are finite unless the scale is not, which stays so.
        let bits = ((f32::from(code) - zero) * scale).to_bits();
        let odd = (bits >> 16) & 1;
        bf16::from_bits((bits.wrapping_add(0x7fff + odd) >> 16) as u16)
    };
    let mut out = [bf16::ZERO; BLOCK];
    if codes.len() == BLOCK {
        for (out, &code) in out.iter_mut().zip(codes) {
            *out = number(code, 128.0);
        }
    } else {
        let (low, high) = out.split_at_mut(BLOCK / 2);
        for ((low, high), &code) in low.iter_mut().zip(high).zip(codes) {
            *low = number(code & 15, 8.0);
            *high = number(code >> 4, 8.0);
        }
    }
    out
}
