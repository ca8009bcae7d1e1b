//! The router: a scorer, a softmax and a selection, for tokens, sequences or tasks.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, activation::softmax};
use molora_kernels::random::{Seed, normal};
use serde::{Deserialize, Serialize};

use crate::scorer::{Scorer, ScorerConfig};
use crate::{Guidance, Pooling, RouterOutput, RoutingError, Selection};

/// What one routing decision is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Granularity {
    /// Every token by its own features.
    Token,
    /// Every sequence, by its real tokens' features under [`RouterConfig::pooling`].
    Sequence,
    /// Every task, by a learned task embedding; an unknown task takes the mean embedding.
    Task,
}

/// Which features a router reads; the layer that owns the router provides them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteFrom {
    /// The input of the site, width D.
    Hidden,
    /// The shared low-rank code `x A` of the site, width R (SAMoRA).
    LowRank,
}

/// Numbers of a [`Router`]; widths and the number of experts come with [`init`](Self::init).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RouterConfig {
    /// How features are scored.
    pub scorer: ScorerConfig,
    /// Which features are scored; ignored by decisions per task.
    pub route_from: RouteFrom,
    /// What one decision is taken for.
    pub granularity: Granularity,
    /// How a sequence's tokens are summed up; read by decisions per sequence alone.
    pub pooling: Pooling,
    /// Scores are divided by this before the softmax; 1 with a grouped scorer, whose weights it
    /// would distort.
    pub temperature: f64,
    /// Which experts take part.
    pub selection: Selection,
    /// Width of the task embedding; read by decisions per task alone.
    pub task_width: usize,
}

impl Default for RouterConfig {
    /// A linear router on every token's hidden state, dense, temperature 1 (HydraLoRA).
    fn default() -> Self {
        Self {
            scorer: ScorerConfig::Linear { bias: false },
            route_from: RouteFrom::Hidden,
            granularity: Granularity::Token,
            pooling: Pooling::Mean,
            temperature: 1.0,
            selection: Selection::Dense,
            task_width: 8,
        }
    }
}

impl RouterConfig {
    /// Checks every number.
    ///
    /// # Errors
    /// The first one that is out of its range.
    pub fn validate(&self, num_experts: usize) -> Result<(), RoutingError> {
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            return Err(RoutingError::Temperature(self.temperature));
        }
        if self.task_width == 0 {
            return Err(RoutingError::TaskWidth);
        }
        self.scorer.validate(num_experts)?;
        self.selection.validate(num_experts)
    }

    /// A router over `num_experts` for features of width `d_features`; `num_tasks` is read by
    /// decisions per task alone.
    ///
    /// # Panics
    /// If [`validate`](Self::validate) refuses the scorer for this number of experts.
    pub fn init(
        &self,
        d_features: usize,
        num_experts: usize,
        num_tasks: usize,
        seed: Seed,
        device: &Device,
    ) -> Router {
        let by_task = self.granularity == Granularity::Task;
        let d_features = if by_task { self.task_width } else { d_features };
        let embedding = || {
            let seed = seed.child("task_embedding");
            Param::from_tensor(normal([num_tasks, d_features], 1.0, seed, device))
        };
        Router {
            scorer: self.scorer.init(d_features, num_experts, seed, device),
            task_embedding: by_task.then(embedding),
            granularity: self.granularity,
            pooling: self.pooling,
            selection: self.selection,
            temperature: self.temperature,
        }
    }
}

/// What a router reads.
#[derive(Debug, Clone)]
pub struct RouteInput {
    /// Features of every token, `[B, T, F]`.
    pub features: Tensor<3>,
    /// 1 for real tokens, 0 for padding, `[B, T]`.
    pub mask: Tensor<2>,
    /// Rows that pick each sequence's task, `[B, tasks]`: one-hot, or uniform for an unknown task.
    /// Decisions per task need it.
    pub tasks: Option<Tensor<2>>,
}

/// Weights over experts from features.
#[derive(Module, Debug)]
pub struct Router {
    /// The scorer with its parameters.
    pub scorer: Scorer,
    /// Task embeddings of decisions per task, `[tasks, F]`.
    pub task_embedding: Option<Param<Tensor<2>>>,
    #[module(skip)]
    granularity: Granularity,
    #[module(skip)]
    pooling: Pooling,
    #[module(skip)]
    selection: Selection,
    temperature: f64,
}

impl Router {
    /// What one decision is taken for.
    pub fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// Whether every decision gives all experts the same weight.
    pub fn is_uniform(&self) -> bool {
        matches!(self.scorer, Scorer::Uniform(_)) && self.selection == Selection::Dense
    }

    /// The keys `[E, F]` of a scorer that compares with keys.
    pub fn keys(&self) -> Option<Tensor<2>> {
        self.scorer.keys()
    }

    /// Takes the decisions for a batch.
    ///
    /// # Panics
    /// If decisions are per task and `input.tasks` is `None`.
    pub fn route(&self, input: &RouteInput) -> RouterOutput {
        self.route_guided(input, &Guidance::default())
    }

    /// Takes the decisions for a batch, guided from outside the features.
    ///
    /// # Panics
    /// As [`route`](Self::route), and if a tensor of the guidance is not `[B, E]`.
    pub fn route_guided(&self, input: &RouteInput, guidance: &Guidance) -> RouterOutput {
        let (features, counted) = self.features(input, guidance);
        let [batch, tokens, width] = features.dims();
        let scores = self.scorer.score(features.reshape([batch * tokens, width]));
        let experts = scores.dims()[1];
        let logits = scores
            .div_scalar(self.temperature)
            .reshape([batch, tokens, experts]);
        let logits = guidance.biased(logits);
        let probs = softmax(logits.clone(), 2);
        let (weights, selected) = guidance.decided(self.selection.weigh(&logits, &probs));
        RouterOutput {
            logits,
            probs,
            weights,
            selected,
            counted,
        }
    }

    /// One row of features per decision `[B, T', F]`, and which decisions count `[B, T']`.
    fn features(&self, input: &RouteInput, guidance: &Guidance) -> (Tensor<3>, Tensor<2>) {
        let valid_b1 = || input.mask.clone().max_dim(1);
        match (self.granularity, &self.task_embedding) {
            (Granularity::Token, _) => (input.features.clone(), input.mask.clone()),
            (Granularity::Task, Some(embedding)) => {
                let tasks = input
                    .tasks
                    .clone()
                    .expect("decisions per task are given tasks");
                (tasks.matmul(embedding.val()).unsqueeze_dim(1), valid_b1())
            }
            _ => {
                let mask = guidance.prompt.as_ref().unwrap_or(&input.mask).clone();
                let features = input.features.clone();
                (self.pooling.pool(features, mask), valid_b1())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_kernels::random::uniform;
    use molora_testkit::{FORWARD, assert_close};

    fn input(device: &Device) -> RouteInput {
        RouteInput {
            features: uniform([2, 3, 4], 1.0, Seed::new(1), device),
            mask: Tensor::from_data([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]], device),
            tasks: None,
        }
    }

    fn router(config: RouterConfig, device: &Device) -> Router {
        config.init(4, 3, 2, Seed::new(2), device)
    }

    #[test]
    fn weights_of_every_decision_sum_to_one() {
        let device = molora_testkit::device();
        for scorer in [ScorerConfig::Linear { bias: true }, ScorerConfig::Cosine] {
            for selection in [Selection::Dense, Selection::TopK(2)] {
                let config = RouterConfig {
                    scorer: scorer.clone(),
                    selection,
                    ..Default::default()
                };
                let routed = router(config, &device).route(&input(&device));
                let ones = Tensor::<3>::ones([2, 3, 1], &device);
                assert_close(routed.weights.sum_dim(2), ones, FORWARD, "sums");
            }
        }
    }

    #[test]
    fn a_sequence_decides_by_its_real_tokens() {
        let device = molora_testkit::device();
        let config = RouterConfig {
            granularity: Granularity::Sequence,
            ..Default::default()
        };
        let router = router(config, &device);
        let before = router.route(&input(&device));
        assert_eq!(before.weights.dims(), [2, 1, 3]);
        let mut changed = input(&device);
        let junk = Tensor::full([1, 1, 4], f32::INFINITY, &device);
        changed.features = changed.features.slice_assign([1..2, 2..3, 0..4], junk);
        assert_close(
            router.route(&changed).weights,
            before.weights,
            0.0,
            "weights",
        );
    }

    #[test]
    fn a_task_decides_for_all_its_rows_and_unknown_ones_take_the_mean() {
        let device = molora_testkit::device();
        let config = RouterConfig {
            granularity: Granularity::Task,
            ..Default::default()
        };
        let router = router(config, &device);
        let mut by_task = input(&device);
        by_task.tasks = Some(Tensor::from_data([[0.0, 1.0], [0.5, 0.5]], &device));
        let routed = router.route(&by_task);
        assert_eq!(routed.logits.dims(), [2, 1, 3]);
        let table = router.task_embedding.as_ref().expect("a table").val();
        let mean = router.scorer.score(table.mean_dim(0)).reshape([1, 1, 3]);
        assert_close(routed.logits.narrow(0, 1, 1), mean, FORWARD, "unknown task");
    }

    #[test]
    fn temperature_zero_is_refused() {
        let config = RouterConfig {
            temperature: 0.0,
            ..Default::default()
        };
        let message = config.validate(3).expect_err("temperature 0").to_string();
        assert_eq!(
            message,
            "temperature is 0, expected a finite number above 0"
        );
    }
}
