//! The gate of a task, number by number.

use burn::tensor::Shape;

use crate::flex::buffer::{FlexTensor, contiguous, elements, from_values};
use crate::flex::math::{dot, logistic};
use crate::flex::simd::vectorised;

/// Gates of the rows of a selector by embedding and weight.
pub(super) fn gates(tensors: [FlexTensor; 3], bias: Option<FlexTensor>) -> FlexTensor {
    let tensors = tensors.map(contiguous);
    let [selector, embedding, weight] = tensors.each_ref().map(elements);
    let bias = bias.map(contiguous);
    let bias = bias.as_ref().map_or(0.0, |bias| elements(bias)[0]);
    let tasks = embedding.len() / weight.len();
    let (mut logits, mut gates) = (vec![0.0; tasks], vec![0.0; selector.len() / tasks]);
    vectorised(
        #[inline(always)]
        || {
            for (logit, row) in logits.iter_mut().zip(embedding.chunks_exact(weight.len())) {
                *logit = dot(row, weight);
            }
            for (gate, row) in gates.iter_mut().zip(selector.chunks_exact(tasks)) {
                *gate = logistic(dot(row, &logits) + bias).0;
            }
        },
    );
    let rows = gates.len();
    from_values(gates, Shape::from([rows, 1]))
}
