//! The fast path for the CubeCL backends (WGPU, CUDA) in f32.
//!
//! [`CubeOps`] is what `burn` routes to: called on a plain tensor it runs the kernel, called on a
//! tensor with gradients it runs the kernel and records the hand-written backward (`autodiff.rs`),
//! which calls [`CubeBackward`]. To burn's fusion every kernel is one opaque operation, of which it
//! is told the shape of the result. Each operation's kernels live in a file of their own.

mod attention;
mod autodiff;
mod buffer;
mod low_rank_mix;

use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, DispatchDevice, backend_extension};
use burn::tensor::{DType, Tensor};
use burn_cubecl::CubeBackend;

pub(crate) use self::attention::{MAX_WIDTH, Rules};
use crate::low_rank_mix::MixShape;

/// Whether the fast path takes `tensor`: f32 on a CubeCL backend, and not empty. Must hold for every
/// float input of an operation: a tensor of another backend would panic in [`CubeOps`].
pub(crate) fn takes<const D: usize>(tensor: &Tensor<D>) -> bool {
    tensor.dtype() == DType::F32
        && is_cube(tensor.device().as_dispatch())
        && tensor.shape().num_elements() > 0
}

fn is_cube(device: &DispatchDevice) -> bool {
    match device {
        DispatchDevice::Cube(_) => true,
        DispatchDevice::Autodiff(inner) => is_cube(inner),
        #[allow(unreachable_patterns)] // no other backend may be compiled in
        _ => false,
    }
}

/// The operations with a fast path, for tensors with and without gradients.
#[backend_extension(Cube, Fusion, Autodiff)]
pub(crate) trait CubeOps: Backend {
    /// As [`crate::low_rank_mix`]; without a base any tensor stands in for it.
    #[fusion(dtype = low, shape = [low[0], low[1], b[1]].into())]
    fn cube_low_rank_mix(
        base: FloatTensor<Self>,
        low: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        rank_scale: FloatTensor<Self>,
        b: FloatTensor<Self>,
        shape: MixShape,
    ) -> FloatTensor<Self>;

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

/// The backward kernels of a backend, on tensors without gradients.
#[backend_extension(Cube, Fusion)]
pub(crate) trait CubeBackward: CubeOps {
    /// See [`low_rank_mix::backward::of_codes`].
    #[fusion(meta = |low, weights, _scale, b, _grad, shape, _wants_scale| {
        let [codes, parts] =
            low_rank_mix::backward::codes_shapes(&low.shape, &weights.shape, &b.shape, shape.rank);
        (TensorSpec::new(codes, low.dtype), TensorSpec::new(parts, low.dtype))
    })]
    fn cube_mix_backward_codes(
        low: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        rank_scale: FloatTensor<Self>,
        b: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        shape: MixShape,
        wants_scale: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`low_rank_mix::backward::of_b`].
    #[fusion(dtype = low, shape = low_rank_mix::backward::b_shape(low, b))]
    fn cube_mix_backward_b(
        low: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        rank_scale: FloatTensor<Self>,
        b: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        shape: MixShape,
    ) -> FloatTensor<Self>;

    /// See [`attention::backward::of_query`].
    #[fusion(meta = |query, _key, _value, _mask, _segments, _grad, rules| {
        let stats = attention::backward::stats_shape(&query.shape, rules);
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

    /// See [`attention::backward::of_key`].
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

impl CubeOps for CubeBackend {
    fn cube_low_rank_mix(
        base: FloatTensor<Self>,
        low: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        rank_scale: FloatTensor<Self>,
        b: FloatTensor<Self>,
        shape: MixShape,
    ) -> FloatTensor<Self> {
        low_rank_mix::forward::run(base, [low, weights, rank_scale, b], shape)
    }

    fn cube_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        mask: FloatTensor<Self>,
        segments: FloatTensor<Self>,
        rules: Rules,
    ) -> FloatTensor<Self> {
        attention::forward::run([query, key, value, mask, segments], rules)
    }
}

impl CubeBackward for CubeBackend {
    fn cube_mix_backward_codes(
        low: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        rank_scale: FloatTensor<Self>,
        b: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        shape: MixShape,
        wants_scale: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        low_rank_mix::backward::of_codes([low, weights, rank_scale, b], grad, shape, wants_scale)
    }

    fn cube_mix_backward_b(
        low: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        rank_scale: FloatTensor<Self>,
        b: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        shape: MixShape,
    ) -> FloatTensor<Self> {
        low_rank_mix::backward::of_b([low, weights, rank_scale, b], grad, shape)
    }

    fn cube_attention_backward_query(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        mask: FloatTensor<Self>,
        segments: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        rules: Rules,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        attention::backward::of_query([query, key, value, mask, segments], grad, rules)
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
        attention::backward::of_key([query, key, value, mask, segments], grad, stats, rules)
    }
}
