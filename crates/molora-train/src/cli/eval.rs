//! `molora eval`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::download::Downloads;
use super::print;
use super::progress::Progress;
use crate::base_model;
use crate::device::DeviceSpec;
use crate::instructions::Query;
use crate::report::{EvalReport, idle_summary, task_table};
use crate::run::{evaluate_run_by, read_config};
use crate::unseen::{UnseenReport, UnseenRequest, UnseenTask, evaluate_unseen, unseen_table};

/// Options of `molora eval`.
#[derive(Debug, Args)]
pub(super) struct EvalArgs {
    /// Folder of a finished run
    run: PathBuf,
    /// Folder with the run's tasks [default: the one that it was trained on]
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Measure tasks that the run was not trained on: with a linear probe on its frozen model,
    /// beside the same probe on the base model
    #[arg(long)]
    unseen: bool,
    /// With --unseen: these tasks only, separated by commas [default: all in the folder that the
    /// run was not trained on]
    #[arg(long, value_delimiter = ',', value_name = "NAMES", requires = "unseen")]
    tasks: Option<Vec<String>>,
    /// With --unseen: train the probe on so many records of each class [default: all]
    #[arg(long, value_name = "N", requires = "unseen")]
    shots: Option<NonZeroUsize>,
    /// What is compared with the experts' instructions: task (the task's own instruction), request
    /// (each record's text) or any TEXT [default: as in the recipe]
    #[arg(long, value_name = "task|request|TEXT")]
    query: Option<Query>,
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
        if self.unseen {
            return self.run_unseen();
        }
        let (data, query) = (self.data.as_deref(), self.query.as_ref());
        let (eval, routing) = evaluate_run_by(&self.run, data, self.device, query)?;
        match self.json {
            true => print(&format!("{}\n", as_json(&eval))),
            false => {
                let idle = idle_summary(&routing).map(|text| text + "\n");
                print(&format!(
                    "{}\n{}",
                    task_table(&eval),
                    idle.unwrap_or_default()
                ))
            }
        }
    }

    fn run_unseen(&self) -> anyhow::Result<()> {
        let request = UnseenRequest {
            data: self.data.as_deref(),
            tasks: self.tasks.as_deref(),
            shots: self.shots,
            query: self.query.as_ref(),
            device: self.device,
            ..UnseenRequest::default()
        };
        let mut progress = Progress::new();
        let report = evaluate_unseen(&self.run, &request, &mut |event| progress.show(event))?;
        progress.finish();
        report.save(&self.run)?;
        match self.json {
            true => print(&format!("{}\n", unseen_json(&report))),
            false => print(&format!("{}\n", unseen_table(&report))),
        }
    }
}

/// `{"tasks": {name: {"metric", "base", "run", "base_accuracy", "run_accuracy", "difference", "low",
/// "high", "n", "train_records"}}, "query", "shots"}`; values are fractions.
fn unseen_json(report: &UnseenReport) -> serde_json::Value {
    let task = |(name, task): (&String, &UnseenTask)| {
        let (base, run) = (&task.base.score, &task.run.score);
        let value = json!({
            "metric": run.metric, "base": base.value, "run": run.value,
            "base_accuracy": base.accuracy, "run_accuracy": run.accuracy,
            "difference": task.gain.mean_accuracy, "low": task.gain.low, "high": task.gain.high,
            "n": run.n, "train_records": task.train_records,
        });
        (name.clone(), value)
    };
    let tasks: serde_json::Map<String, serde_json::Value> = report.tasks.iter().map(task).collect();
    json!({"tasks": tasks, "query": report.query, "shots": report.shots})
}

/// `{"tasks": {name: {"metric", "value", "n", "accuracy"}}, "mean", "mean_accuracy"}`; values are
/// fractions.
fn as_json(eval: &EvalReport) -> serde_json::Value {
    let task = |(name, score): (&String, &crate::report::TaskScore)| {
        let value = json!({
            "metric": score.metric, "value": score.value, "n": score.n, "accuracy": score.accuracy,
            "also": score.also,
        });
        (name.clone(), value)
    };
    let tasks: serde_json::Map<String, serde_json::Value> = eval.tasks.iter().map(task).collect();
    json!({"tasks": tasks, "mean": eval.mean, "mean_accuracy": eval.mean_accuracy})
}
