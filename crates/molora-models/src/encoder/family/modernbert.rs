//! ModernBERT (Warner et al., arXiv:2412.13663): rotary positions, normalisation first, a gate, and
//! layers that see neighbours alone.
//!
//! Its files hold queries, keys and values as one matrix, `attn.Wqkv`, and gate and up-projection as
//! `mlp.Wi`. Here they are the sites `attn.Wqkv.q`, `.k`, `.v`, `mlp.Wi.gate` and `mlp.Wi.up`.

use serde_json::{Value, json};

use super::bert::NAMES as BERT;
use super::{activation, only_encoder};
use crate::ModelError;
use crate::checkpoint::ConfigFile;
use crate::decoder::{Rope, RopeScaling};
use crate::encoder::config::{EncoderConfig, LocalAttention, Names, Projection};
use crate::family::{About, Sizes};

const NAMES: Names = Names {
    prefix: "model.",
    roots: &["embeddings.", "layers.", "final_norm."],
    words: "embeddings.tok_embeddings",
    embedding_norm: "embeddings.norm",
    layers: "layers",
    qkv: ["attn.Wqkv.q", "attn.Wqkv.k", "attn.Wqkv.v"],
    fused_qkv: Some("attn.Wqkv"),
    output: "attn.Wo",
    attention_norm: "attn_norm",
    gate: "mlp.Wi.gate",
    up: "mlp.Wi.up",
    down: "mlp.Wo",
    fused_gate: Some("mlp.Wi"),
    feed_forward_norm: "mlp_norm",
    final_norm: "final_norm",
    unused: &["inv_freq"],
    ..BERT
};

const FULL: &str = "full_attention";
const LOCAL: &str = "sliding_attention";

/// A configuration of these sizes.
fn small(sizes: &Sizes) -> Value {
    json!({
        "hidden_size": sizes.width, "intermediate_size": sizes.inner, "vocab_size": sizes.vocabulary,
        "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads,
        "max_position_embeddings": sizes.tokens, "hidden_activation": "gelu",
    })
}

/// What is said of ModernBERT.
pub(super) const MODERNBERT: About = About {
    model_type: "modernbert",
    models: "ModernBERT",
    special: "normalisation first, rotary positions, layers that see neighbours alone, a gate; fused `Wqkv` and `Wi`",
    gguf: None,
    transformers: true,
    small,
};

/// ModernBERT.
pub(super) fn modernbert(file: &ConfigFile) -> Result<EncoderConfig, ModelError> {
    only_encoder(file)?;
    let width = file.size("hidden_size")?;
    let num_layers = file.size("num_hidden_layers")?;
    let num_heads = file.size("num_attention_heads")?;
    if width % num_heads == 0 && !(width / num_heads).is_multiple_of(2) {
        let text =
            format!("{width} makes heads of an odd width, which rotary positions cannot have");
        return Err(file.problem("hidden_size", &text));
    }
    let layers = local_layers(file, num_layers)?;
    let reach = file.optional_size("local_attention")?.unwrap_or(128) / 2;
    let [rope, local_rope] = ropes(file, width / num_heads)?;
    Ok(EncoderConfig {
        vocab_size: file.size("vocab_size")?,
        width,
        embedding_width: width,
        num_layers,
        num_heads,
        inner_width: file.size("intermediate_size")?,
        max_tokens: file.size("max_position_embeddings")?,
        epsilon: file.optional_number("norm_eps")?.unwrap_or(1e-5),
        activation: activation(file, "hidden_activation")?,
        is_gated: true,
        norm_first: true,
        positions: None,
        token_types: 0,
        reads_token_types: false,
        projection: Projection::BehindNorm,
        relative_bias: None,
        disentangled: None,
        convolution: None,
        rope: Some(rope),
        local: layers.contains(&true).then_some(LocalAttention {
            layers,
            reach,
            rope: local_rope,
        }),
        attention_bias: file.flag("attention_bias", false)?,
        feed_forward_bias: file.flag("mlp_bias", false)?,
        norm_bias: file.flag("norm_bias", false)?,
        names: &NAMES,
    })
}

/// Which layers see neighbours alone: by `layer_types`, or in older files all but every so manyth.
fn local_layers(file: &ConfigFile, num_layers: usize) -> Result<Vec<bool>, ModelError> {
    let every = file
        .optional_size("global_attn_every_n_layers")?
        .unwrap_or(3);
    let Some(types) = file.get("layer_types") else {
        return Ok((0..num_layers).map(|index| index % every != 0).collect());
    };
    let kind = |kind: &Value| match kind.as_str() {
        Some(FULL) => Some(false),
        Some(LOCAL) => Some(true),
        _ => None,
    };
    let types = types
        .as_array()
        .and_then(|all| all.iter().map(kind).collect());
    let expected = format!("{num_layers} of {FULL} and {LOCAL}");
    types
        .filter(|types: &Vec<bool>| types.len() == num_layers)
        .ok_or_else(|| file.unsupported("layer_types", &expected))
}

/// The rotary positions of both kinds of layers, in heads of a width.
fn ropes(file: &ConfigFile, width: usize) -> Result<[Rope; 2], ModelError> {
    let parameters = file.object("rope_parameters")?;
    let rope = |kind: &str, older: &str, default: f64| {
        let older = file.optional_number(older)?;
        let own = match &parameters {
            Some(parameters) => parameters.object(kind)?,
            None => None,
        };
        let mut theta = None;
        if let Some(own) = own {
            theta = own.optional_number("rope_theta")?;
            if !matches!(own.text("rope_type")?, None | Some("default")) {
                return Err(own.unsupported("rope_type", "default"));
            }
            for field in own.unread() {
                own.warn(field, "is not used by this rope_type and has no effect");
            }
        }
        Ok(Rope {
            theta: theta.or(older).unwrap_or(default),
            width,
            scaling: RopeScaling::Default,
        })
    };
    let ropes = [
        rope(FULL, "global_rope_theta", 160_000.0)?,
        rope(LOCAL, "local_rope_theta", 10_000.0)?,
    ];
    if let Some(parameters) = parameters {
        // Of one kind of layer alone, they would be another's.
        if let Some(field) = parameters.unread().first() {
            return Err(parameters.problem(field, &format!("is not {FULL} or {LOCAL}")));
        }
    }
    Ok(ropes)
}
