//! Chats: lists of messages.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::super::error::DataError;
use super::super::fields::{Fields, beginning, describe};
use super::super::format::FormatError;
use super::super::record::Record;
use super::plain::optional;
use crate::data::Message;
use crate::data::message::MORE;

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
    let tools = tools(&mut fields)?;
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
        tools,
        ..Record::default()
    })
}

/// The functions that may be called in a chat, in the column `tools`: a list of objects, or its JSON text.
pub(in super::super) fn tools(fields: &mut Fields<'_>) -> Result<Option<String>, DataError> {
    let found = fields.take_or_null("tools");
    let list = json_list(&found).map_err(|()| {
        fields.wrong_type(
            "tools",
            &found,
            "a list of functions, each an object, or its JSON text",
        )
    })?;
    Ok(list)
}

/// The JSON text of a list of objects, which may be given as such; none of null and an empty list.
fn json_list(value: &Value) -> Result<Option<String>, ()> {
    let text = match value {
        Value::Null => return Ok(None),
        Value::String(text) if text.trim().is_empty() => return Ok(None),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    };
    let list: Vec<Value> = serde_json::from_str(&text).map_err(drop)?;
    match list.iter().all(Value::is_object) {
        true => Ok((!list.is_empty()).then_some(text)),
        false => Err(()),
    }
}

fn message(item: Value) -> Result<Message, String> {
    let Value::Object(mut map) = item else {
        return Err(format!("found {}, expected an object", describe(&item)));
    };
    let role = text(&mut map, ["role", "from"])?;
    let role = match &role[..] {
        "system" => "system",
        "user" | "human" => "user",
        "assistant" | "gpt" => "assistant",
        "tool" => "tool",
        other => {
            return Err(format!(
                "its role is \"{}\", expected system, user (human), assistant (gpt) or tool",
                beginning(other)
            ));
        }
    };
    let calls = map.remove("tool_calls").unwrap_or_default();
    let tool_calls = json_list(&calls).map_err(|()| {
        let found = describe(&calls);
        format!("\"tool_calls\" holds {found}, expected a list of calls, each an object")
    })?;
    if tool_calls.is_some() && role != "assistant" {
        return Err(format!(
            "it has \"tool_calls\", but its role is {role}, expected assistant"
        ));
    }
    // Who calls a function may say nothing beside.
    let is_there = |key: &str| map.get(key).is_some_and(|value| !value.is_null());
    let is_silent = tool_calls.is_some() && !is_there("content") && !is_there("value");
    let content = match is_silent {
        true => String::new(),
        false => text(&mut map, ["content", "value"])?,
    };
    // An empty system message is how some data turn a template's own one off, and a function may answer
    // nothing.
    let may_be_empty = ["system", "tool"].contains(&role) || tool_calls.is_some();
    if content.trim().is_empty() && !may_be_empty {
        return Err("its content is empty".into());
    }
    let is_given = is_given(&mut map)?;
    Ok(Message {
        role: role.into(),
        content,
        is_silent,
        is_given: role == "assistant" && is_given.unwrap_or(false),
        tool_calls,
        more: more(&mut map)?,
    })
}

/// What a message says to chat templates beside its content.
fn more(map: &mut Map<String, Value>) -> Result<BTreeMap<String, String>, String> {
    let mut more = BTreeMap::new();
    for key in MORE {
        match map.remove(key).unwrap_or_default() {
            Value::Null => {}
            Value::String(text) => drop(more.insert(key.to_owned(), text)),
            other => {
                let found = describe(&other);
                return Err(format!("\"{key}\" holds {found}, expected a string"));
            }
        }
    }
    Ok(more)
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
