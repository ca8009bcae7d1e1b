//! Balance within kinds of experts, and specialisation between them. LoRAMoE, arXiv:2312.09979.

use burn::tensor::{Tensor, TensorData};
use molora_routing::RouterOutput;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Need, SiteView, TermNumbers};
use crate::Reduction;

/// Added to the squared mean, so that an empty batch divides by something.
const MEAN_EPSILON: f64 = 1e-10;

/// How unequal the weighted masses are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Spread {
    /// Unbiased variance divided by the squared mean, as in the released code.
    #[default]
    SquaredVariation,
    /// Unbiased variance divided by the mean, as the paper prints it.
    VarianceOverMean,
}

/// See [`typed_balance`]; skips sites of one expert and has no reduction.
///
/// The first half of the experts (the smaller one if their number is odd) is for the tasks in
/// `knowledge`, the other half for all other tasks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TypedBalance {
    /// Names of the tasks whose records ask for knowledge of the world.
    pub knowledge: Vec<String>,
    /// How much more the mass of experts of a record's own kind counts, and how much less that of
    /// the others, in `[0, 1)`.
    pub delta: f64,
    /// How unequal masses are measured.
    pub spread: Spread,
    /// Numbers of the tasks in `knowledge`, found by [`for_tasks`](TermNumbers::for_tasks).
    #[serde(skip)]
    pub rows: Vec<usize>,
}

impl Default for TypedBalance {
    /// The paper's delta, and no task that asks for knowledge.
    fn default() -> Self {
        Self {
            knowledge: Vec::new(),
            delta: 0.1,
            spread: Spread::SquaredVariation,
            rows: Vec::new(),
        }
    }
}

impl TermNumbers for TypedBalance {
    fn needs(&self) -> &'static [Need] {
        &[Need::Router, Need::Tasks]
    }

    fn problem(&self) -> Option<String> {
        let delta = self.delta;
        let is_valid = (0.0..1.0).contains(&delta);
        (!is_valid).then(|| format!("delta is {delta}, expected a number from 0 to below 1"))
    }

    fn for_tasks(&self, tasks: &[String]) -> Result<Self, String> {
        let number = |name: &String| {
            let found = tasks.iter().position(|task| task == name);
            let known = tasks.join(", ");
            found.ok_or_else(|| format!("knowledge names `{name}`, expected one of {known}"))
        };
        Ok(Self {
            rows: self
                .knowledge
                .iter()
                .map(number)
                .collect::<Result<_, _>>()?,
            ..self.clone()
        })
    }

    fn at(&self, site: &SiteView<'_>, _reduction: Reduction) -> Option<Tensor<1>> {
        let (routed, tasks) = (site.balanced()?, site.tasks.clone()?);
        let [batch, count] = tasks.dims();
        let mut of_task = vec![0.0_f32; count];
        for &row in &self.rows {
            of_task[row] = 1.0;
        }
        let of_task = Tensor::<2>::from_data(TensorData::new(of_task, [count, 1]), &tasks.device());
        let knowledge = tasks.matmul(of_task).reshape([batch]);
        Some(typed_balance(routed, knowledge, self.delta, self.spread))
    }
}

/// The spread of `Z = I o Q` over all pairs of a sequence and an expert.
///
/// `Q` is the mass that the weights give an expert over the sequence's real tokens. `I` is
/// `1 + delta` where expert and sequence are of one kind, else `1 - delta`: the first `E / 2` experts
/// are of the kind of sequences with `knowledge` 1, the others of that with 0. A sequence in between,
/// whose task is not known, is of neither kind.
///
/// # Shapes
/// - `knowledge`: `[B]`
/// - returns `[1]`
///
/// # Source
/// Dou et al., LoRAMoE, arXiv:2312.09979, section 3.3.
pub fn typed_balance(
    routed: &RouterOutput,
    knowledge: Tensor<1>,
    delta: f64,
    spread: Spread,
) -> Tensor<1> {
    let [batch, _, experts] = routed.weights.dims();
    let counted = routed.counted.clone().unsqueeze_dim::<3>(2);
    let is_padding = counted.equal_elem(0.0).expand(routed.weights.dims());
    let mass = routed.weights.clone().mask_fill(is_padding, 0.0).sum_dim(1);
    let kinds: Vec<f32> = (0..experts)
        .map(|expert| if expert < experts / 2 { 1.0 } else { -1.0 })
        .collect();
    let kinds = Tensor::<2>::from_data(TensorData::new(kinds, [1, experts]), &knowledge.device());
    // 1 for a sequence of the first kind, -1 for one of the second.
    let signs = knowledge.mul_scalar(2.0).sub_scalar(1.0);
    let agree = signs.reshape([batch, 1]).matmul(kinds);
    let weighted = mass.reshape([batch, experts]) * agree.mul_scalar(delta).add_scalar(1.0);
    let mean = weighted.clone().mean();
    let square = (weighted - mean.clone().unsqueeze()).square().sum();
    let variance = square.div_scalar((batch * experts).saturating_sub(1).max(1) as f64);
    match spread {
        Spread::SquaredVariation => variance / mean.square().add_scalar(MEAN_EPSILON),
        Spread::VarianceOverMean => variance / mean.clamp_min(MEAN_EPSILON),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_routing::Weighed;
    use molora_testkit::{FORWARD, assert_close};

    /// Two sequences of one token, whose weights are even: all of the spread comes from the kinds.
    #[test]
    fn even_weights_are_balanced_without_kinds_alone() {
        let device = molora_testkit::device();
        let weights = Tensor::<3>::full([2, 1, 4], 0.25, &device);
        let (logits, counted) = (weights.zeros_like(), Tensor::ones([2, 1], &device));
        let even = RouterOutput::new(logits, Weighed::new(weights, None), counted);
        let knowledge = || Tensor::from_data([1.0, 0.0], &device);
        let found = typed_balance(&even, knowledge(), 0.0, Spread::SquaredVariation);
        assert_close(found, [0.0], FORWARD, "delta 0");
        // Z is 0.25 (1 +- 0.1), four of each: variance 0.025^2 * 8 / 7, mean 0.25.
        let variance = 0.025_f32.powi(2) * 8.0 / 7.0;
        let found = typed_balance(&even, knowledge(), 0.1, Spread::SquaredVariation);
        assert_close(found, [variance / 0.0625], FORWARD, "squared variation");
        let found = typed_balance(&even, knowledge(), 0.1, Spread::VarianceOverMean);
        assert_close(found, [variance / 0.25], FORWARD, "variance over mean");
    }

    #[test]
    fn a_task_that_does_not_exist_is_named() {
        let term = TypedBalance {
            knowledge: vec!["b".into(), "c".into()],
            ..TypedBalance::default()
        };
        let tasks = ["a", "b"].map(String::from);
        let problem = term.for_tasks(&tasks).expect_err("there is no c");
        assert_eq!(problem, "knowledge names `c`, expected one of a, b");
        let tasks = ["a", "b", "c"].map(String::from);
        assert_eq!(term.for_tasks(&tasks).expect("known").rows, [1, 2]);
    }
}
