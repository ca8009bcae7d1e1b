//! BART (Lewis et al., arXiv:1910.13461): learned positions, normalisation behind each sum.

use serde_json::{Value, json};

use super::start_token;
use crate::checkpoint::ConfigFile;
use crate::encoder::activation;
use crate::encoder_decoder::config::{
    EncoderDecoderConfig, ForcedTokens, Names, StackConfig, TokenPositions,
};
use crate::family::{About, Sizes};
use crate::{ModelError, NormKind};

const NAMES: Names = Names {
    prefix: "model.",
    layers: "layers",
    attention: [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.out_proj",
    ],
    attention_norm: "self_attn_layer_norm",
    cross: [
        "encoder_attn.q_proj",
        "encoder_attn.k_proj",
        "encoder_attn.v_proj",
        "encoder_attn.out_proj",
    ],
    cross_norm: "encoder_attn_layer_norm",
    feed_forward: [["", "fc1", "fc2"]; 2],
    feed_forward_norm: ["final_layer_norm"; 2],
    final_norm: "",
    positions: "embed_positions",
    embedding_norm: "layernorm_embedding",
    relative: "",
    head_bias: "final_logits_bias",
    unused: &["embed_tokens.weight", "encoder.version", "decoder.version"],
};

/// Rows of the table of positions in front of that of the first token.
const OFFSET: usize = 2;

/// Fields of the family's first program, and the one value with which it is this model.
const FIXED: [(&str, bool); 5] = [
    ("normalize_before", false),
    ("normalize_embedding", true),
    ("add_final_layer_norm", false),
    ("add_bias_logits", false),
    ("static_position_embeddings", false),
];

/// Fields that change nothing without dropout, or repeat others.
const NEUTRAL: [&str; 12] = [
    "activation_dropout",
    "classif_dropout",
    "decoder_layerdrop",
    "dropout",
    "encoder_layerdrop",
    "extra_pos_embeddings",
    "gradient_checkpointing",
    "hidden_size",
    "init_std",
    "num_attention_heads",
    "num_hidden_layers",
    "save_step",
];

/// A configuration of these sizes.
fn small(sizes: &Sizes) -> Value {
    json!({
        "d_model": sizes.width, "vocab_size": sizes.vocabulary,
        "encoder_layers": sizes.layers, "decoder_layers": sizes.layers,
        "encoder_attention_heads": sizes.heads, "decoder_attention_heads": sizes.heads,
        "encoder_ffn_dim": sizes.inner, "decoder_ffn_dim": sizes.inner,
        "max_position_embeddings": sizes.tokens, "activation_function": "gelu",
    })
}

/// What is said of BART.
pub(super) const BART: About = About {
    model_type: "bart",
    models: "BART",
    special: "learned positions, layer norm behind each sum, biases, `final_logits_bias`, tokens that generation is forced to write",
    gguf: None,
    transformers: true,
    small,
};

/// BART.
pub(super) fn bart(file: &ConfigFile) -> Result<EncoderDecoderConfig, ModelError> {
    for (field, needed) in FIXED {
        if file.flag(field, needed)? != needed {
            return Err(file.unsupported(field, &format!("{needed}: no other is supported")));
        }
    }
    file.pass_over(&NEUTRAL);
    let (width, vocab_size) = (file.size("d_model")?, file.size("vocab_size")?);
    let stack = |[heads, inner]: [&str; 2]| {
        let num_heads = file.size(heads)?;
        if width % num_heads != 0 {
            let text = format!("{width} is no multiple of {heads} {num_heads}");
            return Err(file.problem("d_model", &text));
        }
        Ok(StackConfig {
            num_heads,
            head_dim: width / num_heads,
            inner_width: file.size(inner)?,
        })
    };
    let is_scaled = file.flag("scale_embedding", false)?;
    Ok(EncoderDecoderConfig {
        vocab_size,
        width,
        num_encoder_layers: file.size("encoder_layers")?,
        num_decoder_layers: file.size("decoder_layers")?,
        encoder: stack(["encoder_attention_heads", "encoder_ffn_dim"])?,
        decoder: stack(["decoder_attention_heads", "decoder_ffn_dim"])?,
        norm: NormKind::Layer,
        // The family has no field for it.
        epsilon: 1e-5,
        norm_first: false,
        activation: activation(file, "activation_function")?,
        is_gated: false,
        has_biases: true,
        positions: TokenPositions::Learned {
            max_tokens: file.size("max_position_embeddings")?,
            offset: OFFSET,
        },
        scale: None,
        embedding_scale: if is_scaled {
            (width as f64).sqrt()
        } else {
            1.0
        },
        may_tie_head: file.flag("tie_word_embeddings", true)?,
        head_scale: 1.0,
        start_token: start_token(file, vocab_size, 2)?,
        forced: ForcedTokens::default(),
        names: &NAMES,
    })
}
