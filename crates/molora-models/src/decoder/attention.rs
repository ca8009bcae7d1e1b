//! Attention of a decoder.

use burn::module::Module;
use burn::tensor::Tensor;
use molora_kernels::attention_with;

use super::cache::LayerCache;
use super::pass::Pass;
use super::rope::Rotation;
use crate::MoLoraLinear;
use crate::layers::RmsNorm;

/// Causal attention whose heads may share keys and values (grouped-query attention, Ainslie et al.,
/// arXiv:2305.13245).
#[derive(Module, Debug)]
pub(super) struct Attention {
    /// Queries, keys and values.
    pub(super) qkv: [MoLoraLinear; 3],
    /// Normalisation of each head of queries and keys (Henry et al., arXiv:2010.04245).
    pub(super) qk_norm: Option<[RmsNorm; 2]>,
    pub(super) output: MoLoraLinear,
    pub(super) head_dim: usize,
}

impl Attention {
    /// `[B, T, D]` to `[B, T, D]`. With a cache, its keys and values come first and the new ones are
    /// added to it.
    pub(super) fn forward(
        &self,
        x: Tensor<3>,
        cache: Option<&mut LayerCache>,
        pass: &mut Pass,
    ) -> Tensor<3> {
        let [query, key, value] = self.qkv.each_ref().map(|part| pass.apply(part, x.clone()));
        let norms = self.qk_norm.as_ref();
        let query = self.placed(query, norms.map(|norms| &norms[0]), &pass.rotation);
        let key = self.placed(key, norms.map(|norms| &norms[1]), &pass.rotation);
        let (key, value) = match cache {
            Some(cache) => cache.extend(key, value),
            None => (key, value),
        };
        let mixed = attention_with(query, key, value, &pass.attention);
        pass.apply(&self.output, mixed)
    }

    /// Normalises the heads of `[B, T, H * W]` and turns them by their positions.
    fn placed(
        &self,
        x: Tensor<3>,
        norm: Option<&RmsNorm>,
        rotation: &Option<Rotation>,
    ) -> Tensor<3> {
        if norm.is_none() && rotation.is_none() {
            return x;
        }
        let [batch, tokens, width] = x.dims();
        let mut heads = x.reshape([batch, tokens, width / self.head_dim, self.head_dim]);
        if let Some(norm) = norm {
            heads = norm.forward(heads);
        }
        if let Some(rotation) = rotation {
            heads = rotation.apply(heads);
        }
        heads.reshape([batch, tokens, width])
    }
}
