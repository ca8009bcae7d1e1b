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
use crate::flex::buffer::FlexTensor;

/// The fast path, for tensors with and without gradients.
#[backend_extension(Flex, Autodiff)]
pub(super) trait SoftCapOps: Backend {
    /// As [`crate::soft_cap`].
    fn fast_soft_cap(x: FloatTensor<Self>, cap: f32) -> FloatTensor<Self>;
}

impl SoftCapOps for Flex {
    fn fast_soft_cap(x: FlexTensor, cap: f32) -> FlexTensor {
        flex::forward(x, cap)
    }
}

impl<C: CheckpointStrategy> SoftCapOps for Autodiff<Flex, C> {
    fn fast_soft_cap(x: FloatTensor<Self>, cap: f32) -> FloatTensor<Self> {
        let again = SoftCapAgain(x.node().id(), cap);
        let prepared = SoftCap.prepare::<C>([x.node()]).memory_bound();
        match prepared.retro_forward(again).parents([&x]).stateful() {
            OpsKind::Tracked(mut prepared) => {
                let state = (prepared.checkpoint(&x), cap);
                prepared.finish(state, flex::forward(x.into_primitive(), cap))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(flex::forward(x.into_primitive(), cap)),
        }
    }
}

#[derive(Debug)]
struct SoftCap;

impl Backward<Flex, 1> for SoftCap {
    type State = (NodeId, f32);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        let (x, cap) = ops.state;
        let x: FlexTensor = saved.retrieve_node_output(x);
        if let [Some(node)] = ops.parents {
            grads.register::<Flex>(node.id, flex::backward(x, grad, cap));
        }
    }
}

/// Computes the output again, which is cheaper than keeping it.
#[derive(Debug)]
struct SoftCapAgain(NodeId, f32);

impl RetroForward for SoftCapAgain {
    fn forward(&self, states: &mut BackwardStates, out_node: NodeId) {
        let x = states.get_state::<FlexTensor>(&self.0);
        states.save(out_node, flex::forward(x, self.1));
    }
}
