//! Attention without a matrix of scores: a unit holds a few queries and goes over the keys with a
//! running maximum and sum, and in the backward a unit holds a few keys and goes over the queries.
//!
//! Dao et al., FlashAttention, arXiv:2205.14135, algorithms 1 and 4. The forward keeps nothing: the
//! backward forms the sums of each row again while it computes the gradient of the queries.

mod backend;
mod backward;
mod forward;

use burn::cubecl;
use burn::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

pub(super) use self::backend::CubeAttention;
use crate::AttentionOptions;
use crate::cube::buffer::count;

/// Units of a cube.
const UNITS: usize = 32;
/// Width of a head up to which a unit holds two rows, for which its registers suffice.
const NARROW: usize = 32;
/// Width of a head up to which the kernels are used: a unit holds four rows of it.
const MAX_WIDTH: usize = 128;

/// Below every score: where the running maximum begins.
const LOWEST: f32 = -1e30;

/// Whether the kernels can do it: without a bias, a window or a bound of the scores, for heads that fit
/// into registers.
pub(super) fn is_able(options: &AttentionOptions, width: usize) -> bool {
    let is_plain = options.bias.is_none() && options.window.is_none() && options.soft_cap.is_none();
    is_plain && width <= MAX_WIDTH
}

/// An [`AttentionOptions`] without its tensors.
#[derive(Debug, Clone, Copy)]
pub(in crate::attention) struct Rules {
    heads: usize,
    kv_heads: usize,
    scale: f32,
    is_causal: bool,
    query_offset: usize,
    has_mask: bool,
    has_segments: bool,
}

impl Rules {
    /// The rules of `options` for heads of a width whose factor on the scores is `scale`.
    pub(in crate::attention) fn new(options: &AttentionOptions, scale: f64) -> Self {
        Self {
            heads: options.num_heads,
            kv_heads: options.num_kv_heads,
            scale: scale as f32,
            is_causal: options.is_causal,
            query_offset: options.query_offset,
            has_mask: options.mask.is_some(),
            has_segments: options.segments.is_some(),
        }
    }
}

/// Sizes and what may be attended to.
#[derive(CubeLaunch, CubeType, Clone, Copy)]
struct Sizes {
    queries: usize,
    keys: usize,
    heads: usize,
    kv_heads: usize,
    /// Position of the first query.
    offset: usize,
    scale: f32,
}

/// What a kernel is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    /// Width W of a head.
    width: usize,
    /// Rows that a unit holds, [`UNITS`] apart.
    tile: usize,
    is_causal: bool,
    has_mask: bool,
    has_segments: bool,
}

/// Whether the query at `query` may attend to the key at `key`, of which padding is known already.
#[cube]
fn sees(
    segments: &Tensor<f32>,
    batch: usize,
    query: usize,
    key: usize,
    sizes: &Sizes,
    #[comptime] kind: Kind,
) -> bool {
    let mut sees = query < sizes.queries && key < sizes.keys;
    if kind.is_causal {
        sees = sees && key <= sizes.offset + query;
    }
    if kind.has_segments {
        let of_query = min(sizes.offset + query, sizes.keys - 1);
        let of_key = min(key, sizes.keys - 1);
        let first = batch * sizes.keys;
        sees = sees && segments[first + of_query] == segments[first + of_key];
    }
    sees
}

/// Whether padding leaves the key at this row of the mask open.
#[cube]
fn is_open(mask: &Tensor<f32>, row: usize, #[comptime] kind: Kind) -> bool {
    let mut is_open = true;
    if kind.has_mask {
        is_open = mask[row] != 0.0f32;
    }
    is_open
}

/// One more than the last key that any query of this cube may attend to.
#[cube]
fn end_of_keys(sizes: &Sizes, #[comptime] kind: Kind) -> usize {
    let mut end = sizes.keys;
    if kind.is_causal {
        let last = (CUBE_POS_X as usize + 1) * (UNITS * kind.tile) + sizes.offset;
        end = min(end, last);
    }
    end
}

/// Reads `width` numbers times `factor` to `rows` from `at` on.
#[cube]
fn read(
    x: &Tensor<f32>,
    start: usize,
    factor: f32,
    rows: &mut Array<f32>,
    at: usize,
    #[comptime] width: usize,
) {
    #[unroll]
    for w in 0..width {
        rows[at + w] = x[start + w] * factor;
    }
}

/// Zeros.
#[cube]
fn zeros(#[comptime] len: usize) -> Array<f32> {
    let mut rows = Array::<f32>::new(len);
    #[unroll]
    for i in 0..len {
        rows[i] = 0.0f32;
    }
    rows
}

/// The product of `row` with the numbers of `rows` from `at` on.
#[cube]
fn dot(rows: &Array<f32>, at: usize, row: &Array<f32>, #[comptime] width: usize) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for w in 0..width {
        sum += rows[at + w] * row[w];
    }
    sum
}

/// Multiplies the numbers of `rows` from `at` on.
#[cube]
fn scale(rows: &mut Array<f32>, at: usize, factor: f32, #[comptime] width: usize) {
    #[unroll]
    for w in 0..width {
        rows[at + w] *= factor;
    }
}

/// Adds `factor * row` to the numbers of `rows` from `at` on.
#[cube]
fn add(rows: &mut Array<f32>, at: usize, factor: f32, row: &Array<f32>, #[comptime] width: usize) {
    #[unroll]
    for w in 0..width {
        rows[at + w] += factor * row[w];
    }
}

/// Query, key, value, mask and segments.
type Inputs = [CubeTensor; 5];

/// The sizes of contiguous inputs, what a kernel is compiled for, and the number of batch items.
fn extent([query, key, ..]: &Inputs, rules: Rules) -> (SizesLaunch, Kind, usize) {
    let (query, key) = (query.meta.shape(), key.meta.shape());
    let width = query[2] / rules.heads;
    let kind = Kind {
        width,
        tile: if width <= NARROW { 2 } else { 1 },
        is_causal: rules.is_causal,
        has_mask: rules.has_mask,
        has_segments: rules.has_segments,
    };
    let sizes = SizesLaunch::new(
        query[1],
        key[1],
        rules.heads,
        rules.kv_heads,
        rules.query_offset,
        rules.scale,
    );
    (sizes, kind, query[0])
}

fn cubes(rows: usize, kind: Kind, heads: usize, batch: usize) -> CubeCount {
    count(rows.div_ceil(UNITS * kind.tile), heads, batch)
}
