//! What a run's configuration becomes with one task more or less.

use std::path::Path;

use molora_models::Growth;

use crate::base::bundled;
use crate::data::Task;
use crate::error::{GrowthProblem, TrainError};
use crate::recipe::{StageConfig, Transform};
use crate::store::{Digests, PROMPTED, RUN, RunConfig, TaskLabels};

/// Whether a stage trains the expert of each task alone.
fn trains_experts(stage: &StageConfig) -> bool {
    stage.trains_alone() && stage.scope.is_by_task()
}

/// How a run gets one more task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// The new expert is trained alone, as the others were, and joins them.
    Apart,
    /// What is new joins a mixture that was trained together, and is trained in it.
    Together(Growth),
}

/// How a run grows.
///
/// # Errors
/// Why it cannot.
pub(super) fn way(run: &Path, config: &RunConfig) -> Result<Way, TrainError> {
    let recipe = &config.recipe;
    if is_apart(config) {
        return Ok(Way::Apart);
    }
    let is_given = |stage: &StageConfig| stage.transform == Some(Transform::Given);
    let growth = match recipe.stages.iter().any(is_given) {
        true => {
            Err("its experts were trained elsewhere: `molora assemble` puts more of them together")
        }
        false => recipe.adapter.growth(),
    };
    growth.map(Way::Together).map_err(|why| {
        let problem = GrowthProblem::CannotGrow {
            recipe: recipe.name.clone(),
            why,
        };
        TrainError::run(&run.join(RUN), problem)
    })
}

/// Whether a run's experts were trained one by one.
pub(super) fn is_apart(config: &RunConfig) -> bool {
    let recipe = &config.recipe;
    recipe.adapter.has_expert_per_task() && recipe.stages.iter().any(trains_experts)
}

/// The position of a run's task.
pub(super) fn position(run: &Path, config: &RunConfig, task: &str) -> Result<usize, TrainError> {
    let names = super::names(config);
    let found = names.iter().position(|name| name == task);
    found.ok_or_else(|| {
        let problem = GrowthProblem::NoExpertOf {
            task: task.into(),
            known: names.join(", "),
        };
        TrainError::run(run, problem)
    })
}

/// The configuration with one more task at the end, from `data` if that is not the run's own folder;
/// `group` is what the user names, in place of the task's own.
pub(super) fn grown(
    run: &Path,
    config: &RunConfig,
    way: Way,
    (task, data): (&Task, &str),
    group: Option<&str>,
) -> Result<RunConfig, TrainError> {
    let name = &task.meta.name;
    let mut grown = config.clone();
    let labels = TaskLabels::of(task);
    grown.tasks.push(TaskLabels {
        // A file of an earlier format has no such key.
        instruction: labels.instruction.filter(|_| config.format >= PROMPTED),
        data: (data != config.data).then(|| data.to_owned()),
        ..labels
    });
    if let Some(digests) = &mut grown.digests {
        let files = Digests::of_task(&bundled::folder(data)?, name)?;
        digests.tasks.insert(name.clone(), files);
    }
    match (grown.recipe.adapter.task_groups_mut(), group) {
        (Some(groups), group) => {
            let own = group.or(task.meta.group.as_deref());
            let Some(group) = own.filter(|group| !group.is_empty()) else {
                let known: Vec<&str> = groups.keys().map(String::as_str).collect();
                let problem = GrowthProblem::NoGroup {
                    task: name.clone(),
                    known: known.join(", "),
                };
                return Err(TrainError::run(run, problem));
            };
            groups.entry(group.into()).or_default().push(name.clone());
        }
        (None, Some(group)) => {
            let problem = GrowthProblem::NoGroups {
                recipe: config.recipe.name.clone(),
                group: group.into(),
            };
            return Err(TrainError::run(run, problem));
        }
        (None, None) => {}
    }
    if let Way::Together(growth) = way {
        grown.recipe.adapter = grown.recipe.adapter.grown(growth);
    }
    let listed = |stage: &&mut StageConfig| trains_experts(stage) && !stage.tasks.is_empty();
    for stage in grown.recipe.stages.iter_mut().filter(listed) {
        stage.tasks.push(name.clone());
    }
    Ok(grown)
}

/// The configuration without one of its tasks.
pub(super) fn shrunk(run: &Path, config: &RunConfig, task: &str) -> Result<RunConfig, TrainError> {
    let mut shrunk = config.clone();
    shrunk.tasks.retain(|other| other.name != task);
    if let Some(digests) = &mut shrunk.digests {
        digests.tasks.remove(task);
    }
    let recipe = &mut shrunk.recipe;
    recipe.data.task_weights.remove(task);
    recipe.data.writing.templates.remove(task);
    if let Some(groups) = recipe.adapter.task_groups_mut() {
        let members = groups.values_mut();
        members.for_each(|members| members.retain(|name| name != task));
        groups.retain(|_, members| !members.is_empty());
    }
    for stage in recipe.stages.iter_mut().chain(&mut recipe.growth) {
        // An empty list would mean all tasks.
        if stage.tasks == [task] {
            let problem = GrowthProblem::StageOfOneTask {
                stage: stage.name.clone(),
                task: task.into(),
            };
            return Err(TrainError::run(&run.join(RUN), problem));
        }
        stage.tasks.retain(|name| name != task);
    }
    Ok(shrunk)
}

/// Where each expert, and each group of experts, of a changed run was before; none for a new one.
pub(super) struct Origins {
    /// Number of experts before, without a general one.
    pub(super) old_experts: usize,
    /// The experts of the changed run, in its order.
    pub(super) experts: Vec<Option<usize>>,
    /// Its groups, in the order of their names.
    pub(super) groups: Vec<Option<usize>>,
}

impl Origins {
    pub(super) fn of(old: &RunConfig, new: &RunConfig) -> Self {
        let in_old = |task: &TaskLabels| old.tasks.iter().position(|other| other.name == task.name);
        let groups = |config: &RunConfig| config.recipe.adapter.task_groups().unwrap_or_default();
        let old_groups = groups(old);
        let group = |name: &String| old_groups.keys().position(|other| other == name);
        Self {
            old_experts: old.tasks.len(),
            experts: new.tasks.iter().map(in_old).collect(),
            groups: groups(new).keys().map(group).collect(),
        }
    }
}
