//! Reading a finished run again and scoring it.

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use burn::tensor::Device;
use molora_kernels::random::Seed;
use molora_models::{Backbone, BaseDtype, TaskModel};

use super::inputs::warn_of_changed;
use super::load::{Loaded, ReadBase, load_beside, load_run_tasks, tokenized};
use super::ranks::agree_on_scored;
use crate::base::{AdapterFolder, DeviceSpec, base_model, bundled};
use crate::collective::{Collective, Local};
use crate::data::metrics::Metric;
use crate::data::{Split, Task, TaskMeta, TokenizedTask, load_tasks_for, task_names};
use crate::error::{RunProblem, TrainError};
use crate::eval::{EvalScope, Evaluation, evaluate};
use crate::guide::{Clusters, Guide, Instructions, Query};
use crate::recipe::DataConfig;
use crate::report::{EvalReport, RoutingReport};
use crate::store::{RUN, RunConfig, SUMMARY, SWAP, TaskLabels, checkpoint, read_config};
use crate::train::Event;

/// A finished run in memory.
pub(crate) struct Opened {
    pub(crate) config: RunConfig,
    pub(crate) loaded: Loaded,
    pub(crate) model: TaskModel,
    pub(crate) instructions: Option<Instructions>,
    pub(crate) clusters: Option<Clusters>,
}

impl Opened {
    /// The guidance of the routers for the run's own tasks, if the method has that.
    ///
    /// # Errors
    /// Whatever reading the encoder gives that puts texts into clusters.
    pub(crate) fn guide(&self) -> Result<Option<Guide>, TrainError> {
        let device = &self.loaded.device;
        match (&self.instructions, &self.clusters) {
            (Some(instructions), _) => Ok(Some(instructions.guide(device))),
            (None, Some(clusters)) => clusters.guide(&self.loaded.tasks, device).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// The requested query, or the recipe's.
    ///
    /// # Errors
    /// If a query is requested and the run has no instructions.
    pub(crate) fn query(&self, asked: Option<&Query>, run: &Path) -> Result<Query, TrainError> {
        match (asked, self.config.recipe.instructions()) {
            (Some(_), None) => Err(TrainError::run(&run.join(RUN), RunProblem::NoInstructions)),
            (Some(query), _) => Ok(query.clone()),
            (None, Some(config)) => Ok(config.query.into()),
            (None, None) => Ok(Query::default()),
        }
    }
}

/// The records that are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScoredRecords {
    /// Their split.
    pub split: Split,
    /// At most so many of each task, the same ones each time: on the validation split those that a
    /// training with this `validation.limit` is scored on.
    pub limit: Option<NonZeroUsize>,
}

impl Default for ScoredRecords {
    /// All of the test split.
    fn default() -> Self {
        Self {
            split: Split::Test,
            limit: None,
        }
    }
}

impl ScoredRecords {
    /// The tasks with nothing but these records.
    ///
    /// # Errors
    /// [`RunProblem::NothingToScore`] for a task that has none.
    fn of(self, run: &Path, tasks: &[Task]) -> Result<Vec<Task>, TrainError> {
        let limit = self.limit.map_or(usize::MAX, NonZeroUsize::get);
        if let Some(task) = tasks.iter().find(|task| task.split(self.split).is_empty()) {
            let (task, split) = (task.meta.name.clone(), self.split.name());
            let problem = RunProblem::NothingToScore { task, split };
            return Err(TrainError::run(run, problem));
        }
        Ok(tasks
            .iter()
            .map(|task| task.only(self.split, limit))
            .collect())
    }
}

/// Scores a finished run on the test split of its tasks, in `data` if that is given.
///
/// # Errors
/// If the folder holds no finished run, or the data's tasks or labels are not those of the run.
pub fn evaluate_run(
    folder: &Path,
    data: Option<&str>,
    device: Option<DeviceSpec>,
) -> Result<(EvalReport, RoutingReport), TrainError> {
    let options = EvalOptions {
        data,
        device,
        ..EvalOptions::default()
    };
    evaluate_run_by(folder, &options, &mut |_| {})
}

/// How a run is scored.
#[derive(Debug, Clone, Copy)]
pub struct EvalOptions<'a> {
    /// Folder of the tasks, or `bundled:tasks`; that of the training if `None`.
    pub data: Option<&'a str>,
    /// The device; that of the training if `None`.
    pub device: Option<DeviceSpec>,
    /// What is compared with the experts' instructions; what the recipe says if `None`.
    pub query: Option<&'a Query>,
    /// The records.
    pub scored: ScoredRecords,
    /// The ranks that each answer a share of the records; all get the whole result.
    pub collective: &'a dyn Collective,
}

impl Default for EvalOptions<'_> {
    /// The test split as the training had it, by one process.
    fn default() -> Self {
        Self {
            data: None,
            device: None,
            query: None,
            scored: ScoredRecords::default(),
            collective: &Local,
        }
    }
}

/// [`evaluate_run`] on other records, with another source of the queries than the recipe's, or on several ranks.
///
/// # Errors
/// As [`evaluate_run`]; also if there is a query for a run without instructions, a task has no
/// record in the split, or the ranks differ in what they score.
pub fn evaluate_run_by(
    folder: &Path,
    options: &EvalOptions<'_>,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<(EvalReport, RoutingReport), TrainError> {
    let scored = options.scored;
    let opened = open_scored(folder, options.data, scored, options.device)?;
    let guide = match opened.query(options.query, folder)? {
        Query::Task => opened.guide()?,
        query => guide_by(&opened, &query, scored.split)?,
    };
    let rows = opened.config.recipe.data.eval_batch_size;
    let (model, Loaded { tasks, device, .. }) = (&opened.model, &opened.loaded);
    agree_on_scored(options.collective, folder, tasks)?;
    let scope = EvalScope {
        collective: options.collective,
        ..EvalScope::own(scored.split, rows, tasks.len())
    };
    let found = evaluate_showing(model, tasks, scope, device, guide.as_ref(), on_event)?;
    let mut routing = found.routing;
    routing.has_general = opened.loaded.spec.general.is_some();
    Ok((found.scores, routing))
}

/// A finished run with those records of its tasks that are scored.
///
/// # Errors
/// As [`evaluate_run`].
pub(super) fn open_scored(
    folder: &Path,
    data: Option<&str>,
    scored: ScoredRecords,
    device: Option<DeviceSpec>,
) -> Result<Opened, TrainError> {
    unchanged(folder, || {
        let config = read_finished(folder)?;
        let tasks = scored.of(folder, &load_run_tasks(folder, &config, data)?)?;
        open_with(folder, config, &tasks, Some(data), (device, false), &[])
    })
}

/// Scores a finished run with a generative model on the test split of any tasks in `data`; to routers and
/// gates those that it was not trained on are unknown.
///
/// # Errors
/// As [`evaluate_run_by`]; also if the model is an encoder, which has no head for other tasks.
pub fn evaluate_other(
    folder: &Path,
    names: &[String],
    options: &EvalOptions<'_>,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<(EvalReport, RoutingReport), TrainError> {
    let opened = open_without_data(folder, options.device)?;
    let (config, loaded, scored) = (&opened.config, &opened.loaded, options.scored);
    let query = opened.query(options.query, folder)?;
    if !loaded.base.writes() {
        return Err(TrainError::run(&folder.join(RUN), RunProblem::NoHeads));
    }
    let data = bundled::folder(options.data.unwrap_or(&config.data))?;
    let writing = &config.recipe.data.writing;
    let tasks = scored.of(folder, &load_tasks_for(&data, Some(names), writing, false)?)?;
    let tasks = tokenized(&loaded.folder, &loaded.base, &tasks, &config.recipe.data)?;
    let number = |task: &TokenizedTask| {
        let own = &config.tasks;
        own.iter().position(|own| own.name == task.name)
    };
    let numbers: Vec<Option<usize>> = tasks.iter().map(number).collect();
    let guide = match (&opened.instructions, &opened.clusters) {
        (None, None) => None,
        (None, Some(clusters)) => Some(clusters.guide(&tasks, &loaded.device)?),
        (Some(instructions), _) => {
            let encoder = instructions.text_encoder(&loaded.device)?;
            Some(instructions.guide_of(&query, &tasks, scored.split, &encoder)?)
        }
    };
    agree_on_scored(options.collective, folder, &tasks)?;
    let scope = EvalScope {
        numbers: &numbers,
        collective: options.collective,
        ..EvalScope::own(
            scored.split,
            config.recipe.data.eval_batch_size,
            config.tasks.len(),
        )
    };
    let guide = guide.as_ref();
    let (model, device) = (&opened.model, &loaded.device);
    let found = evaluate_showing(model, &tasks, scope, device, guide, on_event)?;
    let mut routing = found.routing;
    routing.has_general = loaded.spec.general.is_some();
    Ok((found.scores, routing))
}

/// A model that is scored and is no run.
#[derive(Debug, Clone, Copy)]
pub enum ModelSource<'a> {
    /// A base model as it is, by its name.
    Base(&'a str),
    /// A base model with an adapter that PEFT wrote.
    Adapter(&'a AdapterFolder),
}

/// Scores a generative model, as it is or with an adapter that no run holds, on tasks in `data`; the options' own `data`
/// and `query` are not looked at.
///
/// # Errors
/// If the model cannot be found or read, is an encoder, or the tasks cannot be read.
pub fn evaluate_base(
    model: ModelSource<'_>,
    (data, names): (&str, Option<&[String]>),
    config: &DataConfig,
    options: &EvalOptions<'_>,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<EvalReport, TrainError> {
    let device = options.device.unwrap_or(DeviceSpec::Cpu);
    device.check()?;
    let scored = options.scored;
    let data = bundled::folder(data)?;
    let tasks = load_tasks_for(&data, names, &config.writing, false)?;
    let tasks = scored.of(&data, &tasks)?;
    let device = device.open()?;
    let (folder, backbone) = match model {
        ModelSource::Base(name) => {
            let folder = base_model::find(name, &mut base_model::silent)?.folder;
            let backbone = Backbone::from_folder(&folder, &device)?;
            (folder, backbone)
        }
        ModelSource::Adapter(adapter) => {
            let backbone = adapter.open(BaseDtype::F32, &device)?;
            (adapter.base.folder.clone(), backbone)
        }
    };
    if !backbone.writes() {
        return Err(TrainError::run(&folder, RunProblem::UntrainedEncoder));
    }
    let tasks = tokenized(&folder, &backbone, &tasks, config)?;
    agree_on_scored(options.collective, &folder, &tasks)?;
    let numbers = vec![None; tasks.len()];
    let scope = EvalScope {
        numbers: &numbers,
        collective: options.collective,
        ..EvalScope::own(scored.split, config.eval_batch_size, 1)
    };
    let heads = Vec::new();
    let model = TaskModel { backbone, heads };
    Ok(evaluate_showing(&model, &tasks, scope, &device, None, on_event)?.scores)
}

/// [`evaluate`] that reports how many records are done.
pub(super) fn evaluate_showing(
    model: &TaskModel,
    tasks: &[TokenizedTask],
    scope: EvalScope<'_>,
    device: &Device,
    guide: Option<&Guide>,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Evaluation, TrainError> {
    let total = tasks.iter().map(|task| task.split(scope.split).len()).sum();
    let mut done = 0;
    evaluate(model, tasks, scope, device, guide, |records| {
        done += records;
        on_event(Event::Evaluated(done, total));
        Ok(())
    })
}

/// The guidance of the routers for the records of a split by a query.
///
/// # Errors
/// Whatever reading the sentence encoder gives.
pub(crate) fn guide_by(
    opened: &Opened,
    query: &Query,
    split: Split,
) -> Result<Option<Guide>, TrainError> {
    let Some(instructions) = &opened.instructions else {
        return Ok(None);
    };
    let encoder = instructions.text_encoder(&opened.loaded.device)?;
    let guide = instructions.guide_of(query, &opened.loaded.tasks, split, &encoder)?;
    Ok(Some(guide))
}

/// Reads a finished run without any records of its tasks.
///
/// # Errors
/// As [`evaluate_run`].
pub(crate) fn open_without_data(
    folder: &Path,
    device: Option<DeviceSpec>,
) -> Result<Opened, TrainError> {
    open_as(folder, None, device, &[])
}

/// As [`open_without_data`], with the base's matrices in another type than in training, and its weights
/// shared with base models that were read before.
///
/// # Errors
/// As [`evaluate_run`].
pub(crate) fn open_as(
    folder: &Path,
    base_dtype: Option<BaseDtype>,
    device: Option<DeviceSpec>,
    known: &[&ReadBase],
) -> Result<Opened, TrainError> {
    unchanged(folder, || {
        let mut config = read_config(folder)?;
        config.base_dtype = base_dtype.unwrap_or(config.base_dtype);
        let tasks: Vec<Task> = config.tasks.iter().map(bare_task).collect();
        open_with(folder, config, &tasks, None, (device, false), known)
    })
}

/// Reads a run as it was at one moment. Who reads takes no lock, so another process may change the
/// experts between two files: then all is read again.
fn unchanged<T>(folder: &Path, read: impl Fn() -> Result<T, TrainError>) -> Result<T, TrainError> {
    const TRIES: usize = 5;
    const PAUSE: Duration = Duration::from_millis(100);
    let state = || {
        (
            std::fs::read(folder.join(RUN)).ok(),
            folder.join(SWAP).exists(),
        )
    };
    for _ in 1..TRIES {
        let before = state();
        let found = read();
        if state() == before {
            return found;
        }
        std::thread::sleep(PAUSE);
    }
    read()
}

/// A task without records.
pub(crate) fn bare_task(labels: &TaskLabels) -> Task {
    Task {
        meta: TaskMeta {
            name: labels.name.clone(),
            kind: labels.kind,
            instruction: labels.instruction.clone().unwrap_or_default(),
            labels: labels.labels.clone(),
            label_words: labels.label_words.clone(),
            metric: Some(Metric::Accuracy),
            ..TaskMeta::default()
        },
        ..Task::default()
    }
}

/// Reads the configuration of a finished run.
///
/// # Errors
/// If the folder holds no run, or one that is not finished.
pub(crate) fn read_finished(folder: &Path) -> Result<RunConfig, TrainError> {
    let config = read_config(folder)?;
    check_finished(folder)?;
    Ok(config)
}

/// The wanted device, or the one of the run's training, if the program has it.
pub(crate) fn device_of(
    folder: &Path,
    config: &RunConfig,
    wanted: Option<DeviceSpec>,
) -> Result<DeviceSpec, TrainError> {
    let invalid = |problem| TrainError::run(&folder.join(RUN), RunProblem::Device(problem));
    let device = wanted.map_or_else(|| config.device.parse().map_err(invalid), Ok)?;
    device.check()?;
    Ok(device)
}

/// Reads a finished run with its tasks, from `data` if that is given.
///
/// # Errors
/// As [`evaluate_run`].
pub(crate) fn open(
    folder: &Path,
    data: Option<&str>,
    device: Option<DeviceSpec>,
    trains: bool,
) -> Result<Opened, TrainError> {
    unchanged(folder, || {
        let config = read_finished(folder)?;
        let tasks = load_run_tasks(folder, &config, data)?;
        open_with(folder, config, &tasks, Some(data), (device, trains), &[])
    })
}

/// Refuses a folder without a finished run.
pub(crate) fn check_finished(folder: &Path) -> Result<(), TrainError> {
    // The last file that a run writes: the others may be cut by a kill before it.
    if !folder.join(SUMMARY).exists() {
        return Err(TrainError::run(folder, RunProblem::NotFinished));
    }
    Ok(())
}

fn open_with(
    folder: &Path,
    config: RunConfig,
    tasks: &[Task],
    data: Option<Option<&str>>,
    (device, trains): (Option<DeviceSpec>, bool),
    known: &[&ReadBase],
) -> Result<Opened, TrainError> {
    check_finished(folder)?;
    let device = device_of(folder, &config, device)?;
    let base = base_model::find(&config.model, &mut base_model::silent)?;
    warn_of_changed(folder, &config, &base.folder, data)?;
    let loaded = load_beside(&config, &base.folder, tasks, device, trains, known)?;
    let names = task_names(&loaded.tasks);
    let mut model = loaded.mixture(Seed::new(config.seed))?;
    checkpoint::load_weights(folder, &mut model, &loaded.spec, &names)?;
    let has_instructions = config.recipe.instructions().is_some();
    let instructions = has_instructions.then(|| Instructions::load(folder, &names));
    Ok(Opened {
        instructions: instructions.transpose()?,
        clusters: Clusters::load_for(folder, &loaded.spec)?,
        config,
        loaded,
        model,
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_run_that_changes_while_it_is_read_is_read_again() {
        let run = tempfile::tempdir().expect("a folder");
        let write = |text: &str| std::fs::write(run.path().join(RUN), text).expect("written");
        write("two experts");
        let reads = Cell::new(0);
        let found = unchanged(run.path(), || {
            reads.set(reads.get() + 1);
            if reads.get() == 1 {
                write("three experts");
            }
            Ok(reads.get())
        });
        assert_eq!(found.expect("read"), 2);
    }
}
