//! Rotary position embedding, row by row, in place where nobody else reads the input.

use crate::flex::buffer::{FlexTensor, contiguous, elements, map_rows};
use crate::flex::simd::vectorised;

/// Turns the heads of `width` numbers of each row by the angles of its row, or back.
pub(super) fn turn(
    x: FlexTensor,
    [cos, sin]: [FlexTensor; 2],
    width: usize,
    is_back: bool,
) -> FlexTensor {
    let (cos, sin) = (contiguous(cos), contiguous(sin));
    let pairs = cos.layout().shape()[1];
    let row_width = x.layout().shape()[1];
    let (cos, sin) = (elements(&cos), elements(&sin));
    map_rows(x, row_width, |first, rows| {
        vectorised(
            #[inline(always)]
            || {
                let angles = first / row_width * pairs..;
                let cos = cos[angles.clone()].chunks_exact(pairs);
                let angles = cos.zip(sin[angles].chunks_exact(pairs));
                for (row, (cos, sin)) in rows.chunks_exact_mut(row_width).zip(angles) {
                    for head in row.chunks_exact_mut(width) {
                        match is_back {
                            true => turn_head(head, cos, sin, -1.0),
                            false => turn_head(head, cos, sin, 1.0),
                        }
                    }
                }
            },
        );
    })
}

#[inline(always)]
fn turn_head(head: &mut [f32], cos: &[f32], sin: &[f32], direction: f32) {
    let (first, second) = head.split_at_mut(cos.len());
    for (((a, b), &cos), &sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        let sin = direction * sin;
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}
