//! Reading a finished run again and scoring it.

use std::path::Path;

use molora_kernels::random::Seed;
use molora_models::Classifier;

use super::load::{Loaded, load, load_run_tasks};
use super::{RUN, RunConfig, SUMMARY, read_config};
use crate::data::Split;
use crate::device::DeviceSpec;
use crate::eval::evaluate;
use crate::instructions::{Guide, Instructions};
use crate::report::{EvalReport, RoutingReport};
use crate::trainer::task_names;
use crate::{TrainError, base_model, checkpoint};

/// A finished run in memory.
pub(crate) struct Opened {
    pub(crate) config: RunConfig,
    pub(crate) loaded: Loaded,
    pub(crate) model: Classifier,
    pub(crate) instructions: Option<Instructions>,
}

impl Opened {
    /// What tells the routers about the run's own tasks, if the method has that.
    pub(crate) fn guide(&self) -> Option<Guide> {
        let instructions = self.instructions.as_ref();
        instructions.map(|instructions| instructions.guide(&self.loaded.device))
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
    let opened = open(folder, data, device, false)?;
    let rows = opened.config.recipe.data.eval_batch_size;
    let found = evaluate(
        &opened.model,
        &opened.loaded.tasks,
        Split::Test,
        rows,
        &opened.loaded.device,
        opened.guide().as_ref(),
        |_| {},
    )?;
    Ok((found.scores, found.routing))
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
    let config = read_config(folder)?;
    // The last file that a run writes: the others may be cut by a kill before it.
    if !folder.join(SUMMARY).exists() {
        let text = "the run is not finished; continue it with molora train --resume";
        return Err(TrainError::run(folder, text));
    }
    let device = match device {
        Some(device) => device,
        None => config
            .device
            .parse()
            .map_err(|problem: String| TrainError::run(&folder.join(RUN), problem))?,
    };
    let tasks = load_run_tasks(folder, &config, data)?;
    let model = base_model::find(&config.model, &mut base_model::silent)?;
    let loaded = load(&config, &model.folder, &tasks, device, trains)?;
    let names = task_names(&loaded.tasks);
    let mut model = loaded.mixture(Seed::new(config.seed))?;
    checkpoint::load_weights(folder, &mut model, &loaded.spec, &names)?;
    let has_instructions = config.recipe.instructions.is_some();
    let instructions = has_instructions.then(|| Instructions::load(folder, &names));
    Ok(Opened {
        instructions: instructions.transpose()?,
        config,
        loaded,
        model,
    })
}
