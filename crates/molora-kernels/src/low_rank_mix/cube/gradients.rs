//! The gradients of the mix, of two kernels and sums over what several cubes computed.
//!
//! To burn's fusion every kernel is one opaque operation, of which it is told the shape of the
//! result.

use burn::backend::TensorMetadata;
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, backend_extension};
use burn::tensor::Shape;
use burn_cubecl::CubeBackend;

use super::backward;
use crate::low_rank_mix::shape::MixShape;

/// The backward kernels, on tensors without gradients.
#[backend_extension(Cube, Fusion)]
pub(in crate::low_rank_mix) trait CubeMixBackward: Backend {
    /// See [`backward::of_codes`].
    #[fusion(meta = |low, weights, _scale, b, _grad, shape, _wants_scale| {
        let [codes, parts] =
            backward::codes_shapes(&low.shape, &weights.shape, &b.shape, shape.rank);
        (TensorSpec::new(codes, low.dtype), TensorSpec::new(parts, low.dtype))
    })]
    fn cube_mix_backward_codes(
        low: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        rank_scale: FloatTensor<Self>,
        b: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        shape: MixShape,
        wants_scale: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`backward::of_b`].
    #[fusion(dtype = low, shape = backward::b_shape(low, b))]
    fn cube_mix_backward_b(
        low: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        rank_scale: FloatTensor<Self>,
        b: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        shape: MixShape,
    ) -> FloatTensor<Self>;
}

impl CubeMixBackward for CubeBackend {
    fn cube_mix_backward_codes(
        low: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        rank_scale: FloatTensor<Self>,
        b: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        shape: MixShape,
        wants_scale: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        backward::of_codes([low, weights, rank_scale, b], grad, shape, wants_scale)
    }

    fn cube_mix_backward_b(
        low: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        rank_scale: FloatTensor<Self>,
        b: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        shape: MixShape,
    ) -> FloatTensor<Self> {
        backward::of_b([low, weights, rank_scale, b], grad, shape)
    }
}

/// Those gradients of code, weights, rank scale and `b` that are wanted.
pub(in crate::low_rank_mix) fn gradients<B: CubeMixBackward>(
    operands: [FloatTensor<B>; 4],
    shape: MixShape,
    grad: FloatTensor<B>,
    wants: [bool; 4],
) -> [Option<FloatTensor<B>>; 4] {
    let [wants_low, wants_weights, wants_scale, wants_b] = wants;
    let mut gradients = [None, None, None, None];
    let [low, weights, rank_scale, b] = operands.clone();
    if wants_low || wants_weights || wants_scale {
        let (to_codes, to_weights) = B::cube_mix_backward_codes(
            low.clone(),
            weights.clone(),
            rank_scale.clone(),
            b.clone(),
            grad.clone(),
            shape,
            wants_scale,
        );
        if wants_weights {
            let parts = sum_first::<B>(to_weights);
            gradients[1] = Some(sum_shared::<B>(parts, &low.shape(), weights.shape()));
        }
        let mut to_low = sum_experts::<B>(to_codes, &low.shape(), shape.rank);
        if wants_scale {
            let width = low.shape()[2];
            let products = B::float_mul(to_low.clone(), low.clone());
            let rows =
                B::float_reshape(products, [low.shape().num_elements() / width, width].into());
            gradients[2] = Some(sum_first::<B>(rows));
            let scale = B::float_reshape(rank_scale.clone(), [1, 1, width].into());
            to_low = B::float_mul(to_low, scale);
        }
        gradients[0] = wants_low.then_some(to_low);
    }
    if wants_b {
        let parts = B::cube_mix_backward_b(low, weights, rank_scale, b, grad, shape);
        gradients[3] = Some(sum_first::<B>(parts));
    }
    gradients
}

/// The sum over the first axis, which goes.
fn sum_first<B: CubeMixBackward>(x: FloatTensor<B>) -> FloatTensor<B> {
    let shape = x.shape();
    let rest: Shape = shape[1..].to_vec().into();
    match shape[0] {
        1 => B::float_reshape(x, rest),
        _ => B::float_reshape(B::float_sum_dim(x, 0), rest),
    }
}

/// Sums `[N, E * R]` over the experts that share a code of the shape `low`.
fn sum_experts<B: CubeMixBackward>(x: FloatTensor<B>, low: &Shape, rank: usize) -> FloatTensor<B> {
    let [rows, height] = [x.shape()[0], x.shape()[1]];
    if low[2] == height {
        return B::float_reshape(x, low.clone());
    }
    let by_expert = B::float_reshape(x, [rows, height / rank, rank].into());
    B::float_reshape(B::float_sum_dim(by_expert, 1), low.clone())
}

/// Sums `[N, E]` over the tokens that share weights of the shape `weights`.
fn sum_shared<B: CubeMixBackward>(
    x: FloatTensor<B>,
    low: &Shape,
    weights: Shape,
) -> FloatTensor<B> {
    let mut x = B::float_reshape(x, [low[0], low[1], weights[2]].into());
    for axis in 0..2 {
        if weights[axis] != low[axis] {
            x = B::float_sum_dim(x, axis);
        }
    }
    x
}
