//! GPT-NeoX and Pythia (Black et al., arXiv:2204.06745; Biderman et al., arXiv:2304.01373).

use serde_json::{Value, json};

use super::{activation, blank, shared_width};
use crate::ModelError;
use crate::checkpoint::ConfigFile;
use crate::decoder::config::{DecoderConfig, LayerConfig, NormKind, QkvForm};
use crate::decoder::names::Names;
use crate::decoder::rope::RopeFields;
use crate::family::{About, Sizes};
use crate::reader::Layout;

const NAMES: Names = Names {
    prefix: "gpt_neox.",
    tokens: "embed_in",
    positions: "",
    layers: "layers",
    attention_norm: "input_layernorm",
    attention_output_norm: "",
    qkv: ["attention.query_key_value", "", ""],
    fused_qkv: None,
    qk_norm: ["", ""],
    output: "attention.dense",
    feed_forward_norm: "post_attention_layernorm",
    feed_forward_output_norm: "",
    gate: "",
    up: "mlp.dense_h_to_4h",
    down: "mlp.dense_4h_to_h",
    router: "",
    experts: "",
    expert: ["", "", ""],
    final_norm: "final_layer_norm",
    head: "embed_out",
    layout: Layout::OutIn,
    unused: &[
        "attention.bias",
        "attention.masked_bias",
        "attention.rotary_emb.inv_freq",
    ],
};

/// A configuration of these sizes.
fn small(sizes: &Sizes) -> Value {
    json!({
        "hidden_size": sizes.width, "intermediate_size": sizes.inner, "vocab_size": sizes.vocabulary,
        "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads,
        "max_position_embeddings": sizes.tokens, "hidden_act": "gelu",
    })
}

/// What is said of GPT-NeoX, Pythia.
pub(super) const GPT_NEOX: About = About {
    model_type: "gpt_neox",
    models: "GPT-NeoX, Pythia",
    special: "layer norm, attention beside the feed-forward part, one matrix by heads, a part of each head turns",
    gguf: None,
    transformers: false,
    small,
};

/// Attention and feed-forward part side by side, and rotary positions of a part of each head.
pub(super) fn gpt_neox(file: &ConfigFile) -> Result<DecoderConfig, ModelError> {
    if file.flag("is_decoder", false)? {
        // Read by no causal model; the other value means the same.
        file.warn("is_decoder", "has no effect");
    }
    let num_heads = file.size("num_attention_heads")?;
    let num_layers = file.size("num_hidden_layers")?;
    let attention_bias = file.flag("attention_bias", true)?;
    let epsilon = file.optional_number("layer_norm_eps")?;
    let fields = RopeFields {
        theta: ("rotary_emb_base", 10_000.0),
        share: Some(("rotary_pct", 0.25)),
        ..RopeFields::default()
    };
    DecoderConfig {
        vocab_size: file.size("vocab_size")?,
        width: file.size("hidden_size")?,
        num_layers,
        num_heads,
        num_kv_heads: num_heads,
        head_dim: shared_width(file, "hidden_size", "num_attention_heads")?,
        inner_width: file.size("intermediate_size")?,
        max_tokens: file.size("max_position_embeddings")?,
        norm: NormKind::Layer,
        epsilon: epsilon.unwrap_or(1e-5),
        activation: activation(file, "hidden_act")?,
        is_gated: false,
        is_parallel: file.flag("use_parallel_residual", true)?,
        layers: vec![LayerConfig::default(); num_layers],
        qkv: QkvForm::FusedByHead,
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        feed_forward_bias: true,
        has_tied_head: file.flag("tie_word_embeddings", false)?,
        ..blank(&NAMES)
    }
    .with_rope(file, fields)
}
