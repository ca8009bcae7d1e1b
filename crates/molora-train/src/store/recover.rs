//! `molora recover`: finishes what a kill has left of a run.

use std::path::Path;

use super::{Writing, read_config};
use crate::TrainError;

/// What was done for a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The change of its experts that was finished, in words; none if nothing was pending.
    pub finished: Option<String>,
}

/// Finishes a change of a run's experts that was cut short, and removes what killed processes left.
///
/// Every command that writes into the run does the same first.
///
/// # Errors
/// If the folder holds no run, another process writes it, or there is anything in the change that
/// molora did not write; the run is then as it was.
pub fn recover(run: &Path) -> Result<Recovered, TrainError> {
    let writing = Writing::open(run)?;
    read_config(run)?;
    Ok(Recovered {
        finished: writing.recovered,
    })
}
