//! Llama (Touvron et al., arXiv:2302.13971) and the families that differ from it by a few fields.

use super::activation;
use crate::ModelError;
use crate::checkpoint::ConfigFile;
use crate::decoder::config::{DecoderConfig, Names, NormKind};
use crate::decoder::rope::Rope;
use crate::layers::Activation;
use crate::reader::Layout;

const NAMES: Names = Names {
    prefix: "model.",
    tokens: "embed_tokens",
    positions: "",
    layers: "layers",
    attention_norm: "input_layernorm",
    qkv: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    fused_qkv: None,
    qk_norm: ["self_attn.q_norm", "self_attn.k_norm"],
    output: "self_attn.o_proj",
    feed_forward_norm: "post_attention_layernorm",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    down: "mlp.down_proj",
    final_norm: "norm",
    head: "lm_head",
    layout: Layout::OutIn,
    unused: &["rotary_emb.inv_freq"],
};

/// Llama 1 to 3, SmolLM, TinyLlama.
pub(crate) fn llama(file: &ConfigFile) -> Result<DecoderConfig, ModelError> {
    no_window(file, true)?;
    let attention_bias = file.flag("attention_bias", false)?;
    Ok(DecoderConfig {
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        feed_forward_bias: file.flag("mlp_bias", false)?,
        ..base(file, None)?
    })
}

/// Mistral: Llama without biases, and a sliding window, which is refused where it has an effect.
pub(crate) fn mistral(file: &ConfigFile) -> Result<DecoderConfig, ModelError> {
    no_window(file, true)?;
    no_bias(file)?;
    base(file, None)
}

/// Qwen2: biases on queries, keys and values.
pub(crate) fn qwen2(file: &ConfigFile) -> Result<DecoderConfig, ModelError> {
    no_window(file, file.flag("use_sliding_window", false)?)?;
    if !file.flag("attention_bias", true)? {
        return Err(file.unsupported("attention_bias", "true or nothing: Qwen2 has these biases"));
    }
    Ok(DecoderConfig {
        qkv_bias: true,
        ..base(file, None)?
    })
}

/// Qwen3: normalised heads of queries and keys.
pub(crate) fn qwen3(file: &ConfigFile) -> Result<DecoderConfig, ModelError> {
    no_window(file, file.flag("use_sliding_window", false)?)?;
    let attention_bias = file.flag("attention_bias", false)?;
    Ok(DecoderConfig {
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        has_qk_norm: true,
        ..base(file, Some(128))?
    })
}

/// What all of them share. `head_dim` is the family's width of a head where the file has none; else
/// it is `hidden_size / num_attention_heads`.
fn base(file: &ConfigFile, head_dim: Option<usize>) -> Result<DecoderConfig, ModelError> {
    let (width, num_heads) = (file.size("hidden_size")?, file.size("num_attention_heads")?);
    let num_kv_heads = file.optional_size("num_key_value_heads")?;
    let num_kv_heads = num_kv_heads.unwrap_or(num_heads);
    if num_heads % num_kv_heads != 0 {
        let text = format!("{num_kv_heads} does not divide num_attention_heads {num_heads}");
        return Err(file.problem("num_key_value_heads", &text));
    }
    let head_dim = match file.optional_size("head_dim")?.or(head_dim) {
        Some(head_dim) => head_dim,
        None if width % num_heads == 0 => width / num_heads,
        None => {
            let text = format!("{width} is no multiple of num_attention_heads {num_heads}");
            return Err(file.problem("hidden_size", &text));
        }
    };
    if head_dim % 2 != 0 {
        let text = format!("{head_dim} is odd, expected an even width for rotary positions");
        return Err(file.problem("head_dim", &text));
    }
    let max_tokens = file.size("max_position_embeddings")?;
    Ok(DecoderConfig {
        vocab_size: file.size("vocab_size")?,
        width,
        num_layers: file.size("num_hidden_layers")?,
        num_heads,
        num_kv_heads,
        head_dim,
        inner_width: file.size("intermediate_size")?,
        max_tokens,
        norm: NormKind::Rms,
        epsilon: file.optional_number("rms_norm_eps")?.unwrap_or(1e-6),
        activation: activation(file, "hidden_act", &[("silu", Activation::Silu)])?,
        is_gated: true,
        rope: Some(Rope::from_config(file)?),
        qkv_bias: false,
        output_bias: false,
        feed_forward_bias: false,
        has_qk_norm: false,
        has_tied_head: file.flag("tie_word_embeddings", false)?,
        names: &NAMES,
    })
}

/// Refuses a sliding window that hides any token. `in_use` is false where another field switches it
/// off.
fn no_window(file: &ConfigFile, in_use: bool) -> Result<(), ModelError> {
    // Read, so that it counts as known: it only says which layers a window is for.
    file.get("max_window_layers");
    let window = file.optional_size("sliding_window")?;
    let longest = file.optional_size("max_position_embeddings")?;
    let hides = |window: usize| longest.is_none_or(|longest| window < longest);
    if in_use && window.is_some_and(hides) {
        let expected = "null or a window of max_position_embeddings: no other is supported";
        return Err(file.unsupported("sliding_window", expected));
    }
    let types = file.get("layer_types").and_then(|types| types.as_array());
    let is_full = |kind: &serde_json::Value| kind == "full_attention";
    if !types.is_none_or(|types| types.iter().all(is_full)) {
        return Err(file.unsupported("layer_types", "full_attention everywhere"));
    }
    Ok(())
}

fn no_bias(file: &ConfigFile) -> Result<(), ModelError> {
    for field in ["attention_bias", "mlp_bias"] {
        if file.flag(field, false)? {
            return Err(file.unsupported(field, "false or nothing: this family has no biases"));
        }
    }
    Ok(())
}
