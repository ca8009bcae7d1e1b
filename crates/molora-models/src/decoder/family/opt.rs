//! OPT (Zhang et al., arXiv:2205.01068).

use serde_json::{Value, json};

use super::{activation, blank, shared_width};
use crate::ModelError;
use crate::checkpoint::ConfigFile;
use crate::decoder::config::{DecoderConfig, LayerConfig, NormKind, NormPlace};
use crate::decoder::names::Names;
use crate::family::{About, Sizes};
use crate::reader::Layout;

const NAMES: Names = Names {
    prefix: "model.decoder.",
    tokens: "embed_tokens",
    positions: "embed_positions",
    layers: "layers",
    attention_norm: "self_attn_layer_norm",
    attention_output_norm: "",
    qkv: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    fused_qkv: None,
    qk_norm: ["", ""],
    output: "self_attn.out_proj",
    feed_forward_norm: "final_layer_norm",
    feed_forward_output_norm: "",
    gate: "",
    up: "fc1",
    down: "fc2",
    router: "",
    experts: "",
    expert: ["", "", ""],
    final_norm: "final_layer_norm",
    head: "lm_head",
    layout: Layout::OutIn,
    unused: &[],
};

/// Rows of the table of positions in front of the first one.
const FIRST_POSITION: usize = 2;

/// A configuration of these sizes.
fn small(sizes: &Sizes) -> Value {
    json!({
        "hidden_size": sizes.width, "ffn_dim": sizes.inner, "vocab_size": sizes.vocabulary,
        "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads,
        "max_position_embeddings": sizes.tokens, "activation_function": "relu",
    })
}

/// What is said of OPT (but 350M).
pub(super) const OPT: About = About {
    model_type: "opt",
    models: "OPT (but 350M)",
    special: "layer norm, learned positions from the third row on, no gate",
    gguf: None,
    transformers: false,
    small,
};

/// OPT of all sizes but 350M, whose embeddings are narrower than its hidden states.
pub(super) fn opt(file: &ConfigFile) -> Result<DecoderConfig, ModelError> {
    const AFFINE: &str = "layer_norm_elementwise_affine";
    const PROJECTED: &str = "word_embed_proj_dim";
    let width = file.size("hidden_size")?;
    if file
        .optional_size(PROJECTED)?
        .is_some_and(|embedded| embedded != width)
    {
        let expected = format!("hidden_size {width}: projected embeddings are not supported");
        return Err(file.unsupported(PROJECTED, &expected));
    }
    if !file.flag(AFFINE, true)? {
        return Err(file.unsupported(AFFINE, "true or nothing"));
    }
    let is_before = file.flag("do_layer_norm_before", true)?;
    let has_no_final_norm = file.flag("_remove_final_layer_norm", false)?;
    let has_bias = file.flag("enable_bias", true)?;
    let num_heads = file.size("num_attention_heads")?;
    let num_layers = file.size("num_hidden_layers")?;
    Ok(DecoderConfig {
        vocab_size: file.size("vocab_size")?,
        width,
        num_layers,
        num_heads,
        num_kv_heads: num_heads,
        head_dim: shared_width(file, "hidden_size", "num_attention_heads")?,
        inner_width: file.size("ffn_dim")?,
        max_tokens: file.size("max_position_embeddings")?,
        norm: NormKind::Layer,
        norm_place: match is_before {
            true => NormPlace::Input,
            false => NormPlace::Sum,
        },
        has_final_norm: is_before && !has_no_final_norm,
        epsilon: 1e-5,
        activation: activation(file, "activation_function")?,
        is_gated: false,
        learned_positions: Some(FIRST_POSITION),
        layers: vec![LayerConfig::default(); num_layers],
        qkv_bias: has_bias,
        output_bias: has_bias,
        feed_forward_bias: has_bias,
        has_tied_head: file.flag("tie_word_embeddings", true)?,
        ..blank(&NAMES)
    })
}
