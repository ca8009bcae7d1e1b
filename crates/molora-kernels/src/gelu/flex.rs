//! GELU and its derivative, 16 numbers at a time.

use crate::flex::buffer::{FlexTensor, map_rows};
use crate::flex::math::{logistic, normal};
use crate::flex::saved::Kept;
use crate::flex::simd::vectorised;

/// `x * P(X <= x)`.
pub(super) fn forward(x: FlexTensor) -> FlexTensor {
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
pub(super) fn backward(x: &Kept, grad: FlexTensor) -> FlexTensor {
    map_rows(grad, 1, |first, grads| {
        let mut place = Vec::new();
        let x = x.part(first, grads.len(), &mut place);
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

/// `2 * sqrt(2 / pi)`.
const SQRT_8_OVER_PI: f32 = 1.595_769;
/// Weight of the cubic term.
const CUBIC: f32 = 0.044_715;

/// `x * P` with `P = 1 / (1 + exp(-sqrt(8 / pi) * (x + CUBIC * x^3)))`, which is
/// `(1 + tanh(sqrt(2 / pi) * ...)) / 2`.
pub(super) fn forward_tanh(x: FlexTensor) -> FlexTensor {
    map_rows(x, 1, |_, values| {
        vectorised(
            #[inline(always)]
            || {
                for x in values.iter_mut() {
                    let inner = *x * (*x * *x).mul_add(CUBIC, 1.0);
                    *x *= logistic(inner * SQRT_8_OVER_PI).0;
                }
            },
        );
    })
}

/// `grad * (P + x * P * (1 - P) * sqrt(8 / pi) * (1 + 3 * CUBIC * x^2))`.
pub(super) fn backward_tanh(x: &Kept, grad: FlexTensor) -> FlexTensor {
    map_rows(grad, 1, |first, grads| {
        let mut place = Vec::new();
        let x = x.part(first, grads.len(), &mut place);
        vectorised(
            #[inline(always)]
            || {
                for (grad, &x) in grads.iter_mut().zip(x) {
                    let inner = x * (x * x).mul_add(CUBIC, 1.0);
                    let (p, slope) = logistic(inner * SQRT_8_OVER_PI);
                    // At infinity the slope is 0 and so is the product's limit.
                    let bounded = if x.abs() > 1e6 { 0.0 } else { x };
                    let inner_slope =
                        (bounded * bounded).mul_add(3.0 * CUBIC, 1.0) * SQRT_8_OVER_PI;
                    *grad *= (bounded * inner_slope).mul_add(slope, p);
                }
            },
        );
    })
}
