//! What a run does on tasks that it was not trained on: `unseen.json`.

use std::collections::BTreeMap;

use comfy_table::presets::ASCII_BORDERS_ONLY_CONDENSED;
use serde::{Deserialize, Serialize};

use crate::report::format::{percent, points, thousands};
use crate::report::table::aligned;
use crate::report::{Gain, TaskScore};

/// File of a run's scores on unseen tasks in its folder.
pub(crate) const UNSEEN: &str = crate::store::UNSEEN;

/// Scores of linear probes on tasks that a run was not trained on; fractions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnseenReport {
    /// [`SCHEMA_VERSION`](crate::report::SCHEMA_VERSION) of the writer.
    pub version: u32,
    /// Name of the run's recipe.
    pub recipe: String,
    /// Name of the base model.
    pub model: String,
    /// Seed of the run, and of the draw of training records.
    pub seed: u64,
    /// Training records of a probe for each class at most; all if there is no number.
    pub shots: Option<usize>,
    /// Where the text came from that instructions are compared with, in methods that have them.
    pub query: Option<String>,
    /// The tasks by name.
    pub tasks: BTreeMap<String, UnseenTask>,
}

/// One task that the run never saw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnseenTask {
    /// Number of records that the probes were trained on.
    pub train_records: usize,
    /// The probe on the base model without adapters.
    pub base: ProbeResult,
    /// The probe on the run's frozen model.
    pub run: ProbeResult,
    /// Accuracy of the run's probe minus that of the base model's, with a paired interval over test
    /// records.
    pub gain: Gain,
}

/// What one probe gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeResult {
    /// Score on the test split.
    pub score: TaskScore,
    /// The task's metric on the validation split, by which the penalty was chosen.
    pub validation: f64,
    /// The penalty.
    pub l2: f64,
    /// The class predicted for each test record.
    pub predictions: Vec<usize>,
}

/// A table for the terminal.
pub fn unseen_table(report: &UnseenReport) -> String {
    let header = [
        "unseen task",
        "metric",
        "base %",
        "run %",
        "accuracy gain",
        "95 % interval",
        "probe trained on",
        "tested on",
    ];
    let row = |(name, task): (&String, &UnseenTask)| {
        let (base, run) = (&task.base.score, &task.run.score);
        [
            name.clone(),
            run.metric.clone(),
            percent(base.value),
            percent(run.value),
            points(task.gain.mean_accuracy),
            format!("{} to {}", points(task.gain.low), points(task.gain.high)),
            thousands(task.train_records),
            thousands(run.n),
        ]
    };
    let rows = report.tasks.iter().map(row).collect();
    let header = header.map(str::to_owned);
    aligned(ASCII_BORDERS_ONLY_CONDENSED, header, rows, 2).to_string()
}
