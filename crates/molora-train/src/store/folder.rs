//! The files of a run folder, and its lock.
//!
//! | file | content | since |
//! |---|---|---|
//! | `run.toml` | the resolved recipe with format, data, model, tasks with labels, seed, device, version, digests of model and data | the start |
//! | `steps.jsonl` | one record per step: losses, terms, rate, tokens; stage and, of an expert alone, its task; scores of the validation split | every step |
//! | `tensorboard/` | the records of `steps.jsonl` as an event file, with `report.log` | every step |
//! | `checkpoints/step-*/` | model, optimizer and place: the newest, the best of the stage, and those that are requested | until the run is finished, or for good |
//! | `stages/<stage>/` | the state in which a stage began, for `--from-stage` | each stage after the first |
//! | `stages/.end/` | the state that the last stage ended with, for `--resume --steps` | the end, of mixtures that train |
//! | `experts/<task>/` | `adapter_config.json`, `adapter_model.safetensors` (a LoRA), `head.safetensors`, `gate.safetensors` | the expert's phase |
//! | `general/` | the general expert, as a LoRA | its stage |
//! | `clusters.json` | centroids of the training texts, with the name of their encoder | `cluster` |
//! | `instructions.json` | instructions with vectors, and the global weight | `embed_instructions` |
//! | `adapter_config.json`, `adapter_model.safetensors`, `heads.safetensors` | the last model | the end |
//! | `eval.json`, `predictions.json`, `routing.json`, `report.html` | scores, answers, shares of experts, the report | the end |
//! | `base.json`, `examples.json`, `experts.json` | the base model's scores, example answers, how alike the experts are | the end, where there are any |
//! | `manifest.json` | digests of all files, and what the model computes from fixed tokens | the end |
//! | `summary.json` | facts of the run; a folder that has it is finished | the very end |
//! | `unseen.json` | scores on tasks that the run was not trained on | `molora eval --unseen` |
//! | `before/<task>/` | what the expert of a task that was added later has replaced | `molora add-expert` |
//! | `.growing-<task>/`, `.removing-<task>/`, `.swap/` | a change of the experts that is being made | until it is done |
//! | `.lock`, `.molora-*` | who writes here, and what is being written | until it is done |

use std::path::{Path, PathBuf};

use super::config::{read_config, refuse_newer, write_config};
use super::lock::{FolderLock, LOCK};
use super::names::{is_empty, is_remains, refuse_links};
use super::swap::{recover, remove_empty};
use super::{BEFORE, EXPERTS, RUN, RunConfig, SWAP, checkpoint};
use crate::base::files::{MadeFolders, entries, is_own_folder, is_there, remove};
use crate::base::place::{NewFolder, clean, clean_beside, discard, is_current};
use crate::error::{RunProblem, TrainError};

/// File of the step records in a run folder.
pub const STEPS: &str = "steps.jsonl";
/// File that a run folder holds as soon as the run is finished.
pub const SUMMARY: &str = "summary.json";
/// File of the scores in a run folder.
pub(crate) const EVAL: &str = "eval.json";
/// File of how the routers shared the tasks in a run folder.
pub(crate) const ROUTING: &str = "routing.json";
/// Folder of the event file that TensorBoard reads in a run folder.
pub(crate) const TENSORBOARD: &str = "tensorboard";
/// The page of a run folder.
pub(crate) const REPORT: &str = "report.html";
/// Folder of the states that a run resumes from.
pub(super) const CHECKPOINTS: &str = "checkpoints";
/// Folder of the states in which a run's stages began: they belong to the tasks that it had then.
pub(crate) const STAGES: &str = "stages";
/// File of the predicted classes in a run folder.
pub(crate) const PREDICTIONS: &str = "predictions.json";

/// File of the base model's scores in a run folder.
pub const BASE: &str = "base.json";
/// File of the example answers in a run folder.
pub(crate) const EXAMPLES: &str = "examples.json";
/// File of how alike the experts are in a run folder.
pub(crate) const EXPERT_REPORT: &str = "experts.json";

/// File of the scores on other tasks in a run folder.
pub(crate) const UNSEEN: &str = "unseen.json";

/// A place for a new run, reserved for this process.
///
/// The folder is made right away, so that of two commands the second one is refused before either has
/// trained; a claim that comes to nothing leaves nothing behind.
#[derive(Debug)]
pub(crate) struct Claim {
    folder: PathBuf,
    lock: Option<FolderLock>,
    /// Whether there is an older run, which is removed when the new one begins.
    replaces: bool,
    /// Folders that were not there.
    _made: MadeFolders,
    /// Whether a new run is being written into the folder itself, which is not there to stay yet.
    is_open: bool,
}

impl Claim {
    /// Claims a folder that is not there or empty; with `force` one with a run, or the remains of
    /// one, that has none of the `inputs` in it.
    ///
    /// # Errors
    /// [`RunProblem::Exists`], [`RunProblem::NoRunToReplace`], [`RunProblem::Inside`] or
    /// [`RunProblem::InUse`]; [`TrainError::Io`] if the folder cannot be made.
    pub(crate) fn new(folder: &Path, force: bool, inputs: &[&Path]) -> Result<Self, TrainError> {
        // It is made under another name and renamed, which the current folder cannot be.
        if folder.file_name().is_none() {
            return Err(TrainError::run(folder, RunProblem::NoName));
        }
        clean_beside(folder)?;
        let mut claim = Self {
            folder: folder.to_owned(),
            lock: None,
            replaces: false,
            _made: MadeFolders::up_to(folder)?,
            is_open: false,
        };
        check_free(folder, force)?;
        claim.lock = Some(FolderLock::take(folder)?);
        // Another process may have been done just now.
        claim.replaces = !check_free(folder, force)?;
        claim.protect(inputs)?;
        clean(folder)?;
        Ok(claim)
    }

    /// Refuses to replace the older run if it has any of these files or folders in it.
    ///
    /// # Errors
    /// [`RunProblem::Inside`] with the first that it has.
    pub(crate) fn protect(&self, inputs: &[&Path]) -> Result<(), TrainError> {
        if !self.replaces {
            return Ok(());
        }
        if is_current(&self.folder) {
            return Err(TrainError::run(&self.folder, RunProblem::Here));
        }
        let out = fs_err::canonicalize(&self.folder)?;
        let is_inside =
            |path: &&&Path| std::fs::canonicalize(path).is_ok_and(|path| path.starts_with(&out));
        match inputs.iter().find(is_inside) {
            Some(path) => {
                let out = self.folder.clone();
                Err(TrainError::run(path, RunProblem::Inside { out }))
            }
            None => Ok(()),
        }
    }

    /// Writes the configuration where the run may begin: it is there to stay, in place of an older one, with
    /// [`Begun::put`].
    ///
    /// # Errors
    /// [`TrainError::Io`] if the folder cannot be written; an older run is whole then.
    pub(crate) fn begin(mut self, config: &RunConfig) -> Result<Begun, TrainError> {
        if !self.replaces {
            self.is_open = true;
            write_config(&self.folder, config)?;
            return Ok(Begun {
                claim: self,
                new: None,
            });
        }
        let place = fs_err::canonicalize(&self.folder)?;
        let new = NewFolder::for_place(&place)?;
        let lock = FolderLock::take(new.path())?;
        write_config(new.path(), config)?;
        Ok(Begun {
            claim: self,
            new: Some((lock, new)),
        })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // The folder was free, so that what is in it is of the run that did not begin. Errors leave what a
        // killed process would.
        if self.is_open {
            for name in entries(&self.folder).unwrap_or_default() {
                if name != LOCK {
                    drop(remove(&self.folder.join(name)));
                }
            }
        }
        // Before the folders that were made, which have to be empty to go.
        drop(self.lock.take());
    }
}

/// A run of which the beginning is being made: dropped, it leaves nothing behind, and an older run as it was.
#[derive(Debug)]
pub(crate) struct Begun {
    claim: Claim,
    /// What is to replace an older run, with its lock.
    new: Option<(FolderLock, NewFolder)>,
}

impl Begun {
    /// Where the files of the beginning are written.
    pub(crate) fn folder(&self) -> &Path {
        match &self.new {
            Some((_, new)) => new.path(),
            None => &self.claim.folder,
        }
    }

    /// Lets the run stay: from here on its folder has nothing of an older run.
    ///
    /// # Errors
    /// [`TrainError::Io`] if the folder cannot be written; an older run is whole then.
    pub(crate) fn put(mut self) -> Result<FolderLock, TrainError> {
        self.claim.is_open = false;
        let Some((mut lock, new)) = self.new else {
            return Ok(self.claim.lock.take().expect("a claim has the lock"));
        };
        new.put()?;
        lock.moved_to(&self.claim.folder);
        Ok(lock)
    }
}

/// Whether a folder is free; with `force` one with a run is not, and no error.
fn check_free(folder: &Path, force: bool) -> Result<bool, TrainError> {
    if is_empty(folder)? {
        return Ok(true);
    }
    if !force {
        return Err(TrainError::run(folder, RunProblem::Exists));
    }
    match folder.join(RUN).is_file() || is_remains(folder)? {
        true => Ok(false),
        false => Err(TrainError::run(folder, RunProblem::NoRunToReplace)),
    }
}

/// A run that this process alone writes, with what killed processes left of it put right.
#[derive(Debug)]
pub(crate) struct Writing {
    _lock: FolderLock,
    /// The change of experts that was finished, in words.
    pub(crate) recovered: Option<String>,
}

impl Writing {
    /// [`open`](Self::open) that warns of a change that had been cut short.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn begin(run: &Path) -> Result<Self, TrainError> {
        let writing = Self::open(run)?;
        if let Some(what) = &writing.recovered {
            let run = run.display();
            tracing::warn!("{run}: {what} had been cut short and is finished now");
        }
        Ok(writing)
    }

    /// Takes the lock of a run, finishes a change that was cut short, and removes what killed
    /// processes have left.
    ///
    /// # Errors
    /// [`RunProblem::NoRun`], [`RunProblem::InUse`]; [`TrainError::Run`] for links and for a change
    /// that molora did not write.
    pub(crate) fn open(run: &Path) -> Result<Self, TrainError> {
        for name in [RUN, SWAP] {
            match fs_err::symlink_metadata(run.join(name)) {
                Ok(_) => break,
                Err(error) if !is_missing(&error) => return Err(error.into()),
                Err(_) if name == SWAP => return Err(TrainError::run(run, RunProblem::NoRun)),
                Err(_) => {}
            }
        }
        let lock = FolderLock::take(run)?;
        refuse_links(run)?;
        // Before anything is changed.
        refuse_newer(run)?;
        let recovered = recover(run)?;
        clean_run(run)?;
        // An older run that `--force` replaced goes under another name.
        clean_beside(run)?;
        Ok(Self {
            _lock: lock,
            recovered,
        })
    }
}

/// Whether an error says that there is no such file.
pub(super) fn is_missing(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory)
}

/// Removes what killed processes, also of earlier versions, have left in a run.
fn clean_run(run: &Path) -> Result<(), TrainError> {
    clean(run)?;
    remove_empty(&run.join(BEFORE))?;
    for name in entries(run)? {
        if name.starts_with(super::names::REMOVING) || name.starts_with(".expert-") {
            discard(&run.join(&name))?;
        }
    }
    for folder in [CHECKPOINTS, STAGES, EXPERTS].map(|name| run.join(name)) {
        if !is_own_folder(&folder) {
            continue;
        }
        clean(&folder)?;
        let is_old = |name: &String| {
            name.starts_with(".expert-") || name.starts_with('.') && name.ends_with(".tmp")
        };
        for name in entries(&folder)?.into_iter().filter(is_old) {
            remove(&folder.join(name))?;
        }
    }
    // A run is finished before its checkpoints go, but for those that it is to keep.
    let keeps_none = || read_config(run).is_ok_and(|config| !config.recipe.checkpoint.keeps_some());
    match is_there(&run.join(SUMMARY)) && keeps_none() {
        true => checkpoint::forget(run),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::config::tests::config;

    fn refused(folder: &Path, force: bool, inputs: &[&Path]) -> String {
        let claim = Claim::new(folder, force, inputs);
        claim.expect_err("refused").to_string()
    }

    #[test]
    fn a_claim_that_comes_to_nothing_leaves_nothing() {
        let root = tempfile::tempdir().expect("a folder");
        let run = root.path().join("runs/new/run");
        let claim = Claim::new(&run, false, &[]).expect("free");
        assert!(run.is_dir());
        assert!(refused(&run, true, &[]).contains("is writing here"));
        drop(claim);
        assert!(entries(root.path()).expect("readable").is_empty());
    }

    #[test]
    fn a_beginning_that_comes_to_nothing_leaves_what_was_there() {
        let root = tempfile::tempdir().expect("a folder");
        let run = root.path().join("runs/run");
        let begin = |number| {
            let claim = Claim::new(&run, number > 1, &[]).expect("free, or a run");
            let begun = claim.begin(&config(number)).expect("writable");
            std::fs::write(begun.folder().join("clusters.json"), "").expect("writable");
            begun
        };
        drop(begin(1));
        assert!(entries(root.path()).expect("readable").is_empty());
        drop(begin(1).put().expect("writable"));
        let old = std::fs::read(run.join(RUN)).expect("readable");
        drop(begin(2));
        assert_eq!(std::fs::read(run.join(RUN)).ok(), Some(old));
        assert_eq!(
            entries(&root.path().join("runs")).expect("readable"),
            ["run"]
        );
        // An empty folder that the user made stays.
        std::fs::remove_dir_all(&run).expect("there");
        std::fs::create_dir(&run).expect("writable");
        drop(begin(1));
        assert!(entries(&run).expect("readable").is_empty());
    }

    #[test]
    fn a_run_is_replaced_by_force_alone() {
        let root = tempfile::tempdir().expect("a folder");
        let run = root.path().join("run");
        let claim = Claim::new(&run, false, &[]).expect("free");
        drop(
            claim
                .begin(&config(1))
                .and_then(Begun::put)
                .expect("writable"),
        );
        assert_eq!(entries(&run).expect("readable"), [RUN]);
        assert!(refused(&run, false, &[]).contains("exists already"));
        let data = run.join("data");
        std::fs::create_dir(&data).expect("writable");
        assert!(refused(&run, true, &[&data]).contains("data: lies in "));
        let old = std::fs::read(run.join(RUN)).expect("readable");
        let claim = Claim::new(&run, true, &[root.path()]).expect("a run");
        assert_eq!(std::fs::read(run.join(RUN)).ok(), Some(old));
        let lock = claim
            .begin(&config(1))
            .and_then(Begun::put)
            .expect("writable");
        assert!(refused(&run, true, &[]).contains("is writing here"));
        drop(lock);
        assert_eq!(entries(&run).expect("readable"), [RUN]);
        assert_eq!(entries(root.path()).expect("readable"), ["run"]);
    }

    #[test]
    fn what_a_kill_left_is_no_dead_end() {
        let root = tempfile::tempdir().expect("a folder");
        let run = root.path().join("run");
        std::fs::create_dir(&run).expect("writable");
        for name in [".lock", ".molora-abc"] {
            std::fs::write(run.join(name), "").expect("writable");
        }
        drop(Claim::new(&run, false, &[]).expect("free"));
        // An older molora that was killed while it removed a run.
        std::fs::write(run.join(STEPS), "").expect("writable");
        assert!(refused(&run, false, &[]).contains("exists already"));
        let claim = Claim::new(&run, true, &[]).expect("remains");
        drop(
            claim
                .begin(&config(1))
                .and_then(Begun::put)
                .expect("writable"),
        );
        assert_eq!(entries(&run).expect("readable"), [RUN]);
        std::fs::remove_file(run.join(RUN)).expect("there");
        std::fs::write(run.join("thesis.tex"), "").expect("writable");
        assert!(refused(&run, true, &[]).contains("holds files but no run.toml"));
    }

    #[test]
    fn a_folder_that_is_no_run_gets_no_lock() {
        let root = tempfile::tempdir().expect("a folder");
        let error = Writing::open(root.path()).expect_err("no run").to_string();
        assert!(error.ends_with("not a run folder"), "{error}");
        assert!(entries(root.path()).expect("readable").is_empty());
    }
}
