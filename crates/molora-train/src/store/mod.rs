//! What lies in a run folder, and reading and writing it.

pub(crate) mod checkpoint;
mod config;
mod digests;
mod finished;
mod folder;
mod lock;
pub(crate) mod manifest;
mod names;
pub(crate) mod pool;
mod recover;
mod swap;

pub use checkpoint::HEADS;
pub use config::{FORMAT, RUN, RunConfig, TaskLabels, is_run, read_config};
pub(crate) use config::{PROMPTED, fresh_head, git_commit, write_config};
pub use digests::Digests;
pub(crate) use finished::check_page;
pub use finished::{FinishedRun, read_base, write_page, write_report};
pub use folder::{BASE, STEPS, SUMMARY};
pub(crate) use folder::{
    Claim, EVAL, EXAMPLES, EXPERT_REPORT, PREDICTIONS, REPORT, ROUTING, STAGES, TENSORBOARD,
    UNSEEN, Writing,
};
pub(crate) use lock::FolderLock;
pub use manifest::{FolderKind, MANIFEST, Manifest, ManifestBase, Probe, TensorRecord, Tensors};
pub(crate) use names::{GROWING, REMOVING, check_name, is_empty, is_plain};
use pool::EXPERTS;
pub use recover::{Recovered, recover};
pub(crate) use swap::SWAP;
pub(crate) use swap::{BEFORE, Swap};
