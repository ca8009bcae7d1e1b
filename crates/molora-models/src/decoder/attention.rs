//! Attention.

use burn::module::Module;
use burn::tensor::Tensor;
use molora_kernels::{AttentionOptions, attention_with};

use super::cache::LayerCache;
use super::pass::Pass;
use super::rope::Rotation;
use crate::MoLoraLinear;
use crate::layers::RmsNorm;

/// The linear layers of queries, keys and values.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one in a layer")]
pub(crate) enum Qkv {
    /// Three.
    Apart([MoLoraLinear; 3]),
    /// One, which gives the queries of all heads, then keys, then values.
    Fused(MoLoraLinear),
    /// One, which gives query, key and value of one head after the other.
    FusedByHead(MoLoraLinear),
}

impl Qkv {
    /// The layers in the order of their outputs; three places, of which some are empty.
    pub(crate) fn linears(&self) -> [Option<&MoLoraLinear>; 3] {
        match self {
            Self::Apart(linears) => linears.each_ref().map(Some),
            Self::Fused(linear) | Self::FusedByHead(linear) => [Some(linear), None, None],
        }
    }

    /// The layers, to be changed.
    pub(crate) fn linears_mut(&mut self) -> [Option<&mut MoLoraLinear>; 3] {
        match self {
            Self::Apart(linears) => linears.each_mut().map(Some),
            Self::Fused(linear) | Self::FusedByHead(linear) => [Some(linear), None, None],
        }
    }

    /// The three layers.
    ///
    /// # Panics
    /// If they are one.
    fn apart(&self) -> &[MoLoraLinear; 3] {
        match self {
            Self::Apart(linears) => linears,
            _ => panic!("attention to another text has three layers"),
        }
    }
}

/// Attention whose heads may share keys and values (grouped-query attention, Ainslie et al.,
/// arXiv:2305.13245).
#[derive(Module, Debug)]
pub(crate) struct Attention {
    /// Queries, keys and values.
    pub(crate) qkv: Qkv,
    /// Normalisation of queries and keys, of each head or of all together: as wide as its weights.
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
        let [query, key, value] = self.project(x, pass);
        let [query_norm, key_norm] = self.norms();
        let query = self.placed(query, query_norm, &pass.rotation);
        let key = self.placed(key, key_norm, &pass.rotation);
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
        let query = pass.apply(&self.qkv.apart()[0], x);
        self.placed(query, self.norms()[0], &pass.rotation)
    }

    /// Keys and values `[B, S, G * W]` of a text `[B, S, D]`.
    pub(crate) fn keys_values(&self, x: Tensor<3>, pass: &mut Pass) -> (Tensor<3>, Tensor<3>) {
        let [_, keys, values] = self.qkv.apart();
        let key = pass.apply(keys, x.clone());
        let value = pass.apply(values, x);
        (self.placed(key, self.norms()[1], &pass.rotation), value)
    }

    fn norms(&self) -> [Option<&RmsNorm>; 2] {
        match &self.qk_norm {
            Some(norms) => norms.each_ref().map(Some),
            None => [None, None],
        }
    }

    /// Queries `[B, T, H * W]`, keys and values `[B, T, G * W]` of hidden states `[B, T, D]`.
    fn project(&self, x: Tensor<3>, pass: &mut Pass) -> [Tensor<3>; 3] {
        let queries = self.output.dims().d_input;
        match &self.qkv {
            Qkv::Apart([query, key, value]) => [
                pass.apply(query, x.clone()),
                pass.apply(key, x.clone()),
                pass.apply(value, x),
            ],
            Qkv::Fused(linear) => {
                let all = pass.apply(linear, x);
                let keys = (all.dims()[2] - queries) / 2;
                let widths = [(0, queries), (queries, keys), (queries + keys, keys)];
                widths.map(|(start, width)| all.clone().narrow(2, start, width))
            }
            Qkv::FusedByHead(linear) => {
                let all = pass.apply(linear, x);
                let [batch, tokens, _] = all.dims();
                let heads = queries / self.head_dim;
                let all = all.reshape([batch, tokens, heads, 3 * self.head_dim]);
                [0, 1, 2].map(|part| {
                    let part = all.clone().narrow(3, part * self.head_dim, self.head_dim);
                    part.reshape([batch, tokens, queries])
                })
            }
        }
    }

    /// Normalises `[B, T, H * W]`, and turns its heads by their positions.
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
        let part = norm.map_or(self.head_dim, RmsNorm::width);
        let mut heads = x.reshape([batch, tokens, width / part, part]);
        if let Some(norm) = norm {
            heads = norm.forward(heads);
        }
        if let Some(rotation) = rotation {
            if part != self.head_dim {
                heads = heads.reshape([batch, tokens, width / self.head_dim, self.head_dim]);
            }
            heads = rotation.apply(heads);
        }
        heads.reshape([batch, tokens, width])
    }
}
