//! What burn routes to on the CubeCL backends, and the record of the backward.
//!
//! To burn's fusion every kernel is one opaque operation, of which it is told the shape of the
//! result. Inputs are kept through checkpoints, so that under gradient checkpointing they may be
//! computed again.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::autodiff::{Autodiff, NodeId};
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, backend_extension};
use burn_cubecl::CubeBackend;

use super::{Rules, backward, forward};

/// The fast path, for tensors with and without gradients.
#[backend_extension(Cube, Fusion, Autodiff)]
pub(in crate::attention) trait CubeAttention: Backend {
    /// As [`crate::attention_with`] without a bias, with mask and segments as numbers; any tensor
    /// stands in for one that is absent.
    #[fusion(dtype = query, shape = query)]
    fn cube_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        mask: FloatTensor<Self>,
        segments: FloatTensor<Self>,
        rules: Rules,
    ) -> FloatTensor<Self>;
}

/// The backward kernels, on tensors without gradients.
#[backend_extension(Cube, Fusion)]
pub(in crate::attention) trait CubeAttentionBackward: CubeAttention {
    /// See [`backward::of_query`].
    #[fusion(meta = |query, _key, _value, _mask, _segments, _grad, rules| {
        let stats = backward::stats_shape(&query.shape, rules);
        (query.clone(), TensorSpec::new(stats, query.dtype))
    })]
    fn cube_attention_backward_query(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        mask: FloatTensor<Self>,
        segments: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        rules: Rules,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`backward::of_key`].
    #[fusion(meta = |_query, key, value, _mask, _segments, _grad, _stats, _rules| {
        (key.clone(), value.clone())
    })]
    #[allow(clippy::too_many_arguments)] // the macro knows no arrays
    fn cube_attention_backward_key(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        mask: FloatTensor<Self>,
        segments: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        stats: FloatTensor<Self>,
        rules: Rules,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

impl CubeAttention for CubeBackend {
    fn cube_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        mask: FloatTensor<Self>,
        segments: FloatTensor<Self>,
        rules: Rules,
    ) -> FloatTensor<Self> {
        forward::run([query, key, value, mask, segments], rules)
    }
}

impl CubeAttentionBackward for CubeBackend {
    fn cube_attention_backward_query(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        mask: FloatTensor<Self>,
        segments: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        rules: Rules,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        backward::of_query([query, key, value, mask, segments], grad, rules)
    }

    fn cube_attention_backward_key(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        mask: FloatTensor<Self>,
        segments: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        stats: FloatTensor<Self>,
        rules: Rules,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        backward::of_key([query, key, value, mask, segments], grad, stats, rules)
    }
}

impl<B: CubeAttentionBackward, C: CheckpointStrategy> CubeAttention for Autodiff<B, C> {
    fn cube_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        mask: FloatTensor<Self>,
        segments: FloatTensor<Self>,
        rules: Rules,
    ) -> FloatTensor<Self> {
        let inputs = [query, key, value];
        let nodes = inputs.each_ref().map(|input| input.node());
        let limits = [mask.into_primitive(), segments.into_primitive()];
        let run = |inputs: [FloatTensor<Self>; 3], [mask, segments]: [FloatTensor<B>; 2]| {
            let [query, key, value] = inputs.map(|input| input.into_primitive());
            B::cube_attention(query, key, value, mask, segments, rules)
        };
        match Attention.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let ids = inputs.each_ref().map(|input| prepared.checkpoint(input));
                let out = run(inputs, limits.clone());
                prepared.finish((ids, limits, rules), out)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(run(inputs, limits)),
        }
    }
}

#[derive(Debug)]
struct Attention;

impl<B: CubeAttentionBackward> Backward<B, 3> for Attention {
    /// Query, key and value, mask and segments, and what may be attended to.
    type State = ([NodeId; 3], [FloatTensor<B>; 2], Rules);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (ids, [mask, segments], rules) = ops.state;
        let [query, key, value] = ids.map(|id| saved.retrieve_node_output::<FloatTensor<B>>(id));
        let (to_query, stats) = B::cube_attention_backward_query(
            query.clone(),
            key.clone(),
            value.clone(),
            mask.clone(),
            segments.clone(),
            grad.clone(),
            rules,
        );
        let [query_node, key_node, value_node] = ops.parents;
        if let Some(node) = query_node {
            grads.register::<B>(node.id, to_query);
        }
        if key_node.is_none() && value_node.is_none() {
            return;
        }
        let (to_key, to_value) =
            B::cube_attention_backward_key(query, key, value, mask, segments, grad, stats, rules);
        for (node, gradient) in [(key_node, to_key), (value_node, to_value)] {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}
