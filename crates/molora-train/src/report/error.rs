//! Why a report could not be written or read.

use std::io;
use std::path::{Path, PathBuf};

/// A failure to write or read a run's records.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// The file system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb: `create`, `append to`, ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file holds text that is no record of this schema.
    #[error("{}, line {line}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// What the parser found and expected.
        source: serde_json::Error,
    },
    /// A file of a later version.
    #[error(
        "{}: version is {found}, but this molora knows up to {known}: a newer molora wrote the file; \
         use that one",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The greatest version that can be read.
        known: u32,
    },
    /// A score that no run can have.
    #[error("{}: {field} is {found:e}, expected a fraction", path.display())]
    Score {
        /// The file.
        path: PathBuf,
        /// The path of the field.
        field: String,
        /// Its value.
        found: f64,
    },
    /// A value cannot be written as JSON.
    #[error("cannot write {} as JSON: {source}", path.display())]
    Serialize {
        /// The file that was to be written.
        path: PathBuf,
        /// What the serialiser refused.
        source: serde_json::Error,
    },
    /// A number of a step is NaN or infinite, which JSON cannot hold.
    #[error("step {step}: {field} is {value}, expected a finite number")]
    NotFinite {
        /// The step.
        step: usize,
        /// Name of the field, such as `loss` or `terms.orthogonality`.
        field: String,
        /// The number found.
        value: f64,
    },
}

impl ReportError {
    /// Returns a closure for `map_err` that says what was tried on which file.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}
