//! The SiLU gate and its derivatives, 16 numbers at a time.

use rayon::prelude::*;

use crate::flex::buffer::{FlexTensor, contiguous, elements, from_values, map_rows, task_elements};
use crate::flex::math::logistic;
use crate::flex::saved::Kept;
use crate::flex::simd::vectorised;

/// `gate * P * up` with `P = 1 / (1 + exp(-gate))`.
pub(super) fn forward(gate: FlexTensor, up: FlexTensor) -> FlexTensor {
    let up = contiguous(up);
    let up = elements(&up);
    map_rows(gate, 1, |first, gates| {
        let up = &up[first..first + gates.len()];
        vectorised(
            #[inline(always)]
            || {
                for (gate, &up) in gates.iter_mut().zip(up) {
                    *gate = *gate * logistic(*gate).0 * up;
                }
            },
        );
    })
}

/// Gradients for gate and up: `grad * up * (P + gate * P * (1 - P))` and `grad * gate * P`.
pub(super) fn backward(gate: &Kept, up: &Kept, grad: FlexTensor) -> (FlexTensor, FlexTensor) {
    let shape = grad.layout().shape().clone();
    let grad = contiguous(grad);
    let grad = elements(&grad);
    let (mut to_gate, mut to_up) = (vec![0.0; grad.len()], vec![0.0; grad.len()]);
    let chunk = task_elements(1);
    to_gate
        .par_chunks_mut(chunk)
        .zip(to_up.par_chunks_mut(chunk))
        .enumerate()
        .for_each(|(task, (to_gate, to_up))| {
            let (first, count) = (task * chunk, to_gate.len());
            let mut places = [Vec::new(), Vec::new()];
            let [of_gate, of_up] = &mut places;
            let gate = gate.part(first, count, of_gate);
            let up = up.part(first, count, of_up);
            let inputs = gate.iter().zip(up).zip(&grad[first..]);
            vectorised(
                #[inline(always)]
                || {
                    let targets = to_gate.iter_mut().zip(to_up.iter_mut());
                    for ((to_gate, to_up), ((&gate, &up), &grad)) in targets.zip(inputs.clone()) {
                        let (p, slope) = logistic(gate);
                        // At infinity the slope is 0 and so is the product's limit.
                        let bounded = if gate.abs() > 1e6 { 0.0 } else { gate };
                        *to_gate = grad * up * bounded.mul_add(slope, p);
                        *to_up = grad * gate * p;
                    }
                },
            );
        });
    (
        from_values(to_gate, shape.clone()),
        from_values(to_up, shape),
    )
}
