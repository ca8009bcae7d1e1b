//! How sure a model is of unlabelled records.

use burn::tensor::{Device, Int, Tensor, TensorData};
use molora_kernels::random::Seed;
use molora_models::{Backbone, TaskModel};
use molora_regularize::prediction_entropy;

use super::scores::Asked;
use crate::TrainError;
use crate::data::{Batch, Example, Sampler, SamplerConfig, Split, TaskKind, TokenizedTask};
use crate::model::inputs;

/// Records of each task in one step, as in the codes of AdaMerging and its followers.
const ROWS: usize = 16;

/// What a task's entropy is of.
#[derive(Debug, Clone)]
enum Reads {
    /// The classes of its head.
    Head,
    /// The first tokens of its labels, behind the prompt.
    Labels(Vec<usize>),
    /// Every token of the vocabulary, behind the prompt.
    Vocabulary,
}

/// A task whose training records are drawn without their labels.
struct Unlabelled {
    number: usize,
    reads: Reads,
    sampler: Sampler,
}

/// Batches of unlabelled records for a model under merging.
pub(super) struct Records<'a> {
    asked: &'a Asked,
    tasks: Vec<Unlabelled>,
    device: &'a Device,
}

impl<'a> Records<'a> {
    /// Records of all tasks whose predictions are among classes or tokens; those whose answer is a
    /// number have no entropy.
    ///
    /// # Errors
    /// [`TrainError::Data`] for a task without training records.
    pub(super) fn new(
        asked: &'a Asked,
        seed: Seed,
        device: &'a Device,
    ) -> Result<Self, TrainError> {
        let mut tasks = Vec::new();
        for (number, task) in asked.tasks.iter().enumerate() {
            let Some(reads) = reads(task) else {
                continue;
            };
            let lengths = task.lengths(Split::Train);
            let config = SamplerConfig {
                batch_size: ROWS.min(lengths.len().max(1)),
                ..SamplerConfig::default()
            };
            let seed = seed.child(&task.name).value();
            tasks.push(Unlabelled {
                number,
                reads,
                sampler: Sampler::new(config, &[lengths], seed)?,
            });
        }
        Ok(Self {
            asked,
            tasks,
            device,
        })
    }

    /// Number of tasks.
    pub(super) fn len(&self) -> usize {
        self.tasks.len()
    }

    /// The next records of a task.
    pub(super) fn draw(&mut self, place: usize) -> Batch {
        let task = &mut self.tasks[place];
        let examples = &self.asked.tasks[task.number].train;
        let rows = task.sampler.next_batch();
        let rows: Vec<&Example> = rows.iter().map(|(_, row)| &examples[*row]).collect();
        Batch::from_examples(&rows)
    }

    /// The mean entropy of a batch's predictions, `[1]`. Of a text that is written it is that of its
    /// first token; the model reads the prompt alone until there, whatever stands behind it.
    ///
    /// # Errors
    /// A task number out of range.
    pub(super) fn entropy(
        &self,
        place: usize,
        backbone: &Backbone,
        batch: &Batch,
    ) -> Result<Tensor<1>, TrainError> {
        let task = &self.tasks[place];
        let model = TaskModel {
            backbone: backbone.clone(),
            heads: self.asked.heads.clone(),
        };
        let (count, guidance) = (self.asked.tasks.len(), Default::default());
        let (input, context) = inputs(batch, count, None, guidance, self.device)?;
        let output = model.forward(&input, &context);
        let logits = match &task.reads {
            Reads::Head => {
                let head = model.heads[task.number].as_ref();
                let head = head.expect("a task without text has a head");
                head.forward(model.pool(output.hidden, &input.mask))
            }
            reads => {
                let written = output.written.expect("a model that writes");
                let states = first_states(written, batch);
                let logits = model.logits(states).expect("a model that writes");
                match reads {
                    Reads::Labels(tokens) => logits.select(1, places(tokens, self.device)),
                    _ => logits,
                }
            }
        };
        Ok(prediction_entropy(logits).mean())
    }

    /// The first records of each task, whatever was drawn.
    pub(super) fn first(&self) -> Vec<Batch> {
        let first = |task: &Unlabelled| {
            let examples = &self.asked.tasks[task.number].train;
            let count = examples.len().min(4 * ROWS);
            Batch::from_examples(&examples[..count].iter().collect::<Vec<_>>())
        };
        self.tasks.iter().map(first).collect()
    }
}

fn reads(task: &TokenizedTask) -> Option<Reads> {
    let Some(written) = &task.written else {
        return (task.kind == TaskKind::Classification).then_some(Reads::Head);
    };
    // The labels of a classification are the same for all records.
    let questions = written.questions.iter().flatten();
    let labels = questions
        .clone()
        .next()
        .filter(|_| task.kind == TaskKind::Classification);
    let firsts = labels.map(|question| {
        let first = |ids: &Vec<u32>| ids.first().map(|&id| id as usize);
        question
            .choices
            .iter()
            .filter_map(|choice| first(&choice.ids))
            .collect::<Vec<_>>()
    });
    let mut distinct = firsts.clone().unwrap_or_default();
    distinct.sort_unstable();
    distinct.dedup();
    Some(match firsts {
        Some(firsts) if firsts.len() > 1 && distinct.len() == firsts.len() => Reads::Labels(firsts),
        _ => Reads::Vocabulary,
    })
}

/// The hidden state that predicts the first answer token of each row, `[B, D]`.
fn first_states(written: Tensor<3>, batch: &Batch) -> Tensor<2> {
    let ([rows, tokens, width], device) = (written.dims(), written.device());
    let mut firsts = vec![None; rows];
    for answer in batch.answers() {
        firsts[answer.row].get_or_insert(answer.row * tokens + answer.place);
    }
    let firsts: Vec<usize> = firsts.into_iter().flatten().collect();
    written
        .reshape([rows * tokens, width])
        .select(0, places(&firsts, &device))
}

fn places(values: &[usize], device: &Device) -> Tensor<1, Int> {
    let values: Vec<i32> = values.iter().map(|&value| value as i32).collect();
    let shape = [values.len()];
    Tensor::from_data(TensorData::new(values, shape), device)
}
