//! `molora eval`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::download::Downloads;
use super::print;
use crate::base_model;
use crate::device::DeviceSpec;
use crate::report::{EvalReport, task_table};
use crate::run::{evaluate_run, read_config};

/// Options of `molora eval`.
#[derive(Debug, Args)]
pub(super) struct EvalArgs {
    /// Folder of a finished run
    run: PathBuf,
    /// Folder with the run's tasks [default: the one that it was trained on]
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Where to compute: cpu, ndarray, wgpu or cuda [default: as in training]
    #[arg(long)]
    device: Option<DeviceSpec>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

impl EvalArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        // With a bar, should the cache have lost the model since the training.
        let mut downloads = Downloads::new();
        let model = read_config(&self.run)?.model;
        base_model::find(&model, &mut |progress| downloads.show_all(progress))?;
        let (eval, _) = evaluate_run(&self.run, self.data.as_deref(), self.device)?;
        match self.json {
            true => print(&format!("{}\n", as_json(&eval))),
            false => print(&format!("{}\n", task_table(&eval))),
        }
    }
}

/// `{"tasks": {name: {"metric", "value", "n", "accuracy"}}, "mean", "mean_accuracy"}`; values are
/// fractions.
fn as_json(eval: &EvalReport) -> serde_json::Value {
    let task = |(name, score): (&String, &crate::report::TaskScore)| {
        let value = json!({
            "metric": score.metric, "value": score.value, "n": score.n, "accuracy": score.accuracy,
        });
        (name.clone(), value)
    };
    let tasks: serde_json::Map<String, serde_json::Value> = eval.tasks.iter().map(task).collect();
    json!({"tasks": tasks, "mean": eval.mean, "mean_accuracy": eval.mean_accuracy})
}
