//! How a recipe compares experts by the texts of their tasks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::base::bundled;

/// How much the texts of tasks count in routing, and who reads them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct InstructionConfig {
    /// Weight alpha_g of the cosine beside the routers' own logits.
    pub weight: f64,
    /// Folder of the sentence encoder, `bundled:NAME`, or `org/name` on the Hub; its tokens are
    /// averaged.
    pub encoder: String,
    /// Where a query's text comes from.
    pub query: QuerySource,
}

impl Default for InstructionConfig {
    /// GLIDER's weight, and the bundled sentence encoder on the tasks' instructions.
    fn default() -> Self {
        Self {
            weight: 100.0,
            encoder: bundled::MODEL.into(),
            query: QuerySource::Task,
        }
    }
}

impl InstructionConfig {
    /// What is out of range, each with the name of its field.
    pub fn problems(&self) -> Vec<String> {
        match self.weight.is_finite() && self.weight >= 0.0 {
            true => Vec::new(),
            false => {
                let weight = self.weight;
                vec![format!("weight is {weight}, expected at least 0")]
            }
        }
    }
}

/// Where the text of a query comes from in evaluation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum QuerySource {
    /// The instruction of the record's task, as in the paper's code.
    #[default]
    Task,
    /// The record's own text.
    Request,
}
