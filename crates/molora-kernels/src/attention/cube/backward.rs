//! The backward: one kernel for the queries, one for keys and values.

use burn::cubecl;
use burn::cubecl::prelude::*;
use burn::tensor::Shape;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::{
    Inputs, Kind, LOWEST, Rules, Sizes, UNITS, add, cubes, dot, end_of_keys, extent, is_open, read,
    scale, sees, zeros,
};
use crate::cube::buffer::empty;

/// The gradient of the queries, and for each query the logarithm of the sum of its exponentials
/// and the mean `d` of the gradients `dp` of its weights, which the other kernel needs.
///
/// `dq = scale * sum_k p * (dp - d) * k`, taken apart into two sums, so that one pass does.
#[cube(launch)]
fn query_kernel(
    query: &Tensor<f32>,
    key: &Tensor<f32>,
    value: &Tensor<f32>,
    mask: &Tensor<f32>,
    segments: &Tensor<f32>,
    grad: &Tensor<f32>,
    to_query: &mut Tensor<f32>,
    stats: &mut Tensor<f32>,
    sizes: Sizes,
    #[comptime] kind: Kind,
) {
    let (width, tile) = comptime!((kind.width, kind.tile));
    let (head, batch) = (CUBE_POS_Y as usize, CUBE_POS_Z as usize);
    let first = CUBE_POS_X as usize * (UNITS * tile) + UNIT_POS_X as usize;
    let kv_head = head / (sizes.heads / sizes.kv_heads);

    let mut queries = Array::<f32>::new(tile * width);
    let mut slopes = Array::<f32>::new(tile * width);
    let mut keys = zeros(tile * width);
    let mut sloped = zeros(tile * width);
    let mut totals = zeros(tile);
    let mut means = zeros(tile);
    let mut largest = Array::<f32>::new(tile);
    #[unroll]
    for i in 0..tile {
        let row = batch * sizes.queries + min(first + i * UNITS, sizes.queries - 1);
        let start = (row * sizes.heads + head) * width;
        read(query, start, sizes.scale, &mut queries, i * width, width);
        read(grad, start, 1.0f32, &mut slopes, i * width, width);
        largest[i] = LOWEST;
    }
    let mut one_key = Array::<f32>::new(width);
    let mut one_value = Array::<f32>::new(width);
    for at in 0..end_of_keys(&sizes, kind) {
        let row = batch * sizes.keys + at;
        if is_open(mask, row, kind) {
            let start = (row * sizes.kv_heads + kv_head) * width;
            read(key, start, 1.0f32, &mut one_key, 0usize, width);
            read(value, start, 1.0f32, &mut one_value, 0usize, width);
            #[unroll]
            for i in 0..tile {
                if sees(segments, batch, first + i * UNITS, at, &sizes, kind) {
                    let score = dot(&queries, i * width, &one_key, width);
                    if score > largest[i] {
                        let shrink = f32::exp(largest[i] - score);
                        largest[i] = score;
                        totals[i] *= shrink;
                        means[i] *= shrink;
                        scale(&mut keys, i * width, shrink, width);
                        scale(&mut sloped, i * width, shrink, width);
                    }
                    let weight = f32::exp(score - largest[i]);
                    let gain = weight * dot(&slopes, i * width, &one_value, width);
                    totals[i] += weight;
                    means[i] += gain;
                    add(&mut keys, i * width, weight, &one_key, width);
                    add(&mut sloped, i * width, gain, &one_key, width);
                }
            }
        }
    }
    #[unroll]
    for i in 0..tile {
        let at = first + i * UNITS;
        if at < sizes.queries {
            let row = (batch * sizes.queries + at) * sizes.heads + head;
            let mut share = 0.0f32;
            let mut mean = 0.0f32;
            let mut logarithm = 0.0f32;
            if totals[i] != 0.0f32 {
                share = sizes.scale / totals[i];
                mean = means[i] / totals[i];
                logarithm = largest[i] + f32::ln(totals[i]);
            }
            stats[2 * row] = logarithm;
            stats[2 * row + 1] = mean;
            #[unroll]
            for w in 0..width {
                let number = sloped[i * width + w] - mean * keys[i * width + w];
                to_query[row * width + w] = number * share;
            }
        }
    }
}

/// The gradients of keys and values: `dv = sum_q p * dout` and `dk = scale * sum_q p * (dp - d) * q`
/// over the queries of all heads that share the key.
///
/// Cube `(x, y, z)` computes the keys from `x * UNITS * tile` on of key head `y` of batch item `z`.
#[cube(launch)]
fn key_kernel(
    query: &Tensor<f32>,
    key: &Tensor<f32>,
    value: &Tensor<f32>,
    mask: &Tensor<f32>,
    segments: &Tensor<f32>,
    grad: &Tensor<f32>,
    stats: &Tensor<f32>,
    to_key: &mut Tensor<f32>,
    to_value: &mut Tensor<f32>,
    sizes: Sizes,
    #[comptime] kind: Kind,
) {
    let (width, tile) = comptime!((kind.width, kind.tile));
    let (kv_head, batch) = (CUBE_POS_Y as usize, CUBE_POS_Z as usize);
    let first = CUBE_POS_X as usize * (UNITS * tile) + UNIT_POS_X as usize;
    let group = sizes.heads / sizes.kv_heads;

    let mut keys = Array::<f32>::new(tile * width);
    let mut values = Array::<f32>::new(tile * width);
    let mut to_keys = zeros(tile * width);
    let mut to_values = zeros(tile * width);
    let mut open = Array::<bool>::new(tile);
    #[unroll]
    for i in 0..tile {
        let row = batch * sizes.keys + min(first + i * UNITS, sizes.keys - 1);
        let start = (row * sizes.kv_heads + kv_head) * width;
        open[i] = is_open(mask, row, kind);
        read(key, start, 1.0f32, &mut keys, i * width, width);
        read(value, start, 1.0f32, &mut values, i * width, width);
    }
    let mut begin = 0usize;
    if kind.is_causal {
        let earliest = CUBE_POS_X as usize * (UNITS * tile);
        begin = max(earliest, sizes.offset) - sizes.offset;
    }
    let mut one_query = Array::<f32>::new(width);
    let mut one_slope = Array::<f32>::new(width);
    for step in 0..group {
        for at in begin..sizes.queries {
            let row = (batch * sizes.queries + at) * sizes.heads + kv_head * group + step;
            let logarithm = stats[2 * row];
            let mean = stats[2 * row + 1];
            read(
                query,
                row * width,
                sizes.scale,
                &mut one_query,
                0usize,
                width,
            );
            read(grad, row * width, 1.0f32, &mut one_slope, 0usize, width);
            #[unroll]
            for i in 0..tile {
                if open[i] && sees(segments, batch, at, first + i * UNITS, &sizes, kind) {
                    let score = dot(&keys, i * width, &one_query, width);
                    let weight = f32::exp(score - logarithm);
                    let gain = weight * (dot(&values, i * width, &one_slope, width) - mean);
                    add(&mut to_values, i * width, weight, &one_slope, width);
                    add(&mut to_keys, i * width, gain, &one_query, width);
                }
            }
        }
    }
    #[unroll]
    for i in 0..tile {
        let at = first + i * UNITS;
        if at < sizes.keys {
            let start = ((batch * sizes.keys + at) * sizes.kv_heads + kv_head) * width;
            #[unroll]
            for w in 0..width {
                to_key[start + w] = to_keys[i * width + w];
                to_value[start + w] = to_values[i * width + w];
            }
        }
    }
}

/// Shape of the numbers of each query that [`of_query`] returns: `[B, T, H, 2]`.
pub(super) fn stats_shape(query: &Shape, rules: &Rules) -> Shape {
    [query[0], query[1], rules.heads, 2].into()
}

/// See [`query_kernel`].
pub(super) fn of_query(inputs: Inputs, grad: CubeTensor, rules: Rules) -> (CubeTensor, CubeTensor) {
    let inputs = inputs.map(into_contiguous);
    let (sizes, kind, batch) = extent(&inputs, rules);
    let [query, key, value, mask, segments] = inputs;
    let to_query = empty(&query, query.meta.shape().clone());
    let stats = empty(&query, stats_shape(query.meta.shape(), &rules));
    query_kernel::launch(
        &to_query.client,
        cubes(to_query.meta.shape()[1], kind, rules.heads, batch),
        CubeDim::new_1d(UNITS as u32),
        query.into_tensor_arg(),
        key.into_tensor_arg(),
        value.into_tensor_arg(),
        mask.into_tensor_arg(),
        segments.into_tensor_arg(),
        into_contiguous(grad).into_tensor_arg(),
        to_query.clone().into_tensor_arg(),
        stats.clone().into_tensor_arg(),
        sizes,
        kind,
    );
    (to_query, stats)
}

/// See [`key_kernel`].
pub(super) fn of_key(
    inputs: Inputs,
    grad: CubeTensor,
    stats: CubeTensor,
    rules: Rules,
) -> (CubeTensor, CubeTensor) {
    let inputs = inputs.map(into_contiguous);
    let (sizes, kind, batch) = extent(&inputs, rules);
    let [query, key, value, mask, segments] = inputs;
    let to_key = empty(&key, key.meta.shape().clone());
    let to_value = empty(&value, value.meta.shape().clone());
    key_kernel::launch(
        &to_key.client,
        cubes(to_key.meta.shape()[1], kind, rules.kv_heads, batch),
        CubeDim::new_1d(UNITS as u32),
        query.into_tensor_arg(),
        key.into_tensor_arg(),
        value.into_tensor_arg(),
        mask.into_tensor_arg(),
        segments.into_tensor_arg(),
        into_contiguous(grad).into_tensor_arg(),
        into_contiguous(stats).into_tensor_arg(),
        to_key.clone().into_tensor_arg(),
        to_value.clone().into_tensor_arg(),
        sizes,
        kind,
    );
    (to_key, to_value)
}
