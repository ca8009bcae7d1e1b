//! The gated low-rank mix: the forward in one kernel, the backward in two.
//!
//! Each unit holds a block of the result in registers, [`TILE`] by at most [`MAX_SPAN`] numbers: for
//! each number that it reads it does several multiplications. The gated code is formed from code, gate
//! and scale as it is needed and is nowhere in memory.

mod backward;
mod forward;
mod gradients;

use burn::cubecl;
use burn::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

pub(super) use self::forward::run as forward;
pub(super) use self::gradients::gradients;
use super::shape::MixShape;

/// Units of a cube.
const UNITS: usize = 32;
/// Rows of a unit's block: the same for all units of a cube, so that what they read is too.
const TILE: usize = 8;
/// Columns of a unit's block at most; they are [`UNITS`] apart, so that adjacent units read adjacent
/// numbers.
const MAX_SPAN: usize = 12;

/// Columns of a unit's block and cubes side by side, for `columns` in all: the widest blocks that
/// leave few units without work.
fn split(columns: usize) -> (usize, usize) {
    let cubes = columns.div_ceil(UNITS * MAX_SPAN);
    let span = columns.div_ceil(UNITS * cubes);
    (span, columns.div_ceil(UNITS * span))
}

/// Sizes and strides of the operands.
#[derive(CubeLaunch, CubeType, Clone, Copy)]
struct Sizes {
    /// Number of tokens N.
    rows: usize,
    /// Tokens of a batch item.
    tokens: usize,
    experts: usize,
    rank: usize,
    /// Width of the code of a token, `A * R`.
    code_width: usize,
    /// Width O of the output.
    width: usize,
    /// Rows of the weights between two batch items, and between two tokens; 0 where they share one.
    item_stride: usize,
    token_stride: usize,
    /// Numbers between the codes of two experts; 0 where they share one.
    expert_stride: usize,
    factor: f32,
}

/// Weight of an expert for a token.
#[cube]
fn weight(weights: &Tensor<f32>, row: usize, expert: usize, sizes: &Sizes) -> f32 {
    let (item, token) = (row / sizes.tokens, row % sizes.tokens);
    let line = item * sizes.item_stride + token * sizes.token_stride;
    weights[line * sizes.experts + expert]
}

/// Reads the weights of an expert for tokens `step` apart, and says whether any of them counts.
#[cube]
fn read_gates(
    weights: &Tensor<f32>,
    first: usize,
    expert: usize,
    sizes: &Sizes,
    gates: &mut Array<f32>,
    #[comptime] step: usize,
    #[comptime] is_selection: bool,
) -> bool {
    let mut is_active = false;
    #[unroll]
    for i in 0..gates.len() {
        let row = min(first + i * step, sizes.rows - 1);
        gates[i] = weight(weights, row, expert, sizes);
        if gates[i] != 0.0f32 {
            is_active = true;
        }
    }
    if !is_selection {
        is_active = true;
    }
    is_active
}

/// A block of a unit, of zeros.
#[cube]
fn block(#[comptime] span: usize) -> Array<f32> {
    let mut sums = Array::<f32>::new(TILE * span);
    #[unroll]
    for i in 0..TILE * span {
        sums[i] = 0.0f32;
    }
    sums
}

/// Code, weights, rank scale and `b`.
type Operands = [CubeTensor; 4];

/// The sizes that the shapes of contiguous operands say.
#[derive(Debug, Clone, Copy)]
struct Extent {
    batch: usize,
    tokens: usize,
    experts: usize,
    code_width: usize,
    width: usize,
    items: usize,
    positions: usize,
}

impl Extent {
    fn of([low, weights, _, b]: &Operands) -> Self {
        let (low, weights, b) = (low.meta.shape(), weights.meta.shape(), b.meta.shape());
        Self {
            batch: low[0],
            tokens: low[1],
            experts: weights[2],
            code_width: low[2],
            width: b[1],
            items: weights[0],
            positions: weights[1],
        }
    }

    fn rows(&self) -> usize {
        self.batch * self.tokens
    }

    fn sizes(&self, shape: MixShape) -> SizesLaunch {
        let stride = |is_shared: bool, stride: usize| if is_shared { 0 } else { stride };
        SizesLaunch::new(
            self.rows(),
            self.tokens,
            self.experts,
            shape.rank,
            self.code_width,
            self.width,
            stride(self.items == 1, self.positions),
            stride(self.positions == 1, 1),
            stride(self.code_width == shape.rank, shape.rank),
            shape.factor,
        )
    }
}
