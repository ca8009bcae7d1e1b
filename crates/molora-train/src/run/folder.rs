//! Making the folder of a run without touching what is no run.

use std::path::Path;

use super::RUN;
use crate::TrainError;

/// Refuses a folder that exists, or with `force` one that is no run and not empty.
pub(super) fn check_folder(folder: &Path, force: bool) -> Result<(), TrainError> {
    if !folder.exists() {
        return Ok(());
    }
    if !folder.is_dir() {
        return Err(TrainError::run(
            folder,
            "is a file, expected a folder that does not exist",
        ));
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

pub(super) fn make_folder(folder: &Path) -> Result<(), TrainError> {
    if folder.exists() {
        std::fs::remove_dir_all(folder).map_err(TrainError::io(folder))?;
    }
    std::fs::create_dir_all(folder).map_err(TrainError::io(folder))
}
