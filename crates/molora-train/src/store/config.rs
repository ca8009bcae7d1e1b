//! The resolved configuration of a run: `run.toml`.

use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use burn::tensor::Device;
use molora_kernels::random::Seed;
use molora_models::{Backbone, BaseDtype, TaskHead};
use serde::{Deserialize, Serialize};

use super::Digests;
use super::folder::is_missing;
use super::names::check_name;
use super::swap::pending;
use crate::base::base_model;
use crate::base::place::write_atomically;
use crate::data::{Split, Task, TaskKind};
use crate::error::{RunProblem, TrainError};
use crate::recipe::{Recipe, ValidationConfig, text_error};

/// File of the resolved configuration in a run folder.
pub const RUN: &str = "run.toml";

/// The format of the file that this molora writes; files without a number are of the first one.
pub const FORMAT: u32 = 5;

/// The first format whose runs are scored on the validation split.
const VALIDATED: u32 = 2;

/// The first format that says the prompt of a task's records.
pub(crate) const PROMPTED: u32 = 4;

/// So long another process has for putting a change of experts in place, a matter of renames.
const PATIENCE: Duration = Duration::from_millis(300);

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
    /// The split that the finished run is scored on: the test split, but for trials of settings.
    #[serde(default, skip_serializing_if = "is_test")]
    pub scored: Split,
    /// The tasks in the order of their numbers.
    pub tasks: Vec<TaskLabels>,
    /// Folder of the run or adapter that the training began with, if it did not begin anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    /// The method.
    pub recipe: Recipe,
    /// What base model and tasks were when the run began; earlier versions did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digests: Option<Digests>,
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
    /// What a model that writes says for each label, where that is not its name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub label_words: Vec<String>,
    /// The prompt of its records, for those that come without one; runs before format 4 did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instruction: Option<String>,
    /// Folder with its data, if that is another one than the run's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
}

impl TaskLabels {
    /// Of a task whose data lie in the run's own folder.
    pub fn of(task: &Task) -> Self {
        Self {
            name: task.meta.name.clone(),
            kind: task.meta.kind,
            labels: task.meta.labels.clone(),
            label_words: task.meta.label_words.clone(),
            instruction: Some(task.meta.instruction.clone()),
            data: None,
        }
    }
}

/// The head that a task needs on a model: one logit for each class on an encoder, one number for a
/// regression; none where the answer is written.
pub(crate) fn fresh_head(
    base: &Backbone,
    task: &TaskLabels,
    seed: Seed,
    device: &Device,
) -> Option<TaskHead> {
    let outputs = match task.kind {
        TaskKind::Regression => 1,
        TaskKind::Classification if !base.writes() => task.labels.len(),
        _ => return None,
    };
    Some(TaskHead::new(base.width(), outputs, seed, device))
}

fn is_test(split: &Split) -> bool {
    *split == Split::Test
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

/// Whether a folder holds a run.
///
/// # Errors
/// [`TrainError::Io`] if the system does not let anybody look: that is no sign that there is none.
pub fn is_run(folder: &Path) -> Result<bool, TrainError> {
    match fs_err::metadata(folder.join(RUN)) {
        // A device or a pipe in its place is refused by that name when it is read.
        Ok(found) => Ok(!found.is_dir()),
        Err(error) if is_absence(error.kind()) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether a file is not there, as another thing is in the place of a folder, or as its name could be
/// none.
fn is_absence(kind: ErrorKind) -> bool {
    use ErrorKind::{InvalidFilename, InvalidInput, NotADirectory, NotFound};
    matches!(
        kind,
        NotFound | NotADirectory | InvalidFilename | InvalidInput
    )
}

/// Reads the configuration of a run and changes nothing.
///
/// # Errors
/// If the folder holds no run, one of a newer molora, one with a change of its experts that was cut
/// short, or its configuration is broken.
pub fn read_config(folder: &Path) -> Result<RunConfig, TrainError> {
    refuse_pending(folder)?;
    let path = folder.join(RUN);
    if !is_run(folder)? {
        return Err(TrainError::run(folder, RunProblem::NoRun));
    }
    // Reading a device or a pipe may never end.
    if path.metadata().is_ok_and(|found| !found.is_file()) {
        return Err(TrainError::run(&path, RunProblem::NotPlain));
    }
    let text = match fs_err::read_to_string(&path) {
        Err(error) if is_missing(&error) => {
            return Err(TrainError::run(folder, RunProblem::NoRun));
        }
        other => other?,
    };
    check_format(&path, &text)?;
    let file = path.display().to_string();
    let mut config: RunConfig =
        toml::from_str(&text).map_err(|error| text_error(&text, &file, &error))?;
    // Such a run is resumed, and ends, as it was begun.
    if config.format < VALIDATED {
        config.recipe.validation = ValidationConfig::never();
    }
    check_names(&path, &config)?;
    Ok(config)
}

/// Refuses a later format; first of all, as it may have keys, and files, that this molora does not know.
fn check_format(path: &Path, text: &str) -> Result<(), TrainError> {
    match toml::from_str(text) {
        Ok(Numbered { format: found }) if found > FORMAT => {
            let known = FORMAT;
            Err(TrainError::run(
                path,
                RunProblem::NewerFormat { found, known },
            ))
        }
        _ => Ok(()),
    }
}

/// Refuses a run of a newer molora; everything else about it is said when it is read.
pub(super) fn refuse_newer(folder: &Path) -> Result<(), TrainError> {
    let path = folder.join(RUN);
    match fs_err::read_to_string(&path) {
        Ok(text) => check_format(&path, &text),
        Err(_) => Ok(()),
    }
}

/// Refuses a run with a change that is neither done nor being done: its files are of both sides.
fn refuse_pending(folder: &Path) -> Result<(), TrainError> {
    let start = Instant::now();
    while let Some(what) = pending(folder) {
        if start.elapsed() > PATIENCE {
            let run = folder.to_owned();
            return Err(TrainError::run(folder, RunProblem::Pending { what, run }));
        }
        std::thread::sleep(PATIENCE / 10);
    }
    Ok(())
}

/// Refuses names that a run folder has folders of and that could lead elsewhere.
fn check_names(path: &Path, config: &RunConfig) -> Result<(), TrainError> {
    for task in &config.tasks {
        check_name(path, "name of a task", &task.name)?;
    }
    let stages = config.recipe.stages.iter().chain(&config.recipe.growth);
    for stage in stages {
        check_name(path, "name of a stage", &stage.name)?;
    }
    Ok(())
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
pub(super) mod tests {
    use super::*;

    fn read(text: &str) -> Result<RunConfig, TrainError> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs_err::write(folder.path().join(RUN), text).expect("writable");
        read_config(folder.path())
    }

    pub(in crate::store) fn config(format: u32) -> RunConfig {
        RunConfig {
            format,
            molora_version: "0.1.0".into(),
            git_commit: None,
            model: "bundled:mini".into(),
            base_dtype: BaseDtype::default(),
            data: "bundled:tasks".into(),
            seed: 7,
            device: "cpu".into(),
            scored: Split::Test,
            tasks: Vec::new(),
            init: None,
            recipe: crate::recipe::find("lora").expect("listed"),
            digests: None,
        }
    }

    #[test]
    fn a_file_without_a_format_is_read_and_stays_so() {
        let text = toml::to_string(&config(0)).expect("plain data");
        assert!(text.starts_with("molora_version"), "{text}");
        let mut first = config(0);
        first.recipe.validation = ValidationConfig::never();
        assert_eq!(read(&text).expect("the first format"), first);
        let text = toml::to_string(&config(FORMAT)).expect("plain data");
        assert!(text.starts_with(&format!("format = {FORMAT}\n")), "{text}");
        assert_eq!(read(&text).expect("its own text"), config(FORMAT));
    }

    #[test]
    fn a_newer_format_is_named_before_its_keys() {
        let error = read("format = 7\nnews = true\n")
            .expect_err("newer")
            .to_string();
        let end = "run.toml: format is 7, but this molora knows up to 5: a newer molora wrote the run; \
                   use that one";
        assert!(error.ends_with(end), "{error}");
        let error = read("format = 1\nnews = true\n")
            .expect_err("broken")
            .to_string();
        assert!(error.contains("unknown field `news`"), "{error}");
    }

    #[test]
    fn digests_are_kept() {
        let mut config = config(FORMAT);
        let files = [("config.json".to_owned(), "0f".to_owned())];
        config.digests = Some(Digests {
            base: files.clone().into(),
            tasks: [("a.b c".to_owned(), files.into())].into(),
        });
        let text = toml::to_string(&config).expect("plain data");
        assert_eq!(read(&text).expect("its own text"), config);
    }

    #[test]
    fn a_name_that_leads_out_of_the_folder_is_refused() {
        let mut named = config(FORMAT);
        named.tasks.push(TaskLabels {
            name: "../../elsewhere".into(),
            kind: TaskKind::default(),
            labels: Vec::new(),
            label_words: Vec::new(),
            instruction: None,
            data: None,
        });
        let mut staged = config(FORMAT);
        staged.recipe.stages[0].name = "/elsewhere".into();
        for (config, what) in [
            (named, "task `../../elsewhere`"),
            (staged, "stage `/elsewhere`"),
        ] {
            let text = toml::to_string(&config).expect("plain data");
            let error = read(&text).expect_err("it leads out").to_string();
            assert!(error.contains("run.toml: name of a"), "{error}");
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn a_pending_change_is_said_and_left() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let run = folder.path();
        let text = toml::to_string(&config(FORMAT)).expect("plain data");
        fs_err::write(run.join(RUN), text).expect("writable");
        fs_err::create_dir(run.join(".swap")).expect("writable");
        fs_err::write(run.join(".swap/drop"), "stages\n.growing-pets").expect("writable");
        let error = read_config(run).expect_err("pending").to_string();
        let run = run.display();
        let expected = format!(
            "{run}: adding the expert of pets was cut short; molora recover {run} finishes it"
        );
        assert_eq!(error, expected);
        let left = fs_err::read_to_string(folder.path().join(".swap/drop"));
        assert_eq!(left.expect("it stays"), "stages\n.growing-pets");
    }
}
