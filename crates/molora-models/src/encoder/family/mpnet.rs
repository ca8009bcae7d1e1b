//! MPNet (Song et al., arXiv:2004.09297): BERT with T5's biases of distances.

use super::bert::{NAMES as BERT, base, behind_padding, small};
use super::only_encoder;
use crate::ModelError;
use crate::checkpoint::ConfigFile;
use crate::encoder::config::{EncoderConfig, Names, Positions, RelativeClasses};
use crate::family::About;

const NAMES: Names = Names {
    prefix: "mpnet.",
    qkv: ["attention.attn.q", "attention.attn.k", "attention.attn.v"],
    output: "attention.attn.o",
    attention_norm: "attention.LayerNorm",
    relative: "encoder.relative_attention_bias",
    ..BERT
};

/// The padding token of the family, whatever the configuration says.
const PADDING: usize = 1;

/// Classes of distances that are computed, whatever the configuration says: the field is the number
/// of rows of their table.
const CLASSES: usize = 32;

/// What is said of MPNet.
pub(super) const MPNET: About = About {
    model_type: "mpnet",
    models: "MPNet",
    special: "positions as RoBERTa's, biases of scores by distance, no token types",
    gguf: None,
    transformers: true,
    small,
};

/// MPNet.
pub(super) fn mpnet(file: &ConfigFile) -> Result<EncoderConfig, ModelError> {
    only_encoder(file)?;
    let field = "relative_attention_num_buckets";
    let rows = file.optional_size(field)?.unwrap_or(CLASSES);
    if rows < CLASSES {
        let expected = format!("at least {CLASSES}: so many classes of distances are computed");
        return Err(file.unsupported(field, &expected));
    }
    let config = base(file, &NAMES)?;
    if config.token_types > 0 {
        return Err(file.unsupported("type_vocab_size", "0 or nothing: this family has no types"));
    }
    let positions = config.max_tokens;
    Ok(EncoderConfig {
        positions: Some(Positions {
            rows: positions,
            padding: Some(PADDING),
        }),
        max_tokens: behind_padding(file, positions, PADDING)?,
        relative_bias: Some(RelativeClasses {
            classes: CLASSES,
            rows,
            max_distance: 128,
        }),
        ..config
    })
}
