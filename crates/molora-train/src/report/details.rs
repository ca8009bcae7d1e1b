//! What stands beside a run's scores: the base model's, example answers, and what its experts do.
//!
//! | file | content |
//! |---|---|
//! | `base.json` | [`BaseReport`] |
//! | `examples.json` | [`ExampleReport`] |
//! | `experts.json` | [`ExpertReport`] |

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::schema::{EvalReport, PredictionReport};

/// Score of one of several test splits of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestScore {
    /// Value of the task's metric.
    pub value: f64,
    /// Share of records whose answer was right; `None` where an answer is not simply right or wrong.
    pub accuracy: Option<f64>,
    /// Number of records.
    pub n: usize,
}

/// What the base model alone is worth on the tasks of a run: `base.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseReport {
    /// [`SCHEMA_VERSION`](super::SCHEMA_VERSION) of the writer.
    pub version: u32,
    /// How each task was answered, by its name.
    pub ways: BTreeMap<String, BaseWay>,
    /// The scores, on the split that the run was scored on.
    pub scores: EvalReport,
    /// The answers.
    pub predictions: PredictionReport,
}

/// How a base model without adapters answers a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BaseWay {
    /// A head alone: a linear probe of the pooled states, fitted on the training split.
    Head,
    /// It writes, as it was downloaded.
    Plain,
}

/// Records of the scored split with what was answered: `examples.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExampleReport {
    /// [`SCHEMA_VERSION`](super::SCHEMA_VERSION) of the writer.
    pub version: u32,
    /// The split.
    pub split: String,
    /// Examples of each task, by its name.
    pub tasks: BTreeMap<String, Vec<ExampleAnswer>>,
}

/// A record with what was answered to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExampleAnswer {
    /// What it is an example of.
    pub kind: ExampleKind,
    /// The record's place in the split, from 1.
    pub record: usize,
    /// The input: the record's texts.
    pub input: String,
    /// The right answer.
    pub expected: String,
    /// The run's answer.
    pub answer: String,
    /// The base model's answer, where it was scored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
}

/// What a record is an example of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExampleKind {
    /// Right, where the base model was wrong.
    Gained,
    /// Wrong, where the base model was right.
    Lost,
    /// Wrong, as the base model was; or wrong, where there is no base model.
    Wrong,
    /// Right, as the base model was; or right, where there is no base model.
    Right,
}

/// What the experts of a run do: `experts.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertReport {
    /// [`SCHEMA_VERSION`](super::SCHEMA_VERSION) of the writer.
    pub version: u32,
    /// How alike the experts of each site are, in the order of the model; sites with fewer than two
    /// are absent.
    pub similarity: Vec<ExpertSimilarity>,
    /// How the routers weigh the tokens of a few records.
    pub sentences: Vec<SentenceRouting>,
}

/// How alike the experts of one site are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertSimilarity {
    /// Full name of the site.
    pub site: String,
    /// Index of the layer that holds the site, from 0.
    pub layer: usize,
    /// Cosine of the weight changes of each two experts, `[experts][experts]`, from -1 to 1; 0 where
    /// one of them is zero.
    pub cosine: Vec<Vec<f64>>,
}

/// How the routers weigh the tokens of one record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SentenceRouting {
    /// Name of the record's task.
    pub task: String,
    /// The record's place in the split, from 1.
    pub record: usize,
    /// The text of each token.
    pub tokens: Vec<String>,
    /// The weights, in the order of the model.
    pub sites: Vec<TokenWeights>,
}

/// The weights of one site for the tokens of one record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenWeights {
    /// Full name of the site.
    pub site: String,
    /// Index of the layer that holds the site, from 0.
    pub layer: usize,
    /// Weight of each expert for each token, `[tokens][experts]`.
    pub weights: Vec<Vec<f64>>,
}
