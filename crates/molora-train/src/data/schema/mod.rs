//! What a row's columns mean: which set of names it is, and the record it stands for.

mod chat;
mod plain;
mod unread;

use std::path::Path;

use serde_json::{Map, Value};

use super::error::{DataError, Place};
use super::fields::Fields;
use super::format::{FormatError, Row};
use super::meta::MetaFile;
use super::record::{Label, Record, parse_record};
use super::task::{TaskKind, TaskMeta};
pub(super) use chat::{messages, tools};
pub(super) use unread::{is_read, warn_of_places, warn_of_unread};

/// A set of column names that has a meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Schema {
    /// molora's own, with all keys.
    Own,
    /// `messages` or `conversations`.
    Chat(&'static str),
    /// `question`, `choices` and `answer`, `answerKey` or `label`.
    Question(&'static str),
    /// `instruction` or `input`, and `output` or `label`; alpaca's, and molora's own in short.
    Fields,
    /// `prompt` and `completion` or `response`.
    Completion(&'static str),
    /// `text` alone.
    Text,
}

/// The columns of molora's own schema that are always there.
const OWN: [&str; 9] = [
    "id",
    "task",
    "type",
    "instruction",
    "input",
    "input_b",
    "choices",
    "label",
    "output",
];

/// All columns with a meaning.
pub(super) const COLUMNS: [&str; 19] = [
    "id",
    "task",
    "type",
    "instruction",
    "input",
    "input_b",
    "choices",
    "label",
    "output",
    "meta",
    "messages",
    "conversations",
    "prompt",
    "completion",
    "response",
    "question",
    "answer",
    "answerKey",
    "text",
];

/// How the columns of a file become records.
#[derive(Debug, Clone)]
pub(super) struct Reading<'a> {
    pub(super) schema: Schema,
    pub(super) meta: &'a TaskMeta,
    /// Whether a `task.json` says the task's name, which records of our schema repeat.
    pub(super) has_meta_file: bool,
}

impl Schema {
    /// The schema of a file by the columns of its first row.
    ///
    /// # Errors
    /// [`FormatError::Columns`] if they have no meaning.
    pub(super) fn detect(row: &Row) -> Result<Self, FormatError> {
        let has = |name: &str| row.columns.contains_key(name);
        let first = |names: &[&'static str]| names.iter().copied().find(|name| has(name));
        // Most of the columns, so that a misspelt one is named instead of changing the schema.
        if OWN.iter().filter(|name| has(name)).count() >= 6 {
            return Ok(Self::Own);
        }
        if let Some(name) = first(&["messages", "conversations"]) {
            return Ok(Self::Chat(name));
        }
        let answer = first(&["answerKey", "answer", "label"]);
        if let (true, true, Some(answer)) = (has("question"), has("choices"), answer) {
            return Ok(Self::Question(answer));
        }
        if has("instruction") && has("output") || has("input") && (has("output") || has("label")) {
            return Ok(Self::Fields);
        }
        if let (true, Some(name)) = (has("prompt"), first(&["completion", "response"])) {
            return Ok(Self::Completion(name));
        }
        match has("text") {
            true => Ok(Self::Text),
            false => Err(FormatError::Columns {
                place: row.place.clone(),
                found: row.columns.keys().cloned().collect(),
            }),
        }
    }

    /// The kind of task that a file of this schema holds where no `task.json` says it.
    ///
    /// # Errors
    /// In our own schema, a `type` that is missing or not known.
    pub(super) fn kind(self, row: &Row) -> Result<TaskKind, DataError> {
        match self {
            Self::Own => super::meta::parse_kind(&mut Fields::new(row.columns.clone(), &row.place)),
            Self::Question(_) => Ok(TaskKind::MultipleChoice),
            Self::Fields
                if row
                    .columns
                    .get("choices")
                    .is_some_and(|value| !value.is_null()) =>
            {
                Ok(TaskKind::MultipleChoice)
            }
            _ => Ok(TaskKind::Generation),
        }
    }

    /// Refuses a kind of task that the columns cannot hold.
    pub(super) fn check_kind(self, kind: TaskKind, path: &Path) -> Result<(), DataError> {
        let (columns, only) = match self {
            Self::Own | Self::Fields => return Ok(()),
            Self::Question(_) => ("question and choices", TaskKind::MultipleChoice),
            Self::Chat(name) => (name, TaskKind::Generation),
            Self::Completion(_) => ("prompt", TaskKind::Generation),
            Self::Text => ("text", TaskKind::Generation),
        };
        if kind == only {
            return Ok(());
        }
        Err(DataError::Contradiction {
            place: Place::file(path),
            key: "type",
            found: kind.to_string(),
            expected: format!("records with the column {columns} are for {only}"),
        })
    }
}

impl Reading<'_> {
    /// The columns of a row that the task's template reads, if it has one.
    pub(super) fn columns(&self, row: &Row) -> Map<String, Value> {
        let template = self.meta.template.as_ref();
        template.map_or_else(Map::new, |template| template.columns(&row.columns))
    }

    /// The record of a row, named `id` unless it has a name of its own in our schema. The task's template,
    /// if it has one, writes its prompt, from these [`columns`](Self::columns) too.
    ///
    /// # Errors
    /// A column that is missing or holds something else than it should, a record that asks nothing, and what
    /// [`PromptTemplate::ask`](super::prompt::PromptTemplate::ask) finds.
    pub(super) fn record(
        &self,
        row: Row,
        id: String,
        columns: Map<String, Value>,
    ) -> Result<Record, DataError> {
        let place = row.place.clone();
        let mut record = self.parsed(row, id)?;
        // What a model writes; a head knows labels by their number.
        if let (Label::Index(index), false) = (&record.label, self.meta.label_words.is_empty()) {
            record.output.clone_from(&self.meta.label_words[*index]);
        }
        if let Some(template) = &self.meta.template {
            template.ask(&mut record, columns, self.meta, &place)?;
        }
        match self.asks_nothing(&record) {
            true => Err(self.empty(&record.input, &place)),
            false => Ok(record),
        }
    }

    /// Whether a record has no text of its own to answer: the instruction of its task says what to do with one, so
    /// that it is enough for a generation alone.
    fn asks_nothing(&self, record: &Record) -> bool {
        let is_blank = |text: &str| text.trim().is_empty();
        // Plain text asks nothing, and a template has written what it asks.
        if !record.messages.is_empty() || record.is_verbatim || record.prompt.is_some() {
            return false;
        }
        let inputs = [Some(&record.input), record.input_b.as_ref()];
        let (own, of_task) = (&record.instruction, &self.meta.instruction);
        let instructs = match self.meta.kind {
            TaskKind::Generation => !is_blank(own) || !is_blank(of_task),
            _ => !is_blank(own) && own != of_task,
        };
        inputs.into_iter().flatten().all(|text| is_blank(text)) && !instructs
    }

    /// The error of a record whose text is empty.
    pub(super) fn empty(&self, text: &str, place: &Place) -> DataError {
        let key = match self.schema {
            Schema::Question(_) => "question",
            Schema::Completion(_) => "prompt",
            _ => "input",
        };
        let fields = Fields::new(Map::new(), place);
        fields.wrong_type(key, &Value::from(text), "a text that is not empty")
    }

    fn parsed(&self, row: Row, id: String) -> Result<Record, DataError> {
        let mut fields = Fields::new(row.columns, &row.place);
        fields.is_text = row.is_text;
        match self.schema {
            Schema::Own => parse_record(fields, self.meta, self.has_meta_file),
            Schema::Chat(column) => chat::record(fields, column, id),
            Schema::Question(answer) => plain::question(fields, answer, self.meta, id),
            Schema::Fields => plain::fields(fields, self.meta, id),
            Schema::Completion(column) => plain::completion(fields, column, id),
            Schema::Text => plain::text(fields, id),
        }
    }
}

/// Gives the rows of a file the names that the schemas know.
///
/// # Errors
/// A renamed column that is not there.
pub(super) fn rename_all(rows: &mut [Row], file: Option<&MetaFile>) -> Result<(), DataError> {
    match file {
        Some(file) => rows.iter_mut().try_for_each(|row| rename(row, file)),
        None => Ok(()),
    }
}

fn rename(row: &mut Row, file: &MetaFile) -> Result<(), DataError> {
    let found = || row.columns.keys().cloned().collect();
    let mut renamed: Vec<(&String, Value)> = Vec::new();
    for (ours, theirs) in &file.columns {
        match row.columns.get(theirs) {
            Some(value) => renamed.push((ours, value.clone())),
            None => {
                return Err(FormatError::MissingColumn {
                    place: row.place.clone(),
                    column: theirs.clone(),
                    found: found(),
                    reason: ", but \"columns\" in task.json names it",
                }
                .into());
            }
        }
    }
    for theirs in file.columns.values() {
        row.columns.remove(theirs);
    }
    for (ours, value) in renamed {
        row.columns.insert(ours.clone(), value);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
