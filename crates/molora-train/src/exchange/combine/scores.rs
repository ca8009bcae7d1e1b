//! Tasks for a merged model, and its scores.

use std::path::Path;

use burn::tensor::Device;
use molora_models::{Backbone, TaskHead, TaskModel};

use super::given::{Expert, Origin};
use crate::base::bundled;
use crate::data::{Split, TaskKind, TokenizedTask, list_tasks, load_tasks_for};
use crate::error::{RunProblem, TrainError};
use crate::eval::{EvalScope, evaluate};
use crate::model::with_stable_ids;
use crate::recipe::DataConfig;
use crate::report::EvalReport;
use crate::run::tokenized;

/// The heads of all experts by task, without those of tasks for which several experts bring one, whose
/// names come with them.
pub(super) fn heads(experts: &[Expert]) -> (Vec<(String, TaskHead)>, Vec<String>) {
    let all = experts.iter().flat_map(|expert| &expert.heads);
    let count = |task: &String| all.clone().filter(|(other, _)| other == task).count();
    let (kept, left): (Vec<_>, Vec<_>) =
        all.clone().cloned().partition(|(task, _)| count(task) == 1);
    let mut left: Vec<String> = left.into_iter().map(|(task, _)| task).collect();
    left.dedup();
    left.sort();
    left.dedup();
    (kept, left)
}

/// Tasks that a merged model is scored on.
pub(super) struct Asked {
    pub(super) tasks: Vec<TokenizedTask>,
    pub(super) heads: Vec<Option<TaskHead>>,
    pub(super) data: DataConfig,
}

impl Asked {
    /// Reads the tasks in a folder: of an encoder those that experts bring heads for, of a model that
    /// writes all.
    ///
    /// # Errors
    /// No task that has a head, another number of labels than the head has classes; whatever reading
    /// tasks gives.
    pub(super) fn read(
        data: &str,
        folder: &Path,
        base: &Backbone,
        origins: &[Origin],
        heads: &[(String, TaskHead)],
    ) -> Result<Self, TrainError> {
        let path = bundled::folder(data)?;
        let own = |task: &String| heads.iter().find(|(other, _)| other == task);
        let mut names = list_tasks(&path)?;
        if !base.writes() {
            let first = names[0].clone();
            names.retain(|name| own(name).is_some());
            if names.is_empty() {
                let known: Vec<&str> = heads.iter().map(|(task, _)| &task[..]).collect();
                let known = match known.is_empty() {
                    true => "none".to_owned(),
                    false => known.join(", "),
                };
                let problem = RunProblem::NoHeadFor { task: first, known };
                return Err(TrainError::run(&path, problem));
            }
        }
        let config = data_config(base, origins);
        let tasks = load_tasks_for(&path, Some(&names), &config.writing, false)?;
        for task in tasks.iter().filter(|_| !base.writes()) {
            let classes = own(&task.meta.name).map_or(0, |(_, head)| head.num_classes());
            let labels = match task.meta.kind {
                TaskKind::Regression => 1,
                _ => task.meta.labels.len(),
            };
            if labels != classes {
                let problem = RunProblem::OtherHead {
                    task: task.meta.name.clone(),
                    found: labels,
                    expected: classes,
                };
                return Err(TrainError::run(&path, problem));
            }
        }
        Ok(Self {
            tasks: tokenized(folder, base, &tasks, &config)?,
            heads: names
                .iter()
                .map(|name| Some(own(name)?.1.clone()))
                .collect(),
            data: config,
        })
    }

    /// The scores of a merged model on the test split.
    ///
    /// # Errors
    /// As [`evaluate`].
    pub(super) fn scores(
        &self,
        backbone: Backbone,
        device: &Device,
    ) -> Result<EvalReport, TrainError> {
        let model = with_stable_ids(TaskModel {
            backbone,
            heads: self.heads.clone(),
        });
        let rows = self.data.eval_batch_size;
        let scope = EvalScope::own(Split::Test, rows, self.tasks.len());
        Ok(evaluate(&model, &self.tasks, scope, device, None, |_| Ok(()))?.scores)
    }
}

/// How the experts' runs read texts, or else the defaults within what the model can read.
fn data_config(base: &Backbone, origins: &[Origin]) -> DataConfig {
    let run = origins.iter().find_map(|origin| origin.run.as_ref());
    let mut data = run.map(|run| run.recipe.data.clone()).unwrap_or_default();
    let limit = base.max_tokens().unwrap_or(usize::MAX);
    data.max_length = data.max_length.min(limit);
    data.writing.max_length = data.writing.max_length.min(limit);
    data
}
