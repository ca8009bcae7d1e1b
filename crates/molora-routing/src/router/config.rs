//! The numbers of a router, also as earlier versions wrote them.

use burn::module::Param;
use burn::tensor::Device;
use molora_kernels::random::{Seed, normal};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Router;
use crate::normaliser::{NormaliserConfig, SigmoidConfig, SoftmaxConfig};
use crate::scorer::{LinearConfig, Reads, ScorerConfig, ScorerDims};
use crate::{Pooling, RoutingError, Selection};

/// What one routing decision is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RouteFrom {
    /// The input of the site, width D.
    Hidden,
    /// The shared low-rank code `x A` of the site, width R (SAMoRA).
    LowRank,
    /// The input of the site as `A` reads it: in training behind the same dropout (LD-MoLE).
    Dropped,
}

/// Numbers of a [`Router`]; widths and the number of experts come with [`init`](Self::init).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "RouterFile")]
#[schemars(!from, default, deny_unknown_fields)]
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
    /// Whether scores get logistic noise in training, which makes their sigmoids relaxed draws (Polytropon).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub relaxed: bool,
    /// Standard deviation of what is added to scores before the temperature, in training alone.
    #[serde(skip_serializing_if = "is_zero")]
    pub noise: f64,
    /// Which experts take part.
    pub selection: Selection,
    /// How the logits of those become weights.
    pub normaliser: NormaliserConfig,
    /// Width of the task embedding; read by decisions per task alone.
    pub task_width: usize,
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

impl Default for RouterConfig {
    /// A linear router on every token's hidden state, dense, temperature 1 (HydraLoRA).
    fn default() -> Self {
        Self {
            scorer: LinearConfig { bias: false }.into(),
            route_from: RouteFrom::Hidden,
            granularity: Granularity::Token,
            pooling: Pooling::Mean,
            temperature: 1.0,
            relaxed: false,
            noise: 0.0,
            selection: Selection::Dense,
            normaliser: SoftmaxConfig.into(),
            task_width: 8,
        }
    }
}

/// A [`RouterConfig`] in a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RouterFile {
    scorer: ScorerConfig,
    route_from: RouteFrom,
    granularity: Granularity,
    pooling: Pooling,
    temperature: f64,
    relaxed: bool,
    noise: f64,
    selection: SelectionInFile,
    normaliser: NormaliserConfig,
    task_width: usize,
}

/// A [`Selection`] in a file, where the sigmoid once stood among the selections.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum SelectionInFile {
    Dense,
    TopK(usize),
    TopP(f64),
    Argmax,
    StraightThrough,
    StraightThroughDense,
    Sigmoid,
}

impl Default for RouterFile {
    fn default() -> Self {
        let config = RouterConfig::default();
        Self {
            scorer: config.scorer,
            route_from: config.route_from,
            granularity: config.granularity,
            pooling: config.pooling,
            temperature: config.temperature,
            relaxed: config.relaxed,
            noise: config.noise,
            selection: SelectionInFile::Dense,
            normaliser: config.normaliser,
            task_width: config.task_width,
        }
    }
}

impl From<RouterFile> for RouterConfig {
    fn from(file: RouterFile) -> Self {
        let (selection, normaliser) = match file.selection {
            SelectionInFile::Dense => (Selection::Dense, file.normaliser),
            SelectionInFile::TopK(k) => (Selection::TopK(k), file.normaliser),
            SelectionInFile::TopP(p) => (Selection::TopP(p), file.normaliser),
            SelectionInFile::Argmax => (Selection::Argmax, file.normaliser),
            SelectionInFile::StraightThrough => (Selection::StraightThrough, file.normaliser),
            SelectionInFile::StraightThroughDense => {
                (Selection::StraightThroughDense, file.normaliser)
            }
            SelectionInFile::Sigmoid => (Selection::Dense, SigmoidConfig.into()),
        };
        Self {
            scorer: file.scorer,
            route_from: file.route_from,
            granularity: file.granularity,
            pooling: file.pooling,
            temperature: file.temperature,
            relaxed: file.relaxed,
            noise: file.noise,
            selection,
            normaliser,
            task_width: file.task_width,
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
        if !(self.noise.is_finite() && self.noise >= 0.0) {
            return Err(RoutingError::Noise(self.noise));
        }
        if self.task_width == 0 {
            return Err(RoutingError::TaskWidth);
        }
        match (self.scorer.reads(), self.granularity) {
            (Reads::Tasks, Granularity::Token | Granularity::Sequence) => {
                return Err(RoutingError::ScorerOfTasks(self.scorer.name()));
            }
            (Reads::Clusters, Granularity::Token | Granularity::Task) => {
                return Err(RoutingError::ScorerOfClusters(self.scorer.name()));
            }
            _ => {}
        }
        self.scorer.validate(num_experts)?;
        let decides_alone = self.selection == Selection::Dense
            && self.normaliser == SoftmaxConfig.into()
            && self.temperature == 1.0
            && self.noise == 0.0
            && !self.relaxed
            && self.pooling == Pooling::Mean;
        if self.scorer.decides() && !decides_alone {
            return Err(RoutingError::ScorerDecides(self.scorer.name()));
        }
        self.normaliser.validate()?;
        if self.normaliser.is_joint() && self.selection != Selection::Dense {
            return Err(RoutingError::JointSelection(self.normaliser.name()));
        }
        self.selection.validate(num_experts)
    }

    /// Whether every decision gives all experts the same weight, one in all.
    pub fn is_uniform(&self) -> bool {
        let softmax = NormaliserConfig::from(SoftmaxConfig);
        self.scorer.is_uniform() && self.selection == Selection::Dense && self.normaliser == softmax
    }

    /// Whether decisions depend on the task of a row.
    pub fn reads_tasks(&self) -> bool {
        self.granularity == Granularity::Task || self.scorer.reads() == Reads::FeaturesAndTasks
    }

    /// Whether the decisions for a row depend on what is its task's alone and on the row: one more task leaves those for
    /// the others as they are.
    pub fn is_apart_by_task(&self) -> bool {
        self.granularity == Granularity::Task || self.scorer.is_apart_by_task()
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
        self.init_groups(1, d_features, num_experts, num_tasks, seed, device)
    }

    /// A router that takes a decision for each of `groups` from the same features, as
    /// [`init`](Self::init) does for one.
    ///
    /// # Panics
    /// As [`init`](Self::init), for `groups * num_experts` experts.
    pub fn init_groups(
        &self,
        groups: usize,
        d_features: usize,
        num_experts: usize,
        num_tasks: usize,
        seed: Seed,
        device: &Device,
    ) -> Router {
        let by_task = self.granularity == Granularity::Task;
        let reads_tasks = self.scorer.reads() == Reads::Tasks;
        let embeds = by_task && !reads_tasks;
        let d_features = match (reads_tasks, by_task) {
            (true, _) => num_tasks,
            (false, true) => self.task_width,
            (false, false) => d_features,
        };
        let embedding = || {
            let seed = seed.child("task_embedding");
            Param::from_tensor(normal([num_tasks, d_features], 1.0, seed, device))
        };
        let dims = ScorerDims {
            features: d_features,
            experts: groups * num_experts,
            tasks: num_tasks,
            groups,
        };
        let normaliser = seed.child("normaliser");
        Router {
            scorer: self.scorer.init(dims, seed, device),
            task_embedding: embeds.then(embedding),
            normaliser: self.normaliser.init(d_features, normaliser, device),
            granularity: self.granularity,
            pooling: self.pooling,
            selection: self.selection,
            temperature: self.temperature,
            noise: self.noise,
            is_uniform: self.is_uniform(),
            groups,
            relaxed: self.relaxed,
            reads_columns: self.scorer.reads() == Reads::FeaturesAndColumns,
        }
    }
}
