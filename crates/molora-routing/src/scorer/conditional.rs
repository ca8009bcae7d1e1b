//! Pairs of a down-vector and an up-vector of low-rank factors, where the choice of up-vectors depends on
//! the down-vectors that were chosen. Conditional mixture of LoRA, Shen et al., arXiv:2402.15896, section 3.
//!
//! ```text
//! p     = softmax(W_A u)                                         over P down-vectors; a_1 .. a_r the largest r
//! q     = (softmax(W_B u) + c sum_j softmax(V_j a_j)) / (1 + c r)   over E up-vectors; b_1 .. b_r the largest r
//! w_ij  = 1 for the pairs (a_j, b_j), 0 for all others
//! ```
//!
//! In the backward pass a weight of 1 has the gradient of `p_i q_j`: without it the routers would not learn.
//! The scores of this file are the logarithms of `p_i q_j`.

use burn::module::{Module, Param};
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Bool, Device, Tensor};
use molora_kernels::random::Seed;
use molora_kernels::top_k_mask;
use molora_parts::{Axis, Count, ParameterKind, PartTensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Decided, Reads, Score, ScoreInput, Scored, ScorerDims, ScorerNumbers, draw, rows_of_experts,
    unknown_rows,
};
use crate::RoutingError;

/// A probability of zero counts as this in logarithms.
const SMALLEST: f64 = 1e-30;

/// Pairs of down-vectors and up-vectors, the second chosen with a view to the first. Shen et al.,
/// arXiv:2402.15896.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConditionalConfig {
    /// Number of pairs r that take part.
    pub selected: usize,
    /// Weight c of what the chosen down-vectors say about up-vectors; with 0 both are chosen
    /// independently.
    pub condition: f64,
}

impl Default for ConditionalConfig {
    fn default() -> Self {
        Self {
            selected: 4,
            condition: 1.0,
        }
    }
}

impl ScorerNumbers for ConditionalConfig {
    type Scorer = ConditionalScorer;

    fn init(&self, dims: ScorerDims, seed: Seed, device: &Device) -> ConditionalScorer {
        let (downs, ups) = (dims.groups, dims.experts / dims.groups);
        let selected = self.selected.min(downs).min(ups);
        let rows = |rows, name| {
            draw(
                [rows, dims.features],
                dims.features,
                seed.child(name),
                device,
            )
        };
        let given = [selected, ups, dims.features];
        ConditionalScorer {
            down: rows(downs, "down"),
            up: rows(ups, "up"),
            given: draw(given, dims.features, seed.child("given"), device),
            condition: self.condition,
        }
    }

    fn validate(&self, num_experts: usize) -> Result<(), RoutingError> {
        if !(self.condition.is_finite() && self.condition >= 0.0) {
            return Err(RoutingError::Condition(self.condition));
        }
        match self.selected {
            0 => Err(RoutingError::Zero { field: "selected" }),
            selected if selected > num_experts => Err(RoutingError::Selected {
                selected,
                most: num_experts,
                what: "up-vectors",
            }),
            _ => Ok(()),
        }
    }

    fn validate_columns(&self, columns: usize) -> Result<(), RoutingError> {
        match self.selected > columns {
            true => Err(RoutingError::Selected {
                selected: self.selected,
                most: columns,
                what: "down-vectors",
            }),
            false => Ok(()),
        }
    }

    fn reads(&self) -> Reads {
        Reads::FeaturesAndColumns
    }

    fn decides(&self) -> bool {
        true
    }
}

/// Scores of down-vectors, of up-vectors, and of up-vectors given the down-vector in each place.
#[derive(Module, Debug)]
pub struct ConditionalScorer {
    /// `W_A`, a row for each down-vector, `[P, F]`.
    pub down: Param<Tensor<2>>,
    /// `W_B`, a row for each up-vector, `[E, F]`.
    pub up: Param<Tensor<2>>,
    /// `V`, for each of the r places a row for each up-vector, `[r, E, F]`.
    pub given: Param<Tensor<3>>,
    condition: f64,
}

impl ConditionalScorer {
    /// The share of each up-vector `[N, E]` given the down-vectors in the r places, one-hot `[r, N, P]`,
    /// summed over places. `columns` are the down-vectors `[F, P]`; without them every up-vector has the
    /// same share. `bias` `[N, E]` is added to scores.
    fn conditional(
        &self,
        chosen: Tensor<3>,
        columns: Option<&Tensor<2>>,
        bias: &Tensor<2>,
    ) -> Tensor<2> {
        let [places, _, downs] = chosen.dims();
        let [_, ups, width] = self.given.dims();
        let Some(columns) = columns else {
            return softmax(bias.clone(), 1).mul_scalar(places as f64);
        };
        // V_j a for every down-vector, of which the chosen one is picked.
        let given = self.given.val().reshape([places * ups, width]);
        let table = given.matmul(columns.clone());
        let table = table.reshape([places, ups, downs]).swap_dims(1, 2);
        let scores = chosen.matmul(table) + bias.clone().unsqueeze();
        softmax(scores, 2).sum_dim(0).squeeze_dim(0)
    }
}

impl Score for ConditionalScorer {
    fn score(&self, features: Tensor<2>) -> Tensor<2> {
        unknown_rows(self, features)
    }

    fn score_rows(&self, input: &ScoreInput) -> Scored {
        let [batch, decisions, width] = input.features.dims();
        let ([downs, _], [ups, _]) = (self.down.dims(), self.up.dims());
        let (rows, places) = (batch * decisions, self.given.dims()[0]);
        let features = input.features.clone().reshape([rows, width]);
        let scores = |weight: &Param<Tensor<2>>| {
            molora_kernels::linear(features.clone(), weight.val().transpose(), None)
        };
        let log_p = log_softmax(scores(&self.down), 1);
        let chosen_a = by_place(log_p.clone(), places);
        let bias = match &input.bias {
            Some(bias) => bias
                .clone()
                .unsqueeze_dim::<3>(1)
                .repeat_dim(1, decisions)
                .reshape([rows, ups]),
            None => Tensor::zeros([rows, ups], &features.device()),
        };
        let given = self.conditional(chosen_a.clone(), input.columns.as_ref(), &bias);
        let q = (softmax(scores(&self.up) + bias, 1) + given.mul_scalar(self.condition))
            .div_scalar(1.0 + self.condition * places as f64);
        let chosen_b = by_place(q.clone(), places);
        // A down-vector is in one place at most, and so is an up-vector.
        let pairs = chosen_a.permute([1, 2, 0]).matmul(chosen_b.swap_dims(0, 1));
        // An up-vector that is barred takes no part, be it one of the r largest.
        let is_free = q.clone().detach().greater_elem(0.0).float();
        let pairs = pairs * is_free.unsqueeze_dim(1);
        let shape = [batch, decisions, downs * ups];
        let pairs = pairs.reshape(shape);
        let log_p = log_p.unsqueeze_dim::<3>(2);
        let both = log_p.clone().exp() * q.clone().unsqueeze_dim::<3>(1);
        let gradient = pairs.clone() * both.reshape(shape);
        let log_q = q.clamp_min(SMALLEST).log();
        let logits = log_p + log_q.unsqueeze_dim::<3>(1);
        let logits = logits.reshape(shape);
        Scored {
            logits,
            parts: Vec::new(),
            decided: Some(Decided {
                selected: pairs.clone().greater_elem(0.5),
                // The difference is exactly 0, so a weight is exactly 0 or 1.
                weights: pairs + (gradient.clone() - gradient.detach()),
            }),
        }
    }

    fn groups_are_experts(&self) -> bool {
        false
    }

    fn tensors(&mut self) -> Vec<PartTensor<'_>> {
        let ([downs, width], kind) = (self.down.dims(), ParameterKind::Routers);
        let [places, ups, _] = self.given.dims();
        let (rows, columns) = ([Axis::Rank.of(downs)], [Axis::Feature.of(width)]);
        let down = PartTensor::matrix("router.down.weight", kind, &mut self.down, &rows, &columns);
        let up = rows_of_experts("router.up.weight", &mut self.up);
        let (places, ups) = ([Axis::Unit.of(places)], [Axis::Expert.of(ups)]);
        let counts: [&[Count]; 3] = [&places, &ups, &columns];
        let given = PartTensor::cube("router.given.weight", kind, &mut self.given, counts);
        vec![down, up, given]
    }
}

/// The column with the largest score of each row, the one with the second largest, and so on for so many
/// places: one-hot `[r, N, C]`, without gradient.
fn by_place(scores: Tensor<2>, places: usize) -> Tensor<3> {
    let scores = scores.detach();
    let largest = |count: usize| -> Tensor<2, Bool> { top_k_mask(scores.clone(), count) };
    let mut before: Option<Tensor<2>> = None;
    let place = |count| {
        let all = largest(count).float();
        let place = match before.replace(all.clone()) {
            Some(before) => all - before,
            None => all,
        };
        place.unsqueeze_dim::<3>(0)
    };
    Tensor::cat((1..=places).map(place).collect(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_testkit::{FORWARD, GRADIENT, assert_close};

    /// Two down-vectors, three up-vectors, one feature.
    fn scorer(condition: f64, device: &Device) -> ConditionalScorer {
        ConditionalScorer {
            // p = (1/4, 3/4) for a feature of 1.
            down: Param::from_data([[0.0], [3.0_f32.ln()]], device),
            // softmax (1/2, 1/4, 1/4).
            up: Param::from_data([[2.0_f32.ln()], [0.0], [0.0]], device),
            // For down-vector 1, whose column is 1: softmax (1/8, 6/8, 1/8).
            given: Param::from_data([[[0.0], [6.0_f32.ln()], [0.0]]], device),
            condition,
        }
    }

    fn scored(condition: f64, device: &Device) -> (ConditionalScorer, Scored) {
        let scorer = scorer(condition, device);
        let input = ScoreInput {
            columns: Some(Tensor::from_data([[0.0, 1.0]], device)),
            ..ScoreInput::new(Tensor::ones([1, 1, 1], device))
        };
        let scored = scorer.score_rows(&input);
        (scorer, scored)
    }

    #[test]
    fn the_chosen_down_vector_moves_the_choice_of_the_up_vector() {
        let device = molora_testkit::device();
        for (condition, expected) in [(0.0, [1.0, 0.0, 0.0]), (1.0, [0.0, 1.0, 0.0])] {
            let (_, scored) = scored(condition, &device);
            let decided = scored.decided.expect("it decides");
            let [a, b, c] = expected;
            assert_close(
                decided.weights,
                [[[0.0, 0.0, 0.0, a, b, c]]],
                0.0,
                "weights",
            );
        }
        // q = ((1/2, 1/4, 1/4) + (1/8, 6/8, 1/8)) / 2.
        let (_, scored) = scored(1.0, &device);
        let q = [5.0 / 16.0, 8.0 / 16.0, 3.0 / 16.0];
        let expected = [0.25, 0.75].map(|p| q.map(|q| p * q));
        let found = scored.logits.exp().reshape([2, 3]);
        assert_close(found, expected, FORWARD, "probabilities of pairs");
    }

    #[test]
    fn a_weight_of_one_has_the_gradient_of_its_probability() {
        let device = molora_testkit::autodiff_device();
        let (scorer, scored) = scored(1.0, &device);
        let decided = scored.decided.expect("it decides");
        let gradients = decided.weights.sum().backward();
        let found = scorer.down.val().grad(&gradients).expect("it learns");
        // d (p_1 q_1) / d logits of p, with p = (1/4, 3/4) and q_1 = 1/2.
        let slope = 0.25 * 0.75 * 0.5;
        assert_close(found, [[-slope], [slope]], GRADIENT, "d w / d W_A");
        assert!(scorer.given.val().grad(&gradients).is_some(), "V learns");
    }

    #[test]
    fn places_are_in_the_order_of_scores() {
        let device = molora_testkit::device();
        let scores = Tensor::<2>::from_data([[0.1, 0.7, 0.2]], &device);
        let expected = [[[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]];
        assert_close(by_place(scores, 2), expected, 0.0, "places");
    }
}
