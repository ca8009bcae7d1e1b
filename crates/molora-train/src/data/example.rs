//! Tokenized records.

use std::cell::Cell;
use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::error::DataError;
use super::metrics::Metric;
use super::record::{Label, Record};
use super::stream::StreamedTask;
use super::task::{Split, Task, TaskKind};
use super::tokenizer::{Encoded, TextTokenizer};
use super::written::{Question, Writing};

/// What a model should answer for one example.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Target {
    /// Index into the task's labels, predicted by a head.
    Class(usize),
    /// A number, predicted by a head.
    Number(f64),
    /// Tokens of the text itself: true for the targets.
    Answer(Vec<bool>),
    /// Another text, that an encoder-decoder writes, behind its start token.
    Text(Vec<u32>),
}

/// One tokenized record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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

impl Example {
    /// Whether other examples may share its row.
    pub fn can_be_packed(&self) -> bool {
        matches!(self.target, Target::Answer(_))
    }
}

/// A task whose records are tokenized.
#[derive(Debug, Clone)]
pub struct TokenizedTask {
    /// The task's name.
    pub name: String,
    /// What it asks for.
    pub kind: TaskKind,
    /// Label names by index.
    pub labels: Vec<String>,
    /// Names and numbers of records of several test splits; see [`Task::test_sets`].
    pub test_sets: Vec<(String, usize)>,
    /// The prompt of the task, which routers may compare experts by.
    pub instruction: String,
    /// How it is scored.
    pub metric: Metric,
    /// Examples of the training split, in file order: one for each record, or of a chat whose template
    /// rewrites earlier turns one for each turn.
    pub train: Vec<Example>,
    /// Examples of the validation split, in file order.
    pub validation: Vec<Example>,
    /// Examples of the test split, in file order.
    pub test: Vec<Example>,
    /// Number of its texts, of all splits, that were cut.
    pub cut: usize,
    /// What the record of each example says, for readers with a tokenizer of their own: training,
    /// validation, test.
    pub(crate) requests: [Vec<String>; 3],
    /// How its answers are written; `None` where a head predicts them.
    pub(crate) written: Option<Written>,
    /// Its training split where that is read piece by piece, and `train` is empty.
    pub(crate) streamed: Option<Arc<StreamedTask>>,
}

/// A task whose answers are written.
#[derive(Debug, Clone)]
pub(crate) struct Written {
    /// How texts become tokens and tokens texts.
    pub(crate) writing: Arc<Writing>,
    /// What the model is asked for each record: training, validation, test; of the training split only
    /// where there are no others.
    pub(crate) questions: [Vec<Question>; 3],
}

impl Written {
    /// The same with these questions alone.
    pub(super) fn with_validation(&self, questions: Vec<Question>) -> Self {
        Self {
            writing: self.writing.clone(),
            questions: [Vec::new(), questions, Vec::new()],
        }
    }
}

impl TokenizedTask {
    /// Tokenizes a task that is number `index` of the run for an encoder with a head, texts cut at
    /// `max_length` tokens.
    ///
    /// The model sees `input` and `input_b` alone, without the instruction: a head of its own tells
    /// it the task.
    ///
    /// # Errors
    /// If no head can predict answers of this kind, or if a text cannot be tokenized or yields
    /// no token.
    pub fn new(
        task: &Task,
        index: usize,
        tokenizer: &TextTokenizer,
        max_length: usize,
    ) -> Result<Self, DataError> {
        require_heads(std::slice::from_ref(task))?;
        let cuts = Cell::new(0);
        let mut tokenized = Self::with(task, |split| {
            let (examples, cut) = tokenize_split(task.split(split), index, tokenizer, max_length)?;
            cuts.set(cuts.get() + cut);
            Ok(examples)
        })?;
        tokenized.count_cuts(cuts.get(), max_length);
        Ok(tokenized)
    }

    /// Tokenizes a task that is number `index` of the run for a generative model.
    ///
    /// # Errors
    /// If a text cannot be put together or tokenized, or yields no token.
    pub fn written(task: &Task, index: usize, writing: &Arc<Writing>) -> Result<Self, DataError> {
        writing.check(task)?;
        let is_trained_on = !task.validation.is_empty() || !task.test.is_empty();
        let mut tokenized = Self::with(task, |split| {
            let records = task.split(split).par_iter();
            let example = |record| writing.example(record, &task.meta, index);
            match split {
                // Each turn apart, where they are, below.
                Split::Train if is_trained_on => Ok(Vec::new()),
                _ => records.map(example).collect(),
            }
        })?;
        if is_trained_on {
            let records = task.train.par_iter();
            let turns = records.map(|record| writing.turns(record, &task.meta, index));
            let turns: Vec<Vec<Example>> = turns.collect::<Result<_, _>>()?;
            let requests = task.train.iter().zip(&turns);
            let requests = requests.map(|(record, turns)| vec![request(record); turns.len()]);
            tokenized.requests[0] = requests.flatten().collect();
            tokenized.train = turns.into_iter().flatten().collect();
        }
        tokenized.count_cuts(writing.take_cuts(), writing.max_length);
        if task.meta.kind != TaskKind::Regression {
            let questions = |split| {
                let records = task.split(split).par_iter();
                records
                    .map(|record| writing.question(record, &task.meta))
                    .collect::<Result<_, _>>()
            };
            tokenized.written = Some(Written {
                writing: writing.clone(),
                questions: [
                    match is_trained_on {
                        true => Vec::new(),
                        false => questions(Split::Train)?,
                    },
                    questions(Split::Validation)?,
                    questions(Split::Test)?,
                ],
            });
        }
        // A prompt alone may be cut where answers are to be generated after it; most are those of before.
        let prompts = writing.take_cuts();
        if tokenized.cut == 0 {
            tokenized.count_cuts(prompts, writing.max_length);
        }
        Ok(tokenized)
    }

    fn with(
        task: &Task,
        tokenize: impl Fn(Split) -> Result<Vec<Example>, DataError>,
    ) -> Result<Self, DataError> {
        Ok(Self {
            name: task.meta.name.clone(),
            kind: task.meta.kind,
            labels: task.meta.labels.clone(),
            test_sets: task.test_sets.clone(),
            instruction: task.meta.instruction.clone(),
            metric: task.meta.metric.clone().unwrap_or(Metric::Accuracy),
            train: tokenize(Split::Train)?,
            validation: tokenize(Split::Validation)?,
            test: tokenize(Split::Test)?,
            cut: 0,
            requests: [Split::Train, Split::Validation, Split::Test]
                .map(|split| task.split(split).iter().map(request).collect()),
            written: None,
            streamed: None,
        })
    }

    /// Number of training examples, or of a training split that is streamed of its records.
    pub fn num_train(&self) -> usize {
        let streamed = self.streamed.as_ref();
        streamed.map_or(self.train.len(), |streamed| streamed.records())
    }

    /// Keeps and says how many texts were cut.
    fn count_cuts(&mut self, cuts: usize, max_length: usize) {
        self.cut = cuts;
        if cuts > 0 {
            let name = &self.name;
            tracing::warn!(
                "task {name}: {cuts} texts are longer than {max_length} tokens and were cut"
            );
        }
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

    /// Token counts of one split's examples, for samplers and `super::eval_batches`.
    pub fn lengths(&self, split: Split) -> Vec<usize> {
        self.split(split)
            .iter()
            .map(|example| example.ids.len())
            .collect()
    }

    /// Class indices of one split's examples, in order; of examples without a class, none.
    pub fn classes(&self, split: Split) -> Vec<usize> {
        let class = |example: &Example| match example.target {
            Target::Class(class) => Some(class),
            _ => None,
        };
        self.split(split).iter().filter_map(class).collect()
    }

    /// Numbers of one split's examples, in order; of examples without a number, none.
    pub fn numbers(&self, split: Split) -> Vec<f64> {
        let number = |example: &Example| match example.target {
            Target::Number(number) => Some(number),
            _ => None,
        };
        self.split(split).iter().filter_map(number).collect()
    }
}

/// Tokenizes the tasks of a run for an encoder with heads; their order gives their indices.
///
/// # Errors
/// As [`TokenizedTask::new`], but an error about kinds names all tasks that cannot be trained.
pub fn tokenize_tasks(
    tasks: &[Task],
    tokenizer: &TextTokenizer,
    max_length: usize,
) -> Result<Vec<TokenizedTask>, DataError> {
    require_heads(tasks)?;
    tasks
        .iter()
        .enumerate()
        .map(|(index, task)| TokenizedTask::new(task, index, tokenizer, max_length))
        .collect()
}

/// Refuses tasks whose answers a head cannot tell.
///
/// # Errors
/// Names every task whose answers have to be written, with its kind.
pub(crate) fn require_heads(tasks: &[Task]) -> Result<(), DataError> {
    let has_head = |task: &&Task| {
        matches!(
            task.meta.kind,
            TaskKind::Classification | TaskKind::Regression
        )
    };
    let others: Vec<String> = tasks
        .iter()
        .filter(|task| !has_head(task))
        .map(|task| format!("{} is {}", task.meta.name, task.meta.kind))
        .collect();
    match others.is_empty() {
        true => Ok(()),
        false => Err(DataError::NeedsWriter {
            found: others.join(", "),
        }),
    }
}

fn request(record: &Record) -> String {
    match &record.input_b {
        None => record.input.clone(),
        Some(second) => format!("{}\n{second}", record.input),
    }
}

/// Examples of one split, and how many of their texts were cut.
fn tokenize_split(
    records: &[Record],
    task: usize,
    tokenizer: &TextTokenizer,
    max_length: usize,
) -> Result<(Vec<Example>, usize), DataError> {
    let texts: Vec<(&str, Option<&str>)> = records
        .iter()
        .map(|record| (record.input.as_str(), record.input_b.as_deref()))
        .collect();
    let encoded = tokenizer.encode_batch(&texts, max_length)?;
    let cut = encoded.iter().filter(|encoded| encoded.is_cut).count();
    let pairs = records.iter().zip(encoded);
    let examples = pairs.map(|(record, encoded)| example(record, encoded, task));
    Ok((examples.collect::<Result<_, _>>()?, cut))
}

pub(super) fn example(
    record: &Record,
    encoded: Encoded,
    task: usize,
) -> Result<Example, DataError> {
    let Encoded { ids, type_ids, .. } = encoded;
    // A row without a token would have nothing to pool.
    if ids.is_empty() {
        return Err(DataError::NoTokens {
            id: record.id.clone(),
        });
    }
    let target = match record.label {
        Label::Index(class) => Target::Class(class),
        Label::Number(number) => Target::Number(number),
        // Cannot come from a checked task with heads, but records can be built by hand.
        Label::Text => {
            return Err(DataError::NeedsWriter {
                found: format!("{} has a text for an answer", record.id),
            });
        }
    };
    Ok(Example {
        ids,
        type_ids,
        task,
        target,
    })
}

/// Names of the tasks, in order.
pub fn task_names(tasks: &[TokenizedTask]) -> Vec<String> {
    tasks.iter().map(|task| task.name.clone()).collect()
}
