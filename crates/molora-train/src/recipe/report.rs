//! What a run's report shows beside its own scores.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What stands in the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReportConfig {
    /// Whether the base model is scored too: with heads alone on an encoder, as it is where it writes.
    pub base: bool,
    /// Records of each task and kind (right, wrong, changed against the base model) whose texts and
    /// answers are shown; with 0 the run folder has no text of any record.
    pub examples: usize,
    /// Programs for whom the training is logged beside `steps.jsonl`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<LogFormat>,
}

/// A program that shows a training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// TensorBoard, by an event file in the run's folder `tensorboard`.
    Tensorboard,
}

impl std::str::FromStr for LogFormat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "tensorboard" => Ok(Self::Tensorboard),
            "wandb" | "mlflow" => Err(format!(
                "no Rust library that is kept writes the offline files of {name}; expected tensorboard"
            )),
            _ => Err("expected tensorboard".into()),
        }
    }
}

impl Default for ReportConfig {
    fn default() -> Self {
        Self {
            base: true,
            examples: 2,
            log: Vec::new(),
        }
    }
}
