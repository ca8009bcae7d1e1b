//! A soft bound and its derivative, 16 numbers at a time.

use crate::flex::buffer::{FlexTensor, contiguous, elements, map_rows};
use crate::flex::math::tanh;
use crate::flex::simd::vectorised;

/// `cap * tanh(x / cap)`.
pub(super) fn forward(x: FlexTensor, cap: f32) -> FlexTensor {
    map_rows(x, 1, |_, values| {
        vectorised(
            #[inline(always)]
            || {
                for x in values.iter_mut() {
                    *x = cap * tanh(*x / cap).0;
                }
            },
        );
    })
}

/// `grad * (1 - tanh(x / cap)^2)`.
pub(super) fn backward(x: FlexTensor, grad: FlexTensor, cap: f32) -> FlexTensor {
    let x = contiguous(x);
    let x = elements(&x);
    map_rows(grad, 1, |first, grads| {
        let x = &x[first..first + grads.len()];
        vectorised(
            #[inline(always)]
            || {
                for (grad, &x) in grads.iter_mut().zip(x) {
                    *grad *= tanh(x / cap).1;
                }
            },
        );
    })
}
