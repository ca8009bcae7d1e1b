//! Answers of a finished run to records that have none.

mod file;
mod vectors;

use std::path::{Path, PathBuf};

use crate::TrainError;
use crate::base::DeviceSpec;
use crate::data::{Record, Split, Task, TaskKind, TaskMeta};
use crate::error::RunProblem;
use crate::eval::{EvalScope, answers};
use crate::guide::{Guide, Query};
use crate::run::{Opened, bare_task, guide_by, load_run_tasks, open_without_data, tokenized};
use crate::store::{RUN, read_config};

pub use crate::eval::Answer;
pub use file::{predict_file, prediction};

/// Records that are answered, and written, together.
pub const CHUNK: usize = 256;

/// A finished run that answers records of one of its tasks.
pub struct Predictor {
    opened: Opened,
    run: PathBuf,
    number: usize,
    query: Query,
    /// All tasks of the run, without records.
    tasks: Vec<Task>,
}

impl std::fmt::Debug for Predictor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let task = &self.task().name;
        let mut shown = f.debug_struct("Predictor");
        shown
            .field("run", &self.run)
            .field("task", task)
            .finish_non_exhaustive()
    }
}

impl Predictor {
    /// Reads a finished run for one of its tasks, which has to be named where there are several.
    ///
    /// # Errors
    /// A run that is not finished, a task that it has not or that is not named; whatever reading the run
    /// gives. A run of an earlier version with a generative model does not say how the task's records
    /// are prompted: its data have to be where they were.
    pub fn open(
        run: &Path,
        task: Option<&str>,
        device: Option<DeviceSpec>,
    ) -> Result<Self, TrainError> {
        let opened = open_without_data(run, device)?;
        let labels = &opened.config.tasks;
        let number = match task {
            Some(name) => opened.task_number(run, name)?,
            None if labels.len() == 1 => 0,
            None => {
                let names: Vec<&str> = labels.iter().map(|task| &task.name[..]).collect();
                let known = names.join(", ");
                return Err(TrainError::run(run, RunProblem::WhichTask { known }));
            }
        };
        let writing = &opened.config.recipe.data.writing;
        if labels[number].kind == TaskKind::Generation && writing.max_new_tokens == 0 {
            return Err(TrainError::run(&run.join(RUN), RunProblem::WritesNoAnswers));
        }
        let mut tasks: Vec<Task> = labels.iter().map(bare_task).collect();
        if labels[number].instruction.is_none() && opened.loaded.base.writes() {
            let found = load_run_tasks(run, &opened.config, None)?;
            let instruction = &found[number].meta.instruction;
            tasks[number].meta.instruction.clone_from(instruction);
        }
        let name = &labels[number].name;
        tasks[number].meta.template = writing.template_of(name)?;
        Ok(Self {
            query: opened.query(None, run)?,
            run: run.into(),
            number,
            tasks,
            opened,
        })
    }

    /// Reads a finished run for all of its tasks, the first of them to begin with.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn of_any_task(run: &Path, device: Option<DeviceSpec>) -> Result<Self, TrainError> {
        let config = read_config(run)?;
        let first = config.tasks.first().map(|task| &task.name[..]);
        Self::open(run, first, device)
    }

    /// Names of the run's tasks.
    pub fn task_names(&self) -> Vec<String> {
        self.tasks
            .iter()
            .map(|task| task.meta.name.clone())
            .collect()
    }

    /// Answers records of another task from now on.
    ///
    /// # Errors
    /// A task that the run has not.
    pub fn turn_to(&mut self, task: &str) -> Result<(), TrainError> {
        self.number = self.opened.task_number(&self.run, task)?;
        Ok(())
    }

    /// The task, as records are read by it.
    pub fn task(&self) -> &TaskMeta {
        &self.tasks[self.number].meta
    }

    /// The answers to records, in their order.
    ///
    /// # Errors
    /// A record that yields no token or has no prompt, or scores that allow no prediction.
    pub fn answers(&mut self, records: &[Record]) -> Result<Vec<Answer>, TrainError> {
        let mut tasks = self.tasks.clone();
        tasks[self.number].test = records.to_vec();
        let Opened {
            config,
            loaded,
            model,
            ..
        } = &mut self.opened;
        loaded.tasks = tokenized(&loaded.folder, &loaded.base, &tasks, &config.recipe.data)?;
        let scope = EvalScope::own(Split::Test, config.recipe.data.eval_batch_size, tasks.len());
        let model = burn::module::Module::valid(model);
        let guide = self.guide(&self.query)?;
        let loaded = &self.opened.loaded;
        let task = (self.number, &loaded.tasks[self.number]);
        answers(&model, task, scope, &loaded.device, guide.as_ref())
    }

    /// The guidance of the routers for the records that were tokenized, if the method has that.
    fn guide(&self, query: &Query) -> Result<Option<Guide>, TrainError> {
        match query {
            Query::Task => self.opened.guide(),
            query if self.opened.instructions.is_some() => {
                guide_by(&self.opened, query, Split::Test)
            }
            // Clusters are of texts, whatever is asked.
            _ => self.opened.guide(),
        }
    }

    /// The [`prediction`] of each record on a line of its own.
    ///
    /// # Errors
    /// As [`answers`](Self::answers).
    pub fn lines(&mut self, records: &[Record]) -> Result<String, TrainError> {
        let answers = self.answers(records)?;
        let line = |(record, answer)| format!("{}\n", prediction(record, answer, self.task()));
        Ok(records.iter().zip(&answers).map(line).collect())
    }
}
