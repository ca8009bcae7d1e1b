//! The largest entries of each row, by counting who is before whom.

use burn::tensor::{Bool, Tensor, TensorData};
use rayon::prelude::*;

use crate::flex::buffer::task_elements;
use crate::flex::simd::vectorised;

/// As [`crate::top_k_mask`], on the host, where the tensor is.
pub(super) fn top_k_mask<const D: usize>(scores: Tensor<D>, k: usize) -> Tensor<D, Bool> {
    let (shape, device) = (scores.shape(), scores.device());
    let scores = scores.detach().into_data().try_into_vec::<f32>();
    let scores = scores.expect("the operation took f32");
    let width = shape[D - 1];
    // Each entry is compared with its row.
    let chunk = (task_elements(width * width) / width).max(width);
    let mut selected = vec![false; scores.len()];
    let tasks = selected.par_chunks_mut(chunk).zip(scores.par_chunks(chunk));
    tasks.for_each(|(selected, scores)| {
        vectorised(
            #[inline(always)]
            || {
                let rows = selected.chunks_exact_mut(width);
                for (selected, row) in rows.zip(scores.chunks_exact(width)) {
                    for (index, selected) in selected.iter_mut().enumerate() {
                        *selected = count_before(row, index) < k;
                    }
                }
            },
        );
    });
    Tensor::from_data(TensorData::new(selected, shape), &device)
}

/// Entries that are larger than that at `index`, or equal and before it.
#[inline(always)]
fn count_before(row: &[f32], index: usize) -> usize {
    let own = row[index];
    let (earlier, later) = row.split_at(index);
    let count = |part: &[f32], is_before: fn(f32, f32) -> bool| {
        part.iter()
            .map(|&other| u32::from(is_before(other, own)))
            .sum::<u32>() as usize
    };
    count(earlier, |other, own| other >= own) + count(later, |other, own| other > own)
}
