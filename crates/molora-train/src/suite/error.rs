//! What can go wrong in a reproduction.

use std::path::{Path, PathBuf};

use crate::TrainError;
use crate::compare::CompareError;
use crate::data::DataError;
use crate::report::ReportError;

/// A failure of a reproduction, each as one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SuiteError {
    /// No suite of that name.
    #[error("no suite `{name}`; there are {known}, and files that end in .toml")]
    Unknown {
        /// The name asked for.
        name: String,
        /// The names that there are.
        known: String,
    },
    /// A suite's file is no suite.
    #[error("{file}: {problem}")]
    Text {
        /// The file, or the name of a bundled suite.
        file: String,
        /// What is wrong, with the place.
        problem: String,
    },
    /// A suite contradicts itself.
    #[error("suite {suite}: {field}: {problem}")]
    Field {
        /// The suite.
        suite: String,
        /// The field, as `tasks.cola.test.0.when`.
        field: String,
        /// What is wrong.
        problem: String,
    },
    /// No task of the suite has its files.
    #[error(
        "{}: no task of {suite} has its files there; the first would need {needed}",
        data.display()
    )]
    NoFiles {
        /// The folder.
        data: PathBuf,
        /// The suite.
        suite: String,
        /// What would be needed for the first task.
        needed: String,
    },
    /// A task that was named lacks a file.
    #[error("{}: task {task} needs {needed}", data.display())]
    NoFile {
        /// The folder.
        data: PathBuf,
        /// The task.
        task: String,
        /// The names that the file may have.
        needed: String,
    },
    /// A record of a file that has no column which the suite names.
    #[error("{place}: there is no column \"{column}\", found {found}")]
    NoColumn {
        /// File and line.
        place: String,
        /// The column.
        column: String,
        /// The columns that there are.
        found: String,
    },
    /// A file of which no record belongs to a task.
    #[error("{}: no record belongs to {task}: its {column} would match \"{pattern}\"", path.display())]
    NoRecord {
        /// The file.
        path: PathBuf,
        /// The task.
        task: String,
        /// The column that says so.
        column: String,
        /// What it would match.
        pattern: String,
    },
    /// A task that the suite does not have.
    #[error("no task \"{task}\" in suite {suite}; there are {known}")]
    NoTask {
        /// The task.
        task: String,
        /// The suite.
        suite: String,
        /// Its tasks.
        known: String,
    },
    /// Held-out tasks of a model that writes no answers.
    #[error(
        "suite {suite} has tasks that are not trained on, which an encoder cannot answer; choose a \
             language model with --model"
    )]
    NeedsWriter {
        /// The suite.
        suite: String,
    },
    /// The folder belongs to a reproduction that was requested with other settings, or of other files.
    #[error("{}: {difference}; choose another --out or ask as before", path.display())]
    Differs {
        /// The stored request.
        path: PathBuf,
        /// What differs.
        difference: String,
    },
    /// A folder that holds something else.
    #[error("{}: holds files but no reproduce.toml: not a reproduction; choose another --out", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
    },
    /// The comparison of the recipes failed.
    #[error(transparent)]
    Compare(#[from] CompareError),
    /// A problem with model, data or one of the runs.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// A file of the suite is not what its format asks for.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A file or folder cannot be read or written; the text names it.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A file of scores cannot be read or written.
    #[error(transparent)]
    Report(#[from] ReportError),
}

impl SuiteError {
    pub(super) fn field(suite: &str, field: String, problem: impl Into<String>) -> Self {
        Self::Field {
            suite: suite.into(),
            field,
            problem: problem.into(),
        }
    }

    pub(super) fn differs(path: &Path, difference: String) -> Self {
        Self::Differs {
            path: path.into(),
            difference,
        }
    }
}
