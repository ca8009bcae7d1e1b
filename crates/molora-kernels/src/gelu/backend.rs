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
use crate::flex::saved::{Saved, save};

/// The fast path, for tensors with and without gradients.
#[backend_extension(Flex, Autodiff)]
pub(super) trait GeluOps: Backend {
    /// As [`crate::gelu`].
    fn fast_gelu(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// As [`crate::gelu_tanh`].
    fn fast_gelu_tanh(x: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl GeluOps for Flex {
    fn fast_gelu(x: FlexTensor) -> FlexTensor {
        flex::forward(x)
    }

    fn fast_gelu_tanh(x: FlexTensor) -> FlexTensor {
        flex::forward_tanh(x)
    }
}

impl<C: CheckpointStrategy> GeluOps for Autodiff<Flex, C> {
    fn fast_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let again = GeluAgain(x.node().id());
        let prepared = Gelu.prepare::<C>([x.node()]).memory_bound();
        match prepared.retro_forward(again).parents([&x]).stateful() {
            OpsKind::Tracked(mut prepared) => {
                let state = save(&mut prepared, &x);
                prepared.finish(state, flex::forward(x.into_primitive()))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(flex::forward(x.into_primitive())),
        }
    }

    fn fast_gelu_tanh(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let again = GeluTanhAgain(x.node().id());
        let prepared = GeluTanh.prepare::<C>([x.node()]).memory_bound();
        match prepared.retro_forward(again).parents([&x]).stateful() {
            OpsKind::Tracked(mut prepared) => {
                let state = save(&mut prepared, &x);
                prepared.finish(state, flex::forward_tanh(x.into_primitive()))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(flex::forward_tanh(x.into_primitive())),
        }
    }
}

#[derive(Debug)]
struct Gelu;

impl Backward<Flex, 1> for Gelu {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 1>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        let x = ops.state.find(saved);
        if let [Some(node)] = ops.parents {
            grads.register::<Flex>(node.id, flex::backward(&x, grad));
        }
    }
}

/// Computes the output again, which is cheaper than keeping it.
#[derive(Debug)]
struct GeluAgain(NodeId);

impl RetroForward for GeluAgain {
    fn forward(&self, states: &mut BackwardStates, out_node: NodeId) {
        let x = states.get_state::<FlexTensor>(&self.0);
        states.save(out_node, flex::forward(x));
    }
}

#[derive(Debug)]
struct GeluTanh;

impl Backward<Flex, 1> for GeluTanh {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 1>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        let x = ops.state.find(saved);
        if let [Some(node)] = ops.parents {
            grads.register::<Flex>(node.id, flex::backward_tanh(&x, grad));
        }
    }
}

/// Computes the output again, which is cheaper than keeping it.
#[derive(Debug)]
struct GeluTanhAgain(NodeId);

impl RetroForward for GeluTanhAgain {
    fn forward(&self, states: &mut BackwardStates, out_node: NodeId) {
        let x = states.get_state::<FlexTensor>(&self.0);
        states.save(out_node, flex::forward_tanh(x));
    }
}
