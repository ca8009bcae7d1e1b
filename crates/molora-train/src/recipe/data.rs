//! How texts become batches.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::{SamplerConfig, WritingConfig};

/// How texts become batches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// Texts for an encoder are cut at this many tokens.
    pub max_length: usize,
    /// Rows per batch in evaluation.
    pub eval_batch_size: usize,
    /// How training batches are drawn.
    pub sampling: SamplerConfig,
    /// Whether the training split of each task is read piece by piece while it is trained on, so that it need not
    /// fit into memory. Its files have to be JSON lines or Parquet, and the task has to bring its other splits.
    pub streaming: bool,
    /// With `streaming`: examples of each task that wait in memory, among which the next one is drawn.
    pub shuffle_buffer: usize,
    /// With `streaming`: streams that each task is read by, at most as many as a batch has rows. Ranks share
    /// them out, so that more ranks than streams read no more at once.
    pub streams: usize,
    /// How much the losses of tasks count, by name, relative to each other: 1 for those that are not
    /// named. See [`relative_weights`](Self::relative_weights).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub task_weights: BTreeMap<String, f64>,
    /// How records become texts for generative models.
    pub writing: WritingConfig,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            max_length: 64,
            eval_batch_size: 64,
            sampling: SamplerConfig::default(),
            streaming: false,
            shuffle_buffer: 8192,
            streams: 16,
            task_weights: BTreeMap::new(),
            writing: WritingConfig::default(),
        }
    }
}

impl DataConfig {
    /// Rows of a batch that each stream gives, where the data are streamed.
    pub(crate) fn rows_of_streams(&self) -> Vec<usize> {
        let rows = self.sampling.batch_size;
        let streams = self.streams.min(rows);
        let share = |stream| crate::collective::share(rows, stream, streams).len();
        (0..streams).map(share).collect()
    }

    /// What the losses of tasks that are trained together are multiplied by, in their order: their
    /// weights divided by the mean of these. None where all are equal, which is a training without
    /// weights.
    pub fn relative_weights<'a>(&self, tasks: impl IntoIterator<Item = &'a str>) -> Vec<f64> {
        let weight = |task| self.task_weights.get(task).copied().unwrap_or(1.0);
        let weights: Vec<f64> = tasks.into_iter().map(weight).collect();
        if weights.iter().all(|weight| *weight == weights[0]) {
            return Vec::new();
        }
        let mean = weights.iter().sum::<f64>() / weights.len() as f64;
        weights.into_iter().map(|weight| weight / mean).collect()
    }
}
