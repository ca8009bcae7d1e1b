//! The backward of each operation: which inputs it reads again, and whose gradients it registers.

use burn::backend::TensorMetadata;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::tensor::{FloatTensor, IntTensor};

use crate::flex::{BackwardKernels, BlockShape, Rules};
use crate::low_rank_mix::MixShape;

#[derive(Debug)]
pub(super) struct Attention;

impl<B: BackwardKernels> Backward<B, 4> for Attention {
    /// Query, key, value and bias, and what may be attended to.
    type State = ([NodeId; 4], Rules);

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (ids, rules) = ops.state;
        let inputs = ids.map(|id| saved.retrieve_node_output::<FloatTensor<B>>(id));
        let [query, key, value, bias] = ops.parents;
        if let Some(node) = bias {
            let to_bias = B::fast_attention_backward_bias(inputs.clone(), &rules, grad.clone());
            grads.register::<B>(node.id, to_bias);
        }
        let nodes = [query, key, value];
        if nodes.iter().all(Option::is_none) {
            return;
        }
        let gradients = B::fast_attention_backward(inputs, &rules, grad);
        for (node, gradient) in nodes.into_iter().zip(gradients) {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct LowRankMix;

impl<B: BackwardKernels> Backward<B, 5> for LowRankMix {
    /// Code and weights, rank scale and `b`, and the sizes.
    type State = ([NodeId; 2], [FloatTensor<B>; 2], MixShape);

    fn backward(self, ops: Ops<Self::State, 5>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (ids, [rank_scale, b], shape) = ops.state;
        let [low, weights] = ids.map(|id| saved.retrieve_node_output::<FloatTensor<B>>(id));
        let [base_node, nodes @ ..] = ops.parents;
        if nodes.iter().any(Option::is_some) {
            let operands = [low, weights, rank_scale, b];
            let wants_b = nodes[3].is_some();
            let gradients = B::fast_low_rank_mix_backward(operands, shape, grad.clone(), wants_b);
            for (node, gradient) in nodes.into_iter().zip(gradients) {
                if let (Some(node), Some(gradient)) = (node, gradient) {
                    grads.register::<B>(node.id, gradient);
                }
            }
        }
        if let Some(node) = base_node {
            grads.register::<B>(node.id, grad);
        }
    }
}

#[derive(Debug)]
pub(super) struct Linear;

impl<B: BackwardKernels> Backward<B, 3> for Linear {
    /// `x` if the weight is tracked, the weight if `x` is.
    type State = (Option<NodeId>, Option<FloatTensor<B>>);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (x, weight) = ops.state;
        let [x_node, weight_node, bias_node] = ops.parents;
        if let (Some(node), Some(weight)) = (x_node, weight) {
            grads.register::<B>(node.id, B::fast_linear_backward_x(weight, grad.clone()));
        }
        if let (Some(node), Some(x)) = (weight_node, x) {
            let x = saved.retrieve_node_output::<FloatTensor<B>>(x);
            grads.register::<B>(node.id, B::fast_linear_backward_weight(x, grad.clone()));
        }
        if let Some(node) = bias_node {
            grads.register::<B>(node.id, sum_of_rows::<B>(grad));
        }
    }
}

/// The sum of all rows, `[out]`: the gradient of a bias.
fn sum_of_rows<B: BackwardKernels>(grad: FloatTensor<B>) -> FloatTensor<B> {
    let width = grad.shape()[1];
    B::float_reshape(B::float_sum_dim(grad, 0), [width].into())
}

#[derive(Debug)]
pub(super) struct HalfLinear;

impl<B: BackwardKernels> Backward<B, 2> for HalfLinear {
    /// The frozen weight, and whether the product was with its transpose.
    type State = (FloatTensor<B>, bool);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (weight, is_transposed) = ops.state;
        let [x_node, bias_node] = ops.parents;
        if let Some(node) = x_node {
            let to_x = B::fast_half_linear_backward_x(weight, grad.clone(), is_transposed);
            grads.register::<B>(node.id, to_x);
        }
        if let Some(node) = bias_node {
            grads.register::<B>(node.id, sum_of_rows::<B>(grad));
        }
    }
}

#[derive(Debug)]
pub(super) struct BlockLinear;

impl<B: BackwardKernels> Backward<B, 2> for BlockLinear {
    /// Codes and scales of the matrix, and their shape.
    type State = (IntTensor<B>, FloatTensor<B>, BlockShape);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (codes, scales, shape) = ops.state;
        let [x_node, bias_node] = ops.parents;
        if let Some(node) = x_node {
            let to_x = B::fast_block_linear_backward_x(codes, scales, grad.clone(), shape);
            grads.register::<B>(node.id, to_x);
        }
        if let Some(node) = bias_node {
            grads.register::<B>(node.id, sum_of_rows::<B>(grad));
        }
    }
}
