//! Products with AVX-512-BF16, and the processors that have it; all of them have AVX-512-VNNI too.
//!
//! `x` is rounded to bf16 once. Each number of the product is summed in one order, whatever is done
//! by which thread.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use rayon::prelude::*;

use super::matrix::Frozen;
use super::rows;
use crate::linear::flex::tiles::{Kind, LANES, Words, multiply};

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

    /// All of them; a row has `inner` numbers.
    fn all(&self, inner: usize) -> Words<'_> {
        Words {
            words: &self.words,
            stride: self.stride,
            inner: inner.div_ceil(2),
        }
    }
}

impl Processor {
    pub(super) fn detect() -> Option<Self> {
        let has_all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx512bf16");
        has_all.then_some(Self(()))
    }

    /// See [`super::product`].
    pub(super) fn product(self, x: &[f32], weight: Frozen<'_>, bias: Option<&[f32]>) -> Vec<f32> {
        let x = self.rounded(x, weight.inner());
        let rows = x.words.len() / x.stride;
        if rows <= FEW && weight.is_transposed {
            return rows::product(self, rows, &x, weight, bias);
        }
        let shape = [rows, weight.outer()];
        // SAFETY: `self` proves that the instructions are there.
        unsafe {
            multiply(
                Kind::HALF,
                x.all(weight.inner()),
                shape,
                bias,
                Vec::new,
                |panel, scratch, words, columns| {
                    let inner = 2 * words.start..weight.inner().min(2 * words.end);
                    let part = match weight.is_transposed {
                        true => weight.part(columns, inner, scratch),
                        false => weight.part(inner, columns, scratch),
                    };
                    panel.fill_half(part, weight.is_transposed);
                },
            )
        }
    }

    /// The rows of `x` in bf16.
    fn rounded(self, x: &[f32], inner: usize) -> Rounded {
        let stride = inner.div_ceil(2).next_multiple_of(LANES);
        let mut words = vec![0; x.len() / inner * stride];
        let round = |(row, words): (usize, &mut [u32])| {
            let numbers = &x[row * inner..][..inner];
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
