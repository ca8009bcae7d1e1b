//! Cosines row by row.

use burn::tensor::Shape;

use crate::flex::buffer::{FlexTensor, contiguous, elements, from_values};
use crate::flex::math::dot;
use crate::flex::simd::vectorised;

/// Cosines of the rows of `a` with those of `b`.
pub(super) fn cosines(a: FlexTensor, b: FlexTensor, epsilon: f32) -> FlexTensor {
    let (a, b) = (contiguous(a), contiguous(b));
    let shape = |tensor: &FlexTensor| [tensor.layout().shape()[0], tensor.layout().shape()[1]];
    let ([rows, width], [others, _]) = (shape(&a), shape(&b));
    let mut values = vec![0.0; rows * others];
    let (mut left, mut right) = (elements(&a).to_vec(), elements(&b).to_vec());
    vectorised(
        #[inline(always)]
        || {
            unit_rows(&mut left, width, epsilon);
            unit_rows(&mut right, width, epsilon);
            let out = values.chunks_exact_mut(others);
            for (out, left) in out.zip(left.chunks_exact(width)) {
                for (out, right) in out.iter_mut().zip(right.chunks_exact(width)) {
                    *out = dot(left, right);
                }
            }
        },
    );
    from_values(values, Shape::from([rows, others]))
}

/// Divides rows by `max(norm, epsilon)`.
#[inline(always)]
fn unit_rows(rows: &mut [f32], width: usize, epsilon: f32) {
    for row in rows.chunks_exact_mut(width) {
        let norm = dot(row, row).max(epsilon * epsilon).sqrt();
        row.iter_mut().for_each(|x| *x /= norm);
    }
}
