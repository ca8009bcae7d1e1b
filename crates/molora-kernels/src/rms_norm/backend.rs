//! What burn routes to, and the record of the backward.

use burn::backend::autodiff::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Flex, backend_extension};

use super::flex;
use crate::flex::buffer::FlexTensor;
use crate::flex::saved::{Saved, save};

/// The fast path, for tensors with and without gradients.
#[backend_extension(Flex, Autodiff)]
pub(super) trait RmsNormOps: Backend {
    /// As [`crate::rms_norm`].
    fn fast_rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self>;
}

impl RmsNormOps for Flex {
    fn fast_rms_norm(x: FlexTensor, weight: FlexTensor, epsilon: f32) -> FlexTensor {
        flex::forward(x, weight, epsilon)
    }
}

impl<C: CheckpointStrategy> RmsNormOps for Autodiff<Flex, C> {
    fn fast_rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), weight.node()];
        let run = |x: FloatTensor<Self>, weight| flex::forward(x.into_primitive(), weight, epsilon);
        match RmsNorm.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let saved = save(&mut prepared, &x);
                let weight = weight.into_primitive();
                let out = run(x, weight.clone());
                prepared.finish((saved, weight, epsilon), out)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(run(x, weight.into_primitive())),
        }
    }
}

#[derive(Debug)]
struct RmsNorm;

impl Backward<Flex, 2> for RmsNorm {
    /// `x`, the weight and epsilon.
    type State = (Saved, FlexTensor, f32);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        let (x, weight, epsilon) = ops.state;
        let x = x.find(saved);
        let [x_node, weight_node] = ops.parents;
        if let Some(node) = weight_node {
            let to_weight = flex::backward_weight(x.whole(), grad.clone(), epsilon);
            grads.register::<Flex>(node.id, to_weight);
        }
        if let Some(node) = x_node {
            let to_x = flex::backward_x(&x, weight, grad, epsilon);
            grads.register::<Flex>(node.id, to_x);
        }
    }
}
