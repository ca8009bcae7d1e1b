//! Records the hand-written backward of each operation.
//!
//! What a backward needs is kept in one of two ways: an input through a checkpoint, so that under
//! gradient checkpointing it may be computed again, and a small or frozen tensor as it is.

mod backward;

use burn::backend::autodiff::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::ops::{Backward, OpsKind};
use burn::backend::tensor::FloatTensor;

use self::backward::{Attention, LowRankMix};
use super::{BackwardKernels, FastOps, Rules};
use crate::low_rank_mix::MixShape;

impl<B: BackwardKernels, C: CheckpointStrategy> FastOps for Autodiff<B, C> {
    fn fast_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        rules: Rules,
    ) -> FloatTensor<Self> {
        let inputs = [query, key, value, bias];
        let nodes = inputs.each_ref().map(|input| input.node());
        let run = |inputs: [FloatTensor<Self>; 4], rules: Rules| {
            let [query, key, value, bias] = inputs.map(|input| input.into_primitive());
            B::fast_attention(query, key, value, bias, rules)
        };
        match Attention.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let ids = inputs.each_ref().map(|input| prepared.checkpoint(input));
                let out = run(inputs, rules.clone());
                prepared.finish((ids, rules), out)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(run(inputs, rules)),
        }
    }

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
        match LowRankMix.prepare::<C>(nodes).compute_bound().stateful() {
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
