//! Dropout without a mask in memory. Forward and backward are the same map.

use super::buffer::{FlexTensor, map_rows};
use super::simd::vectorised;
use crate::dropout::DropMask;

/// Multiplies each element by its factor.
pub(crate) fn apply(x: FlexTensor, mask: DropMask) -> FlexTensor {
    map_rows(x, 1, |first, values| {
        vectorised(
            #[inline(always)]
            || {
                for (value, index) in values.iter_mut().zip(first as u64..) {
                    *value *= mask.factor(index);
                }
            },
        );
    })
}
