//! Reading and making the tensors of the backend `flex`, and handing out their rows to tasks.

use std::mem::MaybeUninit;
use std::sync::{Mutex, PoisonError};

use burn::backend::{Flex, tensor::FloatTensor};
use burn::tensor::{Shape, TensorData};
use rayon::prelude::*;

use super::simd::vectorised;
use super::team::{for_each, is_together};

/// The primitive tensor of the backend.
pub(crate) type FlexTensor = FloatTensor<Flex>;

/// Elements that one task of a row-wise operation takes: large beside the cost of a task, small
/// enough to stay in the second-level cache.
const TASK_ELEMENTS: usize = 16 * 1024;
/// The same where the other threads are awake.
const AWAKE_ELEMENTS: usize = 2 * 1024;

/// The same values without gaps, in row-major order. Copies only if `tensor` is a view.
pub(crate) fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() {
        tensor
    } else {
        tensor.to_contiguous()
    }
}

/// The elements of a contiguous tensor.
///
/// # Panics
/// If `tensor` is not contiguous f32.
pub(crate) fn elements(tensor: &FlexTensor) -> &[f32] {
    tensor
        .as_slice()
        .expect("the operation made its inputs contiguous f32")
}

/// The same values with adjacent numbers in each `[rows, width]` of a `[items, rows, width]` tensor, which may lie
/// apart from each other. Copies only if they do not.
pub(crate) fn contiguous_items(tensor: FlexTensor) -> FlexTensor {
    let (shape, strides) = (tensor.layout().shape(), tensor.layout().strides());
    let width = shape[2] as isize;
    let is_packed = strides[2] == 1 && (strides[1] == width || shape[1] == 1);
    match is_packed && strides[0] >= 0 {
        true => tensor,
        false => contiguous(tensor),
    }
}

/// The numbers from the first item to the last, and how far the items are apart, of what [`contiguous_items`] returns.
///
/// # Panics
/// If `tensor` is not f32.
pub(crate) fn distant_items(tensor: &FlexTensor) -> (&[f32], usize) {
    let (layout, shape) = (tensor.layout(), tensor.layout().shape());
    let (start, distance) = (layout.start_offset(), layout.strides()[0].unsigned_abs());
    let length = match shape.num_elements() {
        0 => 0,
        _ => (shape[0] - 1) * distance + shape[1] * shape[2],
    };
    (&tensor.storage()[start..start + length], distance)
}

/// A tensor that owns `values`.
pub(crate) fn from_values(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

/// Elements of one task over rows of `width`, a function of the shape alone.
pub(crate) fn task_elements(width: usize) -> usize {
    (TASK_ELEMENTS / width.max(1)).max(1) * width.max(1)
}

/// Replaces the rows of `tensor` by `map(first, rows)`, where `first` is the index of the first
/// element of `rows`. Works in place if nobody else holds the storage, on a copy otherwise.
///
/// `rows` is a whole number of rows of `width` elements, in row-major order whatever the strides
/// of `tensor`; the tasks run in parallel.
pub(crate) fn map_rows(
    tensor: FlexTensor,
    width: usize,
    map: impl Fn(usize, &mut [f32]) + Sync,
) -> FlexTensor {
    // Rows do not depend on each other, so that any number of them can be a task.
    let chunk = match is_together() {
        true => (AWAKE_ELEMENTS / width.max(1)).max(1) * width.max(1),
        false => task_elements(width),
    };
    if tensor.is_unique() {
        // No copy either, unless the tensor is a view.
        let mut owned = tensor.to_contiguous();
        drop(tensor);
        for_each_task(owned.storage_mut::<f32>(), chunk, map);
        return owned;
    }
    let tensor = contiguous(tensor);
    let source = elements(&tensor);
    let values = build(source.len(), chunk, |first, target| {
        let rows = target.write_copy_of_slice(&source[first..first + target.len()]);
        map(first, rows);
        rows
    });
    from_values(values, tensor.layout().shape().clone())
}

/// Sums of `len` numbers over the rows of two slices of `width` columns: `add` adds what one row of
/// each contributes. The order of the sums depends on the shape alone.
///
/// `add` must be inlined, see [`vectorised`].
pub(crate) fn sum_over_rows(
    [left, right]: [&[f32]; 2],
    width: usize,
    len: usize,
    add: impl Fn(&mut [f32], &[f32], &[f32]) + Sync,
) -> Vec<f32> {
    let partial = |(left, right): (&[f32], &[f32])| {
        let mut sums = vec![0.0; len];
        vectorised(
            #[inline(always)]
            || {
                for (left, right) in left.chunks_exact(width).zip(right.chunks_exact(width)) {
                    add(&mut sums, left, right);
                }
            },
        );
        sums
    };
    let chunk = task_elements(width);
    let parts = left.par_chunks(chunk).zip(right.par_chunks(chunk));
    let partials: Vec<_> = parts.map(partial).collect();
    // In the order of the rows, so that the number of threads does not show.
    let mut total = vec![0.0; len];
    for part in partials {
        total
            .iter_mut()
            .zip(part)
            .for_each(|(total, part)| *total += part);
    }
    total
}

/// A vector of `len` elements whose chunks are made by `init` in parallel.
///
/// `init(first, chunk)` must initialise its chunk and hand it back.
///
/// # Panics
/// If `init` hands back fewer elements than it was given.
pub(crate) fn build<T: Send>(
    len: usize,
    chunk: usize,
    init: impl Fn(usize, &mut [MaybeUninit<T>]) -> &mut [T] + Sync,
) -> Vec<T> {
    let mut values = Vec::with_capacity(len);
    for_each_task(
        &mut values.spare_capacity_mut()[..len],
        chunk,
        |first, target| {
            let wanted = target.as_ptr_range();
            let made = init(first, target).as_ptr_range();
            assert!(made.start == wanted.start.cast() && made.end == wanted.end.cast());
        },
    );
    // SAFETY: the capacity is at least `len`, and the tasks cover `..len`: each handed back its
    // chunk, the same addresses, as initialised.
    #[allow(unsafe_code)]
    unsafe {
        values.set_len(len);
    }
    values
}

/// What `map` makes of each of some numbers, in parallel.
///
/// `map` must be inlined, see [`vectorised`].
pub(crate) fn map_numbers<S: Copy + Sync, T: Send>(
    source: &[S],
    map: impl Fn(S) -> T + Sync,
) -> Vec<T> {
    build(source.len(), task_elements(1), |first, target| {
        let source = &source[first..first + target.len()];
        vectorised(
            #[inline(always)]
            || {
                for (target, &source) in target.iter_mut().zip(source) {
                    target.write(map(source));
                }
            },
        );
        // SAFETY: there are as many numbers as there are places, so the loop initialised each.
        #[allow(unsafe_code)]
        unsafe {
            target.assume_init_mut()
        }
    })
}

/// Fills `target` with copies of `row`.
///
/// # Panics
/// If `target` is not a whole number of rows.
pub(crate) fn write_tiled<'a>(target: &'a mut [MaybeUninit<f32>], row: &[f32]) -> &'a mut [f32] {
    assert_eq!(target.len() % row.len(), 0);
    for target in target.chunks_exact_mut(row.len()) {
        target.write_copy_of_slice(row);
    }
    // SAFETY: the length is a multiple of the row's, so the loop initialised every element.
    #[allow(unsafe_code)]
    unsafe {
        target.assume_init_mut()
    }
}

/// Calls `task(first, chunk)` for the consecutive chunks of `target`, in parallel.
pub(crate) fn for_each_task<T: Send>(
    target: &mut [T],
    chunk: usize,
    task: impl Fn(usize, &mut [T]) + Sync,
) {
    if target.len() <= chunk {
        // Not worth waking a thread.
        return task(0, target);
    }
    if is_together() {
        let parts: Vec<_> = target.chunks_mut(chunk).map(Mutex::new).collect();
        return for_each(parts.len(), |i| {
            let mut part = parts[i].lock().unwrap_or_else(PoisonError::into_inner);
            task(i * chunk, &mut part);
        });
    }
    target
        .par_chunks_mut(chunk)
        .enumerate()
        .for_each(|(i, part)| task(i * chunk, part));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting(shape: [usize; 2]) -> FlexTensor {
        let values = (0..shape[0] * shape[1]).map(|i| i as f32).collect();
        from_values(values, Shape::from(shape))
    }

    /// Adds the position of each element to it.
    fn add_position(first: usize, rows: &mut [f32]) {
        rows.iter_mut()
            .zip(first..)
            .for_each(|(value, i)| *value += i as f32);
    }

    #[test]
    fn map_rows_leaves_a_shared_tensor_alone() {
        let tensor = counting([100, 400]);
        let mapped = map_rows(tensor.clone(), 400, add_position);
        assert_eq!(elements(&tensor)[39_999], 39_999.0);
        assert!(
            elements(&mapped)
                .iter()
                .enumerate()
                .all(|(i, &v)| v == 2.0 * i as f32)
        );
    }

    #[test]
    fn map_rows_reads_a_view_in_row_major_order() {
        for shared in [false, true] {
            let tensor = counting([3, 2]).transpose(0, 1);
            let kept = shared.then(|| tensor.clone());
            let mapped = map_rows(tensor, 3, |_, rows| rows.iter_mut().for_each(|v| *v += 1.0));
            assert_eq!(elements(&mapped), [1.0, 3.0, 5.0, 2.0, 4.0, 6.0]);
            assert_eq!(mapped.layout().shape().as_slice(), [2, 3]);
            assert!(kept.is_none_or(|tensor| tensor.storage::<f32>()[5] == 5.0));
        }
    }

    #[test]
    fn map_rows_of_a_part_leaves_the_rest() {
        let part = counting([4, 2]).narrow(0, 1, 2);
        let mapped = map_rows(part, 2, add_position);
        assert_eq!(elements(&mapped), [2.0, 4.0, 6.0, 8.0]);
    }

    #[test]
    fn tasks_hold_whole_rows() {
        assert_eq!(task_elements(384) % 384, 0);
        assert_eq!(task_elements(1_000_000), 1_000_000);
        assert_eq!(task_elements(0), TASK_ELEMENTS);
    }
}
