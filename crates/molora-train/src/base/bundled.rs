//! What the repository brings with it: starter tasks and a small base model.

use std::path::{Path, PathBuf};

use crate::error::{RunProblem, TrainError};

/// The base model of a run that names none.
pub const MODEL: &str = "bundled:all-MiniLM-L6-v2";

/// The tasks of a run that names none.
pub const TASKS: &str = "bundled:tasks";

/// The folder behind a name: `bundled:NAME` lies in the `datasets` folder, anything else is a path.
///
/// # Errors
/// [`TrainError::Run`] if a bundled folder is wanted and there is no `datasets` folder.
pub fn folder(name: &str) -> Result<PathBuf, TrainError> {
    let Some(bundled) = name.strip_prefix("bundled:") else {
        return Ok(name.into());
    };
    let inside = match bundled {
        "tasks" => PathBuf::from("tasks"),
        model => Path::new("models").join(model),
    };
    match datasets() {
        Some(root) => Ok(root.join(inside)),
        None => Err(TrainError::run(Path::new(name), RunProblem::NoDatasets)),
    }
}

/// `MOLORA_DATASETS`, or `datasets` in this folder or one above it, or where this was built.
fn datasets() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("MOLORA_DATASETS") {
        return Some(folder.into());
    }
    let here = std::env::current_dir().ok()?;
    let built = Path::new(env!("CARGO_MANIFEST_DIR"));
    let is_ours =
        |folder: &PathBuf| folder.join("tasks").is_dir() && folder.join("models").is_dir();
    let mut candidates = here
        .ancestors()
        .chain(built.ancestors())
        .map(|dir| dir.join("datasets"));
    candidates.find(is_ours)
}
