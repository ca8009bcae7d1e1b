//! What a router decided.

use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Tensor};

use crate::normaliser::Weighed;

/// Everything that later steps need of a routing decision.
///
/// The token axis `T'` is T for decisions per token and 1 for decisions per sequence or task, which
/// broadcast over tokens. A router that decides for G groups has `T'*G` decisions there, those of a
/// token one after another.
#[derive(Debug, Clone)]
pub struct RouterOutput {
    /// Scores divided by the temperature, plus the bias if there is one, `[B, T', E]`.
    pub logits: Tensor<3>,
    /// Softmax of the logits over all experts, `[B, T', E]`.
    pub probs: Tensor<3>,
    /// What the experts are weighed by: `probs`, renormalised over the selected experts,
    /// `[B, T', E]`.
    pub weights: Tensor<3>,
    /// Which experts were selected, `[B, T', E]`; `None` if all were.
    pub selected: Option<Tensor<3, Bool>>,
    /// 1 for decisions that count, 0 for those of padding, `[B, T']`.
    pub counted: Tensor<2>,
    /// The number that the normaliser learned of each decision, if any, `[B, T', 1]`: see
    /// [`Weighed::learned`].
    pub learned: Option<Tensor<3>>,
    /// The decisions that this one was blended from; none if it was not.
    pub parts: Vec<RoutedPart>,
    /// Whether experts that were not selected reach the router's gradient all the same: see
    /// [`Selection::reaches_all`](crate::Selection::reaches_all).
    pub reaches_all: bool,
}

/// One of several decisions that were blended, see [`Blend`](crate::scorer::BlendScorer).
#[derive(Debug, Clone)]
pub struct RoutedPart {
    /// Probabilities, `[B, T', E]`, where T' is the part's own: 1 for one by sequence or task.
    pub probs: Tensor<3>,
    /// 1 for decisions that count, `[B, T']`.
    pub counted: Tensor<2>,
}

impl RouterOutput {
    /// Decisions by logits that are not blended.
    pub fn new(logits: Tensor<3>, weighed: Weighed, counted: Tensor<2>) -> Self {
        Self {
            probs: softmax(logits.clone(), 2),
            logits,
            weights: weighed.weights,
            selected: weighed.selected,
            learned: weighed.learned,
            counted,
            parts: Vec::new(),
            reaches_all: false,
        }
    }

    /// Whether a weight of 0 stands for an expert that was not selected and gets no gradient.
    pub fn is_selection(&self) -> bool {
        self.selected.is_some() && !self.reaches_all
    }

    /// Number of experts E.
    pub fn num_experts(&self) -> usize {
        self.probs.dims()[2]
    }

    /// Number of decisions that count, `[1]`, at least 1 so that it can be divided by.
    pub fn num_decisions(&self) -> Tensor<1> {
        self.counted.clone().sum().clamp_min(1.0)
    }

    /// Sum of `per_expert` over the decisions that count: `[B, T', E]` to `[E]`.
    pub fn sum_counted(&self, per_expert: Tensor<3>) -> Tensor<1> {
        let [batch, tokens, experts] = per_expert.dims();
        let decisions = batch * tokens;
        let counted_1n = self.counted.clone().reshape([1, decisions]);
        counted_1n
            .matmul(per_expert.reshape([decisions, experts]))
            .reshape([experts])
    }

    /// How often each expert was selected over the decisions that count, `[E]`; without gradient.
    pub fn selection_counts(&self) -> Tensor<1> {
        match &self.selected {
            Some(selected) => self.sum_counted(selected.clone().float()),
            None => self.num_decisions().expand([self.num_experts()]),
        }
    }
}
