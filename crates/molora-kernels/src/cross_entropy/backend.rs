//! What burn routes to, and the record of the backward.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::autodiff::{Autodiff, NodeId};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Flex, backend_extension};

use super::flex::{self, Labels};
use crate::flex::buffer::FlexTensor;

/// The fast path, for tensors with and without gradients.
#[backend_extension(Flex, Autodiff)]
pub(super) trait CrossEntropyOps: Backend {
    /// As [`crate::softmax_cross_entropy`].
    fn fast_cross_entropy(logits: FloatTensor<Self>, labels: Labels) -> FloatTensor<Self>;
}

impl CrossEntropyOps for Flex {
    fn fast_cross_entropy(logits: FlexTensor, labels: Labels) -> FlexTensor {
        flex::forward(logits, &labels)
    }
}

impl<C: CheckpointStrategy> CrossEntropyOps for Autodiff<Flex, C> {
    fn fast_cross_entropy(logits: FloatTensor<Self>, labels: Labels) -> FloatTensor<Self> {
        let prepared = CrossEntropy.prepare::<C>([logits.node()]).compute_bound();
        match prepared.stateful() {
            OpsKind::Tracked(mut prepared) => {
                let id = prepared.checkpoint(&logits);
                let out = flex::forward(logits.into_primitive(), &labels);
                prepared.finish((id, labels), out)
            }
            OpsKind::UnTracked(prepared) => {
                prepared.finish(flex::forward(logits.into_primitive(), &labels))
            }
        }
    }
}

#[derive(Debug)]
struct CrossEntropy;

impl Backward<Flex, 1> for CrossEntropy {
    type State = (NodeId, Labels);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        let (logits, labels) = ops.state;
        let logits: FlexTensor = saved.retrieve_node_output(logits);
        if let [Some(node)] = ops.parents {
            let gradient = flex::backward(logits, &labels, grad);
            grads.register::<Flex>(node.id, gradient);
        }
    }
}
