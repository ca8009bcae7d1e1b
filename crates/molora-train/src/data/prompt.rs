//! A record as text: what a language model is given, and what its targets are.
//!
//! The text comes in pieces, prompts and answers in turns, because only answers are trained on. All
//! pieces one after the other are the whole text.

mod template;

use std::sync::Arc;

use super::error::DataError;
use super::message::Part;
use super::record::Record;
use super::task::{TaskKind, TaskMeta};
use super::{ChatError, ChatTemplate, Message, thought};
pub(super) use template::ANSWERS;
pub use template::PromptTemplate;

/// A part of a record's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The text as it stands, spaces and line breaks included.
    pub text: String,
    /// Whether it is a target; otherwise it is given.
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

impl PromptFormat {
    /// What texts are made by, in words.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Plain => "data.writing.prompt = \"plain\"",
            Self::Chat(_) => "the model's chat template",
        }
    }

    /// What of a text that a model wrote, or is to write, is its answer: what it thought before is none.
    pub(crate) fn answer_of<'a>(&self, text: &'a str) -> &'a str {
        match self {
            Self::Chat(template) => template.answer_of(text),
            Self::Plain => text,
        }
    }

    /// Whether a part of messages beside their content is seen in the text of a chat.
    pub(super) fn shows(&self, part: Part) -> bool {
        match self {
            Self::Plain => false,
            Self::Chat(template) => template.shows(part),
        }
    }
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
/// Instruction and inputs, or what a template wrote, are the user's message and `output` the
/// assistant's; `system` is a message in front of them. A prompt is rendered with the generation prompt
/// on; an answer is what the rendering with the assistant's message adds
/// to it, which includes the mark of its end. Where the generation prompt has a place for thoughts that the
/// template does not show with an answer, the answer is what fills that place too. Verbatim records without an `input` stay as they are. Of a
/// chat whose template rewrites earlier turns it is the last turn alone, with all before it given.
///
/// # Errors
/// [`DataError::Chat`] if the template fails, [`DataError::ChatPrefix`] if it renders what asks for an
/// answer differently once the answer follows.
pub(crate) fn pieces(
    record: &Record,
    meta: &TaskMeta,
    format: &PromptFormat,
) -> Result<Vec<Piece>, DataError> {
    pieces_with_answer(record, meta, format, &record.output)
}

/// What is learned of a record: its [`pieces`] or, of a chat whose template rewrites earlier turns as soon
/// as others follow, those of every turn by itself.
///
/// A turn by itself is the chat up to there, of which the turn's answer alone is to be said: what the
/// model sees when it has that turn.
///
/// # Errors
/// As [`pieces`].
pub(crate) fn turns(
    record: &Record,
    meta: &TaskMeta,
    format: &PromptFormat,
) -> Result<Vec<Vec<Piece>>, DataError> {
    let PromptFormat::Chat(template) = format else {
        return Ok(vec![pieces(record, meta, format)?]);
    };
    if record.messages.is_empty() {
        return Ok(vec![pieces(record, meta, format)?]);
    }
    let rendering = Rendering::new(record, meta, template, &record.output);
    let rewritten = match rendering.pieces(rendering.turns()) {
        Err(error @ DataError::ChatPrefix { .. }) => error,
        other => return Ok(vec![other?]),
    };
    let learned = rendering.turns();
    let learned = learned.filter(|&index| !rendering.messages[index].is_given);
    let turns = learned.map(|index| rendering.pieces(std::iter::once(index)));
    match turns.collect() {
        Err(DataError::ChatPrefix { .. }) => Err(rewritten),
        other => other,
    }
}

/// As [`pieces`], with another last answer: for candidates that are scored against each other.
///
/// # Errors
/// As [`pieces`].
pub(crate) fn pieces_with_answer(
    record: &Record,
    meta: &TaskMeta,
    format: &PromptFormat,
    answer: &str,
) -> Result<Vec<Piece>, DataError> {
    let is_text = record.is_verbatim && record.input.is_empty();
    let pieces = match format {
        _ if is_text => vec![Piece::answer(answer)],
        PromptFormat::Chat(template) => {
            return Rendering::new(record, meta, template, answer).all_or_last();
        }
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
pub(crate) fn prompt(
    record: &Record,
    meta: &TaskMeta,
    format: &PromptFormat,
) -> Result<Vec<Piece>, DataError> {
    let mut pieces = pieces(record, meta, format)?;
    pieces.pop();
    Ok(pieces)
}

/// The answers to choose from, for [`pieces_with_answer`]: the record's choices (multiple choice) or
/// the task's labels or the words for them (classification), in the order of their numbers; otherwise none.
pub(crate) fn choices(record: &Record, meta: &TaskMeta) -> Vec<String> {
    match meta.kind {
        TaskKind::MultipleChoice => record.choices.clone(),
        TaskKind::Classification if !meta.label_words.is_empty() => meta.label_words.clone(),
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

/// What a chat template is given for a record, the assistant's `answer` last.
fn chat(record: &Record, meta: &TaskMeta, answer: &str) -> Vec<Message> {
    let (mut messages, last) = match (record.is_verbatim, &record.messages[..]) {
        (false, [before @ .., last]) => (before.to_vec(), last.clone()),
        (is_verbatim, _) => {
            let asked = match record.prompt.is_none() && is_verbatim {
                true => record.input.clone(),
                false => question(record, meta),
            };
            (vec![Message::user(asked)], Message::assistant(""))
        }
    };
    if !record.system.is_empty() {
        messages.insert(0, Message::system(&record.system));
    }
    messages.push(Message {
        content: answer.into(),
        is_silent: last.is_silent && answer.is_empty(),
        ..last
    });
    messages
}

/// A chat by its template.
struct Rendering<'a> {
    record: &'a Record,
    template: &'a ChatTemplate,
    messages: Vec<Message>,
}

impl<'a> Rendering<'a> {
    fn new(record: &'a Record, meta: &TaskMeta, template: &'a ChatTemplate, answer: &str) -> Self {
        let messages = chat(record, meta, answer);
        Self {
            record,
            template,
            messages,
        }
    }

    /// The first `count` messages, and what asks for the next one if that is wanted.
    fn text(&self, count: usize, asks: bool) -> Result<String, DataError> {
        let (messages, tools) = (&self.messages[..count], self.record.tools.as_deref());
        let text = self.template.render_with(messages, tools, asks);
        text.map_err(|source: ChatError| DataError::Chat {
            id: self.record.id.clone(),
            source,
        })
    }

    /// The places of the assistant's messages.
    fn turns(&self) -> impl Iterator<Item = usize> + '_ {
        let messages = self.messages.iter().enumerate();
        messages
            .filter(|(_, message)| message.role == "assistant")
            .map(|(index, _)| index)
    }

    /// What the assistant's messages at these places add to one text, and what is given before each.
    ///
    /// # Errors
    /// [`DataError::ChatPrefix`] if the text with a message does not begin with that before it.
    fn pieces(&self, turns: impl Iterator<Item = usize>) -> Result<Vec<Piece>, DataError> {
        let mut pieces = Vec::new();
        let mut whole = String::new();
        for index in turns {
            for (count, asks) in [(index, true), (index + 1, false)] {
                let message = &self.messages[index];
                let longer = self.text(count, asks)?;
                let added = longer.strip_prefix(&whole[..]).map(str::to_owned);
                let added = added.filter(|text| !text.is_empty() || asks);
                let in_place = || match asks {
                    true => None,
                    false => thought::answer(&whole, &longer, message),
                };
                let text = added
                    .or_else(in_place)
                    .ok_or_else(|| DataError::ChatPrefix {
                        id: self.record.id.clone(),
                        message: count,
                    })?;
                whole += &text;
                pieces.push(match asks {
                    true => Piece::given(text),
                    false => Piece::of(message, text),
                });
            }
        }
        Ok(pieces)
    }

    /// The pieces of all turns, or of the last one by itself where the template rewrites those before it.
    fn all_or_last(&self) -> Result<Vec<Piece>, DataError> {
        let rewritten = match self.pieces(self.turns()) {
            Err(error @ DataError::ChatPrefix { .. }) => error,
            other => return other,
        };
        match self.pieces(self.turns().last().into_iter()) {
            // The first place where it goes wrong.
            Err(DataError::ChatPrefix { .. }) => Err(rewritten),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests;
