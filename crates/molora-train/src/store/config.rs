//! The resolved configuration of a run: `run.toml`.

use std::path::Path;

use molora_models::BaseDtype;
use serde::{Deserialize, Serialize};

use super::settle;
use crate::base::base_model;
use crate::base::files::write_atomically;
use crate::data::TaskKind;
use crate::error::{RunProblem, TrainError};
use crate::recipe::{Recipe, text_error};

/// File of the resolved configuration in a run folder.
pub const RUN: &str = "run.toml";

/// The format of the file that this molora writes; files without a number are of the first one.
pub const FORMAT: u32 = 1;

/// Everything that decides a run's result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// [`FORMAT`] of the writer; 0 where the file says none.
    #[serde(default, skip_serializing_if = "is_unnumbered")]
    pub format: u32,
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

fn is_unnumbered(format: &u32) -> bool {
    *format == 0
}

/// What of the file every later format has too.
#[derive(Deserialize)]
struct Numbered {
    #[serde(default)]
    format: u32,
}

impl RunConfig {
    /// The base model as adapter files name it.
    pub fn base_name(&self) -> &str {
        base_model::plain_name(&self.model)
    }
}

pub(crate) fn write_config(folder: &Path, config: &RunConfig) -> Result<(), TrainError> {
    let text = toml::to_string(config).expect("plain data");
    write_atomically(&folder.join(RUN), text.as_bytes())
}

/// Reads the configuration of a run, after a change of its experts that was cut short is finished.
///
/// # Errors
/// If the folder holds no run, one of a newer molora, or its configuration is broken.
pub fn read_config(folder: &Path) -> Result<RunConfig, TrainError> {
    settle(folder)?;
    let path = folder.join(RUN);
    if !path.is_file() {
        return Err(TrainError::run(folder, RunProblem::NoRun));
    }
    let text = fs_err::read_to_string(&path)?;
    // First of all: a later format may have keys that this molora does not know.
    if let Ok(Numbered { format: found }) = toml::from_str(&text)
        && found > FORMAT
    {
        let known = FORMAT;
        return Err(TrainError::run(
            &path,
            RunProblem::NewerFormat { found, known },
        ));
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<RunConfig, TrainError> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs_err::write(folder.path().join(RUN), text).expect("writable");
        read_config(folder.path())
    }

    fn config(format: u32) -> RunConfig {
        RunConfig {
            format,
            molora_version: "0.1.0".into(),
            git_commit: None,
            model: "bundled:mini".into(),
            base_dtype: BaseDtype::default(),
            data: "bundled:tasks".into(),
            seed: 7,
            device: "cpu".into(),
            tasks: Vec::new(),
            recipe: crate::recipe::find("lora").expect("listed"),
        }
    }

    #[test]
    fn a_file_without_a_format_is_read_and_stays_so() {
        let text = toml::to_string(&config(0)).expect("plain data");
        assert!(text.starts_with("molora_version"), "{text}");
        assert_eq!(read(&text).expect("the first format"), config(0));
        let text = toml::to_string(&config(FORMAT)).expect("plain data");
        assert!(text.starts_with("format = 1\n"), "{text}");
        assert_eq!(read(&text).expect("its own text"), config(FORMAT));
    }

    #[test]
    fn a_newer_format_is_named_before_its_keys() {
        let error = read("format = 7\nnews = true\n")
            .expect_err("newer")
            .to_string();
        let end = "run.toml: format is 7, but this molora knows up to 1: a newer molora wrote the run; \
                   use that one";
        assert!(error.ends_with(end), "{error}");
        let error = read("format = 1\nnews = true\n")
            .expect_err("broken")
            .to_string();
        assert!(error.contains("unknown field `news`"), "{error}");
    }
}
