//! What can go wrong in a comparison.

use std::path::{Path, PathBuf};

use crate::TrainError;
use crate::report::ReportError;

/// A failure of a comparison, each as one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompareError {
    /// A problem with model, data, recipe, device or one of the runs.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// A file or folder cannot be read or written; the text names it.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A file of the comparison cannot be written.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// Nothing to compare with.
    #[error("{found} recipe to compare, expected at least two, separated by commas")]
    TooFew {
        /// Number of recipes.
        found: usize,
    },
    /// One recipe under the same name twice.
    #[error("recipe `{name}` is listed twice")]
    Twice {
        /// Its name.
        name: String,
    },
    /// No seed to train with.
    #[error("0 seeds, expected at least 1")]
    NoSeeds,
    /// Runs of different lengths where only their steps are to be equal.
    #[error("budget steps, but {first} has {steps} steps and {other} has {other_steps}")]
    UnequalSteps {
        /// The first recipe.
        first: String,
        /// Its steps over all stages.
        steps: usize,
        /// Another recipe.
        other: String,
        /// Its steps over all stages.
        other_steps: usize,
    },
    /// What is to be tried makes no sense.
    #[error("--tune: {problem}")]
    Tuning {
        /// What was found and expected.
        problem: String,
    },
    /// No trial of a recipe ended with numbers.
    #[error("every trial of {recipe} diverged; try smaller learning rates with --tune")]
    NoTrial {
        /// The recipe.
        recipe: String,
    },
    /// The folder belongs to a comparison that was requested with other settings.
    #[error("{}: {difference}; choose another --out or ask as before", path.display())]
    Differs {
        /// The stored request.
        path: PathBuf,
        /// The first field that differs, with both values.
        difference: String,
    },
    /// A file or folder of the comparison is not what it has to be.
    #[error("{}: {problem}", path.display())]
    Folder {
        /// The file or folder.
        path: PathBuf,
        /// What was found and expected.
        problem: String,
    },
    /// The user cancelled.
    #[error("stopped in {what} {number} of {total}; the same command goes on from there")]
    Interrupted {
        /// `run` or `trial`.
        what: &'static str,
        /// The run or trial, from 1.
        number: usize,
        /// Number of runs or trials.
        total: usize,
    },
}

impl CompareError {
    pub(super) fn folder(path: &Path, problem: impl Into<String>) -> Self {
        Self::Folder {
            path: path.to_owned(),
            problem: problem.into(),
        }
    }
}
