//! The backward: one kernel for code and weights, one for `b`; what several cubes computed of one
//! number is summed by the caller.

use burn::cubecl;
use burn::cubecl::prelude::*;
use burn::tensor::Shape;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::{Extent, Operands, Sizes, TILE, UNITS, block, read_gates, split, weight};
use crate::cube::buffer::{count, empty};
use crate::low_rank_mix::shape::MixShape;

/// Tokens whose part of the gradient of `b` one cube sums.
const TOKENS: usize = 256;

/// With `dc = factor * grad * b_e^T` for each token and expert: `to_codes = dc * weights_e`, times
/// the scale if it has no gradient of its own, and `to_weights = sum_r dc * scale * low_e` over the
/// ranks of this cube.
///
/// Cube `(x, y, z)` computes the tokens from `x * UNITS * span` on for the expert `y` in the ranks
/// from `z * TILE` on.
#[cube(launch)]
fn codes_kernel(
    low: &Tensor<f32>,
    weights: &Tensor<f32>,
    scale: &Tensor<f32>,
    b: &Tensor<f32>,
    grad: &Tensor<f32>,
    to_codes: &mut Tensor<f32>,
    to_weights: &mut Tensor<f32>,
    sizes: Sizes,
    #[comptime] wants_scale: bool,
    #[comptime] is_selection: bool,
    #[comptime] span: usize,
) {
    let first = CUBE_POS_X as usize * (UNITS * span) + UNIT_POS_X as usize;
    let expert = CUBE_POS_Y as usize;
    let first_rank = CUBE_POS_Z as usize * TILE;
    let height = sizes.experts * sizes.rank;

    let mut gates = Array::<f32>::new(span);
    let mut sums = block(span);
    if read_gates(
        weights,
        first,
        expert,
        &sizes,
        &mut gates,
        UNITS,
        is_selection,
    ) {
        let mut slopes = Array::<f32>::new(span);
        for column in 0..sizes.width {
            #[unroll]
            for j in 0..span {
                let row = min(first + j * UNITS, sizes.rows - 1);
                slopes[j] = grad[row * sizes.width + column];
            }
            #[unroll]
            for i in 0..TILE {
                let r = min(first_rank + i, sizes.rank - 1);
                let factor = b[(expert * sizes.rank + r) * sizes.width + column];
                #[unroll]
                for j in 0..span {
                    sums[i * span + j] += slopes[j] * factor;
                }
            }
        }
    }
    #[unroll]
    for j in 0..span {
        let row = first + j * UNITS;
        if row < sizes.rows {
            let mut to_weight = 0.0f32;
            #[unroll]
            for i in 0..TILE {
                let r = first_rank + i;
                if r < sizes.rank {
                    let part = expert * sizes.expert_stride + r;
                    let slope = sums[i * span + j] * sizes.factor;
                    to_weight += slope * scale[part] * low[row * sizes.code_width + part];
                    let mut to_code = slope * gates[j];
                    if !wants_scale {
                        to_code *= scale[part];
                    }
                    to_codes[row * height + expert * sizes.rank + r] = to_code;
                }
            }
            let is_selected = !is_selection || gates[j] != 0.0f32;
            if !is_selected {
                to_weight = 0.0f32;
            }
            let chunk = CUBE_POS_Z as usize * sizes.rows + row;
            to_weights[chunk * sizes.experts + expert] = to_weight;
        }
    }
}

/// `to_b = codes^T * grad` over the tokens of this cube, with the codes computed again.
///
/// Cube `(x, y, z)` computes the columns from `x * UNITS * span` on of the rows of `b` that belong
/// to [`TILE`] ranks of one expert (`y`), summed over [`TOKENS`] tokens from `z * TOKENS` on.
#[cube(launch)]
fn b_kernel(
    low: &Tensor<f32>,
    weights: &Tensor<f32>,
    scale: &Tensor<f32>,
    grad: &Tensor<f32>,
    to_b: &mut Tensor<f32>,
    sizes: Sizes,
    #[comptime] is_selection: bool,
    #[comptime] span: usize,
) {
    let column = CUBE_POS_X as usize * (UNITS * span) + UNIT_POS_X as usize;
    let chunks = sizes.rank.div_ceil(TILE);
    let expert = CUBE_POS_Y as usize / chunks;
    let first_rank = CUBE_POS_Y as usize % chunks * TILE;
    let start = expert * sizes.expert_stride;

    let mut sums = block(span);
    let mut slopes = Array::<f32>::new(span);
    let first = CUBE_POS_Z as usize * TOKENS;
    for row in first..min(first + TOKENS, sizes.rows) {
        let gate = weight(weights, row, expert, &sizes) * sizes.factor;
        if !is_selection || gate != 0.0f32 {
            #[unroll]
            for j in 0..span {
                let at = min(column + j * UNITS, sizes.width - 1);
                slopes[j] = grad[row * sizes.width + at];
            }
            #[unroll]
            for i in 0..TILE {
                let r = min(first_rank + i, sizes.rank - 1);
                let code = low[row * sizes.code_width + start + r] * gate;
                #[unroll]
                for j in 0..span {
                    sums[i * span + j] += code * slopes[j];
                }
            }
        }
    }
    #[unroll]
    for i in 0..TILE {
        #[unroll]
        for j in 0..span {
            let (r, at) = (first_rank + i, column + j * UNITS);
            if r < sizes.rank && at < sizes.width {
                let height = sizes.experts * sizes.rank;
                let row = CUBE_POS_Z as usize * height + expert * sizes.rank + r;
                to_b[row * sizes.width + at] = sums[i * span + j] * scale[start + r];
            }
        }
    }
}

/// Shapes of what [`of_codes`] returns, from those of code, weights and `b`:
/// `[N, E * R]` and `[chunks, N, E]`.
pub(super) fn codes_shapes(low: &Shape, weights: &Shape, b: &Shape, rank: usize) -> [Shape; 2] {
    let rows = low[0] * low[1];
    [
        [rows, b[0]].into(),
        [rank.div_ceil(TILE), rows, weights[2]].into(),
    ]
}

/// See [`codes_kernel`]; the gradient of the weights is still to be summed over the first axis.
pub(super) fn of_codes(
    operands: Operands,
    grad: CubeTensor,
    shape: MixShape,
    wants_scale: bool,
) -> (CubeTensor, CubeTensor) {
    let operands = operands.map(into_contiguous);
    let extent = Extent::of(&operands);
    let [low, weights, scale, b] = operands;
    let [codes, parts] = codes_shapes(
        low.meta.shape(),
        weights.meta.shape(),
        b.meta.shape(),
        shape.rank,
    );
    let chunks = parts[0];
    let (span, columns) = split(extent.rows());
    let (to_codes, to_weights) = (empty(&low, codes), empty(&low, parts));
    codes_kernel::launch(
        &to_codes.client,
        count(columns, extent.experts, chunks),
        CubeDim::new_1d(UNITS as u32),
        low.into_tensor_arg(),
        weights.into_tensor_arg(),
        scale.into_tensor_arg(),
        b.into_tensor_arg(),
        into_contiguous(grad).into_tensor_arg(),
        to_codes.clone().into_tensor_arg(),
        to_weights.clone().into_tensor_arg(),
        extent.sizes(shape),
        wants_scale,
        shape.is_selection,
        span,
    );
    (to_codes, to_weights)
}

/// Shape of what [`of_b`] returns: `[chunks, E * R, O]`.
pub(super) fn b_shape(low: &Shape, b: &Shape) -> Shape {
    [(low[0] * low[1]).div_ceil(TOKENS), b[0], b[1]].into()
}

/// See [`b_kernel`]; still to be summed over the first axis.
pub(super) fn of_b(operands: Operands, grad: CubeTensor, shape: MixShape) -> CubeTensor {
    let operands = operands.map(into_contiguous);
    let extent = Extent::of(&operands);
    let [low, weights, scale, b] = operands;
    let parts = b_shape(low.meta.shape(), b.meta.shape());
    let chunks = parts[0];
    let (span, columns) = split(extent.width);
    let to_b = empty(&low, parts);
    b_kernel::launch(
        &to_b.client,
        count(columns, extent.experts * shape.rank.div_ceil(TILE), chunks),
        CubeDim::new_1d(UNITS as u32),
        low.into_tensor_arg(),
        weights.into_tensor_arg(),
        scale.into_tensor_arg(),
        into_contiguous(grad).into_tensor_arg(),
        to_b.clone().into_tensor_arg(),
        extent.sizes(shape),
        shape.is_selection,
        span,
    );
    to_b
}
