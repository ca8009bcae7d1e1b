//! What a run folder has, and making one without touching what is no run.
//!
//! | file | content | since |
//! |---|---|---|
//! | `run.toml` | the resolved recipe with format, data, model, tasks with labels, seed, device, version | the start |
//! | `steps.jsonl` | one record per step: losses, terms, rate, tokens; stage and, of an expert alone, its task | every step |
//! | `checkpoints/step-*/` | model, optimizer and place of the newest checkpoint | until the run is finished |
//! | `stages/<stage>/` | the state in which a stage began, for `--from-stage` | each stage after the first |
//! | `experts/<task>/` | `adapter_config.json`, `adapter_model.safetensors` (a LoRA), `head.safetensors`, `gate.safetensors` | the expert's leg |
//! | `general/` | the general expert, as a LoRA | its stage |
//! | `instructions.json` | instructions with vectors, and the global weight | `embed_instructions` |
//! | `adapter_config.json`, `adapter_model.safetensors`, `heads.safetensors` | the last model | the end |
//! | `eval.json`, `predictions.json`, `routing.json`, `report.html` | scores, answers, shares of experts, the report | the end |
//! | `summary.json` | facts of the run; a folder that has it is finished | the very end |
//! | `unseen.json` | scores on tasks that the run was not trained on | `molora eval --unseen` |
//! | `before/<task>/` | what the expert of a task that was added later has replaced | `molora add-expert` |
//! | `.growing-<task>/`, `.removing-<task>/`, `.swap/` | a change of the experts that is being made | until it is done |

use std::path::Path;

use super::config::write_config;
use super::{RUN, RunConfig};
use crate::base::files::{folder_beside, put_in_place};
use crate::error::{RunProblem, TrainError};

/// File of the step records in a run folder.
pub const STEPS: &str = "steps.jsonl";
/// File that a run folder holds as soon as the run is finished.
pub const SUMMARY: &str = "summary.json";
/// File of the scores in a run folder.
pub const EVAL: &str = "eval.json";
/// File of how the routers shared the tasks in a run folder.
pub const ROUTING: &str = "routing.json";
/// The page of a run folder.
pub const REPORT: &str = "report.html";
/// Folder of the states that a run goes on from.
pub(super) const CHECKPOINTS: &str = "checkpoints";
/// Folder of the states in which a run's stages began: they belong to the tasks that it had then.
pub(crate) const STAGES: &str = "stages";
/// File of the predicted classes in a run folder.
pub const PREDICTIONS: &str = "predictions.json";

/// Refuses a folder that exists, or with `force` one that is no run and not empty.
pub(crate) fn check_folder(folder: &Path, force: bool) -> Result<(), TrainError> {
    let existing = folder.ancestors().find(|path| path.exists());
    if let Some(file) = existing.filter(|path| !path.is_dir()) {
        return Err(TrainError::run(file, RunProblem::IsFile));
    }
    if existing != Some(folder) {
        return Ok(());
    }
    let mut entries = fs_err::read_dir(folder)?;
    if entries.next().is_none() {
        return Ok(());
    }
    if !force {
        return Err(TrainError::run(folder, RunProblem::Exists));
    }
    if !folder.join(RUN).is_file() {
        return Err(TrainError::run(folder, RunProblem::NoRunToReplace));
    }
    Ok(())
}

/// Makes a run folder with its configuration, in place of an older run.
///
/// It is made beside its place and then renamed: a folder of that name always has its `run.toml`.
pub(crate) fn make_folder(folder: &Path, config: &RunConfig) -> Result<(), TrainError> {
    let made = folder_beside(folder, ".molora-run-")?;
    write_config(made.path(), config)?;
    put_in_place(made, folder)
}
