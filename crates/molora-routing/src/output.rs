//! What a router decided.

use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Int, Tensor};

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

    /// The decisions of several batches as those of one, in the same order: a batch `[B1, T', E]` and one
    /// `[B2, T', E]` become one of `[B1 + B2, T', E]`. Where one has fewer decisions for each row, some that do not
    /// count stand behind them.
    ///
    /// # Panics
    /// If there is no batch, or the decisions are not of the same router.
    pub fn cat(batches: Vec<Self>) -> Self {
        let of = |part: fn(&Self) -> Tensor<3>| cat_padded(batches.iter().map(part).collect());
        let first = &batches[0];
        let counted = batches.iter().map(|batch| batch.counted.clone());
        // Where one batch has a selection, the others select all.
        let any_selected = batches.iter().any(|batch| batch.selected.is_some());
        let selected = batches.iter().map(|batch| match &batch.selected {
            Some(selected) => selected.clone().float(),
            None => batch.weights.ones_like(),
        });
        let learned = |batch: &Self| batch.learned.clone().expect("all batches learn, or none");
        let part = |index: usize| {
            let parts = || batches.iter().map(|batch| &batch.parts[index]);
            RoutedPart {
                probs: cat_padded(parts().map(|part| part.probs.clone()).collect()),
                counted: cat_counted(parts().map(|part| part.counted.clone())),
            }
        };
        Self {
            logits: of(|batch| batch.logits.clone()),
            probs: of(|batch| batch.probs.clone()),
            weights: of(|batch| batch.weights.clone()),
            selected: any_selected.then(|| cat_padded(selected.collect()).greater_elem(0.5)),
            counted: cat_counted(counted),
            learned: first
                .learned
                .as_ref()
                .map(|_| cat_padded(batches.iter().map(learned).collect())),
            parts: (0..first.parts.len()).map(part).collect(),
            reaches_all: first.reaches_all,
        }
    }

    /// The decisions for some rows of the batch, `[B, T', E]` to `[R, T', E]` by their numbers `[R]`.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn select(self, rows: &Tensor<1, Int>) -> Self {
        let of = |tensor: Tensor<3>| tensor.select(0, rows.clone());
        let part = |part: RoutedPart| RoutedPart {
            probs: part.probs.select(0, rows.clone()),
            counted: part.counted.select(0, rows.clone()),
        };
        Self {
            logits: of(self.logits),
            probs: of(self.probs),
            weights: of(self.weights),
            selected: self
                .selected
                .map(|selected| of(selected.float()).greater_elem(0.5)),
            counted: self.counted.select(0, rows.clone()),
            learned: self.learned.map(of),
            parts: self.parts.into_iter().map(part).collect(),
            reaches_all: self.reaches_all,
        }
    }

    /// The decisions for some tokens, each as a row of its own: `[B, T', E]` to `[R, 1, E]`, by the numbers
    /// `[R]` of the tokens among all of the batch, row by row, and of the rows that they are in.
    ///
    /// # Panics
    /// If there is no such token.
    #[must_use]
    pub fn of_tokens(&self, tokens: &Tensor<1, Int>, rows: &Tensor<1, Int>) -> Self {
        // A decision for a whole row holds for all of its tokens.
        let pick = |of: Tensor<3>| {
            let [batch, decisions, width] = of.dims();
            let picks = if decisions == 1 { rows } else { tokens };
            of.reshape([batch * decisions, 1, width])
                .select(0, picks.clone())
        };
        let pick_flat = |of: Tensor<2>| pick(of.unsqueeze_dim(2)).squeeze_dim::<2>(2);
        let part = |part: &RoutedPart| RoutedPart {
            probs: pick(part.probs.clone()),
            counted: pick_flat(part.counted.clone()),
        };
        let selected = self.selected.clone();
        Self {
            logits: pick(self.logits.clone()),
            probs: pick(self.probs.clone()),
            weights: pick(self.weights.clone()),
            selected: selected.map(|selected| pick(selected.float()).greater_elem(0.5)),
            counted: pick_flat(self.counted.clone()),
            learned: self.learned.clone().map(pick),
            parts: self.parts.iter().map(part).collect(),
            reaches_all: self.reaches_all,
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

/// Tensors `[B, T', N]` behind each other, where rows with fewer decisions have zeros behind them.
fn cat_padded(tensors: Vec<Tensor<3>>) -> Tensor<3> {
    let most = tensors.iter().map(|tensor| tensor.dims()[1]).max();
    let padded = tensors.into_iter().map(|tensor| {
        let [rows, decisions, width] = tensor.dims();
        match most.unwrap_or(0) - decisions {
            0 => tensor,
            missing => {
                let zeros = Tensor::zeros([rows, missing, width], &tensor.device());
                Tensor::cat(vec![tensor, zeros], 1)
            }
        }
    });
    Tensor::cat(padded.collect(), 0)
}

fn cat_counted(counted: impl Iterator<Item = Tensor<2>>) -> Tensor<2> {
    let counted = counted.map(|counted| counted.unsqueeze_dim::<3>(2));
    cat_padded(counted.collect()).squeeze_dim::<2>(2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_testkit::{assert_close, device};

    #[test]
    fn batches_with_fewer_decisions_are_padded() {
        let of = |values: Vec<f32>, decisions: usize| {
            let shape = [1, decisions, 2];
            let data = burn::tensor::TensorData::new(values, shape);
            let weights = Tensor::<3>::from_data(data, &device());
            let counted = Tensor::ones([1, decisions], &device());
            RouterOutput::new(weights.clone(), Weighed::new(weights, None), counted)
        };
        let both = RouterOutput::cat(vec![of(vec![1.0, 2.0], 1), of(vec![3.0, 4.0, 5.0, 6.0], 2)]);
        let expected = [[[1.0, 2.0], [0.0, 0.0]], [[3.0, 4.0], [5.0, 6.0]]];
        assert_close(both.weights.clone(), expected, 0.0, "weights");
        assert_close(
            both.counted.clone(),
            [[1.0, 0.0], [1.0, 1.0]],
            0.0,
            "counted",
        );
        assert_close(both.num_decisions(), [3.0], 0.0, "decisions");
        let sum = both.sum_counted(both.weights.clone());
        assert_close(sum, [9.0, 12.0], 0.0, "sum");
    }

    fn output(weights: [[[f32; 2]; 1]; 2], selects: bool) -> RouterOutput {
        let weights = Tensor::<3>::from_data(weights, &device());
        let selected = selects.then(|| weights.clone().greater_elem(0.5));
        let part = RoutedPart {
            probs: weights.clone(),
            counted: Tensor::ones([2, 1], &device()),
        };
        RouterOutput {
            parts: vec![part],
            ..RouterOutput::new(
                weights.clone(),
                Weighed::new(weights, selected),
                Tensor::ones([2, 1], &device()),
            )
        }
    }

    #[test]
    fn rows_of_batches_join_and_leave() {
        let (a, b) = (
            output([[[0.9, 0.1]], [[0.2, 0.8]]], true),
            output([[[0.4, 0.6]], [[0.5, 0.5]]], false),
        );
        let all = RouterOutput::cat(vec![a, b]);
        let rows = Tensor::from_ints([3, 0], &device());
        let two = all.select(&rows);
        let expected = [[[0.5, 0.5]], [[0.9, 0.1]]];
        assert_close(two.weights, expected, 0.0, "weights");
        assert_close(two.logits, expected, 0.0, "logits");
        assert_close(two.parts[0].probs.clone(), expected, 0.0, "parts");
        let selected = two.selected.expect("one batch selects").float();
        assert_close(selected, [[[1.0, 1.0]], [[1.0, 0.0]]], 0.0, "selected");
        assert_eq!(two.counted.dims(), [2, 1]);
    }
}
