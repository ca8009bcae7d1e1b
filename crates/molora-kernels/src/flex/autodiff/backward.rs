//! The backward of each operation: which inputs it reads again, and whose gradients it registers.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::tensor::FloatTensor;

use crate::flex::{BackwardKernels, Rules};
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
