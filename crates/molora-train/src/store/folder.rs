//! Making the folder of a run without touching what is no run.

use std::path::Path;

use super::config::write_config;
use super::{RUN, RunConfig};
use crate::TrainError;
use crate::base::files::share;

/// File of the step records in a run folder.
pub const STEPS: &str = "steps.jsonl";
/// File that a run folder holds as soon as the run is finished.
pub const SUMMARY: &str = "summary.json";
/// File of the predicted classes in a run folder.
pub const PREDICTIONS: &str = "predictions.json";

/// Refuses a folder that exists, or with `force` one that is no run and not empty.
pub(crate) fn check_folder(folder: &Path, force: bool) -> Result<(), TrainError> {
    let existing = folder.ancestors().find(|path| path.exists());
    if let Some(file) = existing.filter(|path| !path.is_dir()) {
        return Err(TrainError::run(file, "is a file, expected a folder"));
    }
    if existing != Some(folder) {
        return Ok(());
    }
    let mut entries = std::fs::read_dir(folder).map_err(TrainError::io(folder))?;
    if entries.next().is_none() {
        return Ok(());
    }
    if !force {
        let text = "exists already; choose another --out, go on with --resume, or replace it with \
                    --force";
        return Err(TrainError::run(folder, text));
    }
    if !folder.join(RUN).is_file() {
        let text = "holds files but no run.toml: --force replaces runs only";
        return Err(TrainError::run(folder, text));
    }
    Ok(())
}

/// Makes a run folder with its configuration, in place of an older run.
///
/// It is made beside its place and then renamed: a folder of that name always has its `run.toml`.
pub(crate) fn make_folder(folder: &Path, config: &RunConfig) -> Result<(), TrainError> {
    let parent = match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(parent).map_err(TrainError::io(parent))?;
    let mut builder = tempfile::Builder::new();
    let made = builder
        .prefix(".molora-run-")
        .tempdir_in(parent)
        .map_err(TrainError::io(parent))?;
    write_config(made.path(), config)?;
    if folder.exists() {
        std::fs::remove_dir_all(folder).map_err(TrainError::io(folder))?;
    }
    share(made.path())?;
    std::fs::rename(made.path(), folder).map_err(TrainError::io(folder))?;
    // Nothing is left under the temporary name, so there is nothing to remove when it is dropped.
    drop(made.keep());
    Ok(())
}
