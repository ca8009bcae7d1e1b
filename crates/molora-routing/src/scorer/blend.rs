//! Two routers blended by a learned share: one reads the features of a decision, the other a vector of
//! the row's task. HMoRA, ICLR 2025, openreview lTkHiXeuDl.
//!
//! ```text
//! w = (1 - a) softmax(Wt u + bt) + a softmax(Ws z + bs),   a = sigmoid(alpha)
//! ```
//!
//! The score is the logarithm of `w`, so that the softmax that follows in every router gives the blend
//! itself, as long as that router's own temperature is 1. `alpha` starts by the layer, from `-range` in the
//! first to `range` in the last, plus `shift`: tokens decide in early layers, tasks in late ones. The
//! paper's `z` is the output of a small encoder over the prompt; here it is a learned vector of the task,
//! and an unknown task takes the mean over tasks.

use burn::module::{Module, Param};
use burn::tensor::activation::{log_sigmoid, log_softmax, softmax, softplus};
use burn::tensor::{Device, Tensor};
use molora_kernels::random::{Seed, normal};
use molora_parts::{Axis, ParameterKind, PartTensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::linear::LinearConfig;
use super::{
    LinearScorer, Reads, Score, ScoreInput, Scored, ScorerDims, ScorerNumbers, rows_of_experts,
    unknown_rows,
};
use crate::RoutingError;

/// The blend of a router by features and one by tasks. HMoRA, openreview lTkHiXeuDl.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BlendConfig {
    /// Width Z of the tasks' vectors.
    pub task_width: usize,
    /// `alpha` starts at minus this in the first layer and at this in the last.
    pub range: f64,
    /// Added to the start of `alpha` in every layer.
    pub shift: f64,
}

impl Default for BlendConfig {
    /// The range and shift of the paper's code.
    fn default() -> Self {
        Self {
            task_width: 64,
            range: 2.0,
            shift: 0.0,
        }
    }
}

impl ScorerNumbers for BlendConfig {
    type Scorer = BlendScorer;

    fn init(&self, dims: ScorerDims, seed: Seed, device: &Device) -> BlendScorer {
        let of_width = |features| ScorerDims { features, ..dims };
        let linear = |dims, name| LinearConfig { bias: true }.init(dims, seed.child(name), device);
        let shape = [dims.tasks, self.task_width];
        let embedding = normal(shape, 1.0, seed.child("task_embedding"), device);
        BlendScorer {
            by_features: linear(dims, "by_features"),
            by_task: linear(of_width(self.task_width), "by_task"),
            task_embedding: Param::from_tensor(embedding),
            alpha: Param::from_tensor(Tensor::full([1], self.shift - self.range, device)),
        }
    }

    fn validate(&self, _num_experts: usize) -> Result<(), RoutingError> {
        if self.task_width == 0 {
            return Err(RoutingError::TaskWidth);
        }
        for (field, value) in [("range", self.range), ("shift", self.shift)] {
            if !value.is_finite() {
                return Err(RoutingError::NotFinite { field, value });
            }
        }
        Ok(())
    }

    fn reads(&self) -> Reads {
        Reads::FeaturesAndTasks
    }

    /// `-range + 2 range layer / (num_layers - 1) + shift` is where the layer's `alpha` starts.
    fn at_layer(&mut self, layer: usize, num_layers: usize) {
        let last = num_layers.saturating_sub(1).max(1);
        self.shift += 2.0 * self.range * layer as f64 / last as f64;
    }
}

/// A router by features and one by tasks with the share of each.
#[derive(Module, Debug)]
pub struct BlendScorer {
    /// `Wt`, `bt`: the router that reads features.
    pub by_features: LinearScorer,
    /// `Ws`, `bs`: the router that reads vectors of tasks.
    pub by_task: LinearScorer,
    /// A vector per task, `[tasks, Z]`.
    pub task_embedding: Param<Tensor<2>>,
    /// The share of the router by tasks is the sigmoid of this, `[1]`.
    pub alpha: Param<Tensor<1>>,
}

impl Score for BlendScorer {
    fn score(&self, features: Tensor<2>) -> Tensor<2> {
        unknown_rows(self, features)
    }

    fn score_rows(&self, input: &ScoreInput) -> Scored {
        let vectors = match &input.tasks {
            Some(rows) => rows.clone().matmul(self.task_embedding.val()),
            None => self.task_embedding.val().mean_dim(0),
        };
        let by_task = self.by_task.score(vectors).unsqueeze_dim::<3>(1);
        let by_features = self.by_features.score_rows(input).logits;
        let alpha = self.alpha.val().reshape([1, 1, 1]);
        let of_features = log_softmax(by_features.clone(), 2) + log_sigmoid(alpha.clone().neg());
        let of_task = log_softmax(by_task.clone(), 2) + log_sigmoid(alpha);
        // ln(exp(a) + exp(b)) = b + ln(1 + exp(a - b)), which no weight of zero can break.
        let logits = of_task.clone() + softplus(of_features - of_task, 1.0);
        Scored {
            logits,
            parts: vec![softmax(by_features, 2), softmax(by_task, 2)],
            decided: None,
        }
    }

    fn tensors(&mut self) -> Vec<PartTensor<'_>> {
        let kind = ParameterKind::Routers;
        let experts = [Axis::Expert.of(self.by_features.weight.dims()[0])];
        let [tasks, width] = self.task_embedding.dims();
        let (tasks, columns) = ([Axis::Task.of(tasks)], [Axis::Feature.of(width)]);
        let mut tensors = vec![
            rows_of_experts("router.by_features.weight", &mut self.by_features.weight),
            rows_of_experts("router.by_task.weight", &mut self.by_task.weight),
            PartTensor::matrix(
                "router.by_task.embedding",
                kind,
                &mut self.task_embedding,
                &tasks,
                &columns,
            ),
            PartTensor::vector("router.alpha", kind, &mut self.alpha, &[Axis::Unit.of(1)]),
        ];
        let biases = [
            ("router.by_features.bias", &mut self.by_features.bias),
            ("router.by_task.bias", &mut self.by_task.bias),
        ];
        for (name, bias) in biases {
            let bias = bias.iter_mut();
            tensors.extend(bias.map(|bias| PartTensor::vector(name, kind, bias, &experts)));
        }
        tensors
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_testkit::{FORWARD, assert_close};

    /// Softmax (0.8, 0.2) by features, (0.5, 0.5) and (0.1, 0.9) by tasks.
    fn scorer(alpha: f32, device: &Device) -> BlendScorer {
        let linear = |weight: [[f32; 1]; 2]| LinearScorer {
            weight: Param::from_data(weight, device),
            bias: None,
        };
        BlendScorer {
            by_features: linear([[4.0_f32.ln()], [0.0]]),
            by_task: linear([[0.0], [9.0_f32.ln()]]),
            task_embedding: Param::from_data([[0.0], [1.0]], device),
            alpha: Param::from_data([alpha], device),
        }
    }

    fn blended(alpha: f32) -> Tensor<3> {
        let device = molora_testkit::device();
        let input = ScoreInput {
            tasks: Some(Tensor::from_data([[1.0, 0.0], [0.0, 1.0]], &device)),
            ..ScoreInput::new(Tensor::ones([2, 1, 1], &device))
        };
        let scored = scorer(alpha, &device).score_rows(&input);
        assert_eq!(scored.parts.len(), 2);
        softmax(scored.logits, 2)
    }

    #[test]
    fn the_share_of_tasks_is_a_sigmoid() {
        // A share of 1/4.
        let expected = [[[0.725, 0.275]], [[0.625, 0.375]]];
        assert_close(blended(-(3.0_f32.ln())), expected, FORWARD, "a quarter");
        for (alpha, expected) in [
            (-200.0, [[[0.8, 0.2]], [[0.8, 0.2]]]),
            (200.0, [[[0.5, 0.5]], [[0.1, 0.9]]]),
        ] {
            assert_close(blended(alpha), expected, FORWARD, "one router alone");
        }
    }

    #[test]
    fn alpha_starts_by_the_layer() {
        let device = molora_testkit::device();
        let dims = ScorerDims {
            features: 3,
            experts: 2,
            tasks: 1,
            groups: 1,
        };
        for (layer, expected) in [(0, -2.0), (3, -0.285714), (7, 2.0)] {
            let mut config = BlendConfig::default();
            config.at_layer(layer, 8);
            let alpha = config.init(dims, Seed::new(0), &device).alpha.val();
            assert_close(alpha, [expected], FORWARD, "alpha");
        }
        let mut config = BlendConfig::default();
        config.at_layer(0, 1);
        assert_eq!(config, BlendConfig::default(), "a model of one layer");
    }
}
