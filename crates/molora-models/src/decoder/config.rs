//! What a decoder is built from.

use std::path::Path;

use super::family;
use super::names::Names;
use super::rope::Rope;
use crate::ModelError;
use crate::checkpoint::ConfigFile;
use crate::family::reader;
use crate::layers::Activation;

/// Which normalisation a family has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// [`LayerNorm`](crate::LayerNorm).
    Layer,
    /// [`RmsNorm`](crate::RmsNorm).
    Rms,
    /// [`RmsNorm`](crate::RmsNorm) that scales by `1 + weight`.
    RmsAddsOne,
}

/// Where the normalisations of a layer stand; `f` is attention or the feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormPlace {
    /// `x + f(norm(x))` (Xiong et al., arXiv:2002.04745).
    Input,
    /// `x + norm(f(x))` (OLMo 2, arXiv:2501.00656, section 3.2).
    Output,
    /// `x + norm(f(norm(x)))` (Gemma 2, arXiv:2408.00118, section 2).
    Both,
    /// `norm(x + f(x))` (Vaswani et al., arXiv:1706.03762, section 3.1).
    Sum,
}

/// How the files hold the matrices of queries, keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkvForm {
    /// Three matrices.
    Apart,
    /// One matrix, of which three linear layers are made.
    Split,
    /// One matrix with the queries of all heads first, then keys, then values: one linear layer.
    Fused,
    /// One matrix with query, key and value of each head side by side: one linear layer.
    FusedByHead,
}

/// What the queries and keys of attention are normalised over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// Each head (Henry et al., arXiv:2010.04245).
    Heads,
    /// All heads together (OLMo 2, arXiv:2501.00656, section 3.2).
    Whole,
}

/// What is a layer's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerConfig {
    /// How many tokens a query sees, its own and those in front of it; all where absent.
    pub window: Option<usize>,
    /// Which of the model's rotary positions it has; none where absent.
    pub rope: Option<usize>,
    /// Whether its feed-forward part is a mixture of experts.
    pub has_experts: bool,
}

/// The experts of a feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertsConfig {
    /// How many there are.
    pub count: usize,
    /// How many a token has.
    pub top_k: usize,
    /// Width inside each.
    pub inner_width: usize,
    /// Whether the probabilities of a token's experts are made to add up to 1.
    pub shares_out: bool,
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
    /// Longest sequence in tokens; [`usize::MAX`] where there is no limit.
    pub max_tokens: usize,
    /// Which normalisations a layer has, and the one in front of the head.
    pub norm: NormKind,
    /// Where they stand in a layer.
    pub norm_place: NormPlace,
    /// Whether there is one in front of the head.
    pub has_final_norm: bool,
    /// Added to the variance, or the mean square, in it.
    pub epsilon: f64,
    /// Non-linearity of the feed-forward part.
    pub activation: Activation,
    /// Whether the feed-forward part is `down(activation(gate(x)) * up(x))` rather than
    /// `down(activation(up(x)))`.
    pub is_gated: bool,
    /// Whether the files hold gate and up as one matrix, which is one linear layer.
    pub has_fused_gate: bool,
    /// The experts of the layers that have such.
    pub experts: Option<ExpertsConfig>,
    /// Whether attention and the feed-forward part read the same hidden states.
    pub is_parallel: bool,
    /// Learned positions, added to the embeddings: the number of rows in front of the first one.
    pub learned_positions: Option<usize>,
    /// The rotary positions that layers choose from.
    pub ropes: Vec<Rope>,
    /// What is each layer's own.
    pub layers: Vec<LayerConfig>,
    /// Factor on the scores of attention; one over the square root of `head_dim` where absent.
    pub attention_scale: Option<f64>,
    /// Bound of the scores of attention, by `cap * tanh(score / cap)`.
    pub attention_cap: Option<f64>,
    /// How files hold queries, keys and values.
    pub qkv: QkvForm,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether the output of attention has one.
    pub output_bias: bool,
    /// Whether the feed-forward part has them.
    pub feed_forward_bias: bool,
    /// Whether, and over what, queries and keys are normalised.
    pub qk_norm: Option<QkNorm>,
    /// Factor on the embeddings.
    pub embedding_scale: f64,
    /// Factor on what attention and the feed-forward part add.
    pub residual_scale: f64,
    /// Factor on the scores of the vocabulary.
    pub logit_scale: f64,
    /// Bound of the scores of the vocabulary, by `cap * tanh(score / cap)`.
    pub logit_cap: Option<f64>,
    /// Whether the head is the table of embeddings.
    pub has_tied_head: bool,
    /// How the family's files name the parts.
    pub(crate) names: &'static Names,
}

impl DecoderConfig {
    /// The families, by the `model_type` of their `config.json`.
    pub fn families() -> impl Iterator<Item = &'static str> {
        family::FAMILIES.iter().map(|(about, _)| about.model_type)
    }

    /// Reads and checks a `config.json` of any supported family.
    ///
    /// # Errors
    /// [`ModelError::Io`] or [`ModelError::File`], naming the field that cannot be used: one that is
    /// missing or has a wrong type, and one that asks for something that is not supported.
    pub fn from_file(path: &Path) -> Result<Self, ModelError> {
        let file = ConfigFile::open(path)?;
        let config = Self::of(&file)?;
        file.finish()?;
        Ok(config)
    }

    /// Reads a configuration by the function of its family.
    pub(crate) fn of(file: &ConfigFile) -> Result<Self, ModelError> {
        let read = reader(&family::FAMILIES, file, any_of)?;
        read(file)
    }

    /// The rotary positions, where all layers have the same ones.
    pub(crate) fn rope(&self) -> Option<&Rope> {
        let first = self.layers.first()?.rope?;
        let is_same = self.layers.iter().all(|layer| layer.rope == Some(first));
        is_same.then(|| &self.ropes[first])
    }
}

/// Names as in "a, b or c".
pub(crate) fn any_of(names: &[&str]) -> String {
    match names {
        [front @ .., last] if !front.is_empty() => format!("{} or {last}", front.join(", ")),
        _ => names.join(""),
    }
}
