//! A record as text: what a language model is given, and what it has to say.
//!
//! The text comes in pieces, prompts and answers in turns, because only answers are trained on. All
//! pieces one after the other are the whole text.

mod template;

use std::sync::Arc;

use super::error::DataError;
use super::record::Record;
use super::task::{TaskKind, TaskMeta};
use super::{ChatError, ChatTemplate, Message};
pub(super) use template::ANSWERS;
pub use template::PromptTemplate;

/// A part of a record's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The text as it stands, spaces and line breaks included.
    pub text: String,
    /// Whether the model has to say it; otherwise it is given.
    pub is_answer: bool,
}

impl Piece {
    fn given(text: impl Into<String>) -> Self {
        let text = text.into();
        let is_answer = false;
        Self { text, is_answer }
    }

    fn answer(text: impl Into<String>) -> Self {
        let text = text.into();
        let is_answer = true;
        Self { text, is_answer }
    }

    /// What an assistant says, which may be given.
    fn of(message: &Message, text: String) -> Self {
        let is_answer = !message.is_given;
        Self { text, is_answer }
    }
}

/// How texts are put together.
#[derive(Debug, Clone)]
pub enum PromptFormat {
    /// Instruction, blank line, input, `Answer:`; chats with the role before each message. For
    /// models that were not tuned on chats.
    Plain,
    /// The model's own chat template. The text holds the special tokens that the template writes,
    /// so the tokenizer must not add any.
    Chat(Arc<ChatTemplate>),
}

/// The text of a record. The last piece is the answer that `output` (or the last message) says.
///
/// # Plain
/// `{instruction}\n\n{input}\n{input_b}\nAnswer:` and the answer ` {output}`, of which parts that are
/// empty leave no blank line behind. A chat is `User: ...\n\nAssistant:` and ` {content}` in turns.
/// Verbatim records are `input` and `output` as they stand. A `system` text stands in front, with a
/// blank line behind it. A prompt that a template wrote takes the place of all that is given; the space
/// in front of the answer is left out where the prompt ends with white space.
///
/// # Chat
/// Instruction and inputs, or what a template wrote, are the user's message and `output` the assistant's; `system` is a message
/// in front of them. A prompt is rendered
/// with the generation prompt on; an answer is what the rendering with the assistant's message adds
/// to it, which includes the mark of its end. Verbatim records without an `input` stay as they are.
///
/// # Errors
/// [`DataError::Chat`] if the template fails, [`DataError::ChatPrefix`] if it renders the beginning
/// of a chat differently once a message follows.
pub fn pieces(
    record: &Record,
    meta: &TaskMeta,
    format: &PromptFormat,
) -> Result<Vec<Piece>, DataError> {
    pieces_with_answer(record, meta, format, &record.output)
}

/// As [`pieces`], with another last answer: for candidates that are scored against each other.
///
/// # Errors
/// As [`pieces`].
pub fn pieces_with_answer(
    record: &Record,
    meta: &TaskMeta,
    format: &PromptFormat,
    answer: &str,
) -> Result<Vec<Piece>, DataError> {
    let is_text = record.is_verbatim && record.input.is_empty();
    let pieces = match format {
        _ if is_text => vec![Piece::answer(answer)],
        PromptFormat::Chat(template) => return rendered(record, meta, template, answer),
        PromptFormat::Plain if record.is_verbatim => {
            let prompt = record.prompt.as_ref().unwrap_or(&record.input);
            vec![Piece::given(prompt), Piece::answer(answer)]
        }
        PromptFormat::Plain if !record.messages.is_empty() => labelled(record, answer),
        PromptFormat::Plain if record.prompt.is_some() => {
            let prompt = joined(&[&record.system, &question(record, meta)], "\n\n");
            let ends = prompt.ends_with(char::is_whitespace);
            let gap = if ends { "" } else { " " };
            vec![
                Piece::given(prompt),
                Piece::answer(format!("{gap}{answer}")),
            ]
        }
        PromptFormat::Plain => {
            let question = joined(&[&record.system, &question(record, meta)], "\n\n");
            let gap = if question.is_empty() { "" } else { "\n" };
            let prompt = format!("{question}{gap}Answer:");
            vec![Piece::given(prompt), Piece::answer(format!(" {answer}"))]
        }
    };
    Ok(pieces)
}

/// The pieces before the last answer: what the model is given to answer by itself. Empty for plain
/// text, which has no prompt.
///
/// # Errors
/// As [`pieces`].
pub fn prompt(
    record: &Record,
    meta: &TaskMeta,
    format: &PromptFormat,
) -> Result<Vec<Piece>, DataError> {
    let mut pieces = pieces(record, meta, format)?;
    pieces.pop();
    Ok(pieces)
}

/// The answers to choose from, for [`pieces_with_answer`]: the record's choices (multiple choice) or
/// the task's labels (classification), in the order of their numbers; otherwise none.
pub fn choices(record: &Record, meta: &TaskMeta) -> Vec<String> {
    match meta.kind {
        TaskKind::MultipleChoice => record.choices.clone(),
        TaskKind::Classification => meta.labels.clone(),
        TaskKind::Generation | TaskKind::Regression => Vec::new(),
    }
}

/// What a template wrote, or `{instruction}\n\n{input}\n{input_b}` without its empty parts.
fn question(record: &Record, meta: &TaskMeta) -> String {
    if let Some(prompt) = &record.prompt {
        return prompt.clone();
    }
    let instruction = match record.instruction.is_empty() {
        true => &meta.instruction,
        false => &record.instruction,
    };
    let inputs = [
        &record.input[..],
        record.input_b.as_deref().unwrap_or_default(),
    ];
    let inputs = joined(&inputs, "\n");
    joined(&[instruction, &inputs], "\n\n")
}

fn joined(parts: &[&str], between: &str) -> String {
    let parts: Vec<&str> = parts
        .iter()
        .copied()
        .filter(|part| !part.is_empty())
        .collect();
    parts.join(between)
}

/// A chat as text with the roles' names.
fn labelled(record: &Record, answer: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut prompt = String::new();
    let last = record.messages.len() - 1;
    for (index, message) in record.messages.iter().enumerate() {
        if index > 0 {
            prompt += "\n\n";
        }
        match &message.role[..] {
            "assistant" => {
                prompt += "Assistant:";
                pieces.push(Piece::given(std::mem::take(&mut prompt)));
                let content = if index == last {
                    answer
                } else {
                    &message.content
                };
                pieces.push(Piece::of(message, format!(" {content}")));
            }
            "system" => prompt += &message.content,
            _ => prompt += &format!("User: {}", message.content),
        }
    }
    pieces
}

/// A record by the chat template.
fn rendered(
    record: &Record,
    meta: &TaskMeta,
    template: &ChatTemplate,
    answer: &str,
) -> Result<Vec<Piece>, DataError> {
    let mut messages = match (record.is_verbatim, &record.messages[..]) {
        (true, _) => vec![Message::user(
            record.prompt.as_ref().unwrap_or(&record.input),
        )],
        (false, []) => vec![Message::user(question(record, meta))],
        (false, [before @ .., _]) => before.to_vec(),
    };
    if !record.system.is_empty() {
        messages.insert(0, Message::system(&record.system));
    }
    messages.push(Message {
        is_given: record.messages.last().is_some_and(|last| last.is_given),
        ..Message::assistant(answer)
    });
    let failed = |source: ChatError| DataError::Chat {
        id: record.id.clone(),
        source,
    };
    let render =
        |count: usize, asks: bool| template.render(&messages[..count], asks).map_err(failed);
    let mut pieces = Vec::new();
    let mut whole = String::new();
    for (index, message) in messages.iter().enumerate() {
        if message.role != "assistant" {
            continue;
        }
        for (count, asks) in [(index, true), (index + 1, false)] {
            let longer = render(count, asks)?;
            let added = longer.strip_prefix(&whole[..]);
            let text = added
                .filter(|text| !text.is_empty() || asks)
                .ok_or_else(|| DataError::ChatPrefix {
                    id: record.id.clone(),
                    message: count,
                })?;
            let is_answer = !asks && !message.is_given;
            let text = text.to_owned();
            pieces.push(Piece { text, is_answer });
            whole = longer;
        }
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests;
