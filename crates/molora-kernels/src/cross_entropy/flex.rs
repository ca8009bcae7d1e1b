//! Cross-entropy of rows of logits: the forward writes one number per row, the backward replaces
//! the logits by their gradient.

use std::sync::Arc;

use burn::tensor::{Int, Shape, Tensor};
use rayon::prelude::*;

use crate::flex::buffer::{FlexTensor, contiguous, elements, from_values, map_rows, task_elements};
use crate::flex::math::{LANES, exp, join, sum};
use crate::flex::simd::vectorised;

/// The class of each row, on the host and cheap to clone, and the share of the probability that is
/// asked of all classes alike.
#[derive(Debug, Clone)]
pub(super) struct Labels {
    targets: Arc<[i64]>,
    smoothing: f32,
}

impl Labels {
    pub(super) fn new(targets: &Tensor<1, Int>, classes: usize, smoothing: f64) -> Self {
        let targets: Arc<[i64]> = targets.to_data().iter::<i64>().collect();
        for (row, &target) in targets.iter().enumerate() {
            let is_class = usize::try_from(target).is_ok_and(|target| target < classes);
            assert!(
                target < 0 || is_class,
                "target {target} of row {row} is not one of {classes} classes"
            );
        }
        let smoothing = smoothing as f32;
        Self { targets, smoothing }
    }

    /// The class of `row`, unless it is ignored.
    #[inline(always)]
    fn target(&self, row: usize) -> Option<usize> {
        usize::try_from(self.targets[row]).ok()
    }
}

/// `ln(sum(exp(row))) - row[target]` of each row, and with smoothing `smoothing * (row[target] -
/// mean(row))` more; 0 without a target.
pub(super) fn forward(logits: FlexTensor, labels: &Labels) -> FlexTensor {
    let logits = contiguous(logits);
    let shape = logits.layout().shape();
    let (rows, classes) = (shape[0], shape[1]);
    let logits = elements(&logits);
    let mut losses = vec![0.0; rows];
    let per_task = task_elements(classes) / classes;
    let smoothing = labels.smoothing;
    let tasks = losses.par_chunks_mut(per_task).enumerate();
    tasks.for_each(|(task, losses)| {
        let first = task * per_task;
        let logits = &logits[first * classes..];
        vectorised(
            #[inline(always)]
            || {
                for (row, loss) in losses.iter_mut().enumerate() {
                    if let Some(target) = labels.target(first + row) {
                        let logits = &logits[row * classes..][..classes];
                        *loss = loss_of(logits, target);
                        // Not times zero: a class of minus infinity would make that NaN.
                        if smoothing > 0.0 {
                            *loss += smoothing * above_mean(logits, target);
                        }
                    }
                }
            },
        );
    });
    from_values(losses, Shape::from([rows]))
}

#[inline(always)]
fn loss_of(row: &[f32], target: usize) -> f32 {
    let largest = largest_of(row);
    let total = sum(row, row, |value, _| exp(value - largest));
    total.ln() + (largest - row[target])
}

/// `row[target] - mean(row)`.
#[inline(always)]
fn above_mean(row: &[f32], target: usize) -> f32 {
    let own = row[target];
    sum(row, row, |value, _| own - value) / row.len() as f32
}

/// `(softmax(row) - (1 - smoothing) * onehot(target) - smoothing / classes) * grad` of each row, zeros without a target. In the memory of
/// the logits if nobody else holds them.
pub(super) fn backward(logits: FlexTensor, labels: &Labels, grad: FlexTensor) -> FlexTensor {
    let classes = logits.layout().shape()[1];
    let grad = contiguous(grad);
    let grad = elements(&grad);
    map_rows(logits, classes, |first, rows| {
        let first = first / classes;
        vectorised(
            #[inline(always)]
            || {
                for (index, row) in rows.chunks_exact_mut(classes).enumerate() {
                    match labels.target(first + index) {
                        Some(target) => {
                            gradient_of(row, target, grad[first + index], labels.smoothing);
                        }
                        None => row.fill(0.0),
                    }
                }
            },
        );
    })
}

#[inline(always)]
fn gradient_of(row: &mut [f32], target: usize, grad: f32, smoothing: f32) {
    let largest = largest_of(row);
    for value in row.iter_mut() {
        *value = exp(*value - largest);
    }
    let total = sum(row, row, |value, _| value);
    // The target's probability less one, without the digits that it loses close to one.
    let others = total - row[target];
    let factor = grad / total;
    for value in row.iter_mut() {
        *value *= factor;
    }
    row[target] = -others * factor;
    if smoothing > 0.0 {
        let each = smoothing * grad / row.len() as f32;
        for value in row.iter_mut() {
            *value -= each;
        }
        row[target] += smoothing * grad;
    }
}

/// The largest number; NaN is passed over, and comes back with the exponentials.
#[inline(always)]
fn largest_of(row: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, value);
    }
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, value);
        }
    }
    join(lanes, larger)
}
