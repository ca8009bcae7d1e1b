//! What is checked of a request before anything is read for it.

use std::collections::BTreeMap;
use std::path::Path;

use super::stages::stage_number;
use super::{Request, check_tasks, with_groups};
use crate::base::{base_model, bundled};
use crate::data::{Task, load_tasks_for};
use crate::error::{RunProblem, TrainError};
use crate::recipe::{MAX_STEPS, Recipe, StageConfig, Transform};
use crate::store::{Claim, Digests};
use crate::train::check_init;

/// The option in errors.
const EPOCHS: &str = "--epochs";

/// Checks all of a request that can be checked without its base model; [`train`](super::train) does so too.
///
/// # Errors
/// As [`train`](super::train).
pub fn check(request: &Request) -> Result<(), TrainError> {
    checked(request).map(drop)
}

/// What can be known of a request without its base model.
pub(super) struct Checked {
    pub(super) claim: Claim,
    pub(super) recipe: Recipe,
    pub(super) tasks: Vec<Task>,
    /// Digests of the tasks' files as they were read.
    pub(super) files: BTreeMap<String, BTreeMap<String, String>>,
}

/// # Errors
/// As [`train`](super::train).
pub(super) fn checked(request: &Request) -> Result<Checked, TrainError> {
    let data = bundled::folder(&request.data)?;
    let encoder = request.recipe.text_encoder();
    let mut inputs = vec![Path::new(&request.model), data.as_path()];
    inputs.extend(encoder.map(Path::new));
    inputs.extend(request.init.as_deref());
    let claim = Claim::new(&request.out, request.force, &inputs)?;
    if request.memory.is_some() && !request.device.is_processor() {
        let device = request.device.to_string();
        let problem = RunProblem::MemoryOfDevice { device };
        return Err(TrainError::run(Path::new("memory"), problem));
    }
    request.device.check()?;
    request.recipe.check()?;
    if let Some(epochs) = request.epochs
        && !(epochs.is_finite() && epochs > 0.0)
    {
        let problem = RunProblem::Epochs { found: epochs };
        return Err(TrainError::run(Path::new(EPOCHS), problem));
    }
    if request.recipe.stages.iter().any(is_given) {
        return Err(TrainError::run(&request.out, RunProblem::GivenElsewhere));
    }
    if let Some(stage) = &request.until {
        stage_number(&request.recipe, stage)?;
    }
    if let Some(init) = &request.init {
        check_init(init, &request.recipe)?;
    }
    base_model::check(&request.model)?;
    let config = &request.recipe.data;
    if config.streaming && request.memory.is_some() {
        return Err(TrainError::streamed("--batch-size auto"));
    }
    let (writing, streaming) = (&config.writing, config.streaming);
    let tasks = load_tasks_for(&data, request.tasks.as_deref(), writing, streaming)?;
    let digest = |task: &Task| {
        let name = task.meta.name.clone();
        Ok((name, Digests::of_task(&data, &task.meta.name)?))
    };
    let files = tasks
        .iter()
        .map(digest)
        .collect::<Result<_, TrainError>>()?;
    let mut recipe = with_groups(&request.recipe, &tasks)?;
    if let Some(epochs) = request.epochs {
        let records: usize = tasks.iter().map(Task::num_train).sum();
        let one = records as f64 / recipe.data.sampling.batch_size as f64;
        let steps = (epochs * one).ceil();
        if steps > MAX_STEPS as f64 {
            let problem = RunProblem::ManyEpochs {
                found: epochs,
                most: (MAX_STEPS as f64 / one).floor(),
                steps: MAX_STEPS,
            };
            return Err(TrainError::run(Path::new(EPOCHS), problem));
        }
        recipe.set_total_steps(steps as usize);
        recipe.check()?;
    }
    check_tasks(&recipe, &tasks)?;
    Ok(Checked {
        claim,
        recipe,
        tasks,
        files,
    })
}

/// Whether a stage takes what is given to `molora assemble`.
fn is_given(stage: &StageConfig) -> bool {
    matches!(stage.transform, Some(Transform::Given))
}
