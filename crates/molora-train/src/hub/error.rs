//! What can go wrong between here and the hub.

use std::path::PathBuf;

use super::ModelId;

/// A model that cannot be had, as one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The program cannot download at all.
    #[error(
        "{model}: this molora was built without the feature `hub`; download the model's files \
         and give their folder"
    )]
    NotBuilt {
        /// What was asked for.
        model: ModelId,
    },
    /// A text that names no model.
    #[error("`{text}` is no name of a model on the hub: {problem}")]
    Id {
        /// What was asked for.
        text: String,
        /// What was expected.
        problem: &'static str,
    },
    /// An environment variable that cannot be used.
    #[error("{variable}: {problem}")]
    Environment {
        /// Its name.
        variable: &'static str,
        /// What was found and expected; never the token.
        problem: String,
    },
    /// Offline mode, and the cache holds no whole copy.
    #[error(
        "{model}: HF_HUB_OFFLINE is set, and {} holds no whole copy: {missing} is missing; unset \
         it to download",
        cache.display()
    )]
    Offline {
        /// What was asked for.
        model: ModelId,
        /// The first thing that the cache lacks.
        missing: String,
        /// Folder of the cache.
        cache: PathBuf,
    },
    /// No repository of that name, or no such revision in it.
    #[error("{endpoint} has no {what} {model} (404)")]
    NoSuchModel {
        /// What was asked for.
        model: ModelId,
        /// `model` or `revision`.
        what: &'static str,
        /// Address of the hub.
        endpoint: String,
    },
    /// The hub does not let this user read the model.
    #[error("{endpoint} does not give out {model} ({status}): {advice}")]
    Denied {
        /// What was asked for.
        model: ModelId,
        /// Address of the hub.
        endpoint: String,
        /// The HTTP status.
        status: u16,
        /// What to do.
        advice: &'static str,
    },
    /// The repository lacks a file that molora needs.
    #[error("{model}: the repository has no {file}{hint}")]
    NoSuchFile {
        /// What was asked for.
        model: ModelId,
        /// The file.
        file: String,
        /// What it has instead.
        hint: String,
    },
    /// Another HTTP status than expected.
    #[error("{url}: status {status}")]
    Status {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// The hub cannot be reached, or the connection broke.
    #[error("{url}: {problem}{hint}")]
    Connection {
        /// What was asked for.
        url: String,
        /// What the network says.
        problem: String,
        /// What else could be done.
        hint: &'static str,
    },
    /// An answer that the hub would not give.
    #[error("{url}: {problem}")]
    Answer {
        /// What was asked for.
        url: String,
        /// What was found and expected.
        problem: String,
    },
    /// A file has another size than the hub said.
    #[error("{url}: {found} bytes, but {expected} were announced")]
    Size {
        /// What was asked for.
        url: String,
        /// Size that the server sends, in bytes.
        found: u64,
        /// Size in the repository's description or the first answer, in bytes.
        expected: u64,
    },
    /// The index of a model in shards is broken.
    #[error("{}: {problem}", path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// What was found and expected.
        problem: String,
    },
    /// The cache cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The user stopped the download.
    #[error("stopped while {file} of {model} was downloaded; the same command goes on with it")]
    Stopped {
        /// What was asked for.
        model: ModelId,
        /// The file.
        file: String,
    },
}

#[cfg(feature = "hub")]
impl HubError {
    pub(super) fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    /// Whether the same request may succeed a moment later.
    pub(super) fn is_temporary(&self) -> bool {
        match self {
            Self::Connection { .. } => true,
            Self::Status { status, .. } => [408, 416, 429].contains(status) || *status >= 500,
            _ => false,
        }
    }
}
