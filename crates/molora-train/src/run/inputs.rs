//! Whether base model, tokenizer and tasks are still what a run was made of.

use std::collections::BTreeMap;
use std::path::Path;

use crate::base::{base_model, bundled};
use crate::error::{RunProblem, TrainError};
use crate::store::{Digests, RUN, RunConfig, read_config};

/// A configuration with the digests of what the run is made of.
pub(crate) fn with_digests(config: RunConfig, model: &Path) -> Result<RunConfig, TrainError> {
    let digests = Digests::of(model, &config, None)?;
    Ok(RunConfig {
        digests: Some(digests),
        ..config
    })
}

/// [`with_digests`] for a run without records of its tasks.
pub(crate) fn with_base_digests(config: RunConfig, model: &Path) -> Result<RunConfig, TrainError> {
    let digests = Digests {
        base: Digests::of_base(model)?,
        ..Digests::default()
    };
    Ok(RunConfig {
        digests: Some(digests),
        ..config
    })
}

/// The files of base model and tasks that changed since a run began, in words; none for a run that
/// did not record them, which is reported once.
///
/// Tasks in another folder `data` than the run's own are requested, and not compared.
///
/// # Errors
/// If the folder holds no run, or a file cannot be read.
pub fn changed_inputs(run: &Path, data: Option<&str>) -> Result<Vec<String>, TrainError> {
    let config = read_config(run)?;
    let model = base_model::find(&config.model, &mut base_model::silent)?;
    if config.digests.is_none() {
        tell_of_none(run);
    }
    changed(&config, &model.folder, data)
}

/// Refuses to write into a run whose base model or tasks changed.
pub(crate) fn refuse_changed(
    run: &Path,
    config: &RunConfig,
    model: &Path,
) -> Result<(), TrainError> {
    if config.digests.is_none() {
        tell_of_none(run);
    }
    match changed(config, model, None)? {
        files if files.is_empty() => Ok(()),
        files => {
            let advice = "put back what was there, or train a new run";
            let problem = RunProblem::Changed { files, advice };
            Err(TrainError::run(&run.join(RUN), problem))
        }
    }
}

/// Refuses inputs that changed while a run began: the digests of its configuration would be those of
/// other files than it was made of. `read` are those of the tasks' files when they were read.
pub(super) fn refuse_moving(
    run: &Path,
    config: &RunConfig,
    read: BTreeMap<String, BTreeMap<String, String>>,
    model: &Path,
) -> Result<(), TrainError> {
    let Some(known) = &config.digests else {
        return Ok(());
    };
    let then = Digests {
        base: known.base.clone(),
        tasks: read,
    };
    let now = Digests {
        base: Digests::of_base(model)?,
        tasks: known.tasks.clone(),
    };
    match then.changed(&now) {
        files if files.is_empty() => Ok(()),
        files => Err(TrainError::run(run, RunProblem::Moving { files })),
    }
}

/// Says what changed of the base model and, with `tasks`, of the run's own tasks.
pub(super) fn warn_of_changed(
    run: &Path,
    config: &RunConfig,
    model: &Path,
    tasks: Option<Option<&str>>,
) -> Result<(), TrainError> {
    let files = match tasks {
        Some(data) => changed(config, model, data)?,
        None => changed_base(config, model)?,
    };
    if !files.is_empty() {
        let (run, files) = (run.display(), files.join(", "));
        tracing::warn!("{run}: changed since the run began: {files}");
    }
    Ok(())
}

fn tell_of_none(run: &Path) {
    tracing::warn!(
        "{} has no digests, as an earlier molora wrote it: whether base model and tasks changed since \
         is not known",
        run.join(RUN).display()
    );
}

fn changed(
    config: &RunConfig,
    model: &Path,
    data: Option<&str>,
) -> Result<Vec<String>, TrainError> {
    let Some(then) = &config.digests else {
        return Ok(Vec::new());
    };
    if let Some(data) = data
        && !is_own(config, data)
    {
        return changed_base(config, model);
    }
    // An assembled run may have no records of its tasks.
    let mut known = config.clone();
    known
        .tasks
        .retain(|task| then.tasks.contains_key(&task.name));
    Ok(then.changed(&Digests::of(model, &known, data)?))
}

fn changed_base(config: &RunConfig, model: &Path) -> Result<Vec<String>, TrainError> {
    let Some(then) = &config.digests else {
        return Ok(Vec::new());
    };
    let now = Digests {
        base: Digests::of_base(model)?,
        ..Digests::default()
    };
    Ok(then.changed(&now))
}

/// Whether `data` is the run's own folder by another name.
fn is_own(config: &RunConfig, data: &str) -> bool {
    let place = |data: &str| bundled::folder(data).ok()?.canonicalize().ok();
    let own = place(&config.data);
    config.tasks.iter().all(|task| task.data.is_none()) && own.is_some() && own == place(data)
}
