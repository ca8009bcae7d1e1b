//! Global scores of experts by the text of their tasks' instructions: GLIDER's second half.
//!
//! Li et al., arXiv:2410.07172: the logit of expert `e` gets `alpha_g cos(m_e, q)`, where `m_e` is
//! the vector of its task's instruction and `q` that of the query. Vectors come from a sentence
//! encoder in the same process; the paper uses nomic-embed-text.

mod clusters;
mod k_means;

use std::convert::Infallible;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use burn::tensor::{Device, Tensor, TensorData};
use molora_models::{Bert, EncoderInput, ForwardContext, GenerateError, masked_mean};
use molora_routing::{Guidance, text_cosines};
use serde::{Deserialize, Serialize};

use crate::base::base_model;
use crate::base::place::write_json_atomically;
use crate::data::{Batch, Example, Split, Target, TextTokenizer, TokenizedTask};
use crate::error::{RunProblem, TrainError};
use crate::recipe::{InstructionConfig, QuerySource};
use crate::report::SCHEMA_VERSION;
pub(crate) use clusters::clusters_of;
pub use clusters::{CLUSTERS, ClusterIds, Clusters, Place};

/// File of the experts' instructions in a run folder.
pub const INSTRUCTIONS: &str = "instructions.json";

/// Texts longer than this many tokens are cut.
const MAX_TOKENS: usize = 128;

/// Texts per pass of the encoder.
const BATCH: usize = 64;

/// The text that is compared with the instructions of the experts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Query {
    /// The instruction of the record's task.
    #[default]
    Task,
    /// The record's own text.
    Request,
    /// One text for all records.
    Text(String),
}

impl From<QuerySource> for Query {
    fn from(source: QuerySource) -> Self {
        match source {
            QuerySource::Task => Self::Task,
            QuerySource::Request => Self::Request,
        }
    }
}

impl FromStr for Query {
    type Err = Infallible;

    /// `task`, `request`, or else the text itself.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "task" => Self::Task,
            "request" => Self::Request,
            text => Self::Text(text.into()),
        })
    }
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Task => "task",
            Self::Request => "request",
            Self::Text(text) => text,
        })
    }
}

/// The instructions of all experts with their vectors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instructions {
    /// [`SCHEMA_VERSION`] of the writer.
    pub version: u32,
    /// Folder of the encoder that made the vectors, `bundled:NAME` or `hub:org/name@commit`.
    pub encoder: String,
    /// Weight alpha_g of the cosine, as tuned if the recipe tunes it.
    pub weight: f64,
    /// The experts, in their order.
    pub experts: Vec<ExpertInstruction>,
}

/// The instruction of one expert.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertInstruction {
    /// Name of the expert, which is its task's.
    pub name: String,
    /// The text.
    pub text: String,
    /// Its vector, of length 1.
    pub vector: Vec<f32>,
}

impl Instructions {
    /// Embeds the instruction of every expert, given by name and text.
    ///
    /// # Errors
    /// [`TrainError::NoInstruction`] for a task without an instruction; whatever reading the encoder gives.
    pub fn embed(
        config: &InstructionConfig,
        tasks: &[(String, String)],
        device: &Device,
    ) -> Result<Self, TrainError> {
        check_instructions(tasks.iter().map(|(name, text)| (name, text)))?;
        let encoder = TextEncoder::open(&config.encoder, device)?;
        let texts: Vec<&str> = tasks.iter().map(|(_, text)| &text[..]).collect();
        let vectors = encoder.embed(&texts)?;
        let expert = |((name, text), vector): (&(String, String), Vec<f32>)| ExpertInstruction {
            name: name.clone(),
            text: text.clone(),
            vector,
        };
        Ok(Self {
            version: SCHEMA_VERSION,
            encoder: encoder.name,
            weight: config.weight,
            experts: tasks.iter().zip(vectors).map(expert).collect(),
        })
    }

    /// Writes the file into a run folder.
    ///
    /// # Errors
    /// [`TrainError::Report`] if it cannot be written.
    pub fn save(&self, run: &Path) -> Result<(), TrainError> {
        write_json_atomically(&run.join(INSTRUCTIONS), self)
    }

    /// Reads the file of a run folder whose experts have these names.
    ///
    /// # Errors
    /// [`TrainError::Io`] or [`TrainError::Run`] for a missing or broken file, or one that lacks an
    /// expert or has them in another order.
    pub fn load(run: &Path, names: &[String]) -> Result<Self, TrainError> {
        let path = run.join(INSTRUCTIONS);
        let text = fs_err::read_to_string(&path)?;
        let found: Self = serde_json::from_str(&text).map_err(TrainError::json(&path))?;
        let has: Vec<&String> = found.experts.iter().map(|expert| &expert.name).collect();
        if !has.iter().copied().eq(names) {
            let has: Vec<&str> = has.into_iter().map(String::as_str).collect();
            let problem = RunProblem::OtherExperts {
                found: has.join(", "),
                expected: names.join(", "),
            };
            return Err(TrainError::run(&path, problem));
        }
        let width = found
            .experts
            .first()
            .map_or(0, |expert| expert.vector.len());
        if let Some(other) = found
            .experts
            .iter()
            .find(|expert| expert.vector.len() != width)
        {
            let problem = RunProblem::VectorLength {
                expert: other.name.clone(),
                found: other.vector.len(),
                expected: width,
            };
            return Err(TrainError::run(&path, problem));
        }
        Ok(found)
    }

    /// The weighted cosines of queries with all experts, one row each.
    pub fn scores(&self, queries: &[Vec<f32>], device: &Device) -> Vec<Vec<f32>> {
        if queries.is_empty() || self.experts.is_empty() {
            return vec![Vec::new(); queries.len()];
        }
        let experts: Vec<&Vec<f32>> = self.experts.iter().map(|expert| &expert.vector).collect();
        let queries: Vec<&Vec<f32>> = queries.iter().collect();
        let cosines = text_cosines(matrix(&queries, device), matrix(&experts, device));
        let weight = self.weight;
        let scores: Vec<f32> = cosines
            .mul_scalar(weight)
            .into_data()
            .iter::<f32>()
            .collect();
        scores.chunks(experts.len()).map(<[f32]>::to_vec).collect()
    }

    /// The guidance of the routers for the run's own tasks, whose queries are the experts' instructions.
    pub fn guide(&self, device: &Device) -> Guide {
        let queries: Vec<_> = self
            .experts
            .iter()
            .map(|expert| expert.vector.clone())
            .collect();
        Guide::ByTask(self.scores(&queries, device))
    }

    /// The encoder that made the vectors, for queries.
    ///
    /// # Errors
    /// Whatever finding and reading the model gives.
    pub fn text_encoder(&self, device: &Device) -> Result<TextEncoder, TrainError> {
        TextEncoder::open(&self.encoder, device)
    }

    /// The guidance of the routers for one split of any tasks, which need not be those of the experts.
    ///
    /// # Errors
    /// [`TrainError::NoInstruction`] or [`TrainError::EmptyQuery`], where that is the query; a text that cannot be tokenized.
    pub fn guide_of(
        &self,
        query: &Query,
        tasks: &[TokenizedTask],
        split: Split,
        encoder: &TextEncoder,
    ) -> Result<Guide, TrainError> {
        let device = &encoder.device;
        let rows =
            |texts: &[&str]| Ok::<_, TrainError>(self.scores(&encoder.embed(texts)?, device));
        match query {
            Query::Task => {
                let texts = tasks.iter().map(|task| (&task.name, &task.instruction));
                check_instructions(texts)?;
                let texts: Vec<&str> = tasks.iter().map(|task| &task.instruction[..]).collect();
                Ok(Guide::ByTask(rows(&texts)?))
            }
            Query::Text(text) if text.trim().is_empty() => Err(TrainError::EmptyQuery),
            Query::Text(text) => Ok(Guide::ByTask(vec![rows(&[text])?.remove(0); tasks.len()])),
            Query::Request => {
                let of_task = |task: &TokenizedTask| {
                    let texts = task.requests(split).iter();
                    rows(&texts.map(String::as_str).collect::<Vec<_>>())
                };
                let rows = tasks.iter().map(of_task).collect::<Result<_, _>>()?;
                Ok(Guide::ByRecord(rows))
            }
        }
    }
}

/// Refuses tasks, given by name and instruction, of which one has no instruction.
///
/// # Errors
/// [`TrainError::NoInstruction`] names the first one.
pub(crate) fn check_instructions<'a>(
    tasks: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> Result<(), TrainError> {
    let mut tasks = tasks.into_iter();
    match tasks.find(|(_, text)| text.trim().is_empty()) {
        None => Ok(()),
        Some((task, _)) => Err(TrainError::NoInstruction { task: task.clone() }),
    }
}

/// Preferences for experts from outside the features, as rows of what is added to the logits.
#[derive(Debug, Clone, PartialEq)]
pub enum Guide {
    /// One row for every task.
    ByTask(Vec<Vec<f32>>),
    /// One row for every record, by task.
    ByRecord(Vec<Vec<Vec<f32>>>),
    /// The cluster of every record, for routers that decide by it.
    ByCluster(ClusterIds),
}

impl Guide {
    /// The guidance of a batch whose rows are records of a split, each of a task; a guide by
    /// task reads no records.
    ///
    /// # Panics
    /// If a task or record has no row.
    pub fn of(
        &self,
        tasks: &[usize],
        records: &[usize],
        split: Split,
        device: &Device,
    ) -> Guidance {
        let numbered = tasks.iter().enumerate();
        let rows: Vec<&Vec<f32>> = match self {
            Self::ByTask(rows) => tasks.iter().map(|&task| &rows[task]).collect(),
            Self::ByRecord(rows) => numbered
                .map(|(index, &task)| &rows[task][records[index]])
                .collect(),
            Self::ByCluster(ids) => return ids.of(tasks, records, split, device),
        };
        Guidance {
            bias: Some(matrix(&rows, device)),
            ..Guidance::default()
        }
    }
}

fn matrix(rows: &[&Vec<f32>], device: &Device) -> Tensor<2> {
    let shape = [rows.len(), rows.first().map_or(0, |row| row.len())];
    let values: Vec<f32> = rows.iter().flat_map(|row| row.iter().copied()).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// An encoder of whole texts: the mean over tokens, of length 1.
#[derive(Debug)]
pub struct TextEncoder {
    bert: Bert,
    tokenizer: TextTokenizer,
    device: Device,
    name: String,
}

impl TextEncoder {
    /// Loads the encoder in a folder, `bundled:NAME`, or one of the Hub, as base models are found.
    ///
    /// # Errors
    /// Whatever reading the model gives.
    pub fn open(name: &str, device: &Device) -> Result<Self, TrainError> {
        let base_model::BaseModel { folder, name } =
            base_model::find(name, &mut base_model::silent)?;
        let device = device.clone().inner();
        Ok(Self {
            bert: Bert::from_folder(&folder, &device)?,
            tokenizer: TextTokenizer::from_folder(&folder)?,
            device,
            name,
        })
    }

    /// One vector of length 1 for every text, of which the first 128 tokens are read.
    ///
    /// # Errors
    /// A text that cannot be tokenized, or has no token.
    pub fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, TrainError> {
        self.embed_within(texts, MAX_TOKENS.min(self.bert.max_tokens()))
    }

    /// One vector of length 1 for every text, all of whose tokens are read, and the number of tokens of all.
    ///
    /// # Errors
    /// A text that cannot be tokenized, or has more tokens than the encoder reads.
    pub fn embed_whole(&self, texts: &[&str]) -> Result<(Vec<Vec<f32>>, usize), TrainError> {
        let max_tokens = self.bert.max_tokens();
        let count = count_tokens(&self.tokenizer, texts, max_tokens)?;
        Ok((self.embed_within(texts, max_tokens)?, count))
    }

    /// One vector for every text, which is cut to so many tokens.
    fn embed_within(&self, texts: &[&str], limit: usize) -> Result<Vec<Vec<f32>>, TrainError> {
        let pairs: Vec<(&str, Option<&str>)> = texts.iter().map(|&text| (text, None)).collect();
        let examples: Vec<Example> = self
            .tokenizer
            .encode_batch(&pairs, limit)?
            .into_iter()
            .map(|encoded| Example {
                ids: encoded.ids,
                type_ids: encoded.type_ids,
                task: 0,
                target: Target::Class(0),
            })
            .collect();
        // Texts of similar length are read together, with little padding.
        let mut order: Vec<usize> = (0..examples.len()).collect();
        order.sort_by_key(|&text| examples[text].ids.len());
        let mut vectors = vec![Vec::new(); examples.len()];
        for places in order.chunks(BATCH) {
            let batch: Vec<&Example> = places.iter().map(|&text| &examples[text]).collect();
            let found = self.pass(&Batch::from_examples(&batch));
            for (&place, vector) in places.iter().zip(found) {
                vectors[place] = vector;
            }
        }
        Ok(vectors)
    }

    fn pass(&self, batch: &Batch) -> Vec<Vec<f32>> {
        let mask = batch.mask(&self.device);
        let context = ForwardContext::new(mask.clone().float());
        let input = EncoderInput {
            ids: batch.input_ids(&self.device),
            type_ids: batch.type_ids(&self.device),
            mask: mask.clone(),
        };
        let hidden = self.bert.forward(&input, &context).hidden;
        unit_rows(masked_mean(hidden, &mask))
    }
}

/// The number of tokens of all texts, each of which a model has to be able to read whole.
///
/// # Errors
/// A text that cannot be tokenized, or has more tokens than the model reads.
pub(crate) fn count_tokens(
    tokenizer: &TextTokenizer,
    texts: &[&str],
    max_tokens: usize,
) -> Result<usize, TrainError> {
    let mut count = 0;
    for (row, text) in texts.iter().enumerate() {
        let tokens = tokenizer.encode_whole(text, true)?.len();
        if tokens > max_tokens {
            let error = GenerateError::PromptTooLong {
                row,
                tokens,
                max_tokens,
            };
            return Err(error.into());
        }
        count += tokens;
    }
    Ok(count)
}

/// The rows of a matrix, each brought to length 1.
pub(crate) fn unit_rows(matrix: Tensor<2>) -> Vec<Vec<f32>> {
    let width = matrix.dims()[1];
    let norm = matrix.clone().square().sum_dim(1).sqrt().clamp_min(1e-12);
    let values: Vec<f32> = (matrix / norm).into_data().iter::<f32>().collect();
    values.chunks(width).map(<[f32]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::bundled;

    #[test]
    fn texts_of_any_length_have_the_vectors_that_they_have_alone() {
        let encoder = TextEncoder::open(bundled::MODEL, &molora_testkit::device());
        let encoder = encoder.expect("the repository has it");
        // More than a batch, long and short ones by turns.
        let texts: Vec<String> = (0..BATCH + 6)
            .map(|number| format!("card {number} ").repeat(1 + number * 7 % 11))
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let all = encoder.embed(&texts).expect("texts have tokens");
        assert_eq!(all.len(), texts.len());
        for (&text, found) in texts.iter().zip(&all) {
            let alone = encoder.embed(&[text]).expect("a text has tokens");
            let cosine: f32 = found.iter().zip(&alone[0]).map(|(a, b)| a * b).sum();
            assert!((cosine - 1.0).abs() < 1e-5, "{text}: {cosine}");
        }
    }
}
