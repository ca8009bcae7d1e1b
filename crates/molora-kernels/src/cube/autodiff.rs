//! Records the hand-written backward of each operation.
//!
//! Inputs are kept through checkpoints, so that under gradient checkpointing they may be computed
//! again; a small or frozen tensor is kept as it is.

use burn::backend::TensorMetadata;
use burn::backend::autodiff::Autodiff;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::tensor::Shape;

use super::{CubeBackward, CubeOps, Rules};
use crate::low_rank_mix::MixShape;

impl<B: CubeBackward, C: CheckpointStrategy> CubeOps for Autodiff<B, C> {
    fn cube_low_rank_mix(
        base: FloatTensor<Self>,
        low: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        rank_scale: FloatTensor<Self>,
        b: FloatTensor<Self>,
        shape: MixShape,
    ) -> FloatTensor<Self> {
        let inputs = [base, low, weights, rank_scale, b];
        let nodes = inputs.each_ref().map(|input| input.node());
        let run = |inputs: [FloatTensor<Self>; 5]| {
            let [base, low, weights, rank_scale, b] = inputs.map(|input| input.into_primitive());
            B::cube_low_rank_mix(base, low, weights, rank_scale, b, shape)
        };
        match LowRankMix.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let [_, low, weights, rank_scale, b] = &inputs;
                let ids = [low, weights].map(|input| prepared.checkpoint(input));
                let small = [rank_scale, b].map(|input| input.primitive().clone());
                let out = run(inputs);
                prepared.finish((ids, small, shape), out)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(run(inputs)),
        }
    }

    fn cube_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        mask: FloatTensor<Self>,
        segments: FloatTensor<Self>,
        rules: Rules,
    ) -> FloatTensor<Self> {
        let inputs = [query, key, value];
        let nodes = inputs.each_ref().map(|input| input.node());
        let limits = [mask.into_primitive(), segments.into_primitive()];
        let run = |inputs: [FloatTensor<Self>; 3], [mask, segments]: [FloatTensor<B>; 2]| {
            let [query, key, value] = inputs.map(|input| input.into_primitive());
            B::cube_attention(query, key, value, mask, segments, rules)
        };
        match Attention.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let ids = inputs.each_ref().map(|input| prepared.checkpoint(input));
                let out = run(inputs, limits.clone());
                prepared.finish((ids, limits, rules), out)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(run(inputs, limits)),
        }
    }
}

#[derive(Debug)]
struct Attention;

impl<B: CubeBackward> Backward<B, 3> for Attention {
    /// Query, key and value, mask and segments, and what may be attended to.
    type State = ([NodeId; 3], [FloatTensor<B>; 2], Rules);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (ids, [mask, segments], rules) = ops.state;
        let [query, key, value] = ids.map(|id| saved.retrieve_node_output::<FloatTensor<B>>(id));
        let (to_query, stats) = B::cube_attention_backward_query(
            query.clone(),
            key.clone(),
            value.clone(),
            mask.clone(),
            segments.clone(),
            grad.clone(),
            rules,
        );
        let [query_node, key_node, value_node] = ops.parents;
        if let Some(node) = query_node {
            grads.register::<B>(node.id, to_query);
        }
        if key_node.is_none() && value_node.is_none() {
            return;
        }
        let (to_key, to_value) =
            B::cube_attention_backward_key(query, key, value, mask, segments, grad, stats, rules);
        for (node, gradient) in [(key_node, to_key), (value_node, to_value)] {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct LowRankMix;

impl<B: CubeBackward> Backward<B, 5> for LowRankMix {
    /// Code and weights, rank scale and `b`, and the sizes.
    type State = ([NodeId; 2], [FloatTensor<B>; 2], MixShape);

    fn backward(self, ops: Ops<Self::State, 5>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (ids, [rank_scale, b], shape) = ops.state;
        let [low, weights] = ids.map(|id| saved.retrieve_node_output::<FloatTensor<B>>(id));
        let [base_node, nodes @ ..] = ops.parents;
        let wants = nodes.each_ref().map(Option::is_some);
        let operands = [low, weights, rank_scale, b];
        let gradients = mix_gradients::<B>(operands, shape, grad.clone(), wants);
        for (node, gradient) in nodes.into_iter().zip(gradients) {
            if let (Some(node), Some(gradient)) = (node, gradient) {
                grads.register::<B>(node.id, gradient);
            }
        }
        if let Some(node) = base_node {
            grads.register::<B>(node.id, grad);
        }
    }
}

/// Those gradients of code, weights, rank scale and `b` that are wanted.
fn mix_gradients<B: CubeBackward>(
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
fn sum_first<B: CubeBackward>(x: FloatTensor<B>) -> FloatTensor<B> {
    let shape = x.shape();
    let rest: Shape = shape[1..].to_vec().into();
    match shape[0] {
        1 => B::float_reshape(x, rest),
        _ => B::float_reshape(B::float_sum_dim(x, 0), rest),
    }
}

/// Sums `[N, E * R]` over the experts that share a code of the shape `low`.
fn sum_experts<B: CubeBackward>(x: FloatTensor<B>, low: &Shape, rank: usize) -> FloatTensor<B> {
    let [rows, height] = [x.shape()[0], x.shape()[1]];
    if low[2] == height {
        return B::float_reshape(x, low.clone());
    }
    let by_expert = B::float_reshape(x, [rows, height / rank, rank].into());
    B::float_reshape(B::float_sum_dim(by_expert, 1), low.clone())
}

/// Sums `[N, E]` over the tokens that share weights of the shape `weights`.
fn sum_shared<B: CubeBackward>(x: FloatTensor<B>, low: &Shape, weights: Shape) -> FloatTensor<B> {
    let mut x = B::float_reshape(x, [low[0], low[1], weights[2]].into());
    for axis in 0..2 {
        if weights[axis] != low[axis] {
            x = B::float_sum_dim(x, axis);
        }
    }
    x
}
