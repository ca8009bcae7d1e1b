//! What a run's report shows beside its own scores.

use serde::{Deserialize, Serialize};

/// What stands in the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReportConfig {
    /// Whether the base model is scored too: with heads alone on an encoder, as it is where it writes.
    pub base: bool,
    /// Records of each task and kind (right, wrong, changed against the base model) whose texts and
    /// answers are shown; with 0 the run folder has no text of any record.
    pub examples: usize,
}

impl Default for ReportConfig {
    fn default() -> Self {
        Self {
            base: true,
            examples: 2,
        }
    }
}
