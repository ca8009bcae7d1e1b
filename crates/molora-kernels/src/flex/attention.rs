//! Attention, one (batch item, head) per task.
//!
//! A task takes its queries in blocks, so that the scores of a block against all keys stay in the
//! second-level cache; nothing of the size `[heads, T, S]` is ever allocated. The backward computes
//! the probabilities again from the inputs, the only thing that the forward leaves behind.

use burn::tensor::Shape;
use rayon::prelude::*;

use super::buffer::{FlexTensor, contiguous, elements, from_values};
use super::math::{LANES, exp, join, sum};
use super::matrix::{Into, Matrix, MatrixMut, multiply};
use super::simd::vectorised;

/// Queries that are scored at a time.
const BLOCK: usize = 64;

/// Sizes of one attention.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    /// Width of a head.
    width: usize,
}

impl Sizes {
    fn of(query: &FlexTensor, key: &FlexTensor, heads: usize) -> Self {
        let (query, key) = (query.layout().shape(), key.layout().shape());
        Self {
            batch: query[0],
            queries: query[1],
            keys: key[1],
            heads,
            width: query[2] / heads,
        }
    }

    /// The rows of one head of one batch item in a `[batch, rows, heads * width]` slice.
    fn head<'a>(&self, data: &'a [f32], rows: usize, item: usize, head: usize) -> Matrix<'a> {
        let row_stride = self.heads * self.width;
        let start = item * rows * row_stride + head * self.width;
        Matrix::new(
            data.get(start..).unwrap_or(&[]),
            rows,
            self.width,
            row_stride,
        )
    }

    /// All heads of all batch items to write to, in the order of the tasks.
    fn heads_mut<'a>(&self, data: &'a mut [f32], rows: usize) -> Vec<MatrixMut<'a>> {
        let item = rows * self.heads * self.width;
        data.chunks_exact_mut(item.max(1))
            .flat_map(|item| MatrixMut::columns(item, rows, self.width, self.heads))
            .collect()
    }

    fn scale(&self) -> f32 {
        1.0 / (self.width as f32).sqrt()
    }
}

/// Which keys the queries of one batch item may attend to.
///
/// The same for all its queries so far; a causal or block-diagonal mask would say it per query.
#[derive(Debug)]
struct Allowed {
    /// 1 or 0 for each key up to the last allowed one, then 0 up to a multiple of [`LANES`].
    keep: Vec<f32>,
    /// Keys up to the last allowed one: the rest is never read.
    keys: usize,
}

impl Allowed {
    fn new(mask: &[u8]) -> Self {
        let keys = mask
            .iter()
            .rposition(|&allowed| allowed != 0)
            .map_or(0, |last| last + 1);
        let mut keep = vec![0.0; keys.next_multiple_of(LANES)];
        for (keep, &allowed) in keep.iter_mut().zip(&mask[..keys]) {
            *keep = if allowed != 0 { 1.0 } else { 0.0 };
        }
        Self { keep, keys }
    }

    /// One per batch item of a `[batch, keys]` mask.
    fn from_mask(mask: FlexTensor, sizes: Sizes) -> Vec<Self> {
        let mask = mask.to_contiguous();
        let mask = mask.storage::<u8>();
        (0..sizes.batch)
            .map(|b| Self::new(&mask[b * sizes.keys..][..sizes.keys]))
            .collect()
    }
}

/// The inputs of one task.
#[derive(Debug, Clone, Copy)]
struct Head<'a> {
    query: Matrix<'a>,
    key: Matrix<'a>,
    value: Matrix<'a>,
    allowed: &'a Allowed,
    scale: f32,
}

/// `softmax(query * key^T / sqrt(width)) * value` for each head, see [`crate::attention`].
pub(crate) fn forward(inputs: [FlexTensor; 3], mask: FlexTensor, heads: usize) -> FlexTensor {
    let sizes = Sizes::of(&inputs[0], &inputs[1], heads);
    let shape = inputs[0].layout().shape().clone();
    let inputs = inputs.map(contiguous);
    let inputs = inputs.each_ref().map(elements);
    let allowed = Allowed::from_mask(mask, sizes);

    let mut out = vec![0.0; inputs[0].len()];
    let targets = sizes.heads_mut(&mut out, sizes.queries);
    targets
        .into_par_iter()
        .enumerate()
        .for_each(|(task, mut target)| {
            let head = head_of(task, inputs, &allowed, sizes);
            for first in (0..sizes.queries).step_by(BLOCK) {
                let rows = BLOCK.min(sizes.queries - first);
                forward_block(head, first, target.rows(first, rows), rows);
            }
        });
    from_values(out, shape)
}

/// Gradients for query, key and value.
///
/// With probabilities `p`, `dv = p^T * grad`, `dp = grad * value^T`,
/// `ds = p * (dp - sum(p * dp)) / sqrt(width)`, `dq = ds * key` and `dk = ds^T * query`.
pub(crate) fn backward(
    inputs: [FlexTensor; 3],
    mask: FlexTensor,
    heads: usize,
    grad: FlexTensor,
) -> [FlexTensor; 3] {
    let sizes = Sizes::of(&inputs[0], &inputs[1], heads);
    let shapes = inputs
        .each_ref()
        .map(|input| input.layout().shape().clone());
    let (inputs, grad) = (inputs.map(contiguous), contiguous(grad));
    let (inputs, grad) = (inputs.each_ref().map(elements), elements(&grad));
    let allowed = Allowed::from_mask(mask, sizes);

    let mut out = inputs.map(|input| vec![0.0; input.len()]);
    let [query, key, value] = &mut out;
    let query = sizes.heads_mut(query, sizes.queries).into_par_iter();
    let key = sizes.heads_mut(key, sizes.keys).into_par_iter();
    let value = sizes.heads_mut(value, sizes.keys).into_par_iter();
    query
        .zip(key)
        .zip(value)
        .enumerate()
        .for_each(|(task, ((query, key), value))| {
            let head = head_of(task, inputs, &allowed, sizes);
            let grad = sizes.head(grad, sizes.queries, task / heads, task % heads);
            backward_head(head, grad, [query, key, value], sizes.queries);
        });
    let mut shapes = shapes.into_iter();
    out.map(|values| from_values(values, shapes.next().unwrap_or_else(|| Shape::from([0]))))
}

fn head_of<'a>(
    task: usize,
    [query, key, value]: [&'a [f32]; 3],
    allowed: &'a [Allowed],
    sizes: Sizes,
) -> Head<'a> {
    let (item, head) = (task / sizes.heads, task % sizes.heads);
    let allowed = &allowed[item];
    Head {
        query: sizes.head(query, sizes.queries, item, head),
        key: sizes
            .head(key, sizes.keys, item, head)
            .rows(0, allowed.keys),
        value: sizes
            .head(value, sizes.keys, item, head)
            .rows(0, allowed.keys),
        allowed,
        scale: sizes.scale(),
    }
}

/// Attention of `rows` queries from `first` on.
fn forward_block(head: Head<'_>, first: usize, mut target: MatrixMut<'_>, rows: usize) {
    let keys = head.allowed.keys;
    if keys == 0 {
        // Nothing may be attended to: the target stays zero.
        return;
    }
    let (scores, totals) = weights(head, first, rows);
    let scores = Matrix::new(&scores, rows, keys, head.allowed.keep.len());
    multiply(&mut target, Into::Replace, 1.0, scores, head.value);
    // The output is narrower than the scores, so it is cheaper to normalise.
    for (row, total) in totals.into_iter().enumerate() {
        let factor = 1.0 / total;
        target
            .row(row)
            .iter_mut()
            .for_each(|value| *value *= factor);
    }
}

/// Gradients of one head, added to `[query, key, value]`.
fn backward_head(
    head: Head<'_>,
    grad: Matrix<'_>,
    [mut query, mut key, mut value]: [MatrixMut<'_>; 3],
    queries: usize,
) {
    let keys = head.allowed.keys;
    if keys == 0 {
        return;
    }
    let stride = head.allowed.keep.len();
    let (mut key, mut value) = (key.rows(0, keys), value.rows(0, keys));
    for first in (0..queries).step_by(BLOCK) {
        let rows = BLOCK.min(queries - first);
        let grad = grad.rows(first, rows);
        let (mut weights, totals) = weights(head, first, rows);
        let mut slopes = vec![0.0; rows * stride];
        let mut target = MatrixMut::new(&mut slopes, rows, keys, stride);
        multiply(
            &mut target,
            Into::Replace,
            1.0,
            grad,
            head.value.transposed(),
        );
        score_gradients(&mut weights, &mut slopes, &totals, stride);

        let weights = Matrix::new(&weights, rows, keys, stride);
        let slopes = Matrix::new(&slopes, rows, keys, stride);
        multiply(&mut value, Into::Add, 1.0, weights.transposed(), grad);
        multiply(
            &mut query.rows(first, rows),
            Into::Replace,
            head.scale,
            slopes,
            head.key,
        );
        let query = head.query.rows(first, rows);
        multiply(&mut key, Into::Add, head.scale, slopes.transposed(), query);
    }
}

/// Exponentials of the scores relative to each row's largest, `[rows, keep.len()]` with zeros where
/// not allowed, and the sum of each row.
fn weights(head: Head<'_>, first: usize, rows: usize) -> (Vec<f32>, Vec<f32>) {
    let keep = &head.allowed.keep;
    let mut scores = vec![0.0; rows * keep.len()];
    let mut target = MatrixMut::new(&mut scores, rows, head.allowed.keys, keep.len());
    let query = head.query.rows(first, rows);
    multiply(
        &mut target,
        Into::Replace,
        head.scale,
        query,
        head.key.transposed(),
    );
    let mut totals = vec![0.0; rows];
    vectorised(
        #[inline(always)]
        || {
            for (row, total) in scores.chunks_exact_mut(keep.len()).zip(&mut totals) {
                *total = exponentials(row, keep);
            }
        },
    );
    (scores, totals)
}

/// Replaces a row of scores by `exp(score - largest)`, 0 where not kept. Returns the sum.
#[inline(always)]
fn exponentials(row: &mut [f32], keep: &[f32]) -> f32 {
    let mut largest = [f32::NEG_INFINITY; LANES];
    let chunks = row.as_chunks_mut::<LANES>().0.iter_mut();
    for (row, keep) in chunks.zip(keep.as_chunks::<LANES>().0) {
        for (lane, largest) in largest.iter_mut().enumerate() {
            let score = if keep[lane] != 0.0 {
                row[lane]
            } else {
                f32::NEG_INFINITY
            };
            row[lane] = score;
            *largest = if score > *largest { score } else { *largest };
        }
    }
    let largest = join(largest, |a, b| if b > a { b } else { a });
    for score in row.iter_mut() {
        *score = exp(*score - largest);
    }
    sum(row, row, |value, _| value)
}

/// Normalises the `weights` to probabilities `p`, and replaces the `slopes` `dp` by
/// `p * (dp - sum(p * dp))`.
fn score_gradients(weights: &mut [f32], slopes: &mut [f32], totals: &[f32], stride: usize) {
    vectorised(
        #[inline(always)]
        || {
            let rows = weights
                .chunks_exact_mut(stride)
                .zip(slopes.chunks_exact_mut(stride));
            for ((weights, slopes), &total) in rows.zip(totals) {
                let factor = 1.0 / total;
                weights.iter_mut().for_each(|weight| *weight *= factor);
                let mean = sum(weights, slopes, |p, slope| p * slope);
                for (slope, &p) in slopes.iter_mut().zip(&*weights) {
                    *slope = p * (*slope - mean);
                }
            }
        },
    );
}
