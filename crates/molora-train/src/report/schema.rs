//! The records that a run leaves behind, as plain serialisable data.
//!
//! | file | content |
//! |---|---|
//! | `steps.jsonl` | one [`StepRecord`] a line |
//! | `eval.json` | [`EvalReport`] |
//! | `predictions.json` | [`PredictionReport`] |
//! | `routing.json` | [`RoutingReport`] |
//! | `summary.json` | [`RunSummary`] |
//!
//! Each carries [`SCHEMA_VERSION`], so that a reader can recognise an older file. Scores and shares are
//! fractions from 0 to 1, times are seconds, memory is bytes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::acts::GuardRecord;
use super::details::TestScore;
use super::states::StateMetric;

/// Version of every record in this module; it grows when a field changes its meaning.
pub const SCHEMA_VERSION: u32 = 1;

/// What one optimiser step measured: one line of `steps.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepRecord {
    /// [`SCHEMA_VERSION`] of the writer.
    pub version: u32,
    /// Optimiser step, counted from 1 through all stages.
    pub step: usize,
    /// Name of the training stage that the step belongs to.
    pub stage: String,
    /// The task whose expert the step trained alone, if it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert: Option<String>,
    /// The minimised loss: `task_loss` plus the weighted auxiliary terms, in nats.
    pub loss: f64,
    /// Loss of the tasks alone, in nats.
    pub task_loss: f64,
    /// Unweighted value of each auxiliary term, by its name.
    pub terms: BTreeMap<String, f64>,
    /// Mean loss of each task that this step's batch holds, in nats.
    pub tasks: BTreeMap<String, f64>,
    /// Learning rate of this step (of the first parameter group, if groups differ).
    pub learning_rate: f64,
    /// Global gradient norm before clipping.
    pub gradient_norm: f64,
    /// Real tokens in the batch.
    pub tokens: usize,
    /// Tokens in the batch with padding.
    pub padded_tokens: usize,
    /// Wall time of the step in seconds.
    pub seconds: f64,
}

/// What a score of the validation split found: another kind of lines of `steps.jsonl`, behind that
/// of its step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidationRecord {
    /// [`SCHEMA_VERSION`] of the writer.
    pub version: u32,
    /// The step after which the model was scored.
    pub step: usize,
    /// Name of the training stage.
    pub stage: String,
    /// The task whose expert trains alone, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert: Option<String>,
    /// The scores.
    pub validation: ValidationScores,
    /// The metric that states are compared by.
    pub metric: StateMetric,
    /// Whether it was the best state so far of this stage and expert, by `metric`.
    pub is_best: bool,
    /// Wall time in seconds.
    pub seconds: f64,
}

/// Scores of the tasks that a stage trains on, on records of the validation split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidationScores {
    /// Mean of the tasks' values.
    pub mean_score: f64,
    /// Lowest of the tasks' values.
    pub worst_task: f64,
    /// Mean of the tasks' losses.
    pub loss: f64,
    /// Score of each task, by its name.
    pub tasks: BTreeMap<String, ValidationScore>,
}

/// Score of one task on records of the validation split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidationScore {
    /// Name of the metric.
    pub metric: String,
    /// Its value, as a fraction.
    pub value: f64,
    /// Mean loss, see [`TaskScore::loss`].
    pub loss: f64,
    /// Number of records scored.
    pub n: usize,
}

/// A line of `steps.jsonl`.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// A step.
    Step(StepRecord),
    /// A score of the validation split.
    Validation(ValidationRecord),
    /// What a guard did.
    Guard(GuardRecord),
}

impl Record {
    /// The step that it belongs to.
    pub fn step(&self) -> usize {
        match self {
            Self::Step(record) => record.step,
            Self::Validation(record) => record.step,
            Self::Guard(record) => record.step,
        }
    }
}

/// Score of one task on one split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskScore {
    /// Name of the metric, such as `accuracy`, `macro_f1` or `mcc`.
    pub metric: String,
    /// Value of the metric, as a fraction (a correlation may be negative).
    pub value: f64,
    /// Number of records scored.
    pub n: usize,
    /// Share of records whose answer was right; `None` where an answer is not simply right or wrong.
    pub accuracy: Option<f64>,
    /// Score of always giving the most frequent answer; 0 where there is none.
    pub majority: f64,
    /// Mean loss: cross-entropy of a head's classes, squared error of its numbers, `-log p` of the
    /// right one of several candidates, `-log p` of each token of texts. Earlier versions did not record
    /// it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Other measures of the same answers, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub also: BTreeMap<String, f64>,
    /// Scores of several test splits, by name; empty where there is one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tests: BTreeMap<String, TestScore>,
}

/// Scores of all tasks on one split: `eval.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalReport {
    /// [`SCHEMA_VERSION`] of the writer.
    pub version: u32,
    /// The split that was scored, such as `test`.
    pub split: String,
    /// Score of each task, by its name.
    pub tasks: BTreeMap<String, TaskScore>,
    /// Mean of [`TaskScore::value`] over the tasks; 0 without tasks.
    pub mean: f64,
    /// Mean of [`TaskScore::accuracy`] over the tasks that have one; 0 without any.
    pub mean_accuracy: f64,
}

impl EvalReport {
    /// Builds the report of `split` and computes both means.
    pub fn new(split: impl Into<String>, tasks: BTreeMap<String, TaskScore>) -> Self {
        // An empty sum would be -0.
        let sum = |values: &[f64]| values.iter().fold(0.0, |sum, value| sum + value);
        let mean_of = |values: Vec<f64>| sum(&values) / values.len().max(1) as f64;
        let mean = mean_of(tasks.values().map(|score| score.value).collect());
        let mean_accuracy = mean_of(tasks.values().filter_map(|s| s.accuracy).collect());
        Self {
            version: SCHEMA_VERSION,
            split: split.into(),
            tasks,
            mean,
            mean_accuracy,
        }
    }

    /// The first score that cannot be shown as per cent, by the path of its field.
    pub(crate) fn unshowable(&self) -> Option<(String, f64)> {
        let means = [("mean", self.mean), ("mean_accuracy", self.mean_accuracy)];
        let means = means.map(|(field, found)| (field.to_owned(), found));
        let of_task = |(task, score): (&String, &TaskScore)| {
            let fields = [
                ("value", Some(score.value)),
                ("accuracy", score.accuracy),
                ("majority", Some(score.majority)),
            ];
            fields.map(|(field, found)| (format!("tasks.{task}.{field}"), found.unwrap_or(0.0)))
        };
        let mut all = self.tasks.iter().flat_map(of_task).chain(means);
        all.find(|(_, found)| !(found * 100.0).is_finite())
    }

    /// The value that stands beside a task's own in `run`: of the same split, by the same metric, on as
    /// many records.
    pub(crate) fn beside(&self, run: &Self, task: &str) -> Option<f64> {
        let (found, own) = (self.tasks.get(task)?, run.tasks.get(task)?);
        let is_same = self.split == run.split && found.metric == own.metric && found.n == own.n;
        is_same.then_some(found.value)
    }
}

/// What was answered to each record of a split: `predictions.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PredictionReport {
    /// [`SCHEMA_VERSION`] of the writer.
    pub version: u32,
    /// The split, such as `test`.
    pub split: String,
    /// Answers in the order of the split's file, by the task's name.
    pub tasks: BTreeMap<String, Predictions>,
}

/// The answers to the records of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Predictions {
    /// Places in the task's list of labels or the record's list of choices, from 0.
    Classes(Vec<usize>),
    /// Numbers.
    Numbers(Vec<f64>),
    /// Texts; empty where none were written.
    Texts(Vec<String>),
}

/// How one site shared each task among its experts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteRouting {
    /// Full name of the site, such as `encoder.layer.0.attention.self.query`.
    pub site: String,
    /// Index of the layer that holds the site, from 0.
    pub layer: usize,
    /// Mean routing weight of each expert over the real tokens of a task, by the task's name.
    pub weights: BTreeMap<String, Vec<f64>>,
}

impl SiteRouting {
    /// Number of experts at this site: the longest row of weights.
    pub fn num_experts(&self) -> usize {
        self.weights.values().map(Vec::len).max().unwrap_or(0)
    }

    /// Experts (from 0) that got less than `share` of the weight from every task.
    ///
    /// The share is taken of a row's sum, so that it also holds where weights do not add up to 1.
    pub fn idle_experts(&self, share: f64) -> Vec<usize> {
        let is_idle = |expert: usize| {
            self.weights.values().all(|row| {
                let weight = row.get(expert).copied().unwrap_or(0.0);
                weight < share * row.iter().sum::<f64>().max(f64::MIN_POSITIVE)
            })
        };
        (0..self.num_experts())
            .filter(|&expert| is_idle(expert))
            .collect()
    }
}

/// Routing of all sites that have a router: `routing.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoutingReport {
    /// [`SCHEMA_VERSION`] of the writer.
    pub version: u32,
    /// The routed sites, in the order of the model; sites without a router are absent.
    pub sites: Vec<SiteRouting>,
    /// Whether each site also has a general expert, which acts on every token without being routed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_general: bool,
}

/// Numbers of parameters (scalars), by what they are for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParameterCounts {
    /// Parameters of the base model; frozen.
    pub base: usize,
    /// Parameters of the low-rank matrices.
    pub adapters: usize,
    /// Parameters of the routers.
    pub routers: usize,
    /// Parameters of the task gates.
    pub gates: usize,
    /// Parameters of the tasks' output heads.
    pub heads: usize,
    /// Parameters of tables of the base model that train whole.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub saved: usize,
}

impl ParameterCounts {
    /// Number of parameters that training may change: all but the base.
    pub fn trainable(&self) -> usize {
        self.beside_heads() + self.heads
    }

    /// Number of parameters that training may change, but for the heads of tasks.
    pub fn beside_heads(&self) -> usize {
        self.adapters + self.routers + self.gates + self.saved
    }

    /// Number of all parameters.
    pub fn total(&self) -> usize {
        self.base + self.trainable()
    }
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// The state that a stage, or an expert that trained alone, ended with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptState {
    /// Name of the stage.
    pub stage: String,
    /// The task whose expert trained alone, if it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert: Option<String>,
    /// The step whose state it is.
    pub step: usize,
    /// The step of the stage's, or the expert's, last score.
    pub last_step: usize,
    /// What states were compared by.
    pub metric: StateMetric,
    /// Its value at `step`.
    pub value: f64,
}

/// Numbers of records of a task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitSizes {
    /// Of the training split.
    pub train: usize,
    /// Of the validation split.
    pub validation: usize,
    /// Of the test split.
    pub test: usize,
}

/// Facts of a finished run: `summary.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSummary {
    /// [`SCHEMA_VERSION`] of the writer.
    pub version: u32,
    /// Name of the recipe.
    pub recipe: String,
    /// Paper of the recipe.
    pub citation: String,
    /// Name of the base model.
    pub model: String,
    /// Device that the run used, such as `cpu`.
    pub device: String,
    /// Seed of the run.
    pub seed: u64,
    /// Number of optimiser steps done.
    pub steps: usize,
    /// Names of the tasks trained on.
    pub tasks: Vec<String>,
    /// Parameters by what they are for.
    pub parameters: ParameterCounts,
    /// Wall time of training in seconds, without loading and evaluation.
    pub train_seconds: f64,
    /// Real tokens trained on per second of `train_seconds`.
    pub tokens_per_second: f64,
    /// Share of padding among all tokens of the batches.
    pub padding_share: f64,
    /// Number of texts that were cut at the recipe's length, of all splits, by task; those of which none
    /// was are left out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub cut_texts: BTreeMap<String, usize>,
    /// Numbers of records by task. Earlier versions did not record them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub records: BTreeMap<String, SplitSizes>,
    /// What the losses of tasks were multiplied by, where they did not count alike.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub task_weights: BTreeMap<String, f64>,
    /// Wall time on the validation split during the training in seconds.
    #[serde(default)]
    pub validation_seconds: f64,
    /// The states that stages and experts ended with, where the validation split was scored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub states: Vec<KeptState>,
    /// Peak resident memory of the process in bytes, where the system reports it.
    pub peak_memory_bytes: Option<u64>,
    /// Version of molora that wrote the run.
    pub molora_version: String,
    /// Commit that the program was run from, if known.
    pub git_commit: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(value: f64, accuracy: f64) -> TaskScore {
        TaskScore {
            metric: "accuracy".into(),
            value,
            n: 10,
            accuracy: Some(accuracy),
            majority: 0.5,
            loss: None,
            also: BTreeMap::new(),
            tests: BTreeMap::new(),
        }
    }

    #[test]
    fn means_are_over_tasks_not_records() {
        let tasks = [
            ("a".to_owned(), score(0.2, 0.6)),
            ("b".to_owned(), score(0.4, 1.0)),
        ];
        let report = EvalReport::new("test", tasks.into());
        assert!((report.mean - 0.3).abs() < 1e-12);
        assert!((report.mean_accuracy - 0.8).abs() < 1e-12);
        let empty = EvalReport::new("test", BTreeMap::new());
        assert_eq!(empty.mean.to_string(), "0");
    }

    #[test]
    fn a_value_of_other_records_does_not_stand_beside_a_run() {
        let report = |split, score| {
            let tasks = [("a".to_owned(), score)];
            EvalReport::new(split, tasks.into())
        };
        let (run, base) = (score(0.7, 0.7), score(0.4, 0.4));
        let beside =
            |base: TaskScore, split| report(split, base).beside(&report("test", run.clone()), "a");
        assert_eq!(beside(base.clone(), "test"), Some(0.4));
        assert_eq!(beside(base.clone(), "validation"), None);
        let (mut fewer, mut other) = (base.clone(), base);
        fewer.n = 9;
        other.metric = "macro_f1".into();
        assert_eq!(beside(fewer, "test"), None);
        assert_eq!(beside(other, "test"), None);
    }

    #[test]
    fn an_expert_is_idle_only_if_every_task_leaves_it() {
        let weights = [
            ("a", vec![0.999, 0.0, 0.001]),
            ("b", vec![0.495, 0.5, 0.005]),
        ];
        let weights = weights.map(|(task, row)| (task.to_owned(), row)).into();
        let site = SiteRouting {
            site: "s".into(),
            layer: 0,
            weights,
        };
        assert_eq!(site.num_experts(), 3);
        assert_eq!(site.idle_experts(0.01), [2]);
    }

    #[test]
    fn base_is_not_trainable() {
        let counts = ParameterCounts {
            base: 100,
            adapters: 5,
            routers: 4,
            gates: 3,
            heads: 2,
            saved: 1,
        };
        assert_eq!((counts.trainable(), counts.total()), (15, 115));
    }

    #[test]
    fn unknown_fields_are_refused() {
        let text = r#"{"base":1,"adapters":1,"routers":1,"gates":1,"heads":1,"extra":1}"#;
        let error = serde_json::from_str::<ParameterCounts>(text).unwrap_err();
        assert!(
            error.to_string().contains("unknown field `extra`"),
            "{error}"
        );
    }
}
