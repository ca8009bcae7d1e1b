//! Families: from `config.json` to a decoder's configuration, and names of tensors.

mod experts;
mod gemma;
mod gpt2;
mod gpt_neox;
mod llama;
mod opt;
mod phi;

use super::config::{DecoderConfig, NormKind, NormPlace, QkvForm};
use super::names::Names;
use super::rope::{Rope, RopeFields, RopeScaling};
use crate::ModelError;
use crate::checkpoint::ConfigFile;
use crate::family::About;
use crate::layers::Activation;

/// Reads the configuration of a family.
type Read = fn(&ConfigFile) -> Result<DecoderConfig, ModelError>;

/// Every family.
pub(crate) const FAMILIES: [(&About, Read); 16] = [
    (&llama::LLAMA, llama::llama),
    (&llama::MISTRAL, llama::mistral),
    (&llama::QWEN2, llama::qwen2),
    (&llama::QWEN3, llama::qwen3),
    (&llama::OLMO2, llama::olmo2),
    (&llama::GRANITE, llama::granite),
    (&llama::SMOLLM3, llama::smollm3),
    (&gemma::GEMMA, gemma::gemma),
    (&gemma::GEMMA2, gemma::gemma2),
    (&gemma::GEMMA3, gemma::gemma3),
    (&phi::PHI3, phi::phi3),
    (&experts::MIXTRAL, experts::mixtral),
    (&experts::QWEN3_MOE, experts::qwen3_moe),
    (&gpt2::GPT2, gpt2::gpt2),
    (&gpt_neox::GPT_NEOX, gpt_neox::gpt_neox),
    (&opt::OPT, opt::opt),
];

/// Hugging Face's names of activations.
const ACTIVATIONS: &[(&str, Activation)] = &[
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("gelu", Activation::Gelu),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("relu", Activation::Relu),
];

/// The activation that a field names.
fn activation(file: &ConfigFile, field: &str) -> Result<Activation, ModelError> {
    let found = file.text(field)?;
    let known = ACTIVATIONS.iter().find(|(name, _)| Some(*name) == found);
    known.map(|(_, activation)| *activation).ok_or_else(|| {
        let names: Vec<&str> = ACTIVATIONS.iter().map(|(name, _)| *name).collect();
        file.unsupported(field, &super::config::any_of(&names))
    })
}

/// A decoder of no size, with the choices that most families share.
fn blank(names: &'static Names) -> DecoderConfig {
    DecoderConfig {
        vocab_size: 0,
        width: 0,
        num_layers: 0,
        num_heads: 0,
        num_kv_heads: 0,
        head_dim: 0,
        inner_width: 0,
        max_tokens: 0,
        norm: NormKind::Rms,
        norm_place: NormPlace::Input,
        has_final_norm: true,
        epsilon: 0.0,
        activation: Activation::Silu,
        is_gated: true,
        has_fused_gate: false,
        experts: None,
        is_parallel: false,
        learned_positions: None,
        ropes: Vec::new(),
        layers: Vec::new(),
        attention_scale: None,
        attention_cap: None,
        qkv: QkvForm::Apart,
        qkv_bias: false,
        output_bias: false,
        feed_forward_bias: false,
        qk_norm: None,
        embedding_scale: 1.0,
        residual_scale: 1.0,
        logit_scale: 1.0,
        logit_cap: None,
        has_tied_head: false,
        names,
    }
}

/// The width of a head where heads share the width of the hidden states.
fn shared_width(
    file: &ConfigFile,
    width_field: &str,
    heads_field: &str,
) -> Result<usize, ModelError> {
    let (width, num_heads) = (file.size(width_field)?, file.size(heads_field)?);
    if !width.is_multiple_of(num_heads) {
        let text = format!("{width} is no multiple of {heads_field} {num_heads}");
        return Err(file.problem(width_field, &text));
    }
    Ok(width / num_heads)
}

impl DecoderConfig {
    /// With the rotary positions that the file describes, in all layers.
    fn with_rope(mut self, file: &ConfigFile, fields: RopeFields) -> Result<Self, ModelError> {
        let rope = Rope::from_config(file, self.head_dim, fields)?;
        if matches!(rope.scaling, RopeScaling::Dynamic { .. }) {
            // It stretches as far as the text.
            self.max_tokens = usize::MAX;
        }
        self.ropes = vec![rope];
        self.layers
            .iter_mut()
            .for_each(|layer| layer.rope = Some(0));
        Ok(self)
    }

    /// With a window in the layers that `layer_types` calls `sliding_attention`, or in those that
    /// `is_local` names where the file has no such list. A window that hides no token is none.
    fn with_windows(
        mut self,
        file: &ConfigFile,
        window: Option<usize>,
        is_local: impl Fn(usize) -> bool,
    ) -> Result<Self, ModelError> {
        let types = layer_types(file, self.num_layers)?;
        let is_local = |index: usize| match &types {
            Some(types) => types[index],
            None => window.is_some() && is_local(index),
        };
        if window.is_none() && (0..self.num_layers).any(is_local) {
            let expected = "full_attention everywhere, as no window is in use";
            return Err(file.unsupported("layer_types", expected));
        }
        let window = window.filter(|&window| window < self.max_tokens);
        for (index, layer) in self.layers.iter_mut().enumerate() {
            layer.window = window.filter(|_| is_local(index));
        }
        Ok(self)
    }

    /// Refuses a window that hides any token.
    fn without_windows(self, file: &ConfigFile) -> Result<Self, ModelError> {
        let window = file.optional_size("sliding_window")?;
        if window.is_some_and(|window| window < self.max_tokens) {
            let expected = "null or a window of max_position_embeddings: this family has no other";
            return Err(file.unsupported("sliding_window", expected));
        }
        self.with_windows(file, None, |_| false)
    }
}

/// Which layers `layer_types` calls local, if the file has that list.
fn layer_types(file: &ConfigFile, num_layers: usize) -> Result<Option<Vec<bool>>, ModelError> {
    let Some(types) = file.get("layer_types") else {
        return Ok(None);
    };
    let is_local = |kind: &serde_json::Value| match kind.as_str() {
        Some("full_attention") => Some(false),
        Some("sliding_attention") => Some(true),
        _ => None,
    };
    let types = types.as_array().filter(|types| types.len() == num_layers);
    let types = types.and_then(|types| types.iter().map(is_local).collect());
    types.map(Some).ok_or_else(|| {
        let expected =
            format!("full_attention or sliding_attention for each of {num_layers} layers");
        file.unsupported("layer_types", &expected)
    })
}

/// The window that a file gives, or that its family has where the file does not say.
fn window(file: &ConfigFile, default: Option<usize>) -> Result<Option<usize>, ModelError> {
    match file.has("sliding_window") {
        true => file.optional_size("sliding_window"),
        false => Ok(default),
    }
}
