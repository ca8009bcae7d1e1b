//! A learned prompt of the task, added to what the router reads: the choice of an expert depends on the
//! token and on the question about it. JiuZhang 2.0, arXiv:2306.11027, where routing is guided by task
//! prompts; the form is inferred.
//!
//! ```text
//! s_e = <w_e, u + t>       for a row of the task with prompt t
//! ```
//!
//! A row of an unknown task takes the mean over tasks.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use molora_kernels::random::Seed;
use molora_parts::{Axis, ParameterKind, PartTensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Reads, Score, ScoreInput, Scored, ScorerDims, ScorerNumbers, draw, rows_of_experts,
    unknown_rows,
};

/// `W (u + t)` for a row of the task with prompt t. Prompts start at 0, so that the token decides alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct TaskPromptConfig;

impl ScorerNumbers for TaskPromptConfig {
    type Scorer = TaskPromptScorer;

    fn init(&self, dims: ScorerDims, seed: Seed, device: &Device) -> TaskPromptScorer {
        let (width, experts) = (dims.features, dims.experts);
        let prompts = Tensor::zeros([dims.tasks, width], device);
        TaskPromptScorer {
            weight: draw([experts, width], width, seed.child("weight"), device),
            prompts: Param::from_tensor(prompts),
        }
    }

    fn reads(&self) -> Reads {
        Reads::FeaturesAndTasks
    }
}

/// A linear map of features with the prompt of the task.
#[derive(Module, Debug)]
pub struct TaskPromptScorer {
    /// One row per expert, `[E, F]`.
    pub weight: Param<Tensor<2>>,
    /// One prompt per task, `[tasks, F]`.
    pub prompts: Param<Tensor<2>>,
}

impl Score for TaskPromptScorer {
    fn score(&self, features: Tensor<2>) -> Tensor<2> {
        unknown_rows(self, features)
    }

    fn score_rows(&self, input: &ScoreInput) -> Scored {
        let prompts = match &input.tasks {
            Some(rows) => rows.clone().matmul(self.prompts.val()),
            None => self.prompts.val().mean_dim(0),
        };
        let [batch, decisions, width] = input.features.dims();
        // The map is linear: prompts are scored by row and not by token.
        let weight = self.weight.val().transpose();
        let of_task = prompts.matmul(weight.clone()).unsqueeze_dim::<3>(1);
        let features = input.features.clone().reshape([batch * decisions, width]);
        let experts = self.weight.dims()[0];
        let of_token = features.matmul(weight).reshape([batch, decisions, experts]);
        Scored::new(of_token + of_task)
    }

    fn tensors(&mut self) -> Vec<PartTensor<'_>> {
        let [tasks, width] = self.prompts.dims();
        let (tasks, features) = ([Axis::Task.of(tasks)], [Axis::Feature.of(width)]);
        let weight = rows_of_experts("router.weight", &mut self.weight);
        let kind = ParameterKind::Routers;
        let prompts = &mut self.prompts;
        let prompts = PartTensor::matrix("router.prompts", kind, prompts, &tasks, &features);
        vec![weight, prompts]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_testkit::{FORWARD, assert_close};

    #[test]
    fn the_same_token_is_scored_by_its_task_and_an_unknown_one_by_the_mean() {
        let device = molora_testkit::device();
        let scorer = TaskPromptScorer {
            weight: Param::from_data([[1.0, 0.0], [0.0, 2.0]], &device),
            prompts: Param::from_data([[1.0, 0.0], [-1.0, 4.0]], &device),
        };
        let token = [3.0, 5.0];
        let input = ScoreInput {
            tasks: Some(Tensor::from_data(
                [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]],
                &device,
            )),
            ..ScoreInput::new(Tensor::from_data([[token; 2]; 3], &device))
        };
        let found = scorer.score_rows(&input).logits;
        let expected = [[[4.0, 10.0]; 2], [[2.0, 18.0]; 2], [[3.0, 14.0]; 2]];
        assert_close(found, expected, FORWARD, "logits");
        let unknown = scorer.score(Tensor::from_data([token], &device));
        assert_close(unknown, [[3.0, 14.0]], FORWARD, "an unknown task");
    }
}
