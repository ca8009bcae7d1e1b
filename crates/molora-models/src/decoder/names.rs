//! How the files of a family name the parts of a decoder.

use crate::reader::Layout;

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
    /// Of what attention reads, or of the sum behind it.
    pub(crate) attention_norm: &'static str,
    /// Of what attention gives.
    pub(crate) attention_output_norm: &'static str,
    /// Queries, keys and values; the first one alone where they are one linear layer.
    pub(crate) qkv: [&'static str; 3],
    /// One matrix in the file with queries, keys and values side by side; `qkv` then names parts of
    /// it that only exist here.
    pub(crate) fused_qkv: Option<&'static str>,
    /// Normalisation of queries and of keys.
    pub(crate) qk_norm: [&'static str; 2],
    /// The output of attention.
    pub(crate) output: &'static str,
    /// Of what the feed-forward part reads, or of the sum behind it.
    pub(crate) feed_forward_norm: &'static str,
    /// Of what the feed-forward part gives.
    pub(crate) feed_forward_output_norm: &'static str,
    /// The three matrices of the feed-forward part; `gate` is not read where there is none, or where it
    /// is a part of `up`.
    pub(crate) gate: &'static str,
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
    /// The router of a mixture of experts.
    pub(crate) router: &'static str,
    /// The list of experts.
    pub(crate) experts: &'static str,
    /// Gate, up and down of an expert.
    pub(crate) expert: [&'static str; 3],
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

    /// Whether a path is that of the router of a mixture of experts.
    pub(crate) fn is_router(&self, path: &str) -> bool {
        !self.router.is_empty() && path.ends_with(&format!(".{}", self.router))
    }

    /// Whether a path is within an expert.
    pub(crate) fn is_expert(&self, path: &str) -> bool {
        !self.experts.is_empty() && path.contains(&format!(".{}.", self.experts))
    }

    /// Path, within a layer, of a part of an expert.
    pub(crate) fn of_expert(&self, expert: usize, part: usize) -> String {
        format!("{}.{expert}.{}", self.experts, self.expert[part])
    }
}
