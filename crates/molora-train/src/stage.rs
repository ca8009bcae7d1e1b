//! A stage of training: which parameters train, for how long, and how.

use burn::module::Module;
use molora_models::{Classifier, ParameterKind};
use serde::{Deserialize, Serialize};

use crate::optimizer::{OptimizerConfig, ScheduleConfig};
use crate::parameters::{count, set_trainable};

/// One stage of a recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageConfig {
    /// Name in reports.
    pub name: String,
    /// Number of optimizer steps.
    pub steps: usize,
    /// Which kinds of parameters train; the base never does.
    pub trainable: Vec<ParameterKind>,
    /// Rows per forward pass; a batch with more is split and its gradients are added up exactly.
    /// 0 for the whole batch at once.
    #[serde(default)]
    pub micro_batch_size: usize,
    /// The optimizer.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// The learning rate over the stage.
    #[serde(default)]
    pub schedule: ScheduleConfig,
}

impl StageConfig {
    /// A stage that trains everything but the base.
    pub fn joint(steps: usize) -> Self {
        use ParameterKind::{Adapters, Gates, Heads, Routers};
        Self {
            name: "joint".into(),
            steps,
            trainable: vec![Adapters, Routers, Gates, Heads],
            micro_batch_size: 0,
            optimizer: OptimizerConfig::default(),
            schedule: ScheduleConfig::default(),
        }
    }

    /// What is out of range, each with the name of its field.
    pub fn problems(&self) -> Vec<String> {
        let mut problems: Vec<String> = self
            .optimizer
            .problems()
            .into_iter()
            .map(|problem| format!("optimizer.{problem}"))
            .collect();
        if self.steps == 0 {
            problems.push("steps is 0, expected at least 1".into());
        }
        if self.trainable.is_empty() {
            problems.push("trainable is empty: the stage would train nothing".into());
        }
        if self.trainable.contains(&ParameterKind::Base) {
            problems.push("trainable has base, which is always frozen".into());
        }
        if !(0.0..1.0).contains(&self.schedule.warmup) {
            let warmup = self.schedule.warmup;
            problems.push(format!(
                "schedule.warmup is {warmup}, expected at least 0 and less than 1"
            ));
        }
        problems
    }

    /// Makes exactly this stage's parameters trainable: the only place that decides it.
    pub fn apply(&self, model: Classifier) -> Classifier {
        set_trainable(model, &self.trainable)
    }

    /// Number of scalars that this stage would train in a model.
    pub fn num_trained(&self, model: &Classifier) -> usize {
        let counts = count(model);
        let of = |kind: &ParameterKind| match kind {
            ParameterKind::Base => 0,
            ParameterKind::Adapters => counts.adapters,
            ParameterKind::Routers => counts.routers,
            ParameterKind::Gates => counts.gates,
            ParameterKind::Heads => counts.heads,
        };
        debug_assert!(model.num_params() >= counts.base);
        self.trainable.iter().map(of).sum()
    }
}
