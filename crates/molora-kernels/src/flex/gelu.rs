//! GELU and its derivative, 16 numbers at a time.

use super::buffer::{FlexTensor, contiguous, elements, map_rows};
use super::math::normal;
use super::simd::vectorised;

/// `x * P(X <= x)`.
pub(crate) fn forward(x: FlexTensor) -> FlexTensor {
    map_rows(x, 1, |_, values| {
        vectorised(
            #[inline(always)]
            || {
                for x in values.iter_mut() {
                    *x *= normal(*x).0;
                }
            },
        );
    })
}

/// `grad * (P(X <= x) + x * density(x))`.
pub(crate) fn backward(x: FlexTensor, grad: FlexTensor) -> FlexTensor {
    let x = contiguous(x);
    let x = elements(&x);
    map_rows(grad, 1, |first, grads| {
        let x = &x[first..first + grads.len()];
        vectorised(
            #[inline(always)]
            || {
                for (grad, &x) in grads.iter_mut().zip(x) {
                    let (below, density) = normal(x);
                    // At infinity the density is 0 and so is the product's limit.
                    let bounded = if x.abs() > 1e6 { 0.0 } else { x };
                    *grad *= bounded.mul_add(density, below);
                }
            },
        );
    })
}
