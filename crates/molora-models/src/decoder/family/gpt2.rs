//! GPT-2 (Radford et al., Language Models are Unsupervised Multitask Learners, 2019).
//!
//! Its files hold queries, keys and values as one matrix, `attn.c_attn`. Here they are three sites:
//! `attn.c_attn.q`, `attn.c_attn.k` and `attn.c_attn.v`.

use serde_json::{Value, json};

use super::{activation, blank, shared_width};
use crate::ModelError;
use crate::checkpoint::ConfigFile;
use crate::decoder::config::{DecoderConfig, LayerConfig, NormKind, QkvForm};
use crate::decoder::names::Names;
use crate::family::{About, Sizes};
use crate::reader::Layout;

const NAMES: Names = Names {
    prefix: "transformer.",
    tokens: "wte",
    positions: "wpe",
    layers: "h",
    attention_norm: "ln_1",
    attention_output_norm: "",
    qkv: ["attn.c_attn.q", "attn.c_attn.k", "attn.c_attn.v"],
    fused_qkv: Some("attn.c_attn"),
    qk_norm: ["", ""],
    output: "attn.c_proj",
    feed_forward_norm: "ln_2",
    feed_forward_output_norm: "",
    gate: "",
    up: "mlp.c_fc",
    down: "mlp.c_proj",
    router: "",
    experts: "",
    expert: ["", "", ""],
    final_norm: "ln_f",
    head: "lm_head",
    layout: Layout::InOut,
    unused: &[".attn.bias", ".attn.masked_bias"],
};

/// A configuration of these sizes.
fn small(sizes: &Sizes) -> Value {
    json!({
        "n_embd": sizes.width, "n_inner": sizes.inner, "vocab_size": sizes.vocabulary,
        "n_layer": sizes.layers, "n_head": sizes.heads, "n_positions": sizes.tokens,
        "activation_function": "gelu_new",
    })
}

/// What is said of GPT-2.
pub(super) const GPT2: About = About {
    model_type: "gpt2",
    models: "GPT-2",
    special: "layer norm, learned positions, no gate, `Conv1D`, fused queries, keys and values",
    gguf: None,
    transformers: true,
    small,
};

/// GPT-2 in all sizes, DistilGPT-2.
pub(super) fn gpt2(file: &ConfigFile) -> Result<DecoderConfig, ModelError> {
    for (field, needed) in [
        ("scale_attn_weights", true),
        ("scale_attn_by_inverse_layer_idx", false),
    ] {
        if file.flag(field, needed)? != needed {
            return Err(file.unsupported(field, &needed.to_string()));
        }
    }
    let (width, num_heads) = (file.size("n_embd")?, file.size("n_head")?);
    let num_layers = file.size("n_layer")?;
    let epsilon = file.optional_number("layer_norm_epsilon")?;
    Ok(DecoderConfig {
        vocab_size: file.size("vocab_size")?,
        width,
        num_layers,
        num_heads,
        num_kv_heads: num_heads,
        head_dim: shared_width(file, "n_embd", "n_head")?,
        inner_width: file.optional_size("n_inner")?.unwrap_or(4 * width),
        max_tokens: file.size("n_positions")?,
        norm: NormKind::Layer,
        epsilon: epsilon.unwrap_or(1e-5),
        activation: activation(file, "activation_function")?,
        is_gated: false,
        learned_positions: Some(0),
        layers: vec![LayerConfig::default(); num_layers],
        qkv: QkvForm::Split,
        qkv_bias: true,
        output_bias: true,
        feed_forward_bias: true,
        has_tied_head: file.flag("tie_word_embeddings", true)?,
        ..blank(&NAMES)
    })
}
