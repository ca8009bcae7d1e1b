//! What a decoder is built from.

use std::path::Path;

use super::family;
use super::rope::Rope;
use crate::ModelError;
use crate::checkpoint::ConfigFile;
use crate::layers::Activation;
use crate::reader::Layout;

/// Which normalisation a family has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// [`LayerNorm`](crate::LayerNorm).
    Layer,
    /// [`RmsNorm`](crate::RmsNorm).
    Rms,
}

/// Sizes and choices of a decoder, whatever its family calls them.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Size V of the vocabulary.
    pub vocab_size: usize,
    /// Width D of the hidden states.
    pub width: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// Number of query heads.
    pub num_heads: usize,
    /// Number of key and value heads, which divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width inside the feed-forward part.
    pub inner_width: usize,
    /// Longest sequence in tokens.
    pub max_tokens: usize,
    /// Which normalisation is in front of both parts of a layer and of the head.
    pub norm: NormKind,
    /// Added to the variance, or the mean square, in it.
    pub epsilon: f64,
    /// Non-linearity of the feed-forward part.
    pub activation: Activation,
    /// Whether the feed-forward part is `down(activation(gate(x)) * up(x))` rather than
    /// `down(activation(up(x)))`.
    pub is_gated: bool,
    /// Rotary positions; learned ones, added to the embeddings, where absent.
    pub rope: Option<Rope>,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether the output of attention has one.
    pub output_bias: bool,
    /// Whether the feed-forward part has them.
    pub feed_forward_bias: bool,
    /// Whether each head of queries and keys is normalised.
    pub has_qk_norm: bool,
    /// Whether the head is the table of embeddings.
    pub has_tied_head: bool,
    /// How the family's files name the parts.
    pub(crate) names: &'static Names,
}

/// How the files of a family name the parts of a decoder, and how they store its matrices.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Names {
    /// In front of everything but the head; absent in files of a model without a head.
    pub(crate) prefix: &'static str,
    /// The table of embeddings.
    pub(crate) tokens: &'static str,
    /// The table of learned positions.
    pub(crate) positions: &'static str,
    /// The list of layers.
    pub(crate) layers: &'static str,
    /// In front of attention.
    pub(crate) attention_norm: &'static str,
    /// Queries, keys and values.
    pub(crate) qkv: [&'static str; 3],
    /// One matrix in the file with queries, keys and values side by side; `qkv` then names parts of
    /// it that only exist here.
    pub(crate) fused_qkv: Option<&'static str>,
    /// Normalisation of the heads of queries and of keys.
    pub(crate) qk_norm: [&'static str; 2],
    /// The output of attention.
    pub(crate) output: &'static str,
    /// In front of the feed-forward part.
    pub(crate) feed_forward_norm: &'static str,
    /// The three matrices of the feed-forward part; `gate` is not read where there is none.
    pub(crate) gate: &'static str,
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
    /// In front of the head.
    pub(crate) final_norm: &'static str,
    /// The head, without the prefix.
    pub(crate) head: &'static str,
    /// How matrices are stored.
    pub(crate) layout: Layout,
    /// Ends of names of tensors that carry no parameter.
    pub(crate) unused: &'static [&'static str],
}

impl Names {
    /// Path of a layer.
    pub(crate) fn layer_name(&self, index: usize) -> String {
        format!("{}{}.{index}", self.prefix, self.layers)
    }

    /// Path of a part of a layer.
    pub(crate) fn layer(&self, index: usize, part: &str) -> String {
        format!("{}.{part}", self.layer_name(index))
    }

    /// The linear layers of a layer, in the order of the forward pass; `gate` may not exist.
    pub(crate) fn linears(&self) -> [&'static str; 7] {
        let [query, key, value] = self.qkv;
        [
            query,
            key,
            value,
            self.output,
            self.gate,
            self.up,
            self.down,
        ]
    }
}

impl DecoderConfig {
    /// Reads and checks a `config.json` of any supported family.
    ///
    /// # Errors
    /// [`ModelError::Io`] or [`ModelError::File`], naming the field that cannot be used: one that is
    /// missing or has a wrong type, and one that asks for something that is not supported.
    pub fn from_file(path: &Path) -> Result<Self, ModelError> {
        let file = ConfigFile::open(path)?;
        let config = match file.text("model_type")? {
            Some("llama") => family::llama::llama(&file)?,
            Some("mistral") => family::llama::mistral(&file)?,
            Some("qwen2") => family::llama::qwen2(&file)?,
            Some("qwen3") => family::llama::qwen3(&file)?,
            Some("gpt2") => family::gpt2::gpt2(&file)?,
            _ => {
                let families = "llama, mistral, qwen2, qwen3 or gpt2";
                return Err(file.unsupported("model_type", families));
            }
        };
        file.finish()?;
        Ok(config)
    }
}
