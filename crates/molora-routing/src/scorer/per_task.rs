//! A linear map of its own for every task: the same token is scored in another way for another task.
//! Mod-Squad, Chen et al., arXiv:2212.08066, section 3.1.
//!
//! ```text
//! s_e = <w_te, u>      for a row of task t
//! ```
//!
//! A row of an unknown task takes the mean over tasks.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use molora_kernels::random::Seed;
use molora_parts::{Axis, ParameterKind, PartTensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Reads, Score, ScoreInput, Scored, ScorerDims, ScorerNumbers, draw, unknown_rows};

/// `W_t u` for a row of task t. Mod-Squad, arXiv:2212.08066.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct PerTaskConfig;

impl ScorerNumbers for PerTaskConfig {
    type Scorer = PerTaskScorer;

    fn init(&self, dims: ScorerDims, seed: Seed, device: &Device) -> PerTaskScorer {
        let shape = [dims.tasks, dims.experts, dims.features];
        PerTaskScorer {
            weight: draw(shape, dims.features, seed.child("weight"), device),
        }
    }

    fn reads(&self) -> Reads {
        Reads::FeaturesAndTasks
    }

    fn is_apart_by_task(&self) -> bool {
        true
    }
}

/// A linear map from features to logits for every task.
#[derive(Module, Debug)]
pub struct PerTaskScorer {
    /// One row per task and expert, `[tasks, E, F]`.
    pub weight: Param<Tensor<3>>,
}

impl Score for PerTaskScorer {
    fn score(&self, features: Tensor<2>) -> Tensor<2> {
        unknown_rows(self, features)
    }

    fn score_rows(&self, input: &ScoreInput) -> Scored {
        let [tasks, experts, width] = self.weight.dims();
        let weight = self.weight.val().reshape([tasks, experts * width]);
        let weight = match &input.tasks {
            Some(rows) => rows.clone().matmul(weight),
            None => weight.mean_dim(0),
        };
        let weight = weight.reshape([-1, experts as i32, width as i32]);
        Scored::new(input.features.clone().matmul(weight.swap_dims(1, 2)))
    }

    fn tensors(&mut self) -> Vec<PartTensor<'_>> {
        let [tasks, experts, width] = self.weight.dims();
        let tasks = [Axis::Task.of(tasks)];
        let (experts, features) = ([Axis::Expert.of(experts)], [Axis::Feature.of(width)]);
        let counts: [&[_]; 3] = [&tasks, &experts, &features];
        vec![PartTensor::cube(
            "router.weight",
            ParameterKind::Routers,
            &mut self.weight,
            counts,
        )]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_testkit::{FORWARD, assert_close};

    #[test]
    fn a_row_is_scored_by_its_task_and_an_unknown_one_by_the_mean() {
        let device = molora_testkit::device();
        let scorer = PerTaskScorer {
            weight: Param::from_data(
                [[[1.0, 0.0], [0.0, 1.0]], [[2.0, 2.0], [-1.0, 0.0]]],
                &device,
            ),
        };
        let token = [3.0, 5.0];
        let features = Tensor::from_data([[token; 2]; 3], &device);
        let tasks = [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]];
        let input = ScoreInput {
            tasks: Some(Tensor::from_data(tasks, &device)),
            ..ScoreInput::new(features)
        };
        let found = scorer.score_rows(&input).logits;
        let expected = [[[3.0, 5.0]; 2], [[16.0, -3.0]; 2], [[9.5, 1.0]; 2]];
        assert_close(found, expected, FORWARD, "logits");
        let unknown = scorer.score(Tensor::from_data([token], &device));
        assert_close(unknown, [[9.5, 1.0]], FORWARD, "logits of an unknown task");
    }
}
