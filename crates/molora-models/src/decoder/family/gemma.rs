//! Gemma 1 to 3 (arXiv:2403.08295, arXiv:2408.00118, arXiv:2503.19786), texts alone.
//!
//! Norms scale by `1 + weight` and embeddings by the square root of their width. Both are computed in
//! f32, whatever the type of the files.

use serde_json::{Value, json};

use super::llama::{self, Defaults, NAMES, base};
use super::window;
use crate::ModelError;
use crate::checkpoint::ConfigFile;
use crate::decoder::config::{DecoderConfig, NormKind, NormPlace, QkNorm};
use crate::decoder::names::Names;
use crate::decoder::rope::{Rope, RopeFields};
use crate::family::{About, Sizes};
use crate::layers::Activation;

/// Norms on both sides of attention and of the feed-forward part.
const FOUR_NORMS: Names = Names {
    attention_output_norm: "post_attention_layernorm",
    feed_forward_norm: "pre_feedforward_layernorm",
    feed_forward_output_norm: "post_feedforward_layernorm",
    ..NAMES
};

/// What is said of Gemma.
pub(super) const GEMMA: About = About {
    model_type: "gemma",
    models: "Gemma",
    special: "norms that scale by `1 + weight`, embeddings times the root of their width, a gate of GELU",
    gguf: None,
    transformers: true,
    small: llama::small,
};

/// Gemma: a gate of GELU.
pub(super) fn gemma(file: &ConfigFile) -> Result<DecoderConfig, ModelError> {
    let config = shared(file, "hidden_act", None)?;
    // The first files say `gelu` for its tanh approximation.
    let config = DecoderConfig {
        activation: match config.activation {
            Activation::Gelu => Activation::GeluTanh,
            other => other,
        },
        ..config
    };
    if file.has("hidden_activation") && file.get("hidden_activation").is_some() {
        let other = super::activation(file, "hidden_activation")?;
        if other != config.activation {
            let expected = "null or the same as hidden_act";
            return Err(file.unsupported("hidden_activation", expected));
        }
    }
    config
        .with_rope(file, RopeFields::default())?
        .without_windows(file)
}

/// What Gemma 2 and 3 cannot do without.
fn small(sizes: &Sizes) -> Value {
    json!({
        "hidden_size": sizes.width, "intermediate_size": sizes.inner, "vocab_size": sizes.vocabulary,
        "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads,
        "max_position_embeddings": sizes.tokens, "hidden_activation": "gelu_pytorch_tanh",
    })
}

/// What is said of Gemma 2.
pub(super) const GEMMA2: About = About {
    model_type: "gemma2",
    models: "Gemma 2",
    special: "Gemma with norms on both sides, bounded scores, windows in every second layer",
    gguf: None,
    transformers: true,
    small,
};

/// Gemma 2: bounded scores, norms on both sides, and windows in every second layer.
pub(super) fn gemma2(file: &ConfigFile) -> Result<DecoderConfig, ModelError> {
    let config = DecoderConfig {
        attention_cap: cap(file, "attn_logit_softcapping", Some(50.0))?,
        logit_cap: cap(file, "final_logit_softcapping", Some(30.0))?,
        ..later(file)?
    };
    let window = window(file, Some(4096))?;
    config
        .with_rope(file, RopeFields::default())?
        .with_windows(file, window, |index| index % 2 == 0)
}

/// What is said of Gemma 3 (text).
pub(super) const GEMMA3: About = About {
    model_type: "gemma3_text",
    models: "Gemma 3 (text)",
    special: "Gemma 2 without bounds in attention, with norms on the heads of queries and keys, and two rotary bases",
    gguf: None,
    transformers: true,
    small,
};

/// Gemma 3: normalised heads of queries and keys, and windows in all but every sixth layer, which have
/// rotary positions of their own.
pub(super) fn gemma3(file: &ConfigFile) -> Result<DecoderConfig, ModelError> {
    if cap(file, "attn_logit_softcapping", None)?.is_some() {
        return Err(file.unsupported(
            "attn_logit_softcapping",
            "null: this family has no such bound",
        ));
    }
    let mut config = DecoderConfig {
        logit_cap: cap(file, "final_logit_softcapping", None)?,
        qk_norm: Some(QkNorm::Heads),
        ..later(file)?
    };
    config.ropes = gemma3_ropes(file, config.head_dim)?;
    // A copy of the other, which no reader reads.
    file.pass_over(&["_sliding_window_pattern"]);
    let pattern = file.optional_size("sliding_window_pattern")?.unwrap_or(6);
    let is_local = |index: usize| !(index + 1).is_multiple_of(pattern);
    let types = super::layer_types(file, config.num_layers)?;
    for (index, layer) in config.layers.iter_mut().enumerate() {
        let is_local = types.as_ref().map_or(is_local(index), |types| types[index]);
        layer.rope = Some(usize::from(is_local));
    }
    let window = window(file, Some(4096))?;
    config.with_windows(file, window, is_local)
}

/// Rotary positions of layers that see everything, and of those with a window.
fn gemma3_ropes(file: &ConfigFile, head_dim: usize) -> Result<Vec<Rope>, ModelError> {
    let both = file.object("rope_parameters")?;
    let scaling = file.object("rope_scaling")?;
    let of = |kind: &str| match &both {
        Some(both) => both.object(kind),
        None => Ok(None),
    };
    let (full, local) = (of("full_attention")?, of("sliding_attention")?);
    if full.is_some() && scaling.is_some() {
        return Err(file.problem("rope_scaling", "is given beside rope_parameters"));
    }
    if let Some(both) = &both {
        both.finish_by(Value::is_null)?;
    }
    let theta = |theta| RopeFields {
        theta,
        ..RopeFields::default()
    };
    let full_theta = theta(("rope_theta", 1_000_000.0));
    let local_theta = theta(("rope_local_base_freq", 10_000.0));
    let full = full.or(scaling);
    Ok(vec![
        Rope::from_object(full.as_ref(), file, head_dim, full_theta)?,
        Rope::from_object(local.as_ref(), file, head_dim, local_theta)?,
    ])
}

/// What Gemma 2 and 3 share.
fn later(file: &ConfigFile) -> Result<DecoderConfig, ModelError> {
    let scalar = file.optional_number("query_pre_attn_scalar")?;
    Ok(DecoderConfig {
        norm_place: NormPlace::Both,
        attention_scale: Some(scalar.unwrap_or(256.0).powf(-0.5)),
        names: &FOUR_NORMS,
        ..shared(file, "hidden_activation", Some(4))?
    })
}

/// What all share. `activation` is the field of it.
fn shared(
    file: &ConfigFile,
    activation: &'static str,
    num_kv_heads: Option<usize>,
) -> Result<DecoderConfig, ModelError> {
    const BOTH: &str = "use_bidirectional_attention";
    if file.flag(BOTH, false)? {
        return Err(file.unsupported(BOTH, "false or null: a text is read from its start"));
    }
    let defaults = Defaults {
        head_dim: Some(256),
        num_kv_heads,
        has_tied_head: true,
        activation,
        ..Defaults::default()
    };
    let config = base(file, defaults)?;
    DecoderConfig {
        norm: NormKind::RmsAddsOne,
        embedding_scale: f64::from((config.width as f64).sqrt() as f32),
        ..config
    }
    .with_biases(file, false)
}

/// The bound of scores that a field gives, or that the family has where the file does not say.
fn cap(file: &ConfigFile, field: &str, default: Option<f64>) -> Result<Option<f64>, ModelError> {
    match file.has(field) {
        true => file.optional_number(field),
        false => Ok(default),
    }
}
