//! What burn routes to, and the record of the backward.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::retro_forward::RetroForward;
use burn::backend::autodiff::checkpoint::state::BackwardStates;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::autodiff::{Autodiff, NodeId};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Flex, backend_extension};

use super::flex;
use super::mask::DropMask;
use crate::flex::buffer::FlexTensor;

/// The fast path, for tensors with and without gradients.
#[backend_extension(Flex, Autodiff)]
pub(super) trait DropoutOps: Backend {
    /// As [`crate::dropout`]; it is its own backward, applied to the gradient.
    fn fast_dropout(x: FloatTensor<Self>, mask: DropMask) -> FloatTensor<Self>;

    /// As [`crate::dropout_linear`], on `[rows, in]`.
    fn fast_dropout_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        mask: DropMask,
    ) -> FloatTensor<Self>;
}

impl DropoutOps for Flex {
    fn fast_dropout(x: FlexTensor, mask: DropMask) -> FlexTensor {
        flex::apply(x, mask)
    }

    fn fast_dropout_linear(x: FlexTensor, weight: FlexTensor, mask: DropMask) -> FlexTensor {
        flex::forward_linear(x, weight, mask)
    }
}

impl<C: CheckpointStrategy> DropoutOps for Autodiff<Flex, C> {
    fn fast_dropout(x: FloatTensor<Self>, mask: DropMask) -> FloatTensor<Self> {
        let again = DropoutAgain(x.node().id(), mask);
        let prepared = Dropout.prepare::<C>([x.node()]).memory_bound();
        match prepared.retro_forward(again).parents([&x]).stateful() {
            OpsKind::Tracked(prepared) => {
                prepared.finish(mask, flex::apply(x.into_primitive(), mask))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(flex::apply(x.into_primitive(), mask)),
        }
    }

    fn fast_dropout_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        mask: DropMask,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), weight.node()];
        match DropoutLinear.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let x_id = weight.is_tracked().then(|| prepared.checkpoint(&x));
                let weight_kept = x.is_tracked().then(|| weight.primitive().clone());
                let (x, weight) = (x.into_primitive(), weight.into_primitive());
                let out = flex::forward_linear(x, weight, mask);
                prepared.finish((x_id, weight_kept, mask), out)
            }
            OpsKind::UnTracked(prepared) => {
                let (x, weight) = (x.into_primitive(), weight.into_primitive());
                prepared.finish(flex::forward_linear(x, weight, mask))
            }
        }
    }
}

#[derive(Debug)]
struct Dropout;

impl Backward<Flex, 1> for Dropout {
    type State = DropMask;

    fn backward(self, ops: Ops<DropMask, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        if let [Some(node)] = ops.parents {
            grads.register::<Flex>(node.id, flex::apply(grad, ops.state));
        }
    }
}

/// Draws the same mask again.
#[derive(Debug)]
struct DropoutAgain(NodeId, DropMask);

impl RetroForward for DropoutAgain {
    fn forward(&self, states: &mut BackwardStates, out_node: NodeId) {
        let x = states.get_state::<FlexTensor>(&self.0);
        states.save(out_node, flex::apply(x, self.1));
    }
}

#[derive(Debug)]
struct DropoutLinear;

impl Backward<Flex, 2> for DropoutLinear {
    /// `x` if the weight is tracked, the weight if `x` is, and the mask.
    type State = (Option<NodeId>, Option<FlexTensor>, DropMask);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        let (x, weight, mask) = ops.state;
        let [x_node, weight_node] = ops.parents;
        if let (Some(node), Some(weight)) = (x_node, weight) {
            let to_x = flex::backward_linear_x(weight, grad.clone(), mask);
            grads.register::<Flex>(node.id, to_x);
        }
        if let (Some(node), Some(x)) = (weight_node, x) {
            let x = saved.retrieve_node_output::<FlexTensor>(x);
            let to_weight = flex::backward_linear_weight(x, grad, mask);
            grads.register::<Flex>(node.id, to_weight);
        }
    }
}
