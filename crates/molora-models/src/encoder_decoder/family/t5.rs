//! T5 (Raffel et al., arXiv:1910.10683), mT5 (Xue et al., arXiv:2010.11934) and UMT5 (Chung et al.,
//! arXiv:2304.09151).

use serde_json::{Value, json};

use super::start_token;
use crate::checkpoint::ConfigFile;
use crate::encoder_decoder::config::{
    EncoderDecoderConfig, ForcedTokens, Names, StackConfig, TokenPositions,
};
use crate::family::{About, Sizes};
use crate::layers::Activation;
use crate::{ModelError, NormKind};

const NAMES: Names = Names {
    prefix: "",
    layers: "block",
    attention: [
        "layer.0.SelfAttention.q",
        "layer.0.SelfAttention.k",
        "layer.0.SelfAttention.v",
        "layer.0.SelfAttention.o",
    ],
    attention_norm: "layer.0.layer_norm",
    cross: [
        "layer.1.EncDecAttention.q",
        "layer.1.EncDecAttention.k",
        "layer.1.EncDecAttention.v",
        "layer.1.EncDecAttention.o",
    ],
    cross_norm: "layer.1.layer_norm",
    feed_forward: [
        ["", "layer.1.DenseReluDense.wi", "layer.1.DenseReluDense.wo"],
        ["", "layer.2.DenseReluDense.wi", "layer.2.DenseReluDense.wo"],
    ],
    feed_forward_norm: ["layer.1.layer_norm", "layer.2.layer_norm"],
    final_norm: "final_layer_norm",
    positions: "",
    embedding_norm: "",
    relative: "layer.0.SelfAttention.relative_attention_bias",
    head_bias: "",
    unused: &[
        // Copies of the embeddings, and a bias of early files that no model reads.
        "embed_tokens.weight",
        "EncDecAttention.relative_attention_bias.weight",
    ],
};

const GATED: Names = Names {
    feed_forward: [
        [
            "layer.1.DenseReluDense.wi_0",
            "layer.1.DenseReluDense.wi_1",
            "layer.1.DenseReluDense.wo",
        ],
        [
            "layer.2.DenseReluDense.wi_0",
            "layer.2.DenseReluDense.wi_1",
            "layer.2.DenseReluDense.wo",
        ],
    ],
    ..NAMES
};

const FEED_FORWARD: [(&str, Activation, bool); 4] = [
    ("relu", Activation::Relu, false),
    ("gated-gelu", Activation::GeluTanh, true),
    ("gated-silu", Activation::Silu, true),
    ("gelu", Activation::Gelu, false),
];

/// A configuration of these sizes.
fn small(sizes: &Sizes) -> Value {
    json!({
        "d_model": sizes.width, "d_ff": sizes.inner, "vocab_size": sizes.vocabulary,
        "num_layers": sizes.layers, "num_heads": sizes.heads, "d_kv": sizes.width / sizes.heads,
    })
}

/// What is said of T5, v1.1, Flan-T5.
pub(super) const T5: About = About {
    model_type: "t5",
    models: "T5, v1.1, Flan-T5",
    special: "biases of scores by distance; a gate where the configuration has one",
    gguf: None,
    transformers: true,
    small,
};

/// T5, T5 v1.1, Flan-T5.
pub(super) fn t5(file: &ConfigFile) -> Result<EncoderDecoderConfig, ModelError> {
    // Version 1.1 does not scale; its older files say so by a head that is not tied.
    let may_tie_head = file.flag("tie_word_embeddings", true)?;
    let scales = file.flag("scale_decoder_outputs", may_tie_head)?;
    let config = base(file, "relu", false)?;
    Ok(EncoderDecoderConfig {
        may_tie_head,
        head_scale: head_scale(scales, config.width),
        ..config
    })
}

/// What is said of mT5.
pub(super) const MT5: About = About {
    model_type: "mt5",
    models: "mT5",
    special: "no scale in front of the head",
    gguf: None,
    transformers: true,
    small,
};

/// mT5: no scale in front of the head, whatever the configuration says of ties.
pub(super) fn mt5(file: &ConfigFile) -> Result<EncoderDecoderConfig, ModelError> {
    file.flag("tie_word_embeddings", true)?;
    if file.flag("scale_decoder_outputs", false)? {
        return Err(file.unsupported("scale_decoder_outputs", "false: this family has no scale"));
    }
    base(file, "gated-gelu", false)
}

/// What is said of UMT5.
pub(super) const UMT5: About = About {
    model_type: "umt5",
    models: "UMT5",
    special: "biases by distance in every layer",
    gguf: None,
    transformers: true,
    small,
};

/// UMT5: biases by distance in every layer.
pub(super) fn umt5(file: &ConfigFile) -> Result<EncoderDecoderConfig, ModelError> {
    let is_tied = file.flag("tie_word_embeddings", true)?;
    let scales = file.flag("scale_decoder_outputs", is_tied)?;
    let config = base(file, "gated-gelu", true)?;
    Ok(EncoderDecoderConfig {
        head_scale: head_scale(scales, config.width),
        ..config
    })
}

fn head_scale(scales: bool, width: usize) -> f64 {
    match scales {
        true => (width as f64).powf(-0.5),
        false => 1.0,
    }
}

/// What all of them share: a head that may be the table of embeddings, and is not scaled.
fn base(
    file: &ConfigFile,
    feed_forward_proj: &str,
    in_every_layer: bool,
) -> Result<EncoderDecoderConfig, ModelError> {
    let (width, num_layers) = (file.size("d_model")?, file.size("num_layers")?);
    let (activation, is_gated) = feed_forward(file, feed_forward_proj)?;
    let (classes, max_distance) = distances(file)?;
    let vocab_size = file.size("vocab_size")?;
    let stack = StackConfig {
        num_heads: file.size("num_heads")?,
        head_dim: file.size("d_kv")?,
        inner_width: file.size("d_ff")?,
    };
    let of_decoder = file.optional_size("num_decoder_layers")?;
    Ok(EncoderDecoderConfig {
        vocab_size,
        width,
        num_encoder_layers: num_layers,
        num_decoder_layers: of_decoder.unwrap_or(num_layers),
        encoder: stack,
        decoder: stack,
        norm: NormKind::Rms,
        epsilon: file.optional_number("layer_norm_epsilon")?.unwrap_or(1e-6),
        norm_first: true,
        activation,
        is_gated,
        has_biases: false,
        positions: TokenPositions::Relative {
            classes,
            max_distance,
            in_every_layer,
        },
        // Initial values account for the width of a head.
        scale: Some(1.0),
        embedding_scale: 1.0,
        may_tie_head: true,
        head_scale: 1.0,
        start_token: start_token(file, vocab_size, 0)?,
        forced: ForcedTokens::default(),
        names: if is_gated { &GATED } else { &NAMES },
    })
}

fn feed_forward(file: &ConfigFile, default: &str) -> Result<(Activation, bool), ModelError> {
    // Both follow from `feed_forward_proj`.
    file.pass_over(&["dense_act_fn", "is_gated_act"]);
    let found = file.text("feed_forward_proj")?.unwrap_or(default);
    let known = FEED_FORWARD.iter().find(|(name, ..)| *name == found);
    known
        .map(|(_, activation, is_gated)| (*activation, *is_gated))
        .ok_or_else(|| {
            let names = FEED_FORWARD.map(|(name, ..)| name);
            file.unsupported("feed_forward_proj", &names.join(", "))
        })
}

/// Number of classes of distances, and the distance at which they end.
fn distances(file: &ConfigFile) -> Result<(usize, usize), ModelError> {
    let (buckets, distance) = (
        "relative_attention_num_buckets",
        "relative_attention_max_distance",
    );
    let num_buckets = file.optional_size(buckets)?.unwrap_or(32);
    let max_distance = file.optional_size(distance)?.unwrap_or(128);
    // The encoder halves the classes by direction, and half of each are single distances.
    if !num_buckets.is_multiple_of(4) {
        return Err(file.unsupported(buckets, "a multiple of 4"));
    }
    if max_distance <= num_buckets / 2 {
        return Err(file.unsupported(distance, &format!("more than {}", num_buckets / 2)));
    }
    Ok((num_buckets, max_distance))
}
