//! Chats: lists of messages.

use serde_json::{Map, Value};

use super::super::error::DataError;
use super::super::fields::{Fields, beginning, describe};
use super::super::format::FormatError;
use super::super::record::Record;
use super::plain::optional;
use crate::data::Message;

/// The most messages of a chat.
const MAX_MESSAGES: usize = 1000;

/// The messages of a column, of which there is one at least.
///
/// # Errors
/// A column that holds something else, with the first message that is none.
pub(in super::super) fn messages(
    fields: &mut Fields<'_>,
    column: &'static str,
) -> Result<Vec<Message>, DataError> {
    let value = fields.take(column)?;
    let Value::Array(items) = value else {
        return Err(fields.wrong_type(column, &value, "a list of messages"));
    };
    let problem = |number: usize, problem: String| FormatError::Message {
        place: fields.place.clone(),
        column,
        number,
        problem,
    };
    // The text of every turn begins with those before it: time grows with the square.
    if items.len() > MAX_MESSAGES {
        return Err(FormatError::ManyEntries {
            place: fields.place.clone(),
            column,
            found: items.len(),
            limit: MAX_MESSAGES,
        }
        .into());
    }
    let mut messages = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        messages.push(message(item).map_err(|text| problem(index + 1, text))?);
    }
    match messages.is_empty() {
        true => Err(fields.wrong_type(column, &Value::Array(vec![]), "at least one message")),
        false => Ok(messages),
    }
}

/// `messages` (role and content) or `conversations` (from and value).
pub(super) fn record(
    mut fields: Fields<'_>,
    column: &'static str,
    id: String,
) -> Result<Record, DataError> {
    let mut messages = messages(&mut fields, column)?;
    let problem = |number: usize, problem: String| FormatError::Message {
        place: fields.place.clone(),
        column,
        number,
        problem,
    };
    let last = messages.last().expect("there is one at least");
    if last.role != "assistant" {
        let text = format!("the last one is from {}, expected assistant", last.role);
        return Err(problem(messages.len(), text).into());
    }
    if messages
        .iter()
        .all(|message| message.role != "assistant" || message.is_given)
    {
        let text = "this answer and all others are marked as not to be learned".into();
        return Err(problem(messages.len(), text).into());
    }
    let output = last.content.clone();
    let system = optional(&mut fields, "system")?.filter(|text| !text.is_empty());
    match (system, messages.first()) {
        (Some(text), Some(first)) if first.role == "system" && first.content != text => {
            let expected = "the chat's first message is another system message".into();
            return Err(fields.contradiction("system", beginning(&text), expected));
        }
        (Some(text), Some(first)) if first.role != "system" => {
            messages.insert(0, Message::system(text));
        }
        _ => {}
    }
    let question = messages.iter().rfind(|message| message.role == "user");
    Ok(Record {
        id,
        input: question.map_or_else(String::new, |message| message.content.clone()),
        output,
        messages,
        ..Record::default()
    })
}

fn message(item: Value) -> Result<Message, String> {
    let Value::Object(mut map) = item else {
        return Err(format!("found {}, expected an object", describe(&item)));
    };
    let role = text(&mut map, ["role", "from"])?;
    let content = text(&mut map, ["content", "value"])?;
    let role = match &role[..] {
        "system" => "system",
        "user" | "human" => "user",
        "assistant" | "gpt" => "assistant",
        other => {
            return Err(format!(
                "its role is \"{}\", expected system, user (human) or assistant (gpt)",
                beginning(other)
            ));
        }
    };
    // An empty system message is how some data turn a template's own one off.
    if content.trim().is_empty() && role != "system" {
        return Err("its content is empty".into());
    }
    let is_given = is_given(&mut map)?;
    Ok(Message {
        role: role.into(),
        content,
        is_given: role == "assistant" && is_given.unwrap_or(false),
    })
}

/// Whether a message says that it is not to be learned (`"weight": 0`, `"train": false` or
/// `"trainable": false`).
fn is_given(map: &mut Map<String, Value>) -> Result<Option<bool>, String> {
    let mut found = None;
    for key in ["weight", "train", "trainable"] {
        let value = map.remove(key).unwrap_or_default();
        let is_given = match (key, &value) {
            (_, Value::Null) => continue,
            ("weight", Value::Number(weight)) if weight.as_f64() == Some(0.0) => true,
            ("weight", Value::Number(weight)) if weight.as_f64() == Some(1.0) => false,
            ("train" | "trainable", Value::Bool(trains)) => !trains,
            _ => {
                let expected = if key == "weight" {
                    "0 or 1"
                } else {
                    "true or false"
                };
                let found = describe(&value);
                return Err(format!("\"{key}\" holds {found}, expected {expected}"));
            }
        };
        if found.is_some_and(|other| other != is_given) {
            return Err(format!("\"{key}\" contradicts what stands beside it"));
        }
        found = Some(is_given);
    }
    Ok(found)
}

/// The text under the first of two keys that is there.
fn text(map: &mut Map<String, Value>, keys: [&str; 2]) -> Result<String, String> {
    let found = keys.iter().find_map(|key| Some((key, map.remove(*key)?)));
    match found {
        Some((_, Value::String(text))) => Ok(text),
        Some((key, other)) => Err(format!(
            "\"{key}\" holds {}, expected a string",
            describe(&other)
        )),
        None => Err(format!("there is no \"{}\" or \"{}\"", keys[0], keys[1])),
    }
}
