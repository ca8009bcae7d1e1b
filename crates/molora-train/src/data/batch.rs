//! Tokenized examples, and batches of them padded to their longest row.
//!
//! A batch lives on the host until a model asks for its tensors, so that it can be cut into
//! smaller ones without touching the device.

use std::collections::BTreeMap;

use burn::prelude::*;
use burn::tensor::TensorData;

use super::error::DataError;
use super::record::{Label, Record};
use super::task::{Split, Task, require_classification};
use super::tokenizer::{Encoded, TextTokenizer};
use crate::eval::metrics::Metric;

/// The id in padded places. The mask keeps models from looking there, so any id would do.
const PAD_ID: i32 = 0;

/// What a model should answer for one example.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Index into the task's labels.
    Class(usize),
}

/// One tokenized record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Token ids, special tokens included.
    pub ids: Vec<u32>,
    /// 0 for the first text, 1 for the second; as long as `ids`.
    pub type_ids: Vec<u32>,
    /// Index of the task among the run's tasks.
    pub task: usize,
    /// The answer.
    pub target: Target,
}

/// A classification task whose records are tokenized.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenizedTask {
    /// The task's name.
    pub name: String,
    /// Label names by index.
    pub labels: Vec<String>,
    /// The prompt of the task, which routers may compare experts by.
    pub instruction: String,
    /// How it is scored.
    pub metric: Metric,
    /// Examples of the training split, in file order.
    pub train: Vec<Example>,
    /// Examples of the validation split, in file order.
    pub validation: Vec<Example>,
    /// Examples of the test split, in file order.
    pub test: Vec<Example>,
    /// What each record says, for readers with a tokenizer of their own: training, validation, test.
    pub(crate) requests: [Vec<String>; 3],
}

impl TokenizedTask {
    /// Tokenizes a task that is number `index` of the run, texts cut at `max_length` tokens.
    ///
    /// The model sees `input` and `input_b` alone, without the instruction: a head of its own tells
    /// it the task.
    ///
    /// # Errors
    /// If it is no classification task, or if a text cannot be tokenized or yields no token.
    pub fn new(
        task: &Task,
        index: usize,
        tokenizer: &TextTokenizer,
        max_length: usize,
    ) -> Result<Self, DataError> {
        require_classification(std::slice::from_ref(task))?;
        let tokenize = |split| tokenize_split(task.split(split), index, tokenizer, max_length);
        Ok(Self {
            name: task.meta.name.clone(),
            labels: task.meta.labels.clone(),
            instruction: task.meta.instruction.clone(),
            metric: task.meta.metric.clone().unwrap_or(Metric::Accuracy),
            train: tokenize(Split::Train)?,
            validation: tokenize(Split::Validation)?,
            test: tokenize(Split::Test)?,
            requests: [Split::Train, Split::Validation, Split::Test]
                .map(|split| task.split(split).iter().map(request).collect()),
        })
    }

    /// The text of each record of one split, a second text behind a line feed.
    pub fn requests(&self, split: Split) -> &[String] {
        let [train, validation, test] = &self.requests;
        match split {
            Split::Train => train,
            Split::Validation => validation,
            Split::Test => test,
        }
    }

    /// The examples of one split.
    pub fn split(&self, split: Split) -> &[Example] {
        match split {
            Split::Train => &self.train,
            Split::Validation => &self.validation,
            Split::Test => &self.test,
        }
    }

    /// Token counts of one split's examples, for samplers and [`super::eval_batches`].
    pub fn lengths(&self, split: Split) -> Vec<usize> {
        self.split(split)
            .iter()
            .map(|example| example.ids.len())
            .collect()
    }

    /// Class indices of one split's examples, in order.
    pub fn classes(&self, split: Split) -> Vec<usize> {
        let class = |example: &Example| match example.target {
            Target::Class(class) => class,
        };
        self.split(split).iter().map(class).collect()
    }
}

/// Tokenizes the tasks of a run; their order gives their indices.
///
/// # Errors
/// As [`TokenizedTask::new`], but an error about kinds names all tasks that cannot be trained.
pub fn tokenize_tasks(
    tasks: &[Task],
    tokenizer: &TextTokenizer,
    max_length: usize,
) -> Result<Vec<TokenizedTask>, DataError> {
    require_classification(tasks)?;
    tasks
        .iter()
        .enumerate()
        .map(|(index, task)| TokenizedTask::new(task, index, tokenizer, max_length))
        .collect()
}

fn request(record: &Record) -> String {
    match &record.input_b {
        None => record.input.clone(),
        Some(second) => format!("{}\n{second}", record.input),
    }
}

fn tokenize_split(
    records: &[Record],
    task: usize,
    tokenizer: &TextTokenizer,
    max_length: usize,
) -> Result<Vec<Example>, DataError> {
    let texts: Vec<(&str, Option<&str>)> = records
        .iter()
        .map(|record| (record.input.as_str(), record.input_b.as_deref()))
        .collect();
    let encoded = tokenizer.encode_batch(&texts, max_length)?;
    records
        .iter()
        .zip(encoded)
        .map(|(record, encoded)| example(record, encoded, task))
        .collect()
}

fn example(record: &Record, encoded: Encoded, task: usize) -> Result<Example, DataError> {
    let Encoded { ids, type_ids } = encoded;
    // A row without a token would have nothing to pool.
    if ids.is_empty() {
        return Err(DataError::NoTokens {
            id: record.id.clone(),
        });
    }
    match record.label {
        Label::Index(class) => Ok(Example {
            ids,
            type_ids,
            task,
            target: Target::Class(class),
        }),
        // Cannot come from a checked classification task, but records can be built by hand.
        _ => Err(DataError::Unsupported {
            found: format!("{} has no class", record.id),
        }),
    }
}

/// Examples padded to the longest of them, on the host; all matrices are row-major
/// `[rows, width]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Token ids, 0 where padded.
    pub input_ids: Vec<i32>,
    /// 0 for the first text, 1 for the second, 0 where padded.
    pub type_ids: Vec<i32>,
    /// `true` for tokens, `false` where padded.
    pub mask: Vec<bool>,
    /// Number of examples.
    pub rows: usize,
    /// Tokens of the longest example.
    pub width: usize,
    /// Task index of each row.
    pub task_ids: Vec<usize>,
    /// Answer of each row.
    pub targets: Vec<Target>,
}

impl Batch {
    /// Pads `examples` to the longest of them; rows keep their order.
    ///
    /// # Panics
    /// If there is no example.
    pub fn from_examples(examples: &[&Example]) -> Self {
        let width = examples.iter().map(|example| example.ids.len()).max();
        let width = width.expect("a batch has at least one example");
        let mut batch = Self::with_capacity(examples.len(), width);
        for example in examples {
            // Ids fit: `TextTokenizer::check_vocabulary` bounds them by an embedding's rows.
            let ids = example.ids.iter().map(|&id| id as i32);
            let type_ids = example.type_ids.iter().map(|&id| id as i32);
            batch.push_row(ids, type_ids, example.task, example.target);
        }
        batch
    }

    /// Cuts the batch into batches of at most `micro_rows` rows, in order, each with the width of
    /// its own longest row.
    ///
    /// # Panics
    /// If `micro_rows` is 0.
    pub fn split(&self, micro_rows: usize) -> Vec<Self> {
        let rows: Vec<usize> = (0..self.rows).collect();
        rows.chunks(micro_rows)
            .map(|rows| self.select(rows))
            .collect()
    }

    /// The rows of each task, in order of the tasks.
    pub fn rows_by_task(&self) -> BTreeMap<usize, Vec<usize>> {
        let mut rows = BTreeMap::<usize, Vec<usize>>::new();
        for (row, &task) in self.task_ids.iter().enumerate() {
            rows.entry(task).or_default().push(row);
        }
        rows
    }

    /// Number of real tokens.
    pub fn num_tokens(&self) -> usize {
        self.mask.iter().filter(|&&is_token| is_token).count()
    }

    /// Number of places, padding included: `rows * width`.
    pub fn num_padded(&self) -> usize {
        self.rows * self.width
    }

    /// Token ids, `[rows, width]`.
    pub fn input_ids(&self, device: &Device) -> Tensor<2, Int> {
        self.int_tensor(&self.input_ids, device)
    }

    /// Segment ids, `[rows, width]`.
    pub fn type_ids(&self, device: &Device) -> Tensor<2, Int> {
        self.int_tensor(&self.type_ids, device)
    }

    /// `true` for tokens, `[rows, width]`.
    pub fn mask(&self, device: &Device) -> Tensor<2, Bool> {
        let data = TensorData::new(self.mask.clone(), [self.rows, self.width]);
        Tensor::from_data(data, device)
    }

    fn int_tensor(&self, values: &[i32], device: &Device) -> Tensor<2, Int> {
        let data = TensorData::new(values.to_vec(), [self.rows, self.width]);
        Tensor::from_data(data, device)
    }

    fn with_capacity(rows: usize, width: usize) -> Self {
        Self {
            input_ids: Vec::with_capacity(rows * width),
            type_ids: Vec::with_capacity(rows * width),
            mask: Vec::with_capacity(rows * width),
            rows: 0,
            width,
            task_ids: Vec::with_capacity(rows),
            targets: Vec::with_capacity(rows),
        }
    }

    fn push_row(
        &mut self,
        ids: impl ExactSizeIterator<Item = i32>,
        type_ids: impl Iterator<Item = i32>,
        task: usize,
        target: Target,
    ) {
        let length = ids.len();
        self.rows += 1;
        let end = self.rows * self.width;
        self.input_ids.extend(ids);
        self.input_ids.resize(end, PAD_ID);
        self.type_ids.extend(type_ids);
        self.type_ids.resize(end, 0);
        self.mask.resize(end - self.width + length, true);
        self.mask.resize(end, false);
        self.task_ids.push(task);
        self.targets.push(target);
    }

    /// Number of tokens of a row; they stand at its beginning.
    fn length(&self, row: usize) -> usize {
        let mask = &self.mask[row * self.width..(row + 1) * self.width];
        mask.iter().filter(|&&is_token| is_token).count()
    }

    fn select(&self, rows: &[usize]) -> Self {
        let width = rows.iter().map(|&row| self.length(row)).max().unwrap_or(0);
        let mut batch = Self::with_capacity(rows.len(), width);
        for &row in rows {
            let tokens = row * self.width..row * self.width + self.length(row);
            let ids = self.input_ids[tokens.clone()].iter().copied();
            let type_ids = self.type_ids[tokens].iter().copied();
            batch.push_row(ids, type_ids, self.task_ids[row], self.targets[row]);
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example(length: usize, task: usize) -> Example {
        Example {
            ids: (1..=length as u32).collect(),
            type_ids: (0..length as u32).map(|token| token % 2).collect(),
            task,
            target: Target::Class(length),
        }
    }

    fn batch(lengths: &[usize]) -> Batch {
        let examples: Vec<Example> = lengths
            .iter()
            .enumerate()
            .map(|(row, &length)| example(length, row % 3))
            .collect();
        Batch::from_examples(&examples.iter().collect::<Vec<_>>())
    }

    #[test]
    fn rows_are_padded_to_the_longest() {
        let batch = batch(&[2, 3]);
        assert_eq!(batch.input_ids, [1, 2, 0, 1, 2, 3]);
        assert_eq!(batch.type_ids, [0, 1, 0, 0, 1, 0]);
        assert_eq!(batch.mask, [true, true, false, true, true, true]);
        assert_eq!((batch.num_tokens(), batch.num_padded()), (5, 6));
        assert_eq!(batch.targets, [Target::Class(2), Target::Class(3)]);
    }

    #[test]
    fn rows_are_found_by_task() {
        let rows = batch(&[1, 1, 1, 1]).rows_by_task();
        let expected = [(0, vec![0, 3]), (1, vec![1]), (2, vec![2])];
        assert_eq!(rows.into_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn tensors_hold_what_the_host_holds() {
        let (batch, device) = (batch(&[2, 3]), Device::flex());
        let ids = batch.input_ids(&device);
        assert_eq!(ids.dims(), [2, 3]);
        assert_eq!(
            ids.into_data().iter::<i32>().collect::<Vec<_>>(),
            batch.input_ids
        );
        let types = batch.type_ids(&device).into_data();
        assert_eq!(types.iter::<i32>().collect::<Vec<_>>(), batch.type_ids);
        let mask = batch.mask(&device).into_data();
        assert_eq!(mask.iter::<bool>().collect::<Vec<_>>(), batch.mask);
    }

    proptest! {
        #[test]
        fn padding_keeps_every_token(lengths in prop::collection::vec(1_usize..20, 1..10)) {
            let batch = batch(&lengths);
            prop_assert_eq!(batch.num_tokens(), lengths.iter().sum::<usize>());
            prop_assert_eq!(batch.width, *lengths.iter().max().unwrap());
            for (row, &length) in lengths.iter().enumerate() {
                let mask = &batch.mask[row * batch.width..][..batch.width];
                prop_assert!(mask[..length].iter().all(|&is_token| is_token));
                prop_assert!(!mask[length..].iter().any(|&is_token| is_token));
                let ids = &batch.input_ids[row * batch.width..][..batch.width];
                prop_assert!(ids[length..].iter().all(|&id| id == PAD_ID));
            }
        }

        #[test]
        fn parts_equal_batches_of_their_rows(
            lengths in prop::collection::vec(1_usize..20, 1..10),
            micro_rows in 1_usize..6,
        ) {
            let examples: Vec<Example> = lengths.iter().map(|&length| example(length, 0)).collect();
            let examples: Vec<&Example> = examples.iter().collect();
            let parts = Batch::from_examples(&examples).split(micro_rows);
            let expected: Vec<Batch> =
                examples.chunks(micro_rows).map(Batch::from_examples).collect();
            prop_assert_eq!(parts, expected);
        }
    }
}
