//! The definition of attention by two batched matrix products.

use burn::tensor::activation::softmax;
use burn::tensor::{Bool, DType, Int, Tensor};

use super::AttentionOptions;

/// As [`attention`](crate::attention).
pub fn attention(
    query: Tensor<3>,
    key: Tensor<3>,
    value: Tensor<3>,
    mask: Option<Tensor<2, Bool>>,
    num_heads: usize,
) -> Tensor<3> {
    let options = AttentionOptions::new(num_heads).with_mask(mask);
    attention_with(query, key, value, &options)
}

/// As [`attention_with`](crate::attention_with).
pub fn attention_with(
    query: Tensor<3>,
    key: Tensor<3>,
    value: Tensor<3>,
    options: &AttentionOptions,
) -> Tensor<3> {
    let [batch, queries, width] = query.dims();
    let keys = key.dims()[1];
    let heads = options.num_heads;
    let scale = options.scale_of(width / heads);
    let hidden_bhts = hidden([batch, queries, keys], options, &query);
    let query_bhtw = split_heads(query, heads);
    let [key_bhsw, value_bhsw] =
        [key, value].map(|x| repeat_heads(split_heads(x, options.num_kv_heads), heads));

    let mut scores_bhts = query_bhtw
        .matmul(key_bhsw.swap_dims(2, 3))
        .mul_scalar(scale);
    if let Some(bias) = &options.bias {
        scores_bhts = scores_bhts + bias.clone();
    }
    if let Some(cap) = options.soft_cap {
        scores_bhts = scores_bhts.div_scalar(cap).tanh().mul_scalar(cap);
    }
    let weights_bhts = match hidden_bhts {
        None => softmax(scores_bhts, 3),
        Some(hidden_bhts) => masked_softmax(scores_bhts, hidden_bhts),
    };
    weights_bhts
        .matmul(value_bhsw)
        .swap_dims(1, 2)
        .reshape([batch, queries, width])
}

/// Softmax over the keys that are not hidden; zero for a query that sees none.
fn masked_softmax(scores: Tensor<4>, hidden: Tensor<4, Bool>) -> Tensor<4> {
    // A finite number, so that a row without an allowed key is not NaN; it is zeroed below.
    let lowest = if scores.dtype() == DType::F16 {
        -6e4
    } else {
        -1e30
    };
    softmax(scores.mask_fill(hidden.clone(), lowest), 3).mask_fill(hidden, 0.0)
}

/// Which keys each query may not attend to, `[B, H, T, S]`; `None` if it may to all.
fn hidden(
    [batch, queries, keys]: [usize; 3],
    options: &AttentionOptions,
    query: &Tensor<3>,
) -> Option<Tensor<4, Bool>> {
    let shape = [batch, options.num_heads, queries, keys];
    let along_keys = |keys_of: Tensor<2, Bool>| keys_of.reshape([batch, 1, 1, keys]).expand(shape);
    let padding = options.mask.clone().map(|mask| along_keys(mask.bool_not()));
    let later = options.is_causal.then(|| {
        let position = |first: usize, count: usize| {
            let range = first as i64..(first + count) as i64;
            Tensor::<1, Int>::arange(range, &query.device())
        };
        let queries_at = position(options.query_offset, queries).reshape([1, 1, queries, 1]);
        let keys_at = position(0, keys).reshape([1, 1, 1, keys]);
        keys_at.expand(shape).greater(queries_at.expand(shape))
    });
    let foreign = options.segments.clone().map(|segments| {
        let queries_in = segments.clone().narrow(1, options.query_offset, queries);
        let queries_in = queries_in.reshape([batch, 1, queries, 1]);
        let keys_in = segments.reshape([batch, 1, 1, keys]);
        keys_in.expand(shape).not_equal(queries_in.expand(shape))
    });
    let far = options.window.map(|distance| {
        let keys_at = places([batch, keys], options, query);
        let queries_at = keys_at.clone().narrow(1, options.query_offset, queries);
        let queries_at = queries_at.reshape([batch, 1, queries, 1]).expand(shape);
        let apart = keys_at.reshape([batch, 1, 1, keys]).expand(shape) - queries_at;
        apart.abs().greater_elem(distance.min(keys) as i64)
    });
    [padding, later, foreign, far]
        .into_iter()
        .flatten()
        .reduce(Tensor::bool_or)
}

/// How many keys are open up to each position, `[B, S]`.
fn places(
    [batch, keys]: [usize; 2],
    options: &AttentionOptions,
    query: &Tensor<3>,
) -> Tensor<2, Int> {
    match &options.mask {
        Some(mask) => mask.clone().int().cumsum(1),
        None => Tensor::<1, Int>::arange(1..keys as i64 + 1, &query.device())
            .reshape([1, keys])
            .expand([batch, keys]),
    }
}

/// `[B, T, H * W]` as `[B, H, T, W]`.
fn split_heads(x: Tensor<3>, num_heads: usize) -> Tensor<4> {
    let [batch, rows, width] = x.dims();
    x.reshape([batch, rows, num_heads, width / num_heads])
        .swap_dims(1, 2)
}

/// Each key head once for every query head that it serves.
fn repeat_heads(x: Tensor<4>, num_heads: usize) -> Tensor<4> {
    let [batch, kv_heads, rows, width] = x.dims();
    let group = num_heads / kv_heads;
    if group == 1 {
        return x;
    }
    x.reshape([batch, kv_heads, 1, rows * width])
        .expand([batch, kv_heads, group, rows * width])
        .reshape([batch, num_heads, rows, width])
}
