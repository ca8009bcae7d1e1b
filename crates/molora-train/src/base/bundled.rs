//! What the repository brings with it: starter tasks and a small base model.
//!
//! Both lie in its folder `datasets`. A program that is installed elsewhere has the tasks in itself, and
//! the model comes from the Hub when it is first used, see [`find`](super::base_model::find).

use std::path::{Path, PathBuf};

use super::embedded;
use crate::error::{RunProblem, TrainError};

/// The base model of a run that names none.
pub const MODEL: &str = "bundled:all-MiniLM-L6-v2";

/// Where the Hub has that model.
pub(super) const MODEL_ON_HUB: &str = "sentence-transformers/all-MiniLM-L6-v2";

/// The SHA-256 of its `model.safetensors` there, and as the repository has it, rounded to f16.
pub(super) const MODEL_SHA256: [&str; 2] = [
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "5ba0032aefec27c763b2d9c8912eeec19529d4efdab9a71a9756e8056ba8f2e0",
];

/// The tasks of a run that names none.
pub const TASKS: &str = "bundled:tasks";

/// The folder behind a name: `bundled:NAME` lies in the `datasets` folder, anything else is a path.
/// Where there is no such folder, the starter tasks are unpacked from the program.
///
/// # Errors
/// [`TrainError::Run`] if a bundled model is wanted and there is no `datasets` folder; any problem with
/// the folder that tasks are unpacked to.
pub fn folder(name: &str) -> Result<PathBuf, TrainError> {
    let Some(bundled) = name.strip_prefix("bundled:") else {
        return Ok(name.into());
    };
    match (datasets(), bundled) {
        (Some(root), "tasks") => Ok(root.join("tasks")),
        (Some(root), model) => Ok(root.join("models").join(model)),
        (None, "tasks") => embedded::tasks(),
        (None, _) => Err(TrainError::run(Path::new(name), RunProblem::NoDatasets)),
    }
}

/// Whether a base model is the one that the Hub has too, and there is no `datasets` folder to have it.
pub(super) fn is_on_hub(name: &str) -> bool {
    name == MODEL && datasets().is_none()
}

/// `MOLORA_DATASETS`, or `datasets` in this folder or one above it, or where this was built. None of them
/// if the variable is empty.
fn datasets() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("MOLORA_DATASETS") {
        return (!folder.is_empty()).then(|| folder.into());
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
