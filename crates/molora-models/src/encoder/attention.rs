//! Attention in both directions, and where tokens stand in it.

use burn::module::Module;
use burn::tensor::{Bool, Int, Tensor};
use molora_kernels::{AttentionOptions, attention_with};

use super::config::LocalAttention;
use super::relative::{PositionRows, RelativePositions};
use crate::MoLoraLinear;
use crate::decoder::{Rope, Rotation};
use crate::relative_bias::RelativeBias;

/// The attention of one layer.
#[derive(Module, Debug)]
pub(super) struct Attention {
    /// Queries, keys and values.
    pub(super) qkv: [MoLoraLinear; 3],
    /// Keys of relative positions; those of contents where absent.
    pub(super) position_key: Option<MoLoraLinear>,
    /// Queries of relative positions; those of contents where absent.
    pub(super) position_query: Option<MoLoraLinear>,
    pub(super) output: MoLoraLinear,
    /// Whether tokens see their neighbours alone.
    pub(super) is_local: bool,
}

/// How positions act on attention in a model.
#[derive(Module, Debug, Default)]
pub(super) struct Places {
    /// Biases of scores by distance.
    pub(super) bias: Option<RelativeBias>,
    /// Scores of contents with positions.
    pub(super) relative: Option<RelativePositions>,
    /// The factor on scores, where it is not the usual one.
    #[module(skip)]
    pub(super) scale: Option<f64>,
    /// Rotary positions of layers that see all tokens.
    #[module(skip)]
    pub(super) rope: Option<Rope>,
    /// Layers that see neighbours alone.
    #[module(skip)]
    pub(super) local: Option<LocalAttention>,
}

/// What the attention of all layers reads in one pass.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    /// True for real tokens, `[B, T]`.
    pub(super) mask: Tensor<2, Bool>,
    /// Of layers that see all tokens.
    full: View,
    /// Of layers that see neighbours alone.
    local: Option<View>,
    positions: Option<PositionRows>,
}

/// Which keys are seen, and how tokens are turned.
#[derive(Debug, Clone)]
struct View {
    options: AttentionOptions,
    rotation: Option<Rotation>,
}

impl Places {
    /// For a batch with a mask `[B, T]`, in a model with so many heads.
    pub(super) fn around(&self, mask: &Tensor<2, Bool>, num_heads: usize) -> Surroundings {
        let [batch, tokens] = mask.dims();
        let mut options = AttentionOptions::new(num_heads).with_mask(Some(mask.clone()));
        options.scale = self.scale;
        let rotation = |rope: &Rope| {
            let places = Tensor::<1, Int>::arange(0..tokens as i64, &mask.device());
            let places = places.unsqueeze::<2>().expand([batch, tokens]);
            rope.rotation(places, tokens)
        };
        let local = self.local.as_ref().map(|local| View {
            options: options.clone().with_window(Some(local.reach)),
            rotation: Some(rotation(&local.rope)),
        });
        let bias = self.bias.as_ref();
        options.bias = bias.map(|bias| bias.forward(tokens, 0, tokens));
        Surroundings {
            mask: mask.clone(),
            full: View {
                options,
                rotation: self.rope.as_ref().map(rotation),
            },
            local,
            positions: self.relative.as_ref().map(|table| table.rows(tokens)),
        }
    }
}

impl Attention {
    /// `[B, T, D]` to `[B, T, D]`. `apply` computes linear layers of tokens, `apart` those of
    /// positions.
    pub(super) fn forward(
        &self,
        x: Tensor<3>,
        around: &Surroundings,
        mut apply: impl FnMut(&MoLoraLinear, Tensor<3>) -> Tensor<3>,
        apart: impl Fn(&MoLoraLinear, Tensor<3>) -> Tensor<3>,
    ) -> Tensor<3> {
        let [query, key, value] = &self.qkv;
        let view = match &around.local {
            Some(local) if self.is_local => local,
            _ => &around.full,
        };
        let query = view.turned(apply(query, x.clone()));
        let key = view.turned(apply(key, x.clone()));
        let value = apply(value, x);
        let mut options = view.options.clone();
        match &around.positions {
            None => {
                // A pass that is computed again keeps what was made without gradients.
                let is_tracked = query.is_autodiff();
                options.bias = options.bias.map(|bias| match is_tracked {
                    true => bias.autodiff(),
                    false => bias,
                });
            }
            Some(rows) => {
                let [content_query, content_key, _] = &self.qkv;
                let key_of = self.position_key.as_ref().unwrap_or(content_key);
                let query_of = self.position_query.as_ref().unwrap_or(content_query);
                let scores = rows.scores(
                    [&query, &key],
                    options.num_heads,
                    |rows| apart(key_of, rows),
                    |rows| apart(query_of, rows),
                );
                options.bias = Some(scores);
            }
        }
        apply(&self.output, attention_with(query, key, value, &options))
    }
}

impl View {
    /// The heads of `[B, T, H * W]` turned by their positions.
    fn turned(&self, x: Tensor<3>) -> Tensor<3> {
        let Some(rotation) = &self.rotation else {
            return x;
        };
        let [batch, tokens, width] = x.dims();
        let heads = self.options.num_heads;
        let x = x.reshape([batch, tokens, heads, width / heads]);
        rotation.apply(x).reshape([batch, tokens, width])
    }
}
