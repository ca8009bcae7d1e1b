//! Chats: lists of messages.

use serde_json::{Map, Value};

use super::super::error::DataError;
use super::super::fields::{Fields, beginning, describe};
use super::super::format::FormatError;
use super::super::record::{Label, Record};
use crate::data::Message;

/// `messages` (role and content) or `conversations` (from and value).
pub(super) fn record(
    mut fields: Fields<'_>,
    column: &'static str,
    id: String,
) -> Result<Record, DataError> {
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
    let mut messages = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        messages.push(message(item).map_err(|text| problem(index + 1, text))?);
    }
    let Some(last) = messages.last() else {
        return Err(fields.wrong_type(column, &Value::Array(vec![]), "at least one message"));
    };
    if last.role != "assistant" {
        let text = format!("the last one is from {}, expected assistant", last.role);
        return Err(problem(messages.len(), text).into());
    }
    let question = messages.iter().rfind(|message| message.role == "user");
    Ok(Record {
        id,
        instruction: String::new(),
        input: question.map_or_else(String::new, |message| message.content.clone()),
        input_b: None,
        choices: Vec::new(),
        label: Label::Text,
        output: last.content.clone(),
        meta: None,
        messages,
        is_verbatim: false,
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
    Ok(Message {
        role: role.into(),
        content,
    })
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
