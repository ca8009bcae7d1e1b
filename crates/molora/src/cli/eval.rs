//! `molora eval`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use serde_json::json;

use super::download::Downloads;
use super::progress::Progress;
use super::ranks::{on_ranks, one_process};
use super::source::adapter_of;
use super::{print, print_written};
use molora_train::base::{AdapterFolder, DeviceSpec, base_model, bundled};
use molora_train::collective::Collective;
use molora_train::data::{Split, load_tasks};
use molora_train::guide::Query;
use molora_train::recipe::{self, BaseKind, overrides};
use molora_train::report::{EvalReport, idle_summary, task_table};
use molora_train::run::{
    EvalOptions, ModelSource, ScoredRecords, changed_inputs, evaluate_base, evaluate_other,
    evaluate_run_by,
};
use molora_train::store::{is_run, read_base, read_config};
use molora_train::train::Event;
use molora_train::unseen::{
    UnseenReport, UnseenRequest, UnseenTask, evaluate_unseen, unseen_table,
};

/// Options of `molora eval`.
#[derive(Debug, Args)]
pub(super) struct EvalArgs {
    /// Folder of a finished run; or of an adapter that PEFT or `molora export` wrote, or a base model as it is
    /// (a folder or org/name on the Hub), of a model that writes
    #[arg(value_name = "RUN|ADAPTER|MODEL")]
    run: PathBuf,
    /// Base model of an adapter [default: the one that its configuration names]
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Folder with the tasks [default: the one that the run was trained on]
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Measure tasks that the run was not trained on, with a linear probe on its frozen model and on
    /// the base model
    #[arg(long)]
    unseen: bool,
    /// These tasks, separated by commas [default: those of the run; with --unseen and for a base
    /// model all in the folder]. A model that writes can be asked tasks that it was not trained on
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    tasks: Option<Vec<String>>,
    /// With --unseen: train the probe on so many records of each class [default: all]
    #[arg(long, value_name = "N", requires = "unseen")]
    shots: Option<NonZeroUsize>,
    /// What is compared with the experts' instructions: task (the task's own instruction), request
    /// (each record's text) or any TEXT [default: as in the recipe]
    #[arg(long, value_name = "task|request|TEXT")]
    query: Option<Query>,
    /// For a base model: change how prompts are made, for example data.writing.prompt=chat; may be
    /// repeated
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    set: Vec<String>,
    /// The records that are scored: test, validation (for choices) or train
    #[arg(
        long,
        default_value = "test",
        value_name = "SPLIT",
        conflicts_with = "unseen"
    )]
    split: Split,
    /// Score at most N records of each task, the same ones each time
    #[arg(long, value_name = "N", conflicts_with = "unseen")]
    limit: Option<NonZeroUsize>,
    /// Evaluate even if base model or tasks have changed since the training
    #[arg(long)]
    anyway: bool,
    /// Where to compute: cpu, ndarray, wgpu or cuda [default: as in training]
    #[arg(long)]
    device: Option<DeviceSpec>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

impl EvalArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        on_ranks(|ranks| self.run_on(ranks))
    }

    fn run_on(&self, ranks: &dyn Collective) -> anyhow::Result<()> {
        let has = |name: &str| self.run.join(name).exists();
        let is_run = is_run(&self.run)? || ["checkpoints", ".swap"].into_iter().any(has);
        if self.unseen {
            one_process("--unseen", ranks)?;
        }
        if !is_run && let Some(eval) = self.of_base(ranks)? {
            return self.show(&eval, None, None);
        }
        if self.model.is_some() {
            bail!("--model is for the folder of an adapter: a run keeps its base model");
        }
        if !self.set.is_empty() {
            bail!("--set is for base models: a run keeps how its texts were made");
        }
        // With a bar, should the cache have lost the model since the training.
        let mut downloads = Downloads::new();
        let model = read_config(&self.run)?.model;
        base_model::find(&model, &mut |progress| downloads.show_all(progress))?;
        if !self.anyway {
            self.refuse_changed()?;
        }
        if self.unseen {
            return self.run_unseen();
        }
        let options = self.options(ranks);
        let mut progress = Progress::new();
        let show = &mut |event: Event<'_>| progress.show(event);
        let (eval, routing) = match &self.tasks {
            None => evaluate_run_by(&self.run, &options, show)?,
            Some(tasks) => evaluate_other(&self.run, tasks, &options, show)?,
        };
        progress.finish();
        let base = self.base()?;
        self.show(&eval, base.as_ref(), idle_summary(&routing))
    }

    fn options<'a>(&'a self, ranks: &'a dyn Collective) -> EvalOptions<'a> {
        EvalOptions {
            data: self.data.as_deref(),
            device: self.device,
            query: self.query.as_ref(),
            scored: ScoredRecords {
                split: self.split,
                limit: self.limit,
            },
            collective: ranks,
        }
    }

    /// Refuses to score a run on what it was not made of; tasks that are not its own are not compared.
    fn refuse_changed(&self) -> anyhow::Result<()> {
        let (run, data) = (&self.run, self.data.as_deref());
        let changed = changed_inputs(run, data)?;
        if !changed.is_empty() {
            let (run, changed) = (run.display(), changed.join(", "));
            bail!(
                "{run}: changed since the run began: {changed}; score it all the same with --anyway"
            );
        }
        Ok(())
    }

    /// The scores of a base model, if that is what is named.
    fn of_base(&self, ranks: &dyn Collective) -> anyhow::Result<Option<EvalReport>> {
        let name = self.run.to_string_lossy();
        let is_elsewhere = !self.run.exists();
        if is_elsewhere && self.data.is_none() && !self.unseen {
            bail!("{name}: no such folder; a base model on the Hub is scored with --data");
        }
        let is_adapter = AdapterFolder::is(&self.run);
        let is_model = is_elsewhere || is_adapter || self.run.join("config.json").is_file();
        if self.unseen || !is_model {
            return Ok(None);
        }
        let Some(data) = &self.data else {
            bail!("{name} is no run: give the tasks' folder with --data");
        };
        if self.query.is_some() {
            bail!("{name} is no run: --query is for runs whose recipe has [instructions]");
        }
        let recipe = recipe::find_for("lora", BaseKind::Writer)?;
        let recipe = overrides::apply(&recipe, &self.set)?;
        // Everything that can be refused before a model is downloaded.
        recipe.check()?;
        load_tasks(&bundled::folder(data)?, self.tasks.as_deref())?;
        let adapter = adapter_of(&self.run, self.model.as_deref())?;
        let found;
        let model = match &adapter {
            Some(adapter) => ModelSource::Adapter(adapter),
            None => {
                let mut downloads = Downloads::new();
                let show =
                    &mut |progress: molora_train::hub::Progress<'_>| downloads.show_all(progress);
                found = base_model::find(&name, show)?.name;
                ModelSource::Base(&found)
            }
        };
        let mut progress = Progress::new();
        let show = &mut |event: Event<'_>| progress.show(event);
        let (place, options) = ((&data[..], self.tasks.as_deref()), self.options(ranks));
        let eval = evaluate_base(model, place, &recipe.data, &options, show)?;
        progress.finish();
        Ok(Some(eval))
    }

    /// The base model's scores on the run's own records, if these are what was scored.
    fn base(&self) -> anyhow::Result<Option<EvalReport>> {
        let is_own = self.data.is_none() && self.tasks.is_none() && self.limit.is_none();
        if !is_own || self.split != Split::Test {
            return Ok(None);
        }
        // Of runs that say nothing of their inputs it is not known.
        let is_known = read_config(&self.run)?.digests.is_some();
        if !is_known || !changed_inputs(&self.run, None)?.is_empty() {
            return Ok(None);
        }
        let base = read_base(&self.run)?.map(|base| base.scores);
        Ok(base.filter(|base| base.split == self.split.name()))
    }

    fn show(
        &self,
        eval: &EvalReport,
        base: Option<&EvalReport>,
        idle: Option<String>,
    ) -> anyhow::Result<()> {
        match self.json {
            true => print_written(&format!("{}\n", as_json(eval))),
            false => {
                let idle = idle.map(|text| text + "\n").unwrap_or_default();
                print(&format!("{}\n{idle}", task_table(eval, base)))
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
        // Shown before it is kept: another process may be writing the run.
        match self.json {
            true => print_written(&format!("{}\n", unseen_json(&report)))?,
            false => print(&format!("{}\n", unseen_table(&report)))?,
        }
        Ok(report.save(&self.run)?)
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

/// `{"split", "tasks": {name: {"metric", "value", "n", "accuracy", "loss", "also"}}, "mean",
/// "mean_accuracy"}`; values are fractions, losses nats.
fn as_json(eval: &EvalReport) -> serde_json::Value {
    let task = |(name, score): (&String, &molora_train::report::TaskScore)| {
        let value = json!({
            "metric": score.metric, "value": score.value, "n": score.n, "accuracy": score.accuracy,
            "loss": score.loss, "also": score.also,
        });
        (name.clone(), value)
    };
    let tasks: serde_json::Map<String, serde_json::Value> = eval.tasks.iter().map(task).collect();
    json!({
        "split": eval.split, "tasks": tasks, "mean": eval.mean, "mean_accuracy": eval.mean_accuracy,
    })
}
