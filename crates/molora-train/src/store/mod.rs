//! What lies in a run folder, and reading and writing it.

pub mod checkpoint;
mod config;
mod folder;
pub mod pool;
mod swap;

pub use config::{FORMAT, RUN, RunConfig, TaskLabels, read_config};
pub(crate) use config::{git_commit, write_config};
pub use folder::{EVAL, PREDICTIONS, REPORT, ROUTING, STEPS, SUMMARY};
pub(crate) use folder::{STAGES, check_folder, make_folder};
pub(crate) use swap::{BEFORE, Swap, settle};
