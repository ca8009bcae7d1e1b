//! Records the hand-written backward of each operation.
//!
//! What a backward needs is kept in one of two ways: an input through a checkpoint, so that under
//! gradient checkpointing it may be computed again, and a small or frozen tensor as it is.

mod backward;

use burn::backend::autodiff::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::ops::{Backward, OpsKind};
use burn::backend::tensor::{FloatTensor, IntTensor};

use self::backward::{Attention, BlockLinear, HalfLinear, Linear, LowRankMix};
use super::{BackwardKernels, BlockShape, FastOps, Rules};
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
                let out = B::fast_linear(
                    x.into_primitive(),
                    weight.into_primitive(),
                    bias.into_primitive(),
                );
                prepared.finish((x_id, weight_kept), out)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::fast_linear(
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
            B::fast_half_linear(x, weight, bias, is_transposed)
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
        let scales = scales.into_primitive();
        let run = |x: FloatTensor<Self>, codes, scales, bias: FloatTensor<Self>| {
            let (x, bias) = (x.into_primitive(), bias.into_primitive());
            B::fast_block_linear(x, codes, scales, bias, shape)
        };
        match BlockLinear.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let out = run(x, codes.clone(), scales.clone(), bias);
                prepared.finish((codes, scales, shape), out)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(run(x, codes, scales, bias)),
        }
    }
}
