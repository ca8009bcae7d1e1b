//! The backward of each operation: which inputs it reads again, and whose gradients it registers.

use std::marker::PhantomData;

use burn::backend::TensorMetadata;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::retro_forward::RetroForward;
use burn::backend::autodiff::checkpoint::state::BackwardStates;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::tensor::{FloatTensor, IntTensor};

use crate::cross_entropy::Labels;
use crate::dropout::DropMask;
use crate::flex::{BackwardKernels, BlockShape, Rules};
use crate::low_rank_mix::MixShape;

#[derive(Debug)]
pub(super) struct Gelu;

impl<B: BackwardKernels> Backward<B, 1> for Gelu {
    type State = NodeId;

    fn backward(self, ops: Ops<NodeId, 1>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let x: FloatTensor<B> = saved.retrieve_node_output(ops.state);
        if let [Some(node)] = ops.parents {
            grads.register::<B>(node.id, B::fast_gelu_backward(x, grad));
        }
    }
}

/// Computes the output again, which is cheaper than keeping it.
#[derive(Debug)]
pub(super) struct GeluAgain<B>(pub(super) NodeId, pub(super) PhantomData<B>);

impl<B: BackwardKernels> RetroForward for GeluAgain<B> {
    fn forward(&self, states: &mut BackwardStates, out_node: NodeId) {
        let x = states.get_state::<FloatTensor<B>>(&self.0);
        states.save(out_node, B::fast_gelu(x));
    }
}

#[derive(Debug)]
pub(super) struct GeluTanh;

impl<B: BackwardKernels> Backward<B, 1> for GeluTanh {
    type State = NodeId;

    fn backward(self, ops: Ops<NodeId, 1>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let x: FloatTensor<B> = saved.retrieve_node_output(ops.state);
        if let [Some(node)] = ops.parents {
            grads.register::<B>(node.id, B::fast_gelu_tanh_backward(x, grad));
        }
    }
}

/// Computes the output again, which is cheaper than keeping it.
#[derive(Debug)]
pub(super) struct GeluTanhAgain<B>(pub(super) NodeId, pub(super) PhantomData<B>);

impl<B: BackwardKernels> RetroForward for GeluTanhAgain<B> {
    fn forward(&self, states: &mut BackwardStates, out_node: NodeId) {
        let x = states.get_state::<FloatTensor<B>>(&self.0);
        states.save(out_node, B::fast_gelu_tanh(x));
    }
}

#[derive(Debug)]
pub(super) struct SiluGate;

impl<B: BackwardKernels> Backward<B, 2> for SiluGate {
    /// Gate and up.
    type State = [NodeId; 2];

    fn backward(self, ops: Ops<[NodeId; 2], 2>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [gate, up] = ops
            .state
            .map(|id| saved.retrieve_node_output::<FloatTensor<B>>(id));
        let (to_gate, to_up) = B::fast_silu_gate_backward(gate, up, grad);
        for (node, gradient) in ops.parents.into_iter().zip([to_gate, to_up]) {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

/// Computes the output again, which is cheaper than keeping it.
#[derive(Debug)]
pub(super) struct SiluGateAgain<B>(pub(super) [NodeId; 2], pub(super) PhantomData<B>);

impl<B: BackwardKernels> RetroForward for SiluGateAgain<B> {
    fn forward(&self, states: &mut BackwardStates, out_node: NodeId) {
        let [gate, up] = self.0.map(|id| states.get_state::<FloatTensor<B>>(&id));
        states.save(out_node, B::fast_silu_gate(gate, up));
    }
}

#[derive(Debug)]
pub(super) struct CrossEntropy;

impl<B: BackwardKernels> Backward<B, 1> for CrossEntropy {
    type State = (NodeId, Labels);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (logits, labels) = ops.state;
        let logits: FloatTensor<B> = saved.retrieve_node_output(logits);
        if let [Some(node)] = ops.parents {
            let gradient = B::fast_cross_entropy_backward(logits, &labels, grad);
            grads.register::<B>(node.id, gradient);
        }
    }
}

#[derive(Debug)]
pub(super) struct RmsNorm;

impl<B: BackwardKernels> Backward<B, 2> for RmsNorm {
    /// `x`, the weight and epsilon.
    type State = (NodeId, FloatTensor<B>, f32);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (x, weight, epsilon) = ops.state;
        let x: FloatTensor<B> = saved.retrieve_node_output(x);
        let [x_node, weight_node] = ops.parents;
        if let Some(node) = weight_node {
            let to_weight = B::fast_rms_norm_backward_weight(x.clone(), grad.clone(), epsilon);
            grads.register::<B>(node.id, to_weight);
        }
        if let Some(node) = x_node {
            let to_x = B::fast_rms_norm_backward_x(x, weight, grad, epsilon);
            grads.register::<B>(node.id, to_x);
        }
    }
}

#[derive(Debug)]
pub(super) struct Dropout;

impl<B: BackwardKernels> Backward<B, 1> for Dropout {
    type State = DropMask;

    fn backward(self, ops: Ops<DropMask, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        if let [Some(node)] = ops.parents {
            grads.register::<B>(node.id, B::fast_dropout(grad, ops.state));
        }
    }
}

#[derive(Debug)]
pub(super) struct DropoutLinear;

impl<B: BackwardKernels> Backward<B, 2> for DropoutLinear {
    /// `x` if the weight is tracked, the weight if `x` is, and the mask.
    type State = (Option<NodeId>, Option<FloatTensor<B>>, DropMask);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (x, weight, mask) = ops.state;
        let [x_node, weight_node] = ops.parents;
        if let (Some(node), Some(weight)) = (x_node, weight) {
            let to_x = B::fast_dropout_linear_backward_x(weight, grad.clone(), mask);
            grads.register::<B>(node.id, to_x);
        }
        if let (Some(node), Some(x)) = (weight_node, x) {
            let x = saved.retrieve_node_output::<FloatTensor<B>>(x);
            let to_weight = B::fast_dropout_linear_backward_weight(x, grad, mask);
            grads.register::<B>(node.id, to_weight);
        }
    }
}

/// Draws the same mask again.
#[derive(Debug)]
pub(super) struct DropoutAgain<B>(
    pub(super) NodeId,
    pub(super) DropMask,
    pub(super) PhantomData<B>,
);

impl<B: BackwardKernels> RetroForward for DropoutAgain<B> {
    fn forward(&self, states: &mut BackwardStates, out_node: NodeId) {
        let x = states.get_state::<FloatTensor<B>>(&self.0);
        states.save(out_node, B::fast_dropout(x, self.1));
    }
}

#[derive(Debug)]
pub(super) struct LayerNorm;

impl<B: BackwardKernels> Backward<B, 3> for LayerNorm {
    /// `x`, `gamma` and epsilon.
    type State = (NodeId, FloatTensor<B>, f32);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (x, gamma, epsilon) = ops.state;
        let x: FloatTensor<B> = saved.retrieve_node_output(x);
        let [x_node, gamma_node, beta_node] = ops.parents;
        if gamma_node.is_some() || beta_node.is_some() {
            let (to_gamma, to_beta) =
                B::fast_layer_norm_backward_affine(x.clone(), grad.clone(), epsilon);
            if let Some(node) = gamma_node {
                grads.register::<B>(node.id, to_gamma);
            }
            if let Some(node) = beta_node {
                grads.register::<B>(node.id, to_beta);
            }
        }
        if let Some(node) = x_node {
            grads.register::<B>(
                node.id,
                B::fast_layer_norm_backward_x(x, gamma, grad, epsilon),
            );
        }
    }
}

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
