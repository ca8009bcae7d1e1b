//! Records of a streamed split as tokenized examples.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use super::StreamedSplit;
use crate::data::error::DataError;
use crate::data::example::{Example, example};
use crate::data::format::{Reader, Row};
use crate::data::record::Record;
use crate::data::task::{Task, TaskMeta};
use crate::data::tokenizer::TextTokenizer;
use crate::data::written::{Shown, Writing};

/// An example that waits to be drawn, and where it comes from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Held {
    /// Number of its record in the split.
    pub(super) record: usize,
    /// Its number among the examples of the record: of a chat whose turns are learned apart there are several.
    pub(super) part: usize,
    /// The example.
    pub(super) example: Example,
}

/// Where examples come from.
pub(crate) trait Source {
    /// The examples of the records with these numbers, in order.
    ///
    /// # Errors
    /// A record that cannot be read, is broken or yields no example.
    fn read(&mut self, records: Range<usize>) -> Result<Vec<Held>, DataError>;
}

/// How records become tokens.
#[derive(Debug, Clone)]
pub(crate) enum Encoder {
    /// For an encoder with a head, texts cut at so many tokens; with the number of token types that it knows.
    Head(Arc<TextTokenizer>, usize, Option<usize>),
    /// For a model that writes.
    Writer(Arc<Writing>),
}

/// A task of a run whose training split is streamed.
#[derive(Debug)]
pub(crate) struct StreamedTask {
    split: StreamedSplit,
    meta: TaskMeta,
    /// Number of the task in the run.
    number: usize,
    encoder: Encoder,
    /// Whether it was said that texts are cut.
    tells_of_cuts: AtomicBool,
    /// What of chats the prompts show.
    shown: Mutex<Shown>,
}

impl StreamedTask {
    /// The training split of a task that is number `number` of the run, if it is streamed.
    pub(crate) fn of(task: &Task, number: usize, encoder: &Encoder) -> Option<Arc<Self>> {
        let split = task.streamed.clone()?;
        Some(Arc::new(Self {
            split,
            meta: task.meta.clone(),
            number,
            encoder: encoder.clone(),
            tells_of_cuts: AtomicBool::new(true),
            shown: Mutex::new(Shown::new()),
        }))
    }

    /// Number of records.
    pub(crate) fn records(&self) -> usize {
        self.split.records()
    }

    /// The examples of rows of which the first is number `first` of the split.
    fn examples(&self, rows: Vec<Row>, first: usize) -> Result<Vec<Held>, DataError> {
        let numbered: Vec<(usize, Row)> = (first..).zip(rows).collect();
        let held = |(number, row)| {
            let record = self.split.record(row, number, &self.meta)?;
            let held = |(part, example)| Held {
                record: number,
                part,
                example,
            };
            let examples = self.encoded(&record)?;
            Ok(examples.into_iter().enumerate().map(held).collect())
        };
        let all: Vec<Vec<Held>> = numbered
            .into_par_iter()
            .map(held)
            .collect::<Result<_, DataError>>()?;
        if let Encoder::Writer(writing) = &self.encoder
            && writing.take_cuts() > 0
        {
            self.tell_of_cuts(writing.max_length);
        }
        Ok(all.into_iter().flatten().collect())
    }

    /// The examples of a record.
    fn encoded(&self, record: &Record) -> Result<Vec<Example>, DataError> {
        match &self.encoder {
            Encoder::Head(tokenizer, max_length, types) => {
                let second = record.input_b.as_deref();
                let encoded = tokenizer.encode(&record.input, second, *max_length)?;
                if encoded.is_cut {
                    self.tell_of_cuts(*max_length);
                }
                let limit = types.unwrap_or(usize::MAX);
                if let Some(&found) = encoded.type_ids.iter().find(|&&id| id as usize >= limit) {
                    let task = self.meta.name.clone();
                    return Err(DataError::TokenType { task, found, limit });
                }
                Ok(vec![example(record, encoded, self.number)?])
            }
            Encoder::Writer(writing) => {
                let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
                writing.check_record(record, &self.meta, &mut shown)?;
                drop(shown);
                writing.turns(record, &self.meta, self.number)
            }
        }
    }

    /// Says once that texts are cut: how many is not known before all are read.
    fn tell_of_cuts(&self, max_length: usize) {
        if self.tells_of_cuts.swap(false, Ordering::Relaxed) {
            let name = &self.meta.name;
            tracing::warn!(
                "task {name}: texts of the training split are longer than {max_length} tokens and are cut"
            );
        }
    }
}

/// The examples of a task for one stream, which reads at a place of its own.
#[derive(Debug)]
pub(crate) struct TaskSource {
    task: Arc<StreamedTask>,
    reader: Reader,
}

impl TaskSource {
    /// A source that has read nothing.
    pub(crate) fn new(task: &Arc<StreamedTask>) -> Self {
        Self {
            task: task.clone(),
            reader: task.split.reader(),
        }
    }
}

impl Source for TaskSource {
    fn read(&mut self, records: Range<usize>) -> Result<Vec<Held>, DataError> {
        let first = records.start;
        let rows = self.reader.read(records)?;
        self.task.examples(rows, first)
    }
}
