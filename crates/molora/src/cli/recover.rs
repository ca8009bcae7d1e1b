//! `molora recover`.

use std::path::PathBuf;

use clap::Args;

use super::print;
use molora_train::store::recover;

/// Options of `molora recover`.
#[derive(Debug, Args)]
pub(super) struct RecoverArgs {
    /// Folder of a run
    run: PathBuf,
}

impl RecoverArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let run = self.run.display();
        match recover(&self.run)?.finished {
            Some(what) => print(&format!("{run}: {what} is finished\n")),
            None => print(&format!("{run}: nothing was left to finish\n")),
        }
    }
}
