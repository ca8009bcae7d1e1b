//! DistilBERT (Sanh et al., arXiv:1910.01108): BERT without token types, by names of its own.

use serde_json::{Value, json};

use super::activation;
use super::bert::NAMES as BERT;
use crate::ModelError;
use crate::checkpoint::ConfigFile;
use crate::encoder::config::{EncoderConfig, Names, Positions, Projection};
use crate::family::{About, Sizes};

const NAMES: Names = Names {
    prefix: "distilbert.",
    roots: &["embeddings.", "transformer."],
    layers: "transformer.layer",
    qkv: ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
    output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    feed_forward_norm: "output_layer_norm",
    unused: &["embeddings.position_ids"],
    ..BERT
};

/// A configuration of these sizes.
fn small(sizes: &Sizes) -> Value {
    json!({
        "dim": sizes.width, "hidden_dim": sizes.inner, "vocab_size": sizes.vocabulary,
        "n_layers": sizes.layers, "n_heads": sizes.heads,
        "max_position_embeddings": sizes.tokens, "activation": "gelu",
    })
}

/// What is said of DistilBERT.
pub(super) const DISTILBERT: About = About {
    model_type: "distilbert",
    models: "DistilBERT",
    special: "names, no token types",
    gguf: None,
    transformers: true,
    small,
};

/// DistilBERT. Sinusoidal positions are a table in its files too.
pub(super) fn distilbert(file: &ConfigFile) -> Result<EncoderConfig, ModelError> {
    let width = file.size("dim")?;
    let max_tokens = file.size("max_position_embeddings")?;
    Ok(EncoderConfig {
        vocab_size: file.size("vocab_size")?,
        width,
        embedding_width: width,
        num_layers: file.size("n_layers")?,
        num_heads: file.size("n_heads")?,
        inner_width: file.size("hidden_dim")?,
        max_tokens,
        // The family has no field for it.
        epsilon: 1e-12,
        activation: activation(file, "activation")?,
        is_gated: false,
        norm_first: false,
        positions: Some(Positions {
            rows: max_tokens,
            padding: None,
        }),
        token_types: 0,
        reads_token_types: false,
        projection: Projection::BehindNorm,
        relative_bias: None,
        disentangled: None,
        convolution: None,
        rope: None,
        local: None,
        attention_bias: true,
        feed_forward_bias: true,
        norm_bias: true,
        names: &NAMES,
    })
}
