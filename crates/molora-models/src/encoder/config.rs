//! What an encoder is built from.

use std::path::Path;

use super::family;
use super::relative::Disentangled;
use crate::ModelError;
use crate::checkpoint::ConfigFile;
use crate::decoder::Rope;
use crate::family::reader;
use crate::layers::Activation;

/// Sizes and choices of an encoder, whatever its family calls them.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderConfig {
    /// Size V of the vocabulary.
    pub vocab_size: usize,
    /// Width D of the hidden states.
    pub width: usize,
    /// Width E of the embeddings; a linear map to D follows where it is another.
    pub embedding_width: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// Number of attention heads, which divides D.
    pub num_heads: usize,
    /// Width inside the feed-forward part.
    pub inner_width: usize,
    /// Longest sequence in tokens.
    pub max_tokens: usize,
    /// Added to the variance in layer normalisation.
    pub epsilon: f64,
    /// Non-linearity of the feed-forward part.
    pub activation: Activation,
    /// Whether the feed-forward part is `down(activation(gate(x)) * up(x))` rather than
    /// `down(activation(up(x)))`.
    pub is_gated: bool,
    /// Whether normalisation stands in front of each part and behind the last layer, rather than
    /// behind each sum (Xiong et al., arXiv:2002.04745).
    pub norm_first: bool,
    /// Learned positions that are added to the embeddings.
    pub positions: Option<Positions>,
    /// Number of token types; 0 without a table of them.
    pub token_types: usize,
    /// Whether tokens have types of their own; else all are of type 0.
    pub reads_token_types: bool,
    /// How embeddings of another width become hidden states.
    pub projection: Projection,
    /// Learned biases of scores for classes of distances.
    pub relative_bias: Option<RelativeClasses>,
    /// Scores of contents with positions.
    pub disentangled: Option<Disentangled>,
    /// A convolution beside the first layer.
    pub convolution: Option<ConvolutionConfig>,
    /// Rotary positions of layers that see all tokens.
    pub rope: Option<Rope>,
    /// Layers that see neighbours alone.
    pub local: Option<LocalAttention>,
    /// Whether the linear layers of attention have biases.
    pub attention_bias: bool,
    /// Whether those of the feed-forward part have.
    pub feed_forward_bias: bool,
    /// Whether normalisation has a shift.
    pub norm_bias: bool,
    /// How the family's files name the parts.
    pub(crate) names: &'static Names,
}

/// Learned positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Positions {
    /// Rows of their table.
    pub rows: usize,
    /// The padding token, where positions count from it: real tokens are numbered from the row
    /// behind it, and padding has its row. Else the place in the batch is the position.
    pub padding: Option<usize>,
}

/// How embeddings become hidden states of another width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Projection {
    /// They are normalised and then mapped, with a bias.
    BehindNorm,
    /// They are mapped without a bias and then normalised.
    BeforeNorm,
}

/// Classes of distances, as T5 has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelativeClasses {
    /// Number of classes.
    pub classes: usize,
    /// Rows of the table, at least as many.
    pub rows: usize,
    /// Distance in tokens from which all are of one class.
    pub max_distance: usize,
}

/// A convolution along the tokens beside the first layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvolutionConfig {
    /// Number of neighbouring tokens that it reads, an odd one.
    pub kernel: usize,
    /// Number of groups of channels that do not see each other.
    pub groups: usize,
    /// Its non-linearity.
    pub activation: Activation,
}

/// Layers that see neighbours alone (Beltagy et al., Longformer, arXiv:2004.05150, section 3.1).
#[derive(Debug, Clone, PartialEq)]
pub struct LocalAttention {
    /// Whether each layer is one.
    pub layers: Vec<bool>,
    /// The farthest token on either side that is seen.
    pub reach: usize,
    /// Their rotary positions.
    pub rope: Rope,
}

/// How the files of a family name the parts of an encoder.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Names {
    /// In front of everything in files of models with a head; paths are without it.
    pub(crate) prefix: &'static str,
    /// Fronts of names of the encoder's own tensors, behind the prefix.
    pub(crate) roots: &'static [&'static str],
    /// The table of words.
    pub(crate) words: &'static str,
    /// The table of learned positions.
    pub(crate) positions: &'static str,
    /// The table of token types.
    pub(crate) token_types: &'static str,
    /// Behind the sum of embeddings.
    pub(crate) embedding_norm: &'static str,
    /// From the width of embeddings to that of hidden states.
    pub(crate) projection: &'static str,
    /// The list of layers.
    pub(crate) layers: &'static str,
    /// Queries, keys and values.
    pub(crate) qkv: [&'static str; 3],
    /// One matrix in the file with queries, keys and values side by side; `qkv` then names parts of
    /// it that only exist here.
    pub(crate) fused_qkv: Option<&'static str>,
    /// Keys and queries of relative positions, where those of contents do not serve them too.
    pub(crate) position_key: &'static str,
    pub(crate) position_query: &'static str,
    /// The output of attention.
    pub(crate) output: &'static str,
    /// Behind the sum of attention, or in front of it.
    pub(crate) attention_norm: &'static str,
    /// The matrices of the feed-forward part; `gate` is not read where there is none.
    pub(crate) gate: &'static str,
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
    /// One matrix in the file with gate and up side by side.
    pub(crate) fused_gate: Option<&'static str>,
    /// Behind the sum of the feed-forward part, or in front of it.
    pub(crate) feed_forward_norm: &'static str,
    /// Behind the last layer, where normalisation comes first.
    pub(crate) final_norm: &'static str,
    /// The table of relative positions.
    pub(crate) relative: &'static str,
    /// Normalisation of its rows.
    pub(crate) relative_norm: &'static str,
    /// The convolution, and the normalisation behind it.
    pub(crate) convolution: &'static str,
    pub(crate) convolution_norm: &'static str,
    /// Ends of names of tensors that may stand in files and are not read.
    pub(crate) unused: &'static [&'static str],
}

/// Linear layers of one layer at most.
pub(super) const LINEARS: usize = 9;

impl Names {
    /// Path of a layer.
    pub(crate) fn layer_name(&self, index: usize) -> String {
        format!("{}.{index}", self.layers)
    }

    /// Path of a part of a layer.
    pub(crate) fn layer(&self, index: usize, part: &str) -> String {
        format!("{}.{part}", self.layer_name(index))
    }

    /// The linear layers of a layer, in the order of the forward pass; some may not exist.
    pub(super) fn linears(&self) -> [&'static str; LINEARS] {
        let [query, key, value] = self.qkv;
        [
            query,
            key,
            value,
            self.position_key,
            self.position_query,
            self.output,
            self.gate,
            self.up,
            self.down,
        ]
    }
}

impl EncoderConfig {
    /// Reads and checks a `config.json` of any supported family.
    ///
    /// # Errors
    /// [`ModelError::Io`] or [`ModelError::File`], naming the field that cannot be used: one that is
    /// missing or has a wrong type, and one that asks for something that is not supported.
    pub fn from_file(path: &Path) -> Result<Self, ModelError> {
        let file = ConfigFile::open(path)?;
        let config = Self::of(&file)?;
        family::pass_over(&file);
        file.finish()?;
        config.check(&file)?;
        Ok(config)
    }

    /// Reads a configuration by the function of its family.
    pub(crate) fn of(file: &ConfigFile) -> Result<Self, ModelError> {
        let read = reader(&family::FAMILIES, file, |names| names.join(", "))?;
        read(file)
    }

    /// What every family needs.
    fn check(&self, file: &ConfigFile) -> Result<(), ModelError> {
        let (width, heads) = (self.width, self.num_heads);
        match width % heads {
            0 => Ok(()),
            _ => {
                let [of_width, of_heads] = family::width_fields(file);
                let text = format!("{width} is no multiple of {of_heads} {heads}");
                Err(file.problem(of_width, &text))
            }
        }
    }
}
