//! What a parameter is for.

use serde::{Deserialize, Serialize};

/// What a parameter is for; stages, counts and learning rates go by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParameterKind {
    /// The pretrained model, which is always frozen.
    Base,
    /// Matrices of experts and what is learned inside them.
    Adapters,
    /// Parameters of routers.
    Routers,
    /// Parameters of task gates.
    Gates,
    /// Heads of tasks.
    Heads,
}
