//! Groups that the data give, and where a run of several stages begins again or stops.

use std::collections::BTreeMap;
use std::path::Path;

use crate::base::base_model;
use crate::base::files::{remove, sync};
use crate::data::{DataError, Task, TaskKind};
use crate::error::{RunProblem, TrainError};
use crate::guide::check_instructions;
use crate::recipe::{Recipe, phases};
use crate::store::{BEFORE, MANIFEST, RUN, RunConfig, SUMMARY, check_name, checkpoint};

/// Name of the group of all experts, where neither recipe nor data say more.
const ALL: &str = "all";

/// A recipe whose groups of tasks, if it needs them and gives none, are those of the tasks'
/// `task.json`; without any there is one group.
///
/// # Errors
/// If some of the tasks name a group and others do not.
pub(crate) fn with_groups(recipe: &Recipe, tasks: &[Task]) -> Result<Recipe, TrainError> {
    let mut recipe = recipe.clone();
    let has_experts = recipe.adapter.has_expert_per_task();
    let own = recipe.adapter.task_groups_mut();
    let Some(own) = own.filter(|own| has_experts && own.is_empty()) else {
        return Ok(recipe);
    };
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let has_some = tasks.iter().any(|task| task.meta.group.is_some());
    for task in tasks {
        let name = task.meta.name.clone();
        let group = match (&task.meta.group, has_some) {
            (Some(group), _) => group.clone(),
            (None, false) => ALL.into(),
            (None, true) => {
                let problem = format!(
                    "task {name} has no group in its task.json, but others have: give it one, or \
                     all of them in adapter.router.scorer.grouped.tasks"
                );
                return Err(DataError::Selection(problem).into());
            }
        };
        groups.entry(group).or_default().push(name);
    }
    if !has_some {
        tracing::warn!(
            "no task.json names a group and the recipe names no groups: all experts are in \
             one group"
        );
    }
    *own = groups;
    Ok(recipe)
}

/// The number of the stage of that name.
///
/// # Errors
/// [`TrainError::Recipe`] with the names that there are.
pub(crate) fn stage_number(recipe: &Recipe, name: &str) -> Result<usize, TrainError> {
    let number = recipe.stages.iter().position(|stage| stage.name == name);
    number.ok_or_else(|| {
        let names: Vec<&str> = recipe.stages.iter().map(|stage| &stage.name[..]).collect();
        TrainError::Recipe {
            name: recipe.name.clone(),
            problems: vec![format!(
                "no stage is named {name}; there are: {}",
                names.join(", ")
            )],
        }
    })
}

/// Checks a recipe against tasks, before there is a model: the specification of their mixture, what
/// the stages need of them, and their instructions.
///
/// # Errors
/// [`TrainError::Recipe`] for whatever does not go together, stages with tasks that are not there or
/// have no step left, or a task without an instruction where one is compared.
pub(crate) fn check_tasks(recipe: &Recipe, tasks: &[Task]) -> Result<(), TrainError> {
    let names: Vec<String> = tasks.iter().map(|task| task.meta.name.clone()).collect();
    let recipe_file = Path::new(&recipe.name);
    for name in &names {
        check_name(recipe_file, "name of a task", name)?;
    }
    for stage in recipe.stages.iter().chain(&recipe.growth) {
        check_name(recipe_file, "name of a stage", &stage.name)?;
    }
    recipe.for_tasks(&names)?;
    check_smoothing(recipe, tasks)?;
    check_streams(recipe, tasks)?;
    phases(&recipe.name, &recipe.stages, &names, 0..names.len())?;
    if let Some(encoder) = recipe.text_encoder() {
        base_model::check(encoder)?;
    }
    if recipe.instructions().is_none() {
        return Ok(());
    }
    let tasks = tasks.iter().map(|task| &task.meta);
    check_instructions(tasks.map(|meta| (&meta.name, &meta.instruction)))
}

/// A stream without records would have nothing to give to a batch.
fn check_streams(recipe: &Recipe, tasks: &[Task]) -> Result<(), DataError> {
    let rows = recipe.data.rows_of_streams();
    let fewest = rows.iter().copied().min().unwrap_or(1);
    let (streams, least) = (rows.len(), rows.iter().sum::<usize>().div_ceil(fewest));
    let mut streamed = tasks.iter().filter(|task| task.streamed.is_some());
    match streamed.find(|task| task.num_train() < least) {
        None => Ok(()),
        Some(task) => Err(DataError::Streaming {
            path: (&task.meta.name).into(),
            problem: format!(
                "its training split has {} records, expected at least {least} for {streams} streams (data.streams)",
                task.num_train()
            ),
        }),
    }
}

/// Labels of numbers cannot be smoothed: a stage that has nothing else is asked for nothing.
fn check_smoothing(recipe: &Recipe, tasks: &[Task]) -> Result<(), TrainError> {
    let mut problems = Vec::new();
    for (field, stages) in [("stages", &recipe.stages), ("growth", &recipe.growth)] {
        for (index, stage) in stages.iter().enumerate() {
            let mut own = tasks
                .iter()
                .filter(|task| stage.tasks.is_empty() || stage.tasks.contains(&task.meta.name));
            let smoothing = stage.label_smoothing;
            if smoothing > 0.0 && own.all(|task| task.meta.kind == TaskKind::Regression) {
                problems.push(format!(
                    "{field}.{index}.label_smoothing is {smoothing}, but its tasks tell numbers, which \
                     have no labels"
                ));
            }
        }
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(TrainError::Recipe {
            name: recipe.name.clone(),
            problems,
        }),
    }
}

/// Takes a run back to the beginning of a stage that trains.
///
/// # Errors
/// If there is no such stage, it trains nothing, or the run did not get there.
pub(crate) fn begin_again(
    folder: &Path,
    config: &RunConfig,
    stage: &str,
) -> Result<(), TrainError> {
    let recipe = &config.recipe;
    let number = stage_number(recipe, stage)?;
    let trains = |number: usize| recipe.stages[number].transform.is_none();
    let refuse = |problem: RunProblem| Err(TrainError::run(&folder.join(RUN), problem));
    if !trains(number) {
        return refuse(RunProblem::TrainsNothing {
            stage: stage.into(),
        });
    }
    if folder.join(BEFORE).is_dir() {
        return refuse(RunProblem::HasGrown {
            stage: stage.into(),
        });
    }
    let is_first = !(0..number).any(trains);
    if !is_first && !checkpoint::stage_folder(folder, stage).is_dir() {
        return refuse(RunProblem::NotReached {
            stage: stage.into(),
        });
    }
    match is_first {
        true => checkpoint::forget(folder)?,
        false => checkpoint::restart(folder, stage)?,
    }
    remove(&folder.join(MANIFEST))?;
    // Last: a finished run stays one until it can resume from there.
    let summary = folder.join(SUMMARY);
    if summary.exists() {
        fs_err::remove_file(&summary)?;
        sync(folder)?;
    }
    Ok(())
}
