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

/// The fast path on rows of heads of `width` numbers, for tensors with and without gradients.
#[backend_extension(Flex, Autodiff)]
pub(super) trait RotaryOps: Backend {
    /// As [`crate::rotary`].
    fn fast_rotary(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        width: usize,
    ) -> FloatTensor<Self>;
}

impl RotaryOps for Flex {
    fn fast_rotary(x: FlexTensor, cos: FlexTensor, sin: FlexTensor, width: usize) -> FlexTensor {
        flex::turn(x, [cos, sin], width, false)
    }
}

impl<C: CheckpointStrategy> RotaryOps for Autodiff<Flex, C> {
    fn fast_rotary(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        width: usize,
    ) -> FloatTensor<Self> {
        let angles = [cos.into_primitive(), sin.into_primitive()];
        let again = Again {
            x: x.node().id(),
            angles: angles.clone(),
            width,
        };
        let prepared = Rotary.prepare::<C>([x.node()]).memory_bound();
        match prepared.retro_forward(again).parents([&x]).stateful() {
            OpsKind::Tracked(prepared) => {
                let out = flex::turn(x.into_primitive(), angles.clone(), width, false);
                prepared.finish((angles, width), out)
            }
            OpsKind::UnTracked(prepared) => {
                prepared.finish(flex::turn(x.into_primitive(), angles, width, false))
            }
        }
    }
}

#[derive(Debug)]
struct Rotary;

impl Backward<Flex, 1> for Rotary {
    /// Cosines and sines, and the width of a head.
    type State = ([FlexTensor; 2], usize);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        let (angles, width) = ops.state;
        let [x] = ops.parents;
        if let Some(node) = x {
            grads.register::<Flex>(node.id, flex::turn(grad, angles, width, true));
        }
    }
}

/// Computes the output again, which is cheaper than keeping it.
#[derive(Debug)]
struct Again {
    x: NodeId,
    angles: [FlexTensor; 2],
    width: usize,
}

impl RetroForward for Again {
    fn forward(&self, states: &mut BackwardStates, out_node: NodeId) {
        let x = states.get_state::<FlexTensor>(&self.x);
        let out = flex::turn(x, self.angles.clone(), self.width, false);
        states.save(out_node, out);
    }
}
