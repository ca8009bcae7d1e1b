//! One record: what it holds, and how it is read from our own schema.

use serde_json::Value;

use super::Message;
use super::error::DataError;
use super::fields::Fields;
use super::task::{TaskKind, TaskMeta};

/// The answer of a record, by kind of task.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub enum Label {
    /// Index into the task's labels (classification) or the record's choices (multiple choice).
    Index(usize),
    /// A number (regression).
    Number(f64),
    /// Nothing beside the output text (generation).
    #[default]
    Text,
}

/// One example.
///
/// The last fields determine how its text is put together: a chat has messages, text as it
/// stands is verbatim, and everything else is a prompt of instruction and inputs, unless a template has
/// written the prompt; see `super::prompt::pieces`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Record {
    /// Name, as a rule `<task>-<split>-<n>`.
    pub id: String,
    /// What to do: the task's prompt, or the record's own.
    pub instruction: String,
    /// The text (sentence, question, first sentence, prompt); of a chat, what the user says last.
    pub input: String,
    /// The second text (passage, second sentence), if there is one.
    pub input_b: Option<String>,
    /// The answers to choose from; empty unless the task is multiple choice.
    pub choices: Vec<String>,
    /// The answer.
    pub label: Label,
    /// The answer as text: label name, answer text, number or worked solution; of a chat, what the
    /// assistant says last.
    pub output: String,
    /// Other metadata of the source (fine label, source id).
    pub meta: Option<Value>,
    /// The messages of a chat, of which the assistant has the last; empty for other records.
    pub messages: Vec<Message>,
    /// The functions that the assistant of a chat may call: a JSON list of their schemas.
    pub tools: Option<String>,
    /// How the model is to behave, in front of everything else; empty where nothing says it. Of a chat
    /// it is the first message.
    pub system: String,
    /// Whether `input` and `output` follow each other as they stand, with nothing between them.
    pub is_verbatim: bool,
    /// What a template of one's own asks, in the place of instruction and inputs.
    pub prompt: Option<String>,
    /// What each of several templates asks; empty once it is decided which of them does.
    pub prompts: Vec<String>,
}

/// Checks one record of our own schema.
///
/// # Errors
/// A missing or wrongly typed key, a record that contradicts `task.json` (if there is one: else
/// the name of its task is not looked at), or a label out of range; all of them name the place.
pub(super) fn parse_record(
    mut fields: Fields<'_>,
    meta: &TaskMeta,
    has_meta_file: bool,
) -> Result<Record, DataError> {
    if has_meta_file {
        expect_same(&mut fields, "task", &meta.name, "task.json says")?;
        expect_same(&mut fields, "type", meta.kind.name(), "task.json says")?;
    } else {
        let kind = meta.kind.name();
        expect_same(&mut fields, "type", kind, "the first record of train says")?;
    }
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
        ..Record::default()
    })
}

fn expect_same(
    fields: &mut Fields<'_>,
    key: &'static str,
    expected: &str,
    who: &str,
) -> Result<(), DataError> {
    let found = fields.string(key)?;
    if found == expected {
        return Ok(());
    }
    Err(fields.contradiction(key, found, format!("{who} \"{expected}\"")))
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
