//! What burn routes to, on flex and on the CubeCL backends, and the record of the backward.
//!
//! Code and weights are kept through checkpoints, so that under gradient checkpointing they may be
//! computed again; the rank scale and `b` are small and kept as they are.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::autodiff::{Autodiff, NodeId};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, backend_extension};

use super::shape::MixShape;

/// The fast path, for tensors with and without gradients.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cube"),
    Fusion: cfg(feature = "cube"),
    Autodiff
)]
pub(super) trait MixOps: Backend {
    /// As [`crate::low_rank_mix`]; without a base any tensor stands in for it.
    #[fusion(dtype = low, shape = [low[0], low[1], b[1]].into())]
    fn fast_low_rank_mix(
        base: FloatTensor<Self>,
        low: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        rank_scale: FloatTensor<Self>,
        b: FloatTensor<Self>,
        shape: MixShape,
    ) -> FloatTensor<Self>;
}

/// The gradients, of tensors without gradients.
pub(super) trait MixGradients: MixOps {
    /// Gradients of code, weights, rank scale and `b`, those that are wanted at least; the base's is
    /// the output's.
    fn mix_gradients(
        operands: [FloatTensor<Self>; 4],
        shape: MixShape,
        grad: FloatTensor<Self>,
        wants: [bool; 4],
    ) -> [Option<FloatTensor<Self>>; 4];
}

#[cfg(feature = "flex")]
mod on_flex {
    use burn::backend::Flex;

    use super::{MixGradients, MixOps, MixShape};
    use crate::flex::buffer::FlexTensor;
    use crate::low_rank_mix::flex;

    impl MixOps for Flex {
        fn fast_low_rank_mix(
            base: FlexTensor,
            low: FlexTensor,
            weights: FlexTensor,
            rank_scale: FlexTensor,
            b: FlexTensor,
            shape: MixShape,
        ) -> FlexTensor {
            flex::forward(base, [low, weights, rank_scale, b], shape)
        }
    }

    impl MixGradients for Flex {
        fn mix_gradients(
            operands: [FlexTensor; 4],
            shape: MixShape,
            grad: FlexTensor,
            [.., wants_b]: [bool; 4],
        ) -> [Option<FlexTensor>; 4] {
            flex::backward(operands, shape, grad, wants_b)
        }
    }
}

#[cfg(feature = "cube")]
mod on_cube {
    use burn::backend::Cube;
    use burn::backend::tensor::FloatTensor;
    use burn_cubecl::CubeBackend;
    use burn_cubecl::tensor::CubeTensor;

    use super::{MixGradients, MixOps, MixShape};
    use crate::low_rank_mix::cube;

    impl MixOps for CubeBackend {
        fn fast_low_rank_mix(
            base: CubeTensor,
            low: CubeTensor,
            weights: CubeTensor,
            rank_scale: CubeTensor,
            b: CubeTensor,
            shape: MixShape,
        ) -> CubeTensor {
            cube::forward(base, [low, weights, rank_scale, b], shape)
        }
    }

    /// With fusion around the kernels.
    impl MixGradients for Cube {
        fn mix_gradients(
            operands: [FloatTensor<Self>; 4],
            shape: MixShape,
            grad: FloatTensor<Self>,
            wants: [bool; 4],
        ) -> [Option<FloatTensor<Self>>; 4] {
            cube::gradients::<Self>(operands, shape, grad, wants)
        }
    }
}

impl<B: MixGradients, C: CheckpointStrategy> MixOps for Autodiff<B, C> {
    fn fast_low_rank_mix(
        base: FloatTensor<Self>,
        low: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        rank_scale: FloatTensor<Self>,
        b: FloatTensor<Self>,
        shape: MixShape,
    ) -> FloatTensor<Self> {
        let inputs = [base, low, weights, rank_scale, b];
        let nodes = inputs.each_ref().map(|input| input.node());
        let run = |inputs: [FloatTensor<Self>; 5]| {
            let [base, low, weights, rank_scale, b] = inputs.map(|input| input.into_primitive());
            B::fast_low_rank_mix(base, low, weights, rank_scale, b, shape)
        };
        match Mix.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let [_, low, weights, rank_scale, b] = &inputs;
                let ids = [low, weights].map(|input| prepared.checkpoint(input));
                let small = [rank_scale, b].map(|input| input.primitive().clone());
                let out = run(inputs);
                prepared.finish((ids, small, shape), out)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(run(inputs)),
        }
    }
}

#[derive(Debug)]
struct Mix;

impl<B: MixGradients> Backward<B, 5> for Mix {
    /// Code and weights, rank scale and `b`, and the sizes.
    type State = ([NodeId; 2], [FloatTensor<B>; 2], MixShape);

    fn backward(self, ops: Ops<Self::State, 5>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (ids, [rank_scale, b], shape) = ops.state;
        let [low, weights] = ids.map(|id| saved.retrieve_node_output::<FloatTensor<B>>(id));
        let [base_node, nodes @ ..] = ops.parents;
        let wants = nodes.each_ref().map(Option::is_some);
        if wants.contains(&true) {
            let operands = [low, weights, rank_scale, b];
            let gradients = B::mix_gradients(operands, shape, grad.clone(), wants);
            for (node, gradient) in nodes.into_iter().zip(gradients) {
                if let (Some(node), Some(gradient)) = (node, gradient) {
                    grads.register::<B>(node.id, gradient);
                }
            }
        }
        if let Some(node) = base_node {
            grads.register::<B>(node.id, grad);
        }
    }
}
