//! How a run is watched on the validation split, and which of its states is kept.

use std::num::NonZeroU64;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::report::StateMetric;

/// When the validation split is scored, and on what.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ValidationConfig {
    /// After every so many steps of a stage, or of an expert that trains alone, and after its last
    /// one; 0 for never. Without a number ten times on encoders and four times on generative models.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<usize>,
    /// At most so many records of each task, the same ones each time and in every run. Without a
    /// number up to 256 on encoders and up to 64 on generative models, as many as keep the cost near an
    /// eighth of the training's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// A stage, or an expert that trains alone, ends when so many scores in a row were not better than
    /// the best one before; 0 for never.
    pub patience: usize,
    /// Whether answers that are texts are written and compared; if not, they are scored by their
    /// probability.
    pub generate: bool,
}

/// With fewer records of a task scores are too noisy.
const LEAST_RECORDS: usize = 32;

/// How often a stage is scored where no number is given.
fn times(writes: bool) -> usize {
    if writes { 4 } else { 10 }
}

impl ValidationConfig {
    /// Never.
    pub fn never() -> Self {
        Self {
            every: Some(0),
            ..Self::default()
        }
    }

    /// Steps between two scores of `steps`, for a generative model or an encoder; `None` for never.
    pub fn interval(&self, steps: usize, writes: bool) -> Option<usize> {
        let times = times(writes);
        match self.every {
            Some(0) => None,
            Some(every) => Some(every),
            None => Some(steps.div_ceil(times).max(1)),
        }
    }

    /// Most records of each of `tasks` tasks, for a generative model or an encoder that is trained on
    /// so many `examples`.
    pub fn records(&self, writes: bool, examples: usize, tasks: usize) -> usize {
        let most = if writes { 64 } else { 256 };
        // A forward pass takes about half the time of a step on the same texts.
        let cheap = examples / (5 * times(writes) * tasks.max(1));
        self.limit.unwrap_or(cheap.clamp(LEAST_RECORDS, most))
    }

    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.limit == Some(0) {
            problems.push("validation.limit is 0, expected at least 1".into());
        }
        if self.every == Some(0) && self.patience > 0 {
            let patience = self.patience;
            problems.push(format!(
                "validation.patience is {patience}, but validation.every is 0: nothing is scored"
            ));
        }
        problems
    }
}

/// The state that a stage, or an expert that trained alone, ends with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FinalState {
    /// The best one on the validation split; the first of equally good ones.
    #[default]
    Best,
    /// The last one.
    Last,
}

/// Which states of a run are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// So many of the newest checkpoints stay in the finished run. A run that is not finished always
    /// has one.
    pub keep_last: usize,
    /// So many of the best states of each stage, and of each expert that trained alone, stay in the
    /// finished run. One is kept anyhow until its stage is done.
    pub keep_best: usize,
    /// The metric that states are compared by.
    pub metric: StateMetric,
    /// The state that a stage ends with.
    #[serde(rename = "final")]
    pub final_state: FinalState,
    /// A checkpoint is written after the step that ends so many seconds, or more, after the last one, beside
    /// those every `checkpoint_every` steps; never by the clock where it is not given. It changes no number of a run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every_seconds: Option<NonZeroU64>,
}

impl CheckpointConfig {
    /// Whether a finished run has checkpoints.
    pub fn keeps_some(&self) -> bool {
        self.keep_last > 0 || self.keep_best > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_number_encoders_are_scored_ten_times() {
        let config = ValidationConfig::default();
        assert_eq!(config.interval(600, false), Some(60));
        assert_eq!(config.interval(600, true), Some(150));
        assert_eq!(config.interval(7, false), Some(1));
        assert_eq!(config.interval(25, false), Some(3));
        assert_eq!(ValidationConfig::never().interval(600, false), None);
        let every = ValidationConfig {
            every: Some(7),
            ..config
        };
        assert_eq!(every.interval(600, true), Some(7));
    }

    #[test]
    fn a_short_training_is_scored_on_fewer_records() {
        let config = ValidationConfig::default();
        assert_eq!(config.records(false, 600 * 32, 4), 96);
        assert_eq!(config.records(false, 6000 * 32, 4), 256);
        assert_eq!(config.records(false, 20 * 8, 3), 32);
        assert_eq!(config.records(true, 600 * 32, 4), 64);
        let asked = ValidationConfig {
            limit: Some(500),
            ..config
        };
        assert_eq!(asked.records(false, 20 * 8, 3), 500);
    }

    #[test]
    fn numbers_that_contradict_each_other_are_named() {
        let config = ValidationConfig {
            every: Some(0),
            limit: Some(0),
            patience: 2,
            generate: false,
        };
        let problems = config.problems();
        assert_eq!(problems.len(), 2);
        assert!(
            problems[1].contains("validation.every is 0"),
            "{problems:?}"
        );
    }
}
