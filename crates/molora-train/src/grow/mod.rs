//! Adding an expert to a finished run and taking one out, without training the others again.
//!
//! A new expert is trained alone, as the run's own were, in `.growing-<task>` inside the run folder.
//! Then it joins them: their tensors are copied bit by bit, every router gets one more row, and the
//! recipe's `growth` stages, if there are any, train on all tasks.
//!
//! Where experts were trained together, a fresh one joins them first, if the method has a place for it
//! ([`AdapterSpec::growth`](molora_models::AdapterSpec::growth)), and is trained in the mixture, where
//! nothing trains but what is new.
//!
//! Nothing of the run changes before the end, where all new files are put in its place at once; see
//! `swap.rs`. What they replace is kept in `before/<task>`, from which removing the expert that was
//! added last restores the run byte by byte.

mod add;
mod mixture;
mod plan;
mod remove;
mod together;

use std::path::Path;

use burn::tensor::Device;
use molora_kernels::random::Seed;
use molora_models::{Adaptable, Backbone, TaskHead, TaskModel};

use crate::TrainError;
use crate::report::Record;
use crate::store::checkpoint::Progress;
use crate::store::{RunConfig, checkpoint, fresh_head};

pub use add::{AddRequest, add_expert};
pub use remove::{Removed, remove_expert};

/// Names of a run's tasks, in order.
fn names(config: &RunConfig) -> Vec<String> {
    config.tasks.iter().map(|task| task.name.clone()).collect()
}

/// The mixture of a run as its files hold it.
fn stored_mixture(
    run: &Path,
    config: &RunConfig,
    base: &Backbone,
    device: &Device,
) -> Result<TaskModel, TrainError> {
    let names = names(config);
    let spec = config.recipe.resolve(base, &names)?;
    let mut backbone = base.clone();
    backbone.attach(&spec, names.len(), Seed::new(0), device)?;
    let heads = fresh_heads(config, base, device);
    let mut model = TaskModel { backbone, heads };
    checkpoint::load_weights(run, &mut model, &spec, &names)?;
    Ok(model)
}

/// Heads into which stored ones are read.
fn fresh_heads(config: &RunConfig, base: &Backbone, device: &Device) -> Vec<Option<TaskHead>> {
    let tasks = config.tasks.iter();
    tasks
        .map(|task| fresh_head(base, task, Seed::new(0), device))
        .collect()
}

/// The end of a training that has these records.
fn progress(records: &[Record]) -> Progress {
    let mut progress = Progress::default();
    for record in records {
        match record {
            Record::Step(step) => {
                progress.step += 1;
                progress.tokens += step.tokens;
                progress.padded_tokens += step.padded_tokens;
                progress.seconds += step.seconds;
            }
            Record::Validation(record) => progress.validation_seconds += record.seconds,
            Record::Guard(_) => {}
        }
    }
    progress
}
