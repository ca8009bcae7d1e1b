//! `config.json` of the T5 family.

use std::path::Path;

use crate::ModelError;
use crate::checkpoint::ConfigFile;
use crate::layers::Activation;

/// Sizes and choices of a T5 model: T5, T5 v1.1, Flan-T5, mT5.
#[derive(Debug, Clone, PartialEq)]
pub struct T5Config {
    /// Size V of the vocabulary.
    pub vocab_size: usize,
    /// Width D of the hidden states.
    pub width: usize,
    /// Number of layers of the encoder.
    pub num_encoder_layers: usize,
    /// Number of layers of the decoder.
    pub num_decoder_layers: usize,
    /// Number of attention heads.
    pub num_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width inside the feed-forward part.
    pub inner_width: usize,
    /// Added to the mean square in normalisation.
    pub epsilon: f64,
    /// Non-linearity of the feed-forward part.
    pub activation: Activation,
    /// Whether the feed-forward part has a gate.
    pub is_gated: bool,
    /// Number of classes of distances that have a bias of their own.
    pub num_buckets: usize,
    /// Distance in tokens from which all are of one class.
    pub max_distance: usize,
    /// Whether the head may be the table of embeddings, where the file has no other.
    pub may_tie_head: bool,
    /// Factor on the hidden states in front of the head.
    pub head_scale: f64,
    /// The token that every written text starts with.
    pub start_token: usize,
}

const FEED_FORWARD: [(&str, Activation, bool); 4] = [
    ("relu", Activation::Relu, false),
    ("gated-gelu", Activation::GeluTanh, true),
    ("gated-silu", Activation::Silu, true),
    ("gelu", Activation::Gelu, false),
];

impl T5Config {
    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// [`ModelError::Io`] or [`ModelError::File`], naming the field that cannot be used.
    pub fn from_file(path: &Path) -> Result<Self, ModelError> {
        let file = ConfigFile::open(path)?;
        if !matches!(file.text("model_type")?, Some("t5" | "mt5")) {
            return Err(file.unsupported("model_type", "t5 or mt5"));
        }
        for (field, needed) in [("is_encoder_decoder", true), ("is_decoder", false)] {
            if file.flag(field, needed)? != needed {
                return Err(file.unsupported(field, &needed.to_string()));
            }
        }
        let config = Self::read(&file)?;
        file.finish()?;
        Ok(config)
    }

    fn read(file: &ConfigFile) -> Result<Self, ModelError> {
        let (width, num_layers) = (file.size("d_model")?, file.size("num_layers")?);
        let (activation, is_gated) = feed_forward(file)?;
        let (num_buckets, max_distance) = distances(file)?;
        // Version 1.1 does not scale; its older files say so by a head that is not tied.
        let may_tie_head = file.flag("tie_word_embeddings", true)?;
        let scales = file.flag("scale_decoder_outputs", may_tie_head)?;
        let vocab_size = file.size("vocab_size")?;
        let start_token = file
            .get("decoder_start_token_id")
            .map_or(Some(0), |token| token.as_u64());
        let start_token = start_token.map(|token| token as usize);
        let Some(start_token) = start_token.filter(|token| *token < vocab_size) else {
            let expected = format!("a token below {vocab_size}");
            return Err(file.unsupported("decoder_start_token_id", &expected));
        };
        Ok(Self {
            vocab_size,
            width,
            num_encoder_layers: num_layers,
            num_decoder_layers: file
                .optional_size("num_decoder_layers")?
                .unwrap_or(num_layers),
            num_heads: file.size("num_heads")?,
            head_dim: file.size("d_kv")?,
            inner_width: file.size("d_ff")?,
            epsilon: file.optional_number("layer_norm_epsilon")?.unwrap_or(1e-6),
            activation,
            is_gated,
            num_buckets,
            max_distance,
            may_tie_head,
            head_scale: if scales {
                (width as f64).powf(-0.5)
            } else {
                1.0
            },
            start_token,
        })
    }
}

fn feed_forward(file: &ConfigFile) -> Result<(Activation, bool), ModelError> {
    // Both follow from `feed_forward_proj`.
    for derived in ["dense_act_fn", "is_gated_act"] {
        file.get(derived);
    }
    let found = file.text("feed_forward_proj")?.unwrap_or("relu");
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
