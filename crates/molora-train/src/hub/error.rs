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
    /// A body that comes so slowly that it would never end.
    #[error("{url}: {bytes} bytes in {seconds:.0} s are too slow to wait for")]
    Slow {
        /// What was asked for.
        url: String,
        /// How much came.
        bytes: u64,
        /// In which time.
        seconds: f64,
    },
    /// An answer that is longer than any that is meant well.
    #[error("{url}: more than {limit} bytes")]
    Long {
        /// What was asked for.
        url: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// A file has other bytes than the hub said.
    #[error("{url}: the content has hash {found}, but {expected} was announced")]
    Hash {
        /// What was asked for.
        url: String,
        /// The hash of what came, as hexadecimal digits.
        found: String,
        /// What the hub said.
        expected: String,
        /// Whether its beginning was left by an earlier download.
        was_resumed: bool,
    },
    /// A file in the cache has other bytes than its name says.
    #[error(
        "{}: the content has hash {found}, expected {expected}: the file is damaged; remove it and \
         download the model again",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Its hash, as hexadecimal digits.
        found: String,
        /// The hash that its name in the cache says.
        expected: String,
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
            // Once more from its beginning.
            Self::Hash { was_resumed, .. } => *was_resumed,
            Self::Status { status, .. } => [408, 416, 429].contains(status) || *status >= 500,
            _ => false,
        }
    }
}
