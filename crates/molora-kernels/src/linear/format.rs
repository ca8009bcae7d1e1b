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

/// Appends the codes of a block and returns its scale.
pub(super) fn encode(numbers: &[f32; BLOCK], bits: usize, codes: &mut Vec<u8>) -> bf16 {
    let largest = numbers.iter().copied();
    let largest = largest.fold(
        0.0f32,
        |most, x| if x.abs() > most.abs() { x } else { most },
    );
    let zero = zero(bits);
    let scale = bf16::from_f32(largest / -zero);
    let inverse = match scale.to_f32() {
        0.0 => 0.0,
        scale => 1.0 / scale,
    };
    // A conversion to bytes ends at 0 and 255.
    let code = |x: f32| (x * inverse + zero).round().min(2.0 * zero - 1.0) as u8;
    if bits == 8 {
        codes.extend(numbers.map(code));
    } else {
        let (low, high) = numbers.split_at(BLOCK / 2);
        codes.extend(
            low.iter()
                .zip(high)
                .map(|(&low, &high)| code(low) | code(high) << 4),
        );
    }
    scale
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
