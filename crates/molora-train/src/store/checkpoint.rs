//! Checkpoints: everything that a run needs to resume as if it had never stopped.
//!
//! A checkpoint is a folder `checkpoints/step-00000100` that is written under another name and then
//! renamed, so that a folder of that name is whole; older ones go away afterwards, under another name
//! too.

use std::path::{Path, PathBuf};

use burn::optim::ModuleOptimizer;
use burn::tensor::Bytes;
use molora_models::{AdapterSpec, TaskModel, load_adapter, load_heads, save_adapter, save_heads};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::folder::{CHECKPOINTS, STAGES};
use crate::TrainError;
use crate::base::files::{copy, copy_into};
use crate::base::place::{NewFolder, discard};
use crate::data::contain::contain;
use crate::data::{Sampler, StreamsState};
use crate::error::RunProblem;

const STATE: &str = "state.json";
const OPTIMIZER: &str = "optimizer.bpk";

/// File of the heads beside the adapter's two files.
pub const HEADS: &str = "heads.safetensors";

/// Whether a checkpoint has a file of this name beside weights and heads.
pub(super) fn is_file(name: &str) -> bool {
    name == STATE || name == OPTIMIZER
}

/// Where a run is. Dropout masks and initial values are drawn from keys (seed, step, site), so that
/// the step number is their whole state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Finished steps over all stages.
    pub step: usize,
    /// Number of the phase that the next step belongs to; see [`crate::recipe`].
    #[serde(rename = "leg")]
    pub phase: usize,
    /// Finished steps of that phase.
    #[serde(rename = "leg_step")]
    pub phase_step: usize,
    /// Real tokens so far.
    pub tokens: usize,
    /// Tokens so far with padding.
    pub padded_tokens: usize,
    /// Seconds of training so far.
    pub seconds: f64,
    /// The phase's sampler with its generator; none after the last phase, and where the data are streamed.
    pub sampler: Option<Sampler>,
    /// Where the streams of the phase's data are, if these are streamed. A training that runs has them elsewhere,
    /// and writes them down in checkpoints alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams: Option<StreamsState>,
    /// SHA-256 of the optimizer's state beside it, which its own reader does not check; none if there is
    /// no optimizer, or in a checkpoint of an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimizer_sha256: Option<String>,
    /// Steps of earlier phases that were not made, as these had ended early.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped: usize,
    /// Whether the phase has ended before its last step.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_early: bool,
    /// The best states of the phase, the best one first; their checkpoints are kept. Empty where none was
    /// scored, and as soon as the phase has taken the one that it ends with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub best: Vec<Best>,
    /// Steps of earlier phases' states that stay.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<usize>,
    /// Number of states that were scored since the best one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub since_best: usize,
    /// What a guard has multiplied the weights of the phase's balance terms by, if it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balance_factor: Option<f64>,
    /// Seconds on the validation split so far.
    #[serde(default)]
    pub validation_seconds: f64,
}

/// A state that was scored on the validation split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// The step after which it was scored.
    pub step: usize,
    /// What states are compared by.
    pub value: f64,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// Numbers of tokens above this, and of seconds, are no measurements.
const MAX_COUNT: usize = 1 << 53;

impl Progress {
    /// What cannot be true of a run whose phases have so many steps.
    pub fn problem(&self, phases: &[usize]) -> Option<String> {
        let done: usize = phases.iter().take(self.phase).sum();
        let length = phases.get(self.phase).copied().unwrap_or(0);
        if self.phase > phases.len() {
            return Some(format!(
                "leg is {}, but the run has {}",
                self.phase,
                phases.len()
            ));
        }
        if self.phase_step > length {
            let (found, phase) = (self.phase_step, self.phase);
            return Some(format!(
                "leg_step is {found}, but leg {phase} has {length} steps"
            ));
        }
        let Some(expected) = (done + self.phase_step).checked_sub(self.skipped) else {
            let skipped = self.skipped;
            return Some(format!(
                "skipped is {skipped}, but earlier legs have {done} steps"
            ));
        };
        if self.step != expected {
            return Some(format!("step is {}, expected {expected}", self.step));
        }
        let scored = self
            .best
            .iter()
            .map(|best| best.step)
            .chain(self.kept.iter().copied());
        if let Some(step) = scored.max().filter(|&step| step > self.step) {
            return Some(format!(
                "best or kept has step {step}, which is not done yet"
            ));
        }
        let has_data = self.sampler.is_some() || self.streams.is_some();
        if self.phase_step < length && !self.is_early && !has_data {
            return Some("sampler is missing".into());
        }
        let is_time = [self.seconds, self.validation_seconds]
            .iter()
            .all(|seconds| (0.0..MAX_COUNT as f64).contains(seconds));
        let is_count = self.tokens < MAX_COUNT && self.padded_tokens < MAX_COUNT;
        (!is_time || !is_count).then(|| {
            format!(
                "tokens, padded_tokens and seconds are {}, {} and {}, expected 0 to {MAX_COUNT}",
                self.tokens, self.padded_tokens, self.seconds
            )
        })
    }
}

/// A state of a run that can be gone on from.
pub(crate) struct Snapshot<'a> {
    /// The model that trains.
    pub model: &'a TaskModel,
    /// Its specification.
    pub spec: &'a AdapterSpec,
    /// Names of the tasks, whose heads the model has.
    pub tasks: &'a [String],
    /// The optimizer; not needed before the first step of a phase.
    pub optimizer: Option<&'a ModuleOptimizer>,
    /// Where the run is.
    pub progress: &'a Progress,
}

impl Snapshot<'_> {
    /// Writes everything into the folder `name` below `root`, in place of an older one.
    fn write(&self, root: &Path, name: &str) -> Result<(), TrainError> {
        let new = NewFolder::for_place(&root.join(name))?;
        let folder = new.path();
        save_weights(folder, self.model, self.spec, self.tasks, "")?;
        let mut progress = Progress {
            optimizer_sha256: None,
            ..self.progress.clone()
        };
        if let Some(optimizer) = self.optimizer {
            let bytes = optimizer
                .into_bytes()
                .map_err(TrainError::optimizer(folder))?;
            progress.optimizer_sha256 = Some(sha256(&bytes));
            fs_err::write(folder.join(OPTIMIZER), &*bytes)?;
        }
        let state = serde_json::to_vec(&progress).map_err(TrainError::json(folder))?;
        fs_err::write(folder.join(STATE), &state)?;
        new.put()
    }
}

/// Folder of the state in which a stage began.
pub(crate) fn stage_folder(run: &Path, stage: &str) -> PathBuf {
    run.join(STAGES).join(stage)
}

/// Writes the state in which a stage begins, from which [`restart`] starts it again.
///
/// # Errors
/// [`TrainError::Io`] or [`TrainError::Model`] if a file cannot be written.
pub(crate) fn save_stage(
    run: &Path,
    stage: &str,
    snapshot: &Snapshot<'_>,
) -> Result<(), TrainError> {
    snapshot.write(&run.join(STAGES), stage)
}

/// Makes the state in which a stage began the newest checkpoint of a run, in place of all others.
///
/// # Errors
/// [`TrainError::Io`] if a file cannot be copied; a stage that did not begin is one of them.
pub(crate) fn restart(run: &Path, stage: &str) -> Result<(), TrainError> {
    let from = stage_folder(run, stage);
    let step = load_progress(&from)?.step;
    let path = run.join(CHECKPOINTS).join(checkpoint_name(step));
    let new = NewFolder::for_place(&path)?;
    copy_into(&from, new.path())?;
    new.put()?;
    // The later ones last: until then the run resumes where it was.
    let others = all(run)?.into_iter().filter(|(other, _)| *other != step);
    others.rev().try_for_each(|(_, other)| discard(&other))
}

/// Name of the state that the last stage ended with, among those that stages began with.
const END: &str = ".end";

/// Writes the state that the last stage ends with, which [`go_on`] takes.
///
/// # Errors
/// As [`save_stage`].
pub(crate) fn save_end(run: &Path, snapshot: &Snapshot<'_>) -> Result<(), TrainError> {
    save_stage(run, END, snapshot)
}

/// Where a finished run was at its end; `None` if that state was not kept.
///
/// # Errors
/// As [`load_progress`].
pub(crate) fn end_of(run: &Path) -> Result<Option<Progress>, TrainError> {
    let folder = stage_folder(run, END);
    let is_there = folder.is_dir();
    is_there.then(|| load_progress(&folder)).transpose()
}

/// Makes the state at the end of a finished run its newest checkpoint, from which it resumes.
///
/// The best state so far stays the best one: its weights are the finished run's, unless `is_last`, where
/// the run took its last ones.
///
/// # Errors
/// [`TrainError::Io`] if a file cannot be copied.
pub(crate) fn go_on(run: &Path, is_last: bool) -> Result<(), TrainError> {
    let from = stage_folder(run, END);
    let mut progress = load_progress(&from)?;
    let best = progress.best.first().map(|best| best.step);
    if let Some(step) = best.filter(|&step| step < progress.step && !is_last) {
        let new = NewFolder::for_place(&after(run, step))?;
        for file in ["adapter_config.json", "adapter_model.safetensors", HEADS] {
            copy(&run.join(file), &new.path().join(file))?;
        }
        new.put()?;
    }
    let step = progress.step;
    // Where the last state is taken, the best ones are only compared with.
    let is_there = |best: &Best| best.step == step || after(run, best.step).is_dir();
    progress.best.retain(|best| is_last || is_there(best));
    (progress.is_early, progress.since_best) = (false, 0);
    let new = NewFolder::for_place(&after(run, step))?;
    copy_into(&from, new.path())?;
    let state = serde_json::to_vec(&progress).map_err(TrainError::json(&from))?;
    fs_err::write(new.path().join(STATE), state)?;
    new.put()
}

/// Removes all checkpoints of a run, so that it starts from the beginning.
///
/// # Errors
/// [`TrainError::Io`] if they cannot be removed.
pub(crate) fn forget(run: &Path) -> Result<(), TrainError> {
    discard(&run.join(CHECKPOINTS))
}

fn checkpoint_name(step: usize) -> String {
    format!("step-{step:08}")
}

/// Writes a checkpoint and removes older ones that are neither among the `keep_last` newest nor among
/// the best.
///
/// # Errors
/// [`TrainError::Io`] or [`TrainError::Model`] if a file cannot be written.
pub(crate) fn save(
    run: &Path,
    snapshot: &Snapshot<'_>,
    keep_last: usize,
) -> Result<(), TrainError> {
    let progress = snapshot.progress;
    let root = run.join(CHECKPOINTS);
    snapshot.write(&root, &checkpoint_name(progress.step))?;
    // Only now: the checkpoint before this one may need them.
    retain(run, progress, keep_last.max(1))
}

/// Removes the checkpoints that are neither among the `keep_last` newest nor among the best.
///
/// # Errors
/// [`TrainError::Io`] if one cannot be removed.
pub(crate) fn retain(run: &Path, progress: &Progress, keep_last: usize) -> Result<(), TrainError> {
    let is_kept = |step: usize| {
        progress.kept.contains(&step) || progress.best.iter().any(|best| best.step == step)
    };
    let found = all(run)?;
    let newest = found.len().saturating_sub(keep_last);
    let places = found.into_iter().enumerate();
    let (kept, old): (Vec<_>, Vec<_>) =
        places.partition(|(place, (step, _))| *place >= newest || is_kept(*step));
    if kept.is_empty() {
        return forget(run);
    }
    old.iter().try_for_each(|(_, (_, path))| discard(path))
}

/// The checkpoint after a step.
pub(crate) fn after(run: &Path, step: usize) -> PathBuf {
    run.join(CHECKPOINTS).join(checkpoint_name(step))
}

/// Writes adapter and heads into an existing folder.
///
/// # Errors
/// [`TrainError::Model`] if a file cannot be written.
pub(crate) fn save_weights(
    folder: &Path,
    model: &TaskModel,
    spec: &AdapterSpec,
    tasks: &[String],
    base_model: &str,
) -> Result<(), TrainError> {
    save_adapter(folder, &model.backbone, spec, base_model)?;
    Ok(save_heads(&folder.join(HEADS), tasks, &model.heads)?)
}

/// Writes adapter and heads into an existing folder in place of older ones, which stay whole until
/// the new files are.
///
/// # Errors
/// [`TrainError::Model`] or [`TrainError::Io`] if a file cannot be written.
pub(crate) fn replace_weights(
    folder: &Path,
    model: &TaskModel,
    spec: &AdapterSpec,
    tasks: &[String],
    base_model: &str,
) -> Result<(), TrainError> {
    let new = NewFolder::for_files(folder)?;
    save_weights(new.path(), model, spec, tasks, base_model)?;
    new.put_files()
}

/// Reads adapter and heads into a model of the same specification and tasks.
///
/// # Errors
/// [`TrainError::Model`] for a missing, broken or foreign file.
pub(crate) fn load_weights(
    folder: &Path,
    model: &mut TaskModel,
    spec: &AdapterSpec,
    tasks: &[String],
) -> Result<(), TrainError> {
    load_adapter(folder, &mut model.backbone, spec)?;
    Ok(load_heads(&folder.join(HEADS), tasks, &mut model.heads)?)
}

/// The newest whole checkpoint of a run.
///
/// # Errors
/// [`TrainError::Io`] if the run folder cannot be read.
pub(crate) fn latest(run: &Path) -> Result<Option<PathBuf>, TrainError> {
    Ok(all(run)?.into_iter().next_back().map(|(_, path)| path))
}

/// Reads where a run was from a checkpoint.
///
/// # Errors
/// [`TrainError::Io`] or [`TrainError::Run`] for a missing or broken file.
pub(crate) fn load_progress(checkpoint: &Path) -> Result<Progress, TrainError> {
    let path = checkpoint.join(STATE);
    let bytes = fs_err::read(&path)?;
    serde_json::from_slice(&bytes).map_err(TrainError::json(&path))
}

/// Reads the optimizer's state from a checkpoint, whose progress knows its SHA-256.
///
/// # Errors
/// [`TrainError::Io`] or [`TrainError::Run`] for a missing or broken file.
pub(crate) fn load_optimizer(
    checkpoint: &Path,
    progress: &Progress,
    optimizer: ModuleOptimizer,
) -> Result<ModuleOptimizer, TrainError> {
    let path = checkpoint.join(OPTIMIZER);
    let bytes = fs_err::read(&path)?;
    if let Some(expected) = &progress.optimizer_sha256 {
        let found = sha256(&bytes);
        if found != *expected {
            let expected = expected.clone();
            let problem = RunProblem::OtherHash { found, expected };
            return Err(TrainError::run(&path, problem));
        }
    }
    let bytes = Bytes::from_bytes_vec(bytes);
    // burn panics on some broken files.
    let read = contain(|| optimizer.from_bytes(bytes));
    let read = read.map_err(TrainError::optimizer(&path))?;
    read.map_err(TrainError::optimizer(&path))
}

/// SHA-256 as hexadecimal digits.
fn sha256(bytes: &[u8]) -> String {
    let digits = Sha256::digest(bytes);
    digits.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whole checkpoints with their steps, oldest first.
fn all(run: &Path) -> Result<Vec<(usize, PathBuf)>, TrainError> {
    let root = run.join(CHECKPOINTS);
    if !root.is_dir() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs_err::read_dir(&root)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let step = name.and_then(|name| name.strip_prefix("step-")?.parse().ok());
        found.extend(step.map(|step: usize| (step, path.clone())));
    }
    found.sort();
    Ok(found)
}
