//! The resolved configuration of a run: `run.toml`.

use std::path::Path;

use molora_models::BaseDtype;
use serde::{Deserialize, Serialize};

use super::settle;
use crate::TrainError;
use crate::base::base_model;
use crate::data::TaskKind;
use crate::recipe::{Recipe, text_error};
use crate::report::write_atomically;

/// File of the resolved configuration in a run folder.
pub const RUN: &str = "run.toml";

/// Everything that decides a run's result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Version of molora that wrote the file.
    pub molora_version: String,
    /// Git commit of the folder that the run was started in, if it is a repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git_commit: Option<String>,
    /// Folder of the base model, `bundled:NAME`, or `hub:org/name@commit`.
    pub model: String,
    /// The type in which the base's matrices are kept.
    #[serde(default, skip_serializing_if = "BaseDtype::is_default")]
    pub base_dtype: BaseDtype,
    /// Folder of the tasks, or `bundled:tasks`.
    pub data: String,
    /// Seed of every random draw.
    pub seed: u64,
    /// Name of the device.
    pub device: String,
    /// The tasks in the order of their numbers.
    pub tasks: Vec<TaskLabels>,
    /// The method.
    pub recipe: Recipe,
}

/// A task of a run and what its head's outputs mean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskLabels {
    /// Name of the task.
    pub name: String,
    /// What it asks for.
    #[serde(default)]
    pub kind: TaskKind,
    /// Its labels in the order of the head's outputs.
    pub labels: Vec<String>,
    /// Folder with its data, if that is another one than the run's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
}

impl RunConfig {
    /// The base model as adapter files name it.
    pub fn base_name(&self) -> &str {
        base_model::plain_name(&self.model)
    }
}

pub(crate) fn write_config(folder: &Path, config: &RunConfig) -> Result<(), TrainError> {
    let text = toml::to_string(config).expect("plain data");
    Ok(write_atomically(&folder.join(RUN), text.as_bytes())?)
}

/// Reads the configuration of a run, after a change of its experts that was cut short is finished.
///
/// # Errors
/// If the folder holds no run or its configuration is broken.
pub fn read_config(folder: &Path) -> Result<RunConfig, TrainError> {
    settle(folder)?;
    let path = folder.join(RUN);
    if !path.is_file() {
        return Err(TrainError::run(
            folder,
            "holds no run.toml: not a run folder",
        ));
    }
    let text = std::fs::read_to_string(&path).map_err(TrainError::io(&path))?;
    let file = path.display().to_string();
    toml::from_str(&text).map_err(|error| text_error(&text, &file, &error))
}

/// The commit of the repository around the current folder, if git is there to tell.
pub(crate) fn git_commit() -> Option<String> {
    let output = std::process::Command::new("git")
        .args(["rev-parse", "HEAD"])
        .output()
        .ok()?;
    let commit = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !commit.is_empty()).then_some(commit)
}
