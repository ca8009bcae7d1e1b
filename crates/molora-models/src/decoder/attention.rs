//! Attention.

use burn::module::Module;
use burn::tensor::Tensor;
use molora_kernels::{AttentionOptions, attention_with};

use super::cache::LayerCache;
use super::pass::Pass;
use super::rope::Rotation;
use crate::MoLoraLinear;
use crate::layers::RmsNorm;

/// Attention whose heads may share keys and values (grouped-query attention, Ainslie et al.,
/// arXiv:2305.13245).
#[derive(Module, Debug)]
pub(crate) struct Attention {
    /// Queries, keys and values.
    pub(crate) qkv: [MoLoraLinear; 3],
    /// Normalisation of each head of queries and keys (Henry et al., arXiv:2010.04245).
    pub(crate) qk_norm: Option<[RmsNorm; 2]>,
    pub(crate) output: MoLoraLinear,
    pub(crate) head_dim: usize,
}

impl Attention {
    /// `[B, T, D]` to `[B, T, D]`. With a cache, its keys and values come first and the new ones are
    /// added to it.
    pub(crate) fn forward(
        &self,
        x: Tensor<3>,
        cache: Option<&mut LayerCache>,
        pass: &mut Pass,
    ) -> Tensor<3> {
        let query = self.query(x.clone(), pass);
        let (key, value) = self.keys_values(x, pass);
        let (key, value) = match cache {
            Some(cache) => cache.extend(key, value),
            None => (key, value),
        };
        let mixed = attention_with(query, key, value, &pass.attention);
        pass.apply(&self.output, mixed)
    }

    /// `[B, T, D]` to `[B, T, D]` by keys and values of another text, under options of their own.
    pub(crate) fn look(
        &self,
        x: Tensor<3>,
        (key, value): (Tensor<3>, Tensor<3>),
        options: &AttentionOptions,
        pass: &mut Pass,
    ) -> Tensor<3> {
        let query = self.query(x, pass);
        let mixed = attention_with(query, key, value, options);
        pass.apply(&self.output, mixed)
    }

    fn query(&self, x: Tensor<3>, pass: &mut Pass) -> Tensor<3> {
        let query = pass.apply(&self.qkv[0], x);
        let norm = self.qk_norm.as_ref().map(|[norm, _]| norm);
        self.placed(query, norm, &pass.rotation)
    }

    /// Keys and values `[B, S, G * W]` of a text `[B, S, D]`.
    pub(crate) fn keys_values(&self, x: Tensor<3>, pass: &mut Pass) -> (Tensor<3>, Tensor<3>) {
        let key = pass.apply(&self.qkv[1], x.clone());
        let value = pass.apply(&self.qkv[2], x);
        let norm = self.qk_norm.as_ref().map(|[_, norm]| norm);
        (self.placed(key, norm, &pass.rotation), value)
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
