//! Keys and values of the tokens so far.

use burn::tensor::{Bool, Tensor};

use super::pass::Decisions;

/// What a decoder remembers of the tokens it has seen, so that the next forward pass only computes
/// new ones: keys and values of every layer, and which of the tokens are real.
///
/// Routing decisions per sequence are taken in the first pass, of the prompt, and kept: what is
/// written later does not change the experts that write it.
#[derive(Debug, Clone)]
pub struct KvCache {
    pub(crate) layers: Vec<LayerCache>,
    /// Those of a first pass that decides for all sites; empty without one.
    pub(crate) first_pass: Vec<LayerCache>,
    pub(crate) decisions: Decisions,
    /// `[B, S]`, after the first pass.
    mask: Option<Tensor<2, Bool>>,
}

/// Keys and values of one layer, `[B, S, G * W]`; keys have been turned by their positions.
#[derive(Debug, Clone, Default)]
pub(crate) struct LayerCache(Option<(Tensor<3>, Tensor<3>)>);

impl KvCache {
    /// An empty cache for a model of so many layers.
    pub(crate) fn new(num_layers: usize) -> Self {
        Self {
            layers: vec![LayerCache::default(); num_layers],
            first_pass: vec![LayerCache::default(); num_layers],
            decisions: Decisions::new(),
            mask: None,
        }
    }

    /// Number S of tokens in each row, padding included.
    pub fn num_tokens(&self) -> usize {
        self.mask.as_ref().map_or(0, |mask| mask.dims()[1])
    }

    /// Adds the mask of new tokens `[B, T]` and returns that of all, `[B, S + T]`.
    pub(crate) fn extend_mask(&mut self, new: Tensor<2, Bool>) -> Tensor<2, Bool> {
        let all = match self.mask.take() {
            Some(mask) => Tensor::cat(vec![mask, new], 1),
            None => new,
        };
        self.mask = Some(all.clone());
        all
    }
}

impl LayerCache {
    /// Adds new keys and values `[B, T, G * W]` and returns all.
    pub(crate) fn extend(&mut self, key: Tensor<3>, value: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        let all = match self.0.take() {
            Some((keys, values)) => (
                Tensor::cat(vec![keys, key], 1),
                Tensor::cat(vec![values, value], 1),
            ),
            None => (key, value),
        };
        self.0 = Some(all.clone());
        all
    }
}
