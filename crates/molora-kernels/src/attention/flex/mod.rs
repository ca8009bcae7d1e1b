//! Attention, one head of one batch item per task.
//!
//! A task takes its queries in blocks and scores each block against the keys that it reaches: causal
//! and packed attention leave out what is hidden from the whole block. The scores of a block stay in
//! the second-level cache; nothing of the size `[heads, T, S]` is ever allocated. The backward
//! computes the probabilities again from the inputs, the only thing that the forward leaves behind.

mod backend;
mod rules;
mod scores;

use std::sync::{Mutex, PoisonError};

use burn::tensor::Shape;
use rayon::prelude::*;

pub(super) use self::backend::FlexAttention;
pub(super) use self::rules::Rules;
use self::scores::{Head, Scratch, add_weighed, slope, weigh};
use crate::flex::buffer::{
    FlexTensor, contiguous, contiguous_items, distant_items, elements, from_values,
};
use crate::flex::matrix::{Into, Matrix, MatrixMut, multiply};
use crate::flex::team::for_each;

/// Products of a query's numbers with keys that one thread computes sooner than several.
const FEW: usize = 64 * 1024;

/// Query, key, value and bias as slices, and their sizes.
#[derive(Debug, Clone, Copy)]
struct Inputs<'a> {
    query: &'a [f32],
    /// With the distance of two batch items, as in values.
    key: (&'a [f32], usize),
    value: (&'a [f32], usize),
    /// `[items, H, T, S]`.
    bias: Option<(&'a [f32], usize)>,
    rules: &'a Rules,
    batch: usize,
    queries: usize,
    keys: usize,
    /// Width of a head.
    width: usize,
}

impl<'a> Inputs<'a> {
    /// Of contiguous tensors; keys and values of two batch items may lie apart, as in a cache with room for more.
    fn new([query, key, value, bias]: [&'a FlexTensor; 4], rules: &'a Rules) -> Self {
        let (shape, keys) = (query.layout().shape(), key.layout().shape()[1]);
        let items = bias.layout().shape()[0];
        Self {
            query: elements(query),
            key: distant_items(key),
            value: distant_items(value),
            bias: rules.has_bias.then(|| (elements(bias), items)),
            rules,
            batch: shape[0],
            queries: shape[1],
            keys,
            width: shape[2] / rules.heads,
        }
    }

    /// The rows of one of `heads` heads of one batch item in a `[batch, rows, heads * width]` slice whose items are so
    /// far apart.
    fn rows(
        &self,
        (data, distance): (&'a [f32], usize),
        rows: usize,
        heads: usize,
        task: usize,
    ) -> Matrix<'a> {
        let (item, head) = (task / heads, task % heads);
        let stride = heads * self.width;
        let start = item * distance + head * self.width;
        Matrix::new(data.get(start..).unwrap_or(&[]), rows, self.width, stride)
    }

    /// Query head number `task`, counted over the batch items.
    fn head(&self, task: usize) -> Head<'a> {
        let rules = self.rules;
        let (item, head) = (task / rules.heads, task % rules.heads);
        let kv_task = item * rules.kv_heads + head / rules.group();
        let bias = self.bias.map(|(bias, items)| {
            let size = self.queries * self.keys;
            let start = ((item % items) * rules.heads + head) * size;
            Matrix::new(&bias[start..], self.queries, self.keys, self.keys)
        });
        Head {
            query: self.queries(self.query, task),
            key: self.rows(self.key, self.keys, rules.kv_heads, kv_task),
            value: self.rows(self.value, self.keys, rules.kv_heads, kv_task),
            bias,
            rules: rules.item(item, self.keys),
            scale: rules.scale,
            soft_cap: rules.soft_cap,
        }
    }

    /// The rows of query head number `task` in what has the shape of the queries.
    fn queries(&self, data: &'a [f32], task: usize) -> Matrix<'a> {
        let heads = self.rules.heads;
        let distance = self.queries * heads * self.width;
        self.rows((data, distance), self.queries, heads, task)
    }

    /// All heads of all batch items to write to.
    fn targets<'b>(&self, data: &'b mut [f32], rows: usize, heads: usize) -> Vec<MatrixMut<'b>> {
        let item = rows * heads * self.width;
        data.chunks_exact_mut(item.max(1))
            .flat_map(|item| MatrixMut::columns(item, rows, self.width, heads))
            .collect()
    }
}

/// `softmax(scale * query * key^T + bias) * value` for each head, see [`crate::attention_with`].
fn forward(inputs: [FlexTensor; 4], rules: &Rules) -> FlexTensor {
    let shape = inputs[0].layout().shape().clone();
    let [query, key, value, bias] = inputs;
    let [key, value] = [key, value].map(contiguous_items);
    let inputs = [contiguous(query), key, value, contiguous(bias)];
    let inputs = Inputs::new(inputs.each_ref(), rules);
    let mut out = vec![0.0; inputs.query.len()];
    let targets = inputs.targets(&mut out, inputs.queries, rules.heads);
    let run = |scratch: &mut Scratch, (task, mut target): (usize, MatrixMut<'_>)| {
        forward_head(&inputs.head(task), &mut target, scratch);
    };
    let scratch = Scratch::default;
    // A token that is written looks at few others: not worth waking a thread.
    if inputs.query.len() * inputs.keys < FEW {
        let mut scratch = scratch();
        let targets = targets.into_iter().enumerate();
        targets.for_each(|target| run(&mut scratch, target));
    } else if inputs.queries == 1 {
        let targets: Vec<_> = targets.into_iter().map(Mutex::new).collect();
        for_each(targets.len(), |task| {
            let mut target = targets[task].lock().unwrap_or_else(PoisonError::into_inner);
            forward_head(&inputs.head(task), &mut target, &mut scratch());
        });
    } else {
        let targets = targets.into_par_iter().enumerate();
        targets.for_each_init(scratch, run);
    }
    from_values(out, shape)
}

/// The output of one head; rows of queries that reach no key stay as they are.
fn forward_head(head: &Head<'_>, target: &mut MatrixMut<'_>, scratch: &mut Scratch) {
    for block in head.blocks() {
        weigh(head, &block, scratch);
        let (rows, keys) = (block.queries.len(), block.keys.clone());
        let value = head.value.rows(keys.start, keys.len());
        let mut target = target.rows(block.queries.start, rows);
        if rows == 1 {
            add_weighed(&scratch.weights, value, target.row(0));
        } else {
            let weights = Matrix::new(&scratch.weights, rows, keys.len(), block.stride());
            multiply(&mut target, Into::Replace, 1.0, weights, value);
        }
        // The output is narrower than the scores, so it is cheaper to normalise.
        for (row, total) in scratch.totals.iter().enumerate() {
            let factor = 1.0 / total;
            target
                .row(row)
                .iter_mut()
                .for_each(|value| *value *= factor);
        }
    }
}

/// Gradients for query, key and value.
///
/// With probabilities `p`, `dv = p^T * grad`, `dp = grad * value^T`, `ds = p * (dp - sum(p * dp))`,
/// `dq = scale * ds * key` and `dk = scale * ds^T * query`, the last two summed over the query heads
/// that share a key head.
fn backward(inputs: [FlexTensor; 4], rules: &Rules, grad: FlexTensor) -> [FlexTensor; 3] {
    let [query, key, value, _] = inputs
        .each_ref()
        .map(|input| input.layout().shape().clone());
    let (inputs, grad) = (inputs.map(contiguous), contiguous(grad));
    let (inputs, grad) = (Inputs::new(inputs.each_ref(), rules), elements(&grad));
    let zeros = |like: &[f32]| vec![0.0; like.len()];
    let (mut to_query, mut to_key, mut to_value) = (
        zeros(inputs.query),
        zeros(inputs.key.0),
        zeros(inputs.value.0),
    );
    let group = rules.group();
    let mut queries = inputs.targets(&mut to_query, inputs.queries, rules.heads);
    let keys = inputs.targets(&mut to_key, inputs.keys, rules.kv_heads);
    let values = inputs.targets(&mut to_value, inputs.keys, rules.kv_heads);
    queries
        .par_chunks_mut(group)
        .zip(keys.into_par_iter().zip(values))
        .enumerate()
        .for_each_init(
            Scratch::default,
            |scratch, (task, (queries, (mut key, mut value)))| {
                for (head, query) in queries.iter_mut().enumerate() {
                    let head = task * group + head;
                    let grad = inputs.queries(grad, head);
                    let targets = [query, &mut key, &mut value];
                    backward_head(&inputs.head(head), grad, targets, scratch);
                }
            },
        );
    [
        from_values(to_query, query),
        from_values(to_key, key),
        from_values(to_value, value),
    ]
}

/// Gradients of one head: of its queries written, of its keys and values added to the targets.
fn backward_head(
    head: &Head<'_>,
    grad: Matrix<'_>,
    [to_query, to_key, to_value]: [&mut MatrixMut<'_>; 3],
    scratch: &mut Scratch,
) {
    for block in head.blocks() {
        weigh(head, &block, scratch);
        slope(head, grad, &block, scratch);
        let (first, rows, keys) = (block.queries.start, block.queries.len(), block.keys.clone());
        let weights = Matrix::new(&scratch.weights, rows, keys.len(), block.stride());
        let slopes = Matrix::new(&scratch.slopes, rows, keys.len(), block.stride());

        let mut to_value = to_value.rows(keys.start, keys.len());
        let grad = grad.rows(first, rows);
        multiply(&mut to_value, Into::Add, 1.0, weights.transposed(), grad);
        let mut to_query = to_query.rows(first, rows);
        let key = head.key.rows(keys.start, keys.len());
        multiply(&mut to_query, Into::Replace, head.scale, slopes, key);
        let mut to_key = to_key.rows(keys.start, keys.len());
        let query = head.query.rows(first, rows);
        multiply(
            &mut to_key,
            Into::Add,
            head.scale,
            slopes.transposed(),
            query,
        );
    }
}

/// Gradient for the bias: that of the scores, summed over the batch if one bias serves all of it.
fn backward_bias(inputs: [FlexTensor; 4], rules: &Rules, grad: FlexTensor) -> FlexTensor {
    let shape: Shape = inputs[3].layout().shape().clone();
    let (inputs, grad) = (inputs.map(contiguous), contiguous(grad));
    let (inputs, grad) = (Inputs::new(inputs.each_ref(), rules), elements(&grad));
    let mut out = vec![0.0; shape.num_elements()];
    let (size, step) = (inputs.queries * inputs.keys, shape[0] * rules.heads);
    out.par_chunks_exact_mut(size).enumerate().for_each_init(
        Scratch::default,
        |scratch, (first, target)| {
            // This head of each batch item that the bias serves.
            for task in (first..inputs.batch * rules.heads).step_by(step) {
                let grad = inputs.queries(grad, task);
                bias_of_head(&inputs.head(task), grad, target, scratch);
            }
        },
    );
    from_values(out, shape)
}

/// Adds the gradients of the scores of one head to `target`, `[T, S]`.
fn bias_of_head(head: &Head<'_>, grad: Matrix<'_>, target: &mut [f32], scratch: &mut Scratch) {
    let row_length = head.key.num_rows();
    for block in head.blocks() {
        weigh(head, &block, scratch);
        slope(head, grad, &block, scratch);
        let slopes = scratch.slopes.chunks_exact(block.stride());
        for (query, slopes) in block.queries.clone().zip(slopes) {
            let target = &mut target[query * row_length..][block.keys.clone()];
            for (target, slope) in target.iter_mut().zip(slopes) {
                *target += slope;
            }
        }
    }
}
