//! Scores of a finished run on tasks that it was not trained on.
//!
//! An encoder has no head for such a task: everything of the run stays frozen and a linear probe is
//! fitted to the pooled states of the task's training split, with the penalty that does best on its
//! validation split. The same probe on the base model without adapters stands beside it.
//!
//! What a method does without a task that it knows is decided row by row: routers that read tokens or
//! sequences work as they are; what belongs to tasks (SAMoRA's gate, decisions by task) takes the
//! mean over the run's tasks; GLIDER compares the instruction of the unseen task, or another query,
//! with those of its experts. See `docs/unseen.md`.

mod report;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;

use burn::module::Module;
use molora_kernels::random::Seed;
use molora_models::{Backbone, TaskModel};

use crate::base::place::json_bytes;
use crate::base::{DeviceSpec, bundled};
use crate::data::draw::shuffle;
use crate::data::{Split, Task, TokenizedTask, list_tasks, load_tasks, require_classification};
use crate::error::{RunProblem, TrainError};
use crate::eval::frozen::Frozen;
use crate::eval::probe::Fitted;
use crate::eval::score;
use crate::guide::{Guide, Query, TextEncoder, check_instructions};
use crate::report::{Gain, SCHEMA_VERSION};
use crate::run::{Opened, check_finished, open_without_data, tokenized};
use crate::store::manifest::put_result;
use crate::store::{RUN, RunConfig, read_config};
use crate::train::Event;

pub(crate) use report::UNSEEN;
pub use report::{ProbeResult, UnseenReport, UnseenTask, unseen_table};

/// Which run is measured on what.
#[derive(Debug, Clone, Default)]
pub struct UnseenRequest<'a> {
    /// Folder of the tasks, `bundled:tasks`, or that of the run if `None`.
    pub data: Option<&'a str>,
    /// The tasks; all in the folder that the run was not trained on if `None`.
    pub tasks: Option<&'a [String]>,
    /// Training records of a probe for each class at most.
    pub shots: Option<NonZeroUsize>,
    /// The text that instructions are compared with; that of the recipe if `None`.
    pub query: Option<&'a Query>,
    /// The device; that of the run if `None`.
    pub device: Option<DeviceSpec>,
    /// Results of the base model that are known already, by task.
    pub base: BTreeMap<String, ProbeResult>,
}

/// Measures a finished run on tasks that it was not trained on.
///
/// # Errors
/// If the folder holds no finished run, or one of a generative model; if there is no unseen task, or one
/// that is named is none, is missing, broken or no classification task; if there is a query for a run
/// without instructions.
pub fn evaluate_unseen(
    run: &Path,
    request: &UnseenRequest<'_>,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<UnseenReport, TrainError> {
    on_event(Event::Phase("loading model and tasks"));
    let config = read_config(run)?;
    check_finished(run)?;
    let tasks = unseen_tasks(run, &config, request)?;
    let opened = open_without_data(run, request.device)?;
    let config = &opened.config;
    check_probed(&run.join(RUN), &opened.loaded.base)?;
    let query = opened.query(request.query, run)?;
    let base = &opened.loaded.base;
    let tasks = tokenized(&opened.loaded.folder, base, &tasks, &config.recipe.data)?;
    let device = &opened.loaded.device;
    let text_encoder = match (&opened.instructions, &opened.clusters) {
        (Some(instructions), _) => Some(instructions.text_encoder(device)?),
        (None, Some(clusters)) => Some(clusters.text_encoder(device)?),
        (None, None) => None,
    };
    if opened.instructions.is_some() && query == Query::Task {
        check_instructions(tasks.iter().map(|task| (&task.name, &task.instruction)))?;
    }
    let measuring = Measuring {
        opened: &opened,
        tasks: &tasks,
        text_encoder,
        query,
    };
    let has_query = opened.instructions.is_some();
    let mut results = BTreeMap::new();
    for (number, task) in tasks.iter().enumerate() {
        results.insert(
            task.name.clone(),
            measuring.task(number, request, on_event)?,
        );
    }
    Ok(UnseenReport {
        version: SCHEMA_VERSION,
        recipe: config.recipe.name.clone(),
        model: config.model.clone(),
        seed: config.seed,
        shots: request.shots.map(NonZeroUsize::get),
        query: has_query.then(|| measuring.query.to_string()),
        tasks: results,
    })
}

impl UnseenReport {
    /// Writes the file into a run folder, and lists it in its manifest.
    ///
    /// # Errors
    /// [`TrainError::Io`] if it cannot be written, [`RunProblem::InUse`] while another process writes the run.
    pub fn save(&self, run: &Path) -> Result<(), TrainError> {
        let path = run.join(UNSEEN);
        put_result(run, UNSEEN, &json_bytes(&path, self)?)
    }
}

/// Refuses a generative model; `path` is named.
///
/// # Errors
/// [`RunProblem::NeedsNoProbe`].
pub(crate) fn check_probed(path: &Path, base: &Backbone) -> Result<(), TrainError> {
    match base.writes() {
        true => Err(TrainError::run(path, RunProblem::NeedsNoProbe)),
        false => Ok(()),
    }
}

/// The tasks of the request, as they stand on disk.
fn unseen_tasks(
    run: &Path,
    config: &RunConfig,
    request: &UnseenRequest<'_>,
) -> Result<Vec<Task>, TrainError> {
    let data = bundled::folder(request.data.unwrap_or(&config.data))?;
    let is_known = |name: &String| config.tasks.iter().any(|task| task.name == *name);
    let names: Vec<String> = match request.tasks {
        Some(names) => names.to_vec(),
        None => {
            let all = list_tasks(&data)?;
            all.into_iter().filter(|name| !is_known(name)).collect()
        }
    };
    if let Some(name) = names.iter().find(|name| is_known(name)) {
        let problem = RunProblem::NotUnseen { task: name.clone() };
        return Err(TrainError::run(&run.join(RUN), problem));
    }
    if names.is_empty() {
        let problem = RunProblem::NoneUnseen { run: run.into() };
        return Err(TrainError::run(&data, problem));
    }
    let tasks = load_tasks(&data, Some(&names))?;
    require_classification(&tasks)?;
    Ok(tasks)
}

/// A run and the tasks that it is measured on.
struct Measuring<'a> {
    opened: &'a Opened,
    tasks: &'a [TokenizedTask],
    text_encoder: Option<TextEncoder>,
    query: Query,
}

impl Measuring<'_> {
    fn task(
        &self,
        number: usize,
        request: &UnseenRequest<'_>,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<UnseenTask, TrainError> {
        let task = &self.tasks[number];
        let seed = Seed::new(self.opened.config.seed).child("shots");
        let shots = request.shots.map_or(usize::MAX, NonZeroUsize::get);
        let rows = draw(&task.classes(Split::Train), shots, seed.child(&task.name));
        let base = match request.base.get(&task.name) {
            Some(known) => known.clone(),
            None => {
                on_event(Event::Phase(&format!("{}: base model", task.name)));
                let backbone = self.opened.loaded.base.clone();
                let heads = Vec::new();
                let base = TaskModel { backbone, heads };
                self.probe(number, &base, false, &rows, on_event)?
            }
        };
        on_event(Event::Phase(&format!("{}: run", task.name)));
        let run = self.probe(number, &self.opened.model, true, &rows, on_event)?;
        let classes = task.classes(Split::Test);
        let right = |found: usize, class: usize| i64::from(found == class);
        let pairs = run.predictions.iter().zip(&base.predictions).zip(&classes);
        let differences =
            pairs.map(|((&run, &base), &class)| right(run, class) - right(base, class));
        Ok(UnseenTask {
            train_records: rows.len(),
            gain: Gain::of(&[vec![differences.collect()]]),
            base,
            run,
        })
    }

    /// Fits probes to the frozen states of a model and scores the best of them.
    fn probe(
        &self,
        number: usize,
        model: &TaskModel,
        is_guided: bool,
        rows: &[usize],
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<ProbeResult, TrainError> {
        let task = &self.tasks[number];
        let all = |split| (0..task.split(split).len()).collect::<Vec<_>>();
        let (validation_rows, test_rows) = (all(Split::Validation), all(Split::Test));
        let frozen = Frozen {
            model: &model.valid(),
            num_tasks: self.opened.loaded.tasks.len(),
            batch_size: self.opened.config.recipe.data.eval_batch_size,
            device: &self.opened.loaded.device,
            place: 0,
            known: None,
        };
        let total = rows.len() + validation_rows.len() + test_rows.len();
        let mut done = 0;
        let mut features = |split, rows: &[usize]| {
            let guide = match is_guided {
                true => self.guide(task, split)?,
                false => None,
            };
            let place = (task, split);
            frozen.pooled(place, rows, guide.as_ref(), &mut |records| {
                done += records;
                on_event(Event::Evaluated(done, total));
                Ok(())
            })
        };
        let train = features(Split::Train, rows)?;
        let validation = features(Split::Validation, &validation_rows)?;
        let test = features(Split::Test, &test_rows)?;
        let Fitted {
            probe,
            validation,
            l2,
        } = Fitted::of(task, (&train, rows), (&validation, &validation_rows));
        let predictions = probe.predict(&test);
        Ok(ProbeResult {
            score: score(task, Split::Test, &predictions),
            validation,
            l2,
            predictions,
        })
    }

    /// The guidance of the routers for one split of one of the tasks, as task number 0.
    fn guide(&self, task: &TokenizedTask, split: Split) -> Result<Option<Guide>, TrainError> {
        let Some(encoder) = &self.text_encoder else {
            return Ok(None);
        };
        let task = std::slice::from_ref(task);
        let guide = match (&self.opened.instructions, &self.opened.clusters) {
            (Some(instructions), _) => instructions.guide_of(&self.query, task, split, encoder)?,
            (None, Some(clusters)) => clusters.guide_of(task, &[split], encoder)?,
            (None, None) => return Ok(None),
        };
        Ok(Some(guide))
    }
}

/// At most `shots` places of each class, drawn at random, in ascending order.
fn draw(classes: &[usize], shots: usize, seed: Seed) -> Vec<usize> {
    let mut by_class: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (place, &class) in classes.iter().enumerate() {
        by_class.entry(class).or_default().push(place);
    }
    let chosen = by_class.into_iter().flat_map(|(class, mut places)| {
        shuffle(&mut seed.index(class as u64).generator(), &mut places);
        places.truncate(shots);
        places
    });
    let mut chosen: Vec<usize> = chosen.collect();
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shots_are_drawn_by_class_and_seed() {
        let classes: Vec<usize> = (0..30).map(|index| index % 3).collect();
        let chosen = draw(&classes, 4, Seed::new(1));
        for class in 0..3 {
            let of_class = chosen.iter().filter(|&&place| classes[place] == class);
            assert_eq!(of_class.count(), 4);
        }
        assert!(chosen.is_sorted());
        assert_eq!(chosen, draw(&classes, 4, Seed::new(1)));
        assert_ne!(chosen, draw(&classes, 4, Seed::new(2)));
        assert_eq!(draw(&classes, usize::MAX, Seed::new(1)).len(), 30);
    }
}
