//! What a parameter is for.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a parameter is for; stages, counts and learning rates go by it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
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
    /// Tables of the pretrained model that train whole beside the adapters, as copies.
    Saved,
    /// What a part has and no gradient trains: drawn once, taken from the base model, or moved by a
    /// rule of its own. It is stored with the adapter.
    Frozen,
}
