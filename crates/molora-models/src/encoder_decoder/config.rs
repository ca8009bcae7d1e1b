//! What an encoder-decoder is built from.

use std::path::Path;

use super::family;
use crate::checkpoint::ConfigFile;
use crate::family::reader;
use crate::layers::Activation;
use crate::{ModelError, NormKind};

/// Sizes and choices of an encoder-decoder, whatever its family calls them.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderDecoderConfig {
    /// Size V of the vocabulary.
    pub vocab_size: usize,
    /// Width D of the hidden states.
    pub width: usize,
    /// Number of layers of the encoder.
    pub num_encoder_layers: usize,
    /// Number of layers of the decoder.
    pub num_decoder_layers: usize,
    /// Of the encoder.
    pub encoder: StackConfig,
    /// Of the decoder.
    pub decoder: StackConfig,
    /// Which normalisation is at both parts of a layer.
    pub norm: NormKind,
    /// Added to the variance, or the mean square, in it.
    pub epsilon: f64,
    /// Whether normalisation stands in front of each part and behind the last layer, rather than
    /// behind each sum and behind the embeddings.
    pub norm_first: bool,
    /// Non-linearity of the feed-forward part.
    pub activation: Activation,
    /// Whether the feed-forward part has a gate.
    pub is_gated: bool,
    /// Whether linear layers have biases.
    pub has_biases: bool,
    /// Where tokens stand.
    pub positions: TokenPositions,
    /// Factor on scores of attention; one over the square root of a head's width where absent.
    pub scale: Option<f64>,
    /// Factor on the embeddings of tokens.
    pub embedding_scale: f64,
    /// Whether the head may be the table of embeddings, where the file has no other.
    pub may_tie_head: bool,
    /// Factor on the hidden states in front of the head.
    pub head_scale: f64,
    /// The token that every written text starts with.
    pub start_token: usize,
    /// Tokens that are written whatever the scores say.
    pub forced: ForcedTokens,
    /// How the family's files name the parts.
    pub(crate) names: &'static Names,
}

/// Sizes of the layers of an encoder or a decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StackConfig {
    /// Number of attention heads.
    pub num_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width inside the feed-forward part.
    pub inner_width: usize,
}

/// Where tokens stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenPositions {
    /// Biases of scores, learned for classes of distances.
    Relative {
        /// Number of classes.
        classes: usize,
        /// Distance in tokens from which all are of one class.
        max_distance: usize,
        /// Whether each layer has biases of its own; else all read those of the first.
        in_every_layer: bool,
    },
    /// A learned row for each place, added to the embeddings.
    Learned {
        /// Longest sequence in tokens.
        max_tokens: usize,
        /// Row of the first token.
        offset: usize,
    },
}

/// Tokens that generation writes whatever the scores say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ForcedTokens {
    /// The first that is written.
    pub first: Option<usize>,
    /// The last one of a text that is as long as it may be.
    pub last: Option<usize>,
}

/// How the files of a family name the parts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Names {
    /// In front of everything but the head; absent in files of a model without a head.
    pub(crate) prefix: &'static str,
    /// The list of layers of an encoder or decoder.
    pub(crate) layers: &'static str,
    /// Queries, keys, values and output of attention.
    pub(crate) attention: [&'static str; 4],
    pub(crate) attention_norm: &'static str,
    /// The same of the decoder's attention to the encoder.
    pub(crate) cross: [&'static str; 4],
    pub(crate) cross_norm: &'static str,
    /// Gate, up- and down-projection in encoder and decoder; `gate` is not read where there is none.
    pub(crate) feed_forward: [[&'static str; 3]; 2],
    pub(crate) feed_forward_norm: [&'static str; 2],
    /// Behind the last layer, where normalisation comes first.
    pub(crate) final_norm: &'static str,
    /// The table of learned positions.
    pub(crate) positions: &'static str,
    /// Behind the embeddings, where normalisation comes last.
    pub(crate) embedding_norm: &'static str,
    /// The table of biases by distance in a layer.
    pub(crate) relative: &'static str,
    /// What is added to all scores of the head, `[1, V]`; empty without one.
    pub(crate) head_bias: &'static str,
    /// Ends of names of tensors that carry no parameter.
    pub(crate) unused: &'static [&'static str],
}

/// The table of embeddings in all families.
pub(super) const TOKENS: &str = "shared";

/// The head in all families, without the prefix.
pub(super) const HEAD: &str = "lm_head";

/// Linear layers of one layer at most.
pub(super) const LINEARS: usize = 11;

impl Names {
    /// Path of the table of embeddings.
    pub(crate) fn tokens(&self) -> String {
        format!("{}{TOKENS}", self.prefix)
    }

    /// Path of a part of the encoder or decoder.
    pub(crate) fn part(&self, half: Half, part: &str) -> String {
        format!("{}{}.{part}", self.prefix, half.name())
    }

    /// Path of a layer.
    pub(crate) fn layer_name(&self, half: Half, index: usize) -> String {
        self.part(half, &format!("{}.{index}", self.layers))
    }

    /// The linear layers of a layer, in the order of the forward pass; some may not exist.
    pub(super) fn linears(&self, half: Half) -> [&'static str; LINEARS] {
        let [query, key, value, output] = self.attention;
        let [cross_query, cross_key, cross_value, cross_output] = self.cross;
        let [gate, up, down] = self.feed_forward[half as usize];
        [
            query,
            key,
            value,
            output,
            cross_query,
            cross_key,
            cross_value,
            cross_output,
            gate,
            up,
            down,
        ]
    }
}

/// The halves of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Half {
    Encoder = 0,
    Decoder = 1,
}

impl Half {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Encoder => "encoder",
            Self::Decoder => "decoder",
        }
    }
}

impl EncoderDecoderConfig {
    /// Reads and checks a `config.json` of any supported family. A `generation_config.json` beside it
    /// says which tokens are forced.
    ///
    /// # Errors
    /// [`ModelError::Io`] or [`ModelError::File`], naming the field that cannot be used.
    pub fn from_file(path: &Path) -> Result<Self, ModelError> {
        let file = ConfigFile::open(path)?;
        let mut config = Self::of(&file)?;
        let generation = path.with_file_name("generation_config.json");
        config.forced = match generation.is_file() {
            true => ForcedTokens::read(&ConfigFile::open(&generation)?, config.vocab_size)?,
            false => ForcedTokens::read(&file, config.vocab_size)?,
        };
        file.finish()?;
        Ok(config)
    }

    /// Reads a configuration by the function of its family.
    pub(crate) fn of(file: &ConfigFile) -> Result<Self, ModelError> {
        let read = reader(&family::FAMILIES, file, |names| names.join(" or "))?;
        for (field, needed) in [("is_encoder_decoder", true), ("is_decoder", false)] {
            if file.flag(field, needed)? != needed {
                return Err(file.unsupported(field, &needed.to_string()));
            }
        }
        read(file)
    }

    /// Of one half.
    pub(crate) fn stack(&self, half: Half) -> StackConfig {
        match half {
            Half::Encoder => self.encoder,
            Half::Decoder => self.decoder,
        }
    }
}

impl ForcedTokens {
    fn read(file: &ConfigFile, vocab_size: usize) -> Result<Self, ModelError> {
        let token = |field: &str| {
            let Some(value) = file.get(field) else {
                return Ok(None);
            };
            let token = value.as_u64().map(|token| token as usize);
            match token.filter(|token| *token < vocab_size) {
                Some(token) => Ok(Some(token)),
                None => Err(file.unsupported(field, &format!("a token below {vocab_size}"))),
            }
        };
        Ok(Self {
            first: token("forced_bos_token_id")?,
            last: token("forced_eos_token_id")?,
        })
    }
}
