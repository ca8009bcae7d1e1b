//! What can be wrong with model files, adapter files and adapter specifications.

use std::path::PathBuf;

use molora_adapters::AdapterError;
use molora_routing::RoutingError;

/// A problem with a model folder, an adapter file or an adapter specification.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file is not what its name promises.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        problem: String,
    },
    /// A tensor is not in the file.
    #[error("{}: tensor `{name}` is missing{}", path.display(), near(similar))]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The tensor that was looked for.
        name: String,
        /// Names in the file that look like it.
        similar: Vec<String>,
    },
    /// A tensor has another shape than the configuration says.
    #[error("{}: tensor `{name}` has shape {found:?}, expected {expected:?}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape in the file.
        found: Vec<usize>,
        /// The shape that the model needs.
        expected: Vec<usize>,
    },
    /// A number of a tensor is NaN or infinite.
    #[error(
        "{}: number {} of tensor `{name}` is {value}, expected finite numbers",
        path.display(),
        index + 1
    )]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What was found.
        value: f32,
        /// Its place among the tensor's numbers, row by row, from 0.
        index: usize,
    },
    /// Tensors in an adapter file that belong to no part of the adapter.
    #[error("{}: tensors that the adapter does not have: {}", path.display(), names.join(", "))]
    UnknownTensors {
        /// The file.
        path: PathBuf,
        /// Their names.
        names: Vec<String>,
    },
    /// A site pattern that matches no layer.
    #[error("target `{pattern}` matches no linear layer{}", near(similar))]
    NoSuchSite {
        /// The pattern.
        pattern: String,
        /// Layers with names like it.
        similar: Vec<String>,
    },
    /// A site pattern that is no valid glob or regular expression.
    #[error("target `{pattern}` is not a valid pattern: {problem}")]
    BadPattern {
        /// The pattern.
        pattern: String,
        /// What the parser says.
        problem: String,
    },
    /// A number of a bank or gate is out of its range.
    #[error("{field}: {source}")]
    Adapter {
        /// Path of the part in the specification.
        field: &'static str,
        /// What is wrong.
        source: AdapterError,
    },
    /// A bank that does not fit a layer that it is to be attached to.
    #[error("adapter.bank: {source}, at {path}")]
    Site {
        /// The layer.
        path: String,
        /// What is wrong.
        source: AdapterError,
    },
    /// A number of the router is out of its range.
    #[error("adapter.router: {0}")]
    Routing(#[from] RoutingError),
    /// A part of the specification that a model has no place for.
    #[error("{field} is {found}, which this model has no place for: expected {expected}")]
    NoPlace {
        /// Path of the part in the specification.
        field: &'static str,
        /// What it says.
        found: &'static str,
        /// What the model can have.
        expected: &'static str,
    },
    /// Parts of the specification that do not go together.
    #[error("{0}")]
    Inconsistent(String),
}

impl ModelError {
    pub(crate) fn file(path: &std::path::Path, problem: impl Into<String>) -> Self {
        Self::File {
            path: path.to_owned(),
            problem: problem.into(),
        }
    }
}

fn near(similar: &[String]) -> String {
    match similar {
        [] => String::new(),
        names => format!("; near names: {}", names.join(", ")),
    }
}

/// Up to five of `names` that look like `wanted`, nearest first.
pub(crate) fn similar<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut scored: Vec<(f64, &str)> = names
        .into_iter()
        .map(|name| (strsim::jaro_winkler(wanted, name), name))
        .filter(|(score, _)| *score > 0.7)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    scored.dedup_by(|a, b| a.1 == b.1);
    scored
        .into_iter()
        .take(5)
        .map(|(_, name)| name.to_owned())
        .collect()
}
