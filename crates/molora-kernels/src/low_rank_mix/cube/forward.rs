//! The forward: a unit computes some columns of some tokens over all experts and ranks.

use burn::cubecl;
use burn::cubecl::prelude::*;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::{Extent, Operands, Sizes, TILE, UNITS, block, read_gates, split};
use crate::cube::buffer::{count, empty};
use crate::low_rank_mix::shape::MixShape;

/// `out = base + factor * sum_e weights_e * (scale o low_e) * b_e`.
///
/// Cube `(x, y)` computes the tokens from `x * TILE` on in the columns from `y * UNITS * span` on.
#[cube(launch)]
fn forward_kernel(
    base: &Tensor<f32>,
    low: &Tensor<f32>,
    weights: &Tensor<f32>,
    scale: &Tensor<f32>,
    b: &Tensor<f32>,
    out: &mut Tensor<f32>,
    sizes: Sizes,
    #[comptime] has_base: bool,
    #[comptime] is_selection: bool,
    #[comptime] span: usize,
) {
    let first = CUBE_POS_X as usize * TILE;
    let column = CUBE_POS_Y as usize * (UNITS * span) + UNIT_POS_X as usize;
    let mut sums = block(span);
    let mut gates = Array::<f32>::new(TILE);
    let mut factors = Array::<f32>::new(span);
    for expert in 0..sizes.experts {
        if read_gates(
            weights,
            first,
            expert,
            &sizes,
            &mut gates,
            1usize,
            is_selection,
        ) {
            for r in 0..sizes.rank {
                let part = expert * sizes.expert_stride + r;
                let start = (expert * sizes.rank + r) * sizes.width;
                #[unroll]
                for j in 0..span {
                    let at = min(column + j * UNITS, sizes.width - 1);
                    factors[j] = scale[part] * sizes.factor * b[start + at];
                }
                #[unroll]
                for i in 0..TILE {
                    let row = min(first + i, sizes.rows - 1);
                    let code = low[row * sizes.code_width + part] * gates[i];
                    #[unroll]
                    for j in 0..span {
                        sums[i * span + j] += code * factors[j];
                    }
                }
            }
        }
    }
    #[unroll]
    for i in 0..TILE {
        #[unroll]
        for j in 0..span {
            let (row, at) = (first + i, column + j * UNITS);
            if row < sizes.rows && at < sizes.width {
                let index = row * sizes.width + at;
                let mut value = sums[i * span + j];
                if has_base {
                    value += base[index];
                }
                out[index] = value;
            }
        }
    }
}

/// See [`forward_kernel`].
pub(in crate::low_rank_mix) fn run(
    base: CubeTensor,
    operands: Operands,
    shape: MixShape,
) -> CubeTensor {
    let operands = operands.map(into_contiguous);
    let extent = Extent::of(&operands);
    let [low, weights, scale, b] = operands;
    let out = empty(&low, [extent.batch, extent.tokens, extent.width]);
    let (span, columns) = split(extent.width);
    forward_kernel::launch(
        &out.client,
        count(extent.rows().div_ceil(TILE), columns, 1),
        CubeDim::new_1d(UNITS as u32),
        into_contiguous(base).into_tensor_arg(),
        low.into_tensor_arg(),
        weights.into_tensor_arg(),
        scale.into_tensor_arg(),
        b.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        extent.sizes(shape),
        shape.has_base,
        shape.is_selection,
        span,
    );
    out
}
