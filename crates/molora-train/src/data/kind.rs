//! The kinds of tasks and the splits of their records, by the names they have in files.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a task asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TaskKind {
    /// One label out of a fixed list.
    #[default]
    Classification,
    /// One answer out of the record's own choices.
    MultipleChoice,
    /// A text.
    Generation,
    /// A number.
    Regression,
}

impl TaskKind {
    /// All kinds.
    pub const ALL: [Self; 4] = [
        Self::Classification,
        Self::MultipleChoice,
        Self::Generation,
        Self::Regression,
    ];

    /// The name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Classification => "classification",
            Self::MultipleChoice => "multiple_choice",
            Self::Generation => "generation",
            Self::Regression => "regression",
        }
    }
}

impl fmt::Display for TaskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A part of a task's records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Seen by the optimizer.
    Train,
    /// For choices made while building a recipe.
    Validation,
    /// For the final figures only.
    #[default]
    Test,
}

impl std::str::FromStr for Split {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|split| split.name() == name);
        found.ok_or_else(|| "expected test, validation or train".to_owned())
    }
}

impl Split {
    /// All splits.
    pub const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];

    /// The split's name, which is its file's name without the ending.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
