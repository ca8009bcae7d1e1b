//! What a training begins with, in the place of fresh adapters: a run, or an adapter that PEFT wrote.

use std::path::Path;

use molora_kernels::random::Seed;
use molora_models::{AdapterSpec, TaskHead, TaskModel, load_adapter, load_heads};

use super::Setup;
use crate::error::{RunProblem, TrainError};
use crate::recipe::Recipe;
use crate::store::{RUN, RunConfig, SUMMARY, checkpoint, fresh_head, is_run, pool, read_config};

/// Refuses what a recipe cannot begin with, as far as that is known without a model.
///
/// # Errors
/// A recipe whose first stage trains experts alone, a folder that is neither a finished run nor an adapter, a run
/// of another method.
pub(crate) fn check_init(folder: &Path, recipe: &Recipe) -> Result<(), TrainError> {
    let refuse = |problem| Err(TrainError::run(folder, problem));
    let trained = recipe.stages.iter().find(|stage| stage.transform.is_none());
    if let Some(stage) = trained.filter(|stage| stage.trains_alone()) {
        let stage = stage.name.clone();
        return refuse(RunProblem::InitOfExperts { stage });
    }
    if !is_run(folder)? {
        let is_one = recipe.adapter.bank.num_experts == 1 && recipe.adapter.router.is_none();
        return match folder.join("adapter_config.json").is_file() {
            false => refuse(RunProblem::NoAdapter),
            true if is_one => Ok(()),
            true => refuse(RunProblem::InitOfMixture {
                recipe: recipe.name.clone(),
            }),
        };
    }
    let other = read_config(folder)?;
    if !folder.join(SUMMARY).exists() {
        return refuse(RunProblem::NotFinished);
    }
    if other.recipe.adapter != recipe.adapter {
        let keys = differing(&other.recipe, recipe);
        return refuse(RunProblem::OtherAdapter { keys });
    }
    Ok(())
}

/// The keys of the adapter, two levels deep, that two recipes have different values of.
fn differing(found: &Recipe, expected: &Recipe) -> String {
    let table = |recipe: &Recipe| toml::Value::try_from(&recipe.adapter).expect("plain data");
    let (found, expected) = (table(found), table(expected));
    let mut keys = Vec::new();
    differing_in("adapter", &found, &expected, 2, &mut keys);
    keys.join(", ")
}

fn differing_in(
    path: &str,
    found: &toml::Value,
    expected: &toml::Value,
    depth: usize,
    keys: &mut Vec<String>,
) {
    let (Some(a), Some(b), true) = (found.as_table(), expected.as_table(), depth > 0) else {
        if found != expected {
            keys.push(path.to_owned());
        }
        return;
    };
    let mut names: Vec<&String> = a.keys().chain(b.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        let path = format!("{path}.{name}");
        match (a.get(name), b.get(name)) {
            (Some(a), Some(b)) => differing_in(&path, a, b, depth - 1, keys),
            _ => keys.push(path),
        }
    }
}

/// Puts the weights of a run or an adapter into a model with fresh adapters, and the heads of tasks of the same
/// name.
///
/// # Errors
/// Files that are missing or do not fit, and tasks that parts of the adapter or heads do not fit.
pub(super) fn begin_with(
    folder: &Path,
    setup: &Setup<'_>,
    model: &mut TaskModel,
    spec: &AdapterSpec,
) -> Result<(), TrainError> {
    check_init(folder, setup.recipe)?;
    if !is_run(folder)? {
        if folder.join(checkpoint::HEADS).is_file() {
            tracing::warn!(
                "{}: its heads are not read: it does not say what their outputs mean, as a run does",
                folder.display()
            );
        }
        return pool::load_lora(folder, &mut model.backbone, spec);
    }
    let other = read_config(folder)?;
    let names: Vec<&String> = setup.tasks.iter().map(|task| &task.name).collect();
    let others: Vec<&String> = other.tasks.iter().map(|task| &task.name).collect();
    if spec.reads_tasks() && names != others {
        let list = |names: &[&String]| {
            let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
            names.join(", ")
        };
        let problem = RunProblem::OtherTasks {
            found: list(&others),
            expected: list(&names),
        };
        return Err(TrainError::run(&folder.join(RUN), problem));
    }
    load_adapter(folder, &mut model.backbone, spec)?;
    for (name, head) in heads(folder, &other, setup)? {
        let Some(place) = names.iter().position(|own| **own == name) else {
            continue;
        };
        let (own, labels) = (
            &setup.tasks[place],
            other.tasks.iter().find(|task| task.name == name),
        );
        if labels.is_some_and(|labels| labels.labels != own.labels) {
            let problem = RunProblem::OtherLabelsOf { task: name };
            return Err(TrainError::run(&folder.join(RUN), problem));
        }
        if model.heads[place].is_some() {
            model.heads[place] = Some(head);
        }
    }
    Ok(())
}

/// The heads of a run with the names of their tasks.
fn heads(
    folder: &Path,
    config: &RunConfig,
    setup: &Setup<'_>,
) -> Result<Vec<(String, TaskHead)>, TrainError> {
    let fresh = |task| fresh_head(setup.base.0, task, Seed::new(0), setup.device);
    let mut heads: Vec<Option<TaskHead>> = config.tasks.iter().map(fresh).collect();
    if heads.iter().all(Option::is_none) {
        return Ok(Vec::new());
    }
    let names: Vec<String> = config.tasks.iter().map(|task| task.name.clone()).collect();
    load_heads(&folder.join(checkpoint::HEADS), &names, &mut heads)?;
    let named = names.into_iter().zip(heads);
    Ok(named
        .filter_map(|(name, head)| Some((name, head?)))
        .collect())
}
