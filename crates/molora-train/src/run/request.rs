//! The request of a user.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use molora_models::BaseDtype;

use crate::base::DeviceSpec;
use crate::base::base_model::absolute;
use crate::data::{Split, Task};
use crate::recipe::Recipe;
use crate::store::{FORMAT, RunConfig, TaskLabels, git_commit};

/// The request of a user.
#[derive(Debug, Clone)]
pub struct Request {
    /// The method.
    pub recipe: Recipe,
    /// Folder of the base model, `bundled:NAME`, or `org/name` on the Hub.
    pub model: String,
    /// The type in which the base's matrices are kept.
    pub base_dtype: BaseDtype,
    /// Folder of the tasks, or `bundled:tasks`.
    pub data: String,
    /// The tasks to train on; all in the folder if `None`.
    pub tasks: Option<Vec<String>>,
    /// The run folder.
    pub out: PathBuf,
    /// Folder of a run, or of an adapter as PEFT writes it, whose weights the training begins with.
    pub init: Option<PathBuf>,
    /// Times that all training records are shown, which then says the number of steps in the place of
    /// the recipe: `epochs * records / batch size`, rounded up. Which records are drawn how often is up
    /// to the recipe's sampling.
    pub epochs: Option<f64>,
    /// The memory in bytes that the process may take. With it the micro-batch of every stage is the largest
    /// one that fits, by trial steps, whatever the recipe says; `run.toml` keeps it.
    pub memory: Option<u64>,
    /// Whether an older run in that folder may be removed.
    pub force: bool,
    /// Seed of every random draw.
    pub seed: u64,
    /// The device.
    pub device: DeviceSpec,
    /// The split that the finished run is scored on: the test split, but for trials of settings.
    pub scored: Split,
    /// Name of the stage at whose end the run stops; it continues with [`resume`](super::resume).
    pub until: Option<String>,
}

impl Request {
    /// A run of a recipe on all tasks in `data` into the folder `out`, with seed 0 on the CPU.
    pub fn new(recipe: Recipe, model: &str, data: &str, out: &Path) -> Self {
        Self {
            recipe,
            model: model.into(),
            base_dtype: BaseDtype::default(),
            data: data.into(),
            tasks: None,
            out: out.into(),
            init: None,
            epochs: None,
            memory: None,
            force: false,
            seed: 0,
            device: DeviceSpec::Cpu,
            scored: Split::Test,
            until: None,
        }
    }

    /// The resolved configuration of the run, without digests.
    pub(super) fn config(&self, model: String, recipe: Recipe, tasks: &[Task]) -> RunConfig {
        RunConfig {
            format: FORMAT,
            molora_version: env!("CARGO_PKG_VERSION").into(),
            git_commit: git_commit(),
            model,
            base_dtype: self.base_dtype,
            data: absolute(&self.data),
            seed: self.seed,
            device: self.device.to_string(),
            scored: self.scored,
            tasks: tasks.iter().map(TaskLabels::of).collect(),
            init: self
                .init
                .as_ref()
                .map(|init| absolute(&init.to_string_lossy())),
            recipe,
            digests: None,
        }
    }
}

/// Which stages of a run are run when it is resumed.
#[derive(Debug, Clone, Default)]
pub struct ResumeOptions {
    /// The stage that is begun again, by its name; `None` to resume where the run is.
    pub from: Option<String>,
    /// The stage at whose end the run stops.
    pub until: Option<String>,
    /// Total steps that a finished run is continued to.
    pub steps: Option<usize>,
    /// What the learning rate does over the steps that are added.
    pub schedule: Schedule,
    /// Seconds between checkpoints by the clock, in place of the recipe's `checkpoint.every_seconds`.
    pub checkpoint_every_seconds: Option<NonZeroU64>,
}

/// What the learning rate does over steps that are added to a finished run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Schedule {
    /// What it would do there had the stage had as many steps from the beginning.
    #[default]
    Extend,
    /// It rises and falls anew.
    Restart,
}
