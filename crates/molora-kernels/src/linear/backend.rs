//! What burn routes to, and the record of the backward.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::autodiff::{Autodiff, NodeId};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Flex, backend_extension};

use super::flex;
use super::flex::frozen::{self, BlockShape};
use crate::flex::buffer::FlexTensor;

/// The fast paths on `[rows, in]`, for tensors with and without gradients.
#[backend_extension(Flex, Autodiff)]
pub(super) trait LinearOps: Backend {
    /// As [`crate::linear`].
    fn fast_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// As [`crate::linear`] or [`crate::linear_transposed`] with a frozen weight in bf16.
    fn fast_half_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        is_transposed: bool,
    ) -> FloatTensor<Self>;

    /// As [`crate::linear_blocks`].
    fn fast_block_linear(
        x: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: BlockShape,
    ) -> FloatTensor<Self>;
}

impl LinearOps for Flex {
    fn fast_linear(x: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
        flex::forward(x, weight, bias)
    }

    fn fast_half_linear(
        x: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        is_transposed: bool,
    ) -> FlexTensor {
        frozen::forward(x, weight, bias, is_transposed)
    }

    fn fast_block_linear(
        x: FlexTensor,
        codes: IntTensor<Self>,
        scales: FlexTensor,
        bias: FlexTensor,
        shape: BlockShape,
    ) -> FlexTensor {
        frozen::forward_blocks(x, [codes, scales], bias, shape, false)
    }
}

impl<C: CheckpointStrategy> LinearOps for Autodiff<Flex, C> {
    fn fast_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), weight.node(), bias.node()];
        match Linear.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                // A frozen weight needs no `x`, and a constant `x` no weight.
                let x_id = weight.is_tracked().then(|| prepared.checkpoint(&x));
                let weight_kept = x.is_tracked().then(|| weight.primitive().clone());
                let out = flex::forward(
                    x.into_primitive(),
                    weight.into_primitive(),
                    bias.into_primitive(),
                );
                prepared.finish((x_id, weight_kept), out)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(flex::forward(
                x.into_primitive(),
                weight.into_primitive(),
                bias.into_primitive(),
            )),
        }
    }

    fn fast_half_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        is_transposed: bool,
    ) -> FloatTensor<Self> {
        assert!(!weight.is_tracked(), "a weight in bf16 has no gradient");
        let nodes = [x.node(), bias.node()];
        let run = |x: FloatTensor<Self>, weight, bias: FloatTensor<Self>| {
            let (x, bias) = (x.into_primitive(), bias.into_primitive());
            frozen::forward(x, weight, bias, is_transposed)
        };
        let weight = weight.into_primitive();
        match HalfLinear.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let out = run(x, weight.clone(), bias);
                prepared.finish((weight, is_transposed), out)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(run(x, weight, bias)),
        }
    }

    fn fast_block_linear(
        x: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: BlockShape,
    ) -> FloatTensor<Self> {
        assert!(!scales.is_tracked(), "a matrix of blocks has no gradient");
        let nodes = [x.node(), bias.node()];
        let parts = [codes, scales.into_primitive()];
        let run = |x: FloatTensor<Self>, parts, bias: FloatTensor<Self>| {
            let (x, bias) = (x.into_primitive(), bias.into_primitive());
            frozen::forward_blocks(x, parts, bias, shape, true)
        };
        match BlockLinear.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let out = run(x, parts.clone(), bias);
                prepared.finish((parts, shape), out)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(run(x, parts, bias)),
        }
    }
}

#[derive(Debug)]
struct Linear;

impl Backward<Flex, 3> for Linear {
    /// `x` if the weight is tracked, the weight if `x` is.
    type State = (Option<NodeId>, Option<FlexTensor>);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        let (x, weight) = ops.state;
        let [x_node, weight_node, bias_node] = ops.parents;
        if let (Some(node), Some(weight)) = (x_node, weight) {
            grads.register::<Flex>(node.id, flex::backward_x(weight, grad.clone()));
        }
        if let (Some(node), Some(x)) = (weight_node, x) {
            let x = saved.retrieve_node_output::<FlexTensor>(x);
            grads.register::<Flex>(node.id, flex::backward_weight(x, grad.clone()));
        }
        if let Some(node) = bias_node {
            grads.register::<Flex>(node.id, flex::backward_bias(grad));
        }
    }
}

#[derive(Debug)]
struct HalfLinear;

impl Backward<Flex, 2> for HalfLinear {
    /// The frozen weight, and whether the product was with its transpose.
    type State = (FlexTensor, bool);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        let (weight, is_transposed) = ops.state;
        let [x_node, bias_node] = ops.parents;
        if let Some(node) = x_node {
            let to_x = frozen::backward_x(weight, grad.clone(), is_transposed);
            grads.register::<Flex>(node.id, to_x);
        }
        if let Some(node) = bias_node {
            grads.register::<Flex>(node.id, flex::backward_bias(grad));
        }
    }
}

#[derive(Debug)]
struct BlockLinear;

impl Backward<Flex, 2> for BlockLinear {
    /// Codes and scales of the matrix, and how they are to be read.
    type State = ([FlexTensor; 2], BlockShape);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        let (parts, shape) = ops.state;
        let [x_node, bias_node] = ops.parents;
        if let Some(node) = x_node {
            let to_x = frozen::backward_x_blocks(parts, grad.clone(), shape);
            grads.register::<Flex>(node.id, to_x);
        }
        if let Some(node) = bias_node {
            grads.register::<Flex>(node.id, flex::backward_bias(grad));
        }
    }
}
