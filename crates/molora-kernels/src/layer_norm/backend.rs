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
pub(super) trait LayerNormOps: Backend {
    /// As [`crate::layer_norm`].
    fn fast_layer_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self>;
}

impl LayerNormOps for Flex {
    fn fast_layer_norm(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        epsilon: f32,
    ) -> FlexTensor {
        flex::forward(x, gamma, beta, epsilon)
    }
}

impl<C: CheckpointStrategy> LayerNormOps for Autodiff<Flex, C> {
    fn fast_layer_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), gamma.node(), beta.node()];
        match LayerNorm.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let saved = save(&mut prepared, &x);
                let (gamma, beta) = (gamma.into_primitive(), beta.into_primitive());
                let out = flex::forward(x.into_primitive(), gamma.clone(), beta, epsilon);
                prepared.finish((saved, gamma, epsilon), out)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(flex::forward(
                x.into_primitive(),
                gamma.into_primitive(),
                beta.into_primitive(),
                epsilon,
            )),
        }
    }
}

#[derive(Debug)]
struct LayerNorm;

impl Backward<Flex, 3> for LayerNorm {
    /// `x`, `gamma` and epsilon.
    type State = (Saved, FlexTensor, f32);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        let (x, gamma, epsilon) = ops.state;
        let x = x.find(saved);
        let [x_node, gamma_node, beta_node] = ops.parents;
        if gamma_node.is_some() || beta_node.is_some() {
            let (to_gamma, to_beta) = flex::backward_affine(x.whole(), grad.clone(), epsilon);
            if let Some(node) = gamma_node {
                grads.register::<Flex>(node.id, to_gamma);
            }
            if let Some(node) = beta_node {
                grads.register::<Flex>(node.id, to_beta);
            }
        }
        if let Some(node) = x_node {
            let to_x = flex::backward_x(&x, gamma, grad, epsilon);
            grads.register::<Flex>(node.id, to_x);
        }
    }
}
