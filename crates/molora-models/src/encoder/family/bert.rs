//! BERT (Devlin et al., arXiv:1810.04805) and the families that differ from it by a few fields.

use serde_json::{Value, json};

use super::{activation, count, integer, only_encoder};
use crate::ModelError;
use crate::checkpoint::ConfigFile;
use crate::encoder::config::{EncoderConfig, Names, Positions, Projection};
use crate::family::{About, Sizes};

pub(super) const NAMES: Names = Names {
    prefix: "bert.",
    roots: &["embeddings.", "encoder."],
    words: "embeddings.word_embeddings",
    positions: "embeddings.position_embeddings",
    token_types: "embeddings.token_type_embeddings",
    embedding_norm: "embeddings.LayerNorm",
    projection: "",
    layers: "encoder.layer",
    qkv: [
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
    ],
    fused_qkv: None,
    position_key: "",
    position_query: "",
    output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    gate: "",
    up: "intermediate.dense",
    down: "output.dense",
    fused_gate: None,
    feed_forward_norm: "output.LayerNorm",
    final_norm: "",
    relative: "",
    relative_norm: "",
    convolution: "",
    convolution_norm: "",
    unused: &[
        "embeddings.position_ids",
        "embeddings.token_type_ids",
        "pooler.dense.weight",
        "pooler.dense.bias",
    ],
};

const ROBERTA_NAMES: Names = Names {
    prefix: "roberta.",
    ..NAMES
};

const ELECTRA_NAMES: Names = Names {
    prefix: "electra.",
    roots: &["embeddings.", "embeddings_project.", "encoder."],
    projection: "embeddings_project",
    ..NAMES
};

/// What the families with BERT's fields cannot do without.
pub(super) fn small(sizes: &Sizes) -> Value {
    json!({
        "hidden_size": sizes.width, "intermediate_size": sizes.inner, "vocab_size": sizes.vocabulary,
        "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads,
        "max_position_embeddings": sizes.tokens, "hidden_act": "gelu",
    })
}

/// The same with types of tokens.
fn small_with_types(sizes: &Sizes) -> Value {
    let mut config = small(sizes);
    config["type_vocab_size"] = 2.into();
    config
}

/// What is said of BERT, MiniLM, TinyBERT.
pub(super) const BERT: About = About {
    model_type: "bert",
    models: "BERT, MiniLM, TinyBERT",
    special: "learned positions, types of tokens",
    gguf: None,
    transformers: true,
    small: small_with_types,
};

/// BERT, and what was distilled into its layout (MiniLM, TinyBERT).
pub(super) fn bert(file: &ConfigFile) -> Result<EncoderConfig, ModelError> {
    only_encoder(file)?;
    let token_types = file.size("type_vocab_size")?;
    Ok(EncoderConfig {
        token_types,
        reads_token_types: true,
        ..base(file, &NAMES)?
    })
}

/// What is said of RoBERTa.
pub(super) const ROBERTA: About = About {
    model_type: "roberta",
    models: "RoBERTa",
    special: "positions count from the padding token; one token type that is not read",
    gguf: None,
    transformers: true,
    small: small_with_types,
};

/// What is said of XLM-R.
pub(super) const XLM_ROBERTA: About = About {
    model_type: "xlm-roberta",
    models: "XLM-R",
    special: "positions count from the padding token; one token type that is not read",
    gguf: None,
    transformers: true,
    small: small_with_types,
};

/// RoBERTa (Liu et al., arXiv:1907.11692) and XLM-R (Conneau et al., arXiv:1911.02116): positions
/// count from the padding token.
///
/// Their tokenizers give no token types, so that a model of one type adds it to every token.
pub(super) fn roberta(file: &ConfigFile) -> Result<EncoderConfig, ModelError> {
    only_encoder(file)?;
    let token_types = file.size("type_vocab_size")?;
    let padding = integer(file, "pad_token_id", 1)?;
    let padding = usize::try_from(padding)
        .map_err(|_| file.unsupported("pad_token_id", "a token: positions count from it"))?;
    let config = base(file, &ROBERTA_NAMES)?;
    let rows = config.max_tokens;
    Ok(EncoderConfig {
        token_types,
        reads_token_types: token_types > 1,
        positions: Some(Positions {
            rows,
            padding: Some(padding),
        }),
        max_tokens: behind_padding(file, rows, padding)?,
        ..config
    })
}

/// What is said of ELECTRA.
pub(super) const ELECTRA: About = About {
    model_type: "electra",
    models: "ELECTRA",
    special: "embeddings of a width of their own, and a linear map behind them",
    gguf: None,
    transformers: true,
    small: small_with_types,
};

/// ELECTRA (Clark et al., arXiv:2003.10555): embeddings of a width of their own.
pub(super) fn electra(file: &ConfigFile) -> Result<EncoderConfig, ModelError> {
    only_encoder(file)?;
    Ok(EncoderConfig {
        token_types: file.size("type_vocab_size")?,
        reads_token_types: true,
        embedding_width: file.optional_size("embedding_size")?.unwrap_or(128),
        ..base(file, &ELECTRA_NAMES)?
    })
}

/// How many tokens fit behind the row of the padding token.
pub(super) fn behind_padding(
    file: &ConfigFile,
    rows: usize,
    padding: usize,
) -> Result<usize, ModelError> {
    match rows.checked_sub(padding + 1) {
        Some(tokens) if tokens > 0 => Ok(tokens),
        _ => {
            let expected = format!("more than {}: positions count from {padding}", padding + 1);
            Err(file.unsupported("max_position_embeddings", &expected))
        }
    }
}

/// What the families with BERT's fields share: no token types, as many positions as tokens.
pub(super) fn base(file: &ConfigFile, names: &'static Names) -> Result<EncoderConfig, ModelError> {
    let width = file.size("hidden_size")?;
    let max_tokens = file.size("max_position_embeddings")?;
    Ok(EncoderConfig {
        vocab_size: file.size("vocab_size")?,
        width,
        embedding_width: width,
        num_layers: file.size("num_hidden_layers")?,
        num_heads: file.size("num_attention_heads")?,
        inner_width: file.size("intermediate_size")?,
        max_tokens,
        epsilon: file.optional_number("layer_norm_eps")?.unwrap_or(1e-12),
        activation: activation(file, "hidden_act")?,
        is_gated: false,
        norm_first: false,
        positions: Some(Positions {
            rows: max_tokens,
            padding: None,
        }),
        token_types: count(file, "type_vocab_size", 0)?,
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
        names,
    })
}
