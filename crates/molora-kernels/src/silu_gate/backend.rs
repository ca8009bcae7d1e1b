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
pub(super) trait SiluGateOps: Backend {
    /// As [`crate::silu_gate`].
    fn fast_silu_gate(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl SiluGateOps for Flex {
    fn fast_silu_gate(gate: FlexTensor, up: FlexTensor) -> FlexTensor {
        flex::forward(gate, up)
    }
}

impl<C: CheckpointStrategy> SiluGateOps for Autodiff<Flex, C> {
    fn fast_silu_gate(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let again = SiluGateAgain([gate.node().id(), up.node().id()]);
        let prepared = SiluGate
            .prepare::<C>([gate.node(), up.node()])
            .memory_bound();
        let run = |gate: FloatTensor<Self>, up: FloatTensor<Self>| {
            flex::forward(gate.into_primitive(), up.into_primitive())
        };
        match prepared
            .retro_forward(again)
            .parents([&gate, &up])
            .stateful()
        {
            OpsKind::Tracked(mut prepared) => {
                let state = [save(&mut prepared, &gate), save(&mut prepared, &up)];
                prepared.finish(state, run(gate, up))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(run(gate, up)),
        }
    }
}

#[derive(Debug)]
struct SiluGate;

impl Backward<Flex, 2> for SiluGate {
    /// Gate and up.
    type State = [Saved; 2];

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        let [gate, up] = ops.state.map(|input| input.find(saved));
        let (to_gate, to_up) = flex::backward(&gate, &up, grad);
        for (node, gradient) in ops.parents.into_iter().zip([to_gate, to_up]) {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, gradient);
            }
        }
    }
}

/// Computes the output again, which is cheaper than keeping it.
#[derive(Debug)]
struct SiluGateAgain([NodeId; 2]);

impl RetroForward for SiluGateAgain {
    fn forward(&self, states: &mut BackwardStates, out_node: NodeId) {
        let [gate, up] = self.0.map(|id| states.get_state::<FlexTensor>(&id));
        states.save(out_node, flex::forward(gate, up));
    }
}
