//! The forward: a unit holds queries and goes over the keys.

use burn::cubecl;
use burn::cubecl::prelude::*;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::{
    Inputs, Kind, LOWEST, Rules, Sizes, UNITS, add, cubes, dot, end_of_keys, extent, is_open, read,
    scale, sees, zeros,
};
use crate::cube::buffer::empty;

/// `out = softmax(scale * q * k^T) * v` per head; zero for a query that sees no key.
///
/// Cube `(x, y, z)` computes the queries from `x * UNITS * tile` on of head `y` of batch item `z`.
#[cube(launch)]
fn forward_kernel(
    query: &Tensor<f32>,
    key: &Tensor<f32>,
    value: &Tensor<f32>,
    mask: &Tensor<f32>,
    segments: &Tensor<f32>,
    out: &mut Tensor<f32>,
    sizes: Sizes,
    #[comptime] kind: Kind,
) {
    let (width, tile) = comptime!((kind.width, kind.tile));
    let (head, batch) = (CUBE_POS_Y as usize, CUBE_POS_Z as usize);
    let first = CUBE_POS_X as usize * (UNITS * tile) + UNIT_POS_X as usize;
    let kv_head = head / (sizes.heads / sizes.kv_heads);

    let mut queries = Array::<f32>::new(tile * width);
    let mut sums = zeros(tile * width);
    let mut totals = zeros(tile);
    let mut largest = Array::<f32>::new(tile);
    #[unroll]
    for i in 0..tile {
        let row = batch * sizes.queries + min(first + i * UNITS, sizes.queries - 1);
        let start = (row * sizes.heads + head) * width;
        read(query, start, sizes.scale, &mut queries, i * width, width);
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
                        scale(&mut sums, i * width, shrink, width);
                    }
                    let weight = f32::exp(score - largest[i]);
                    totals[i] += weight;
                    add(&mut sums, i * width, weight, &one_value, width);
                }
            }
        }
    }
    #[unroll]
    for i in 0..tile {
        let at = first + i * UNITS;
        if at < sizes.queries {
            let start = ((batch * sizes.queries + at) * sizes.heads + head) * width;
            let mut share = 0.0f32;
            if totals[i] != 0.0f32 {
                share = 1.0f32 / totals[i];
            }
            #[unroll]
            for w in 0..width {
                out[start + w] = sums[i * width + w] * share;
            }
        }
    }
}

/// See [`forward_kernel`].
pub(super) fn run(inputs: Inputs, rules: Rules) -> CubeTensor {
    let inputs = inputs.map(into_contiguous);
    let (sizes, kind, batch) = extent(&inputs, rules);
    let [query, key, value, mask, segments] = inputs;
    let out = empty(&query, query.meta.shape().clone());
    forward_kernel::launch(
        &out.client,
        cubes(out.meta.shape()[1], kind, rules.heads, batch),
        CubeDim::new_1d(UNITS as u32),
        query.into_tensor_arg(),
        key.into_tensor_arg(),
        value.into_tensor_arg(),
        mask.into_tensor_arg(),
        segments.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        sizes,
        kind,
    );
    out
}
