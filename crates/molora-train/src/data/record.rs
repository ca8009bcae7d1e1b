//! One line of a split's `.jsonl` file: parsing and checking.
//!
//! Keys are taken out one by one instead of through a derived struct, because serde's message for
//! a wrong type does not name the key.

use serde_json::{Map, Value};

use super::error::{DataError, Place};
use super::task::{TaskKind, TaskMeta};

/// The answer of a record, by kind of task.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Label {
    /// Index into the task's labels (classification) or the record's choices (multiple choice).
    Index(usize),
    /// A number (regression).
    Number(f64),
    /// Nothing beside the output text (generation).
    Text,
}

/// One example as it stands in the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Unique name, as a rule `<task>-<split>-<n>`.
    pub id: String,
    /// The task's prompt.
    pub instruction: String,
    /// The text (sentence, question, first sentence).
    pub input: String,
    /// The second text (passage, second sentence), if there is one.
    pub input_b: Option<String>,
    /// The answers to choose from; empty unless the task is multiple choice.
    pub choices: Vec<String>,
    /// The answer.
    pub label: Label,
    /// The answer as text: label name, answer text, number or worked solution.
    pub output: String,
    /// Whatever else the source said (fine label, source id).
    pub meta: Option<Value>,
}

/// Parses and checks one line.
///
/// # Errors
/// Broken JSON, a missing or wrongly typed key, a record that contradicts `task.json`, or a label
/// out of range; all of them name `place`.
pub fn parse_record(line: &[u8], meta: &TaskMeta, place: &Place) -> Result<Record, DataError> {
    let mut fields = Fields::parse(line, place)?;
    expect_same(&mut fields, "task", &meta.name)?;
    expect_same(&mut fields, "type", meta.kind.name())?;
    let choices = parse_choices(&mut fields, meta.kind)?;
    let output = fields.string("output")?;
    let label = parse_label(&mut fields, meta, &choices)?;
    if let (TaskKind::Classification, Label::Index(index)) = (meta.kind, &label)
        && meta.labels[*index] != output
    {
        let expected = format!("label {index} is \"{}\" in task.json", meta.labels[*index]);
        return Err(fields.contradiction("output", output, expected));
    }
    Ok(Record {
        id: fields.string("id")?,
        instruction: fields.string("instruction")?,
        input: fields.string("input")?,
        input_b: fields.optional_string("input_b")?,
        choices,
        label,
        output,
        meta: fields.map.remove("meta").filter(|value| !value.is_null()),
    })
}

fn expect_same(
    fields: &mut Fields<'_>,
    key: &'static str,
    expected: &str,
) -> Result<(), DataError> {
    let found = fields.string(key)?;
    if found == expected {
        return Ok(());
    }
    Err(fields.contradiction(key, found, format!("task.json says \"{expected}\"")))
}

fn parse_choices(fields: &mut Fields<'_>, kind: TaskKind) -> Result<Vec<String>, DataError> {
    let value = fields.take("choices")?;
    match (kind, value) {
        (TaskKind::MultipleChoice, value) => {
            let choices = fields.string_list("choices", value)?;
            if choices.is_empty() {
                return Err(fields.wrong_type(
                    "choices",
                    &Value::Array(vec![]),
                    "at least one string",
                ));
            }
            Ok(choices)
        }
        (_, Value::Null) => Ok(Vec::new()),
        (_, value) => Err(fields.wrong_type("choices", &value, "null for this type of task")),
    }
}

fn parse_label(
    fields: &mut Fields<'_>,
    meta: &TaskMeta,
    choices: &[String],
) -> Result<Label, DataError> {
    let value = fields.take("label")?;
    match meta.kind {
        TaskKind::Classification => fields.index(&value, meta.labels.len(), "labels"),
        TaskKind::MultipleChoice => fields.index(&value, choices.len(), "choices"),
        TaskKind::Regression => match value.as_f64() {
            Some(number) => Ok(Label::Number(number)),
            None => Err(fields.wrong_type("label", &value, "a number")),
        },
        TaskKind::Generation if value.is_null() => Ok(Label::Text),
        TaskKind::Generation => Err(fields.wrong_type("label", &value, "null for generation")),
    }
}

/// A JSON object whose keys are taken out one by one, with errors that know the place.
pub(super) struct Fields<'a> {
    pub(super) map: Map<String, Value>,
    place: &'a Place,
}

impl<'a> Fields<'a> {
    /// Parses a whole JSON object.
    pub(super) fn parse(text: &[u8], place: &'a Place) -> Result<Self, DataError> {
        let broken = |message: String| DataError::Json {
            place: place.clone(),
            message,
        };
        match serde_json::from_slice(text) {
            Ok(Value::Object(map)) => Ok(Self { map, place }),
            Ok(other) => Err(broken(format!(
                "found {}, expected an object",
                describe(&other)
            ))),
            Err(error) => Err(broken(shorten_position(&error, place))),
        }
    }

    /// Takes a value that has to be there.
    pub(super) fn take(&mut self, key: &'static str) -> Result<Value, DataError> {
        self.map.remove(key).ok_or_else(|| DataError::MissingKey {
            place: self.place.clone(),
            key,
        })
    }

    pub(super) fn string(&mut self, key: &'static str) -> Result<String, DataError> {
        match self.take(key)? {
            Value::String(text) => Ok(text),
            other => Err(self.wrong_type(key, &other, "a string")),
        }
    }

    pub(super) fn optional_string(
        &mut self,
        key: &'static str,
    ) -> Result<Option<String>, DataError> {
        match self.take(key)? {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text)),
            other => Err(self.wrong_type(key, &other, "a string or null")),
        }
    }

    pub(super) fn string_list(
        &self,
        key: &'static str,
        value: Value,
    ) -> Result<Vec<String>, DataError> {
        let expected = "a list of strings";
        let Value::Array(items) = value else {
            return Err(self.wrong_type(key, &value, expected));
        };
        let text = |item| match item {
            Value::String(text) => Ok(text),
            other => Err(self.wrong_type(key, &other, expected)),
        };
        items.into_iter().map(text).collect()
    }

    fn index(&self, value: &Value, count: usize, what: &'static str) -> Result<Label, DataError> {
        let Some(found) = value.as_i64() else {
            return Err(self.wrong_type("label", value, "a whole number"));
        };
        match usize::try_from(found) {
            Ok(index) if index < count => Ok(Label::Index(index)),
            _ => Err(DataError::LabelRange {
                place: self.place.clone(),
                found,
                count,
                what,
            }),
        }
    }

    pub(super) fn wrong_type(
        &self,
        key: &'static str,
        value: &Value,
        expected: &'static str,
    ) -> DataError {
        DataError::WrongType {
            place: self.place.clone(),
            key,
            found: describe(value),
            expected,
        }
    }

    pub(super) fn contradiction(
        &self,
        key: &'static str,
        found: String,
        expected: String,
    ) -> DataError {
        DataError::Contradiction {
            place: self.place.clone(),
            key,
            found,
            expected,
        }
    }
}

/// serde counts lines inside the text it got, which for JSON lines is always 1: keep the column
/// alone there.
fn shorten_position(error: &serde_json::Error, place: &Place) -> String {
    let message = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    match (place.line, message.strip_suffix(&position)) {
        (Some(_), Some(text)) => format!("{text} at column {}", error.column()),
        _ => message,
    }
}

/// Names a value's type, and the value where it is short.
fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(flag) => format!("the boolean {flag}"),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the string \"{}\"", beginning(text)),
        Value::Array(items) => format!("a list of {} items", items.len()),
        Value::Object(_) => "an object".into(),
    }
}

/// The first 40 characters of a text on one line, for messages.
pub(super) fn beginning(text: &str) -> String {
    let mut short: String = text.chars().take(40).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    short.replace(['\n', '\r'], " ")
}
