//! What a router decided.

use burn::tensor::{Bool, Tensor};

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
}

impl RouterOutput {
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
