//! What burn routes to on flex, and the record of the backward.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::autodiff::{Autodiff, NodeId};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Flex, backend_extension};

use super::{Rules, backward, backward_bias, forward};
use crate::flex::buffer::FlexTensor;
use crate::flex::saved::{Saved, save};

/// The fast path, for tensors with and without gradients.
#[backend_extension(Flex, Autodiff)]
pub(in crate::attention) trait FlexAttention: Backend {
    /// As [`crate::attention_with`]; without a bias any tensor stands in for it.
    fn fast_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        rules: Rules,
    ) -> FloatTensor<Self>;
}

impl FlexAttention for Flex {
    fn fast_attention(
        query: FlexTensor,
        key: FlexTensor,
        value: FlexTensor,
        bias: FlexTensor,
        rules: Rules,
    ) -> FlexTensor {
        forward([query, key, value, bias], &rules)
    }
}

impl<C: CheckpointStrategy> FlexAttention for Autodiff<Flex, C> {
    fn fast_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        rules: Rules,
    ) -> FloatTensor<Self> {
        let inputs = [query, key, value, bias];
        let nodes = inputs.each_ref().map(|input| input.node());
        let run = |inputs: [FloatTensor<Self>; 4], rules: &Rules| {
            forward(inputs.map(|input| input.into_primitive()), rules)
        };
        match Attention.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let [query, key, value, bias] = &inputs;
                let saved = [query, key, value].map(|input| save(&mut prepared, input));
                // One bias may serve all layers.
                let bias = prepared.checkpoint(bias);
                let out = run(inputs, &rules);
                prepared.finish((saved, bias, rules), out)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(run(inputs, &rules)),
        }
    }
}

#[derive(Debug)]
struct Attention;

impl Backward<Flex, 4> for Attention {
    /// Query, key, value and bias, and what may be attended to.
    type State = ([Saved; 3], NodeId, Rules);

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        let (inputs, bias, rules) = ops.state;
        let [query, key, value] = inputs.map(|input| input.find(saved).whole());
        let bias = saved.retrieve_node_output::<FlexTensor>(bias);
        let inputs = [query, key, value, bias];
        let [query, key, value, bias] = ops.parents;
        if let Some(node) = bias {
            let to_bias = backward_bias(inputs.clone(), &rules, grad.clone());
            grads.register::<Flex>(node.id, to_bias);
        }
        let nodes = [query, key, value];
        if nodes.iter().all(Option::is_none) {
            return;
        }
        for (node, gradient) in nodes.into_iter().zip(backward(inputs, &rules, grad)) {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, gradient);
            }
        }
    }
}
