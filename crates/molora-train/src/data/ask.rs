//! A prompt for a language model.

use std::path::Path;

use serde_json::Value;

use super::Chat;
use super::error::{At, DataError, Place};
use super::fields::Fields;
use super::format::{FormatError, parse_lines};
use super::schema::{messages, tools};

/// A prompt for a language model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// A text.
    Text(String),
    /// A chat, which the model's chat template frames; the assistant has the next message.
    Chat(Chat),
}

impl Prompt {
    /// What routers read that go by the whole text: the text, or what the user has said last.
    pub fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Chat(chat) => {
                let last = chat.messages.iter().rfind(|message| message.role == "user");
                last.map_or("", |message| &message.content)
            }
        }
    }
}

/// Reads prompts from the lines of a text, which are texts as they stand or, if `is_json`, objects with a
/// `prompt` (a text) or `messages` (a list of messages with role and content) and perhaps `tools` beside
/// them (a list of functions); `path` is named in errors.
///
/// # Errors
/// The first line that is no prompt, or a text without any line.
pub fn parse_prompts(text: &str, path: &Path, is_json: bool) -> Result<Vec<Prompt>, DataError> {
    let prompts: Vec<Prompt> = match is_json {
        true => {
            let rows = parse_lines(text.as_bytes(), path)?;
            let prompts = rows
                .iter()
                .map(|row| prompt(Fields::new(row.columns.clone(), &row.place)));
            prompts.collect::<Result<_, _>>()?
        }
        false => {
            let line = |(index, line): (usize, &str)| match line.trim().is_empty() {
                false => Ok(Prompt::Text(line.to_owned())),
                true => Err(DataError::BlankLine {
                    place: Place::new(path, At::Line(index + 1)),
                }),
            };
            let lines = text.trim_end().lines().enumerate();
            lines.map(line).collect::<Result<_, _>>()?
        }
    };
    match prompts.is_empty() {
        true => Err(DataError::EmptySplit { path: path.into() }),
        false => Ok(prompts),
    }
}

fn prompt(mut fields: Fields<'_>) -> Result<Prompt, DataError> {
    let has = |name: &str| fields.map.get(name).is_some_and(|value| !value.is_null());
    let (has_prompt, has_messages) = (has("prompt"), has("messages"));
    if has_prompt && has_messages {
        let found = Value::from("one with messages beside it");
        return Err(fields.wrong_type("prompt", &found, "one of prompt and messages"));
    }
    if !has_prompt && !has_messages {
        return Err(FormatError::MissingColumn {
            place: fields.place.clone(),
            column: "prompt".into(),
            found: fields.map.keys().cloned().collect(),
            reason: ", expected prompt or messages",
        }
        .into());
    }
    if has_prompt {
        return Ok(Prompt::Text(fields.string("prompt")?));
    }
    let found = messages(&mut fields, "messages")?;
    match found.last() {
        Some(last) if last.role == "assistant" => {
            let role = Value::from("a chat whose last message is the assistant's");
            Err(fields.wrong_type("messages", &role, "one that the assistant is to answer"))
        }
        _ => Ok(Prompt::Chat(Chat {
            messages: found,
            tools: tools(&mut fields)?,
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Message;

    fn read(text: &str, is_json: bool) -> Result<Vec<Prompt>, String> {
        parse_prompts(text, Path::new("p"), is_json).map_err(|error| error.to_string())
    }

    #[test]
    fn lines_are_texts_and_objects_texts_or_chats() {
        let text = |text: &str| Prompt::Text(text.into());
        assert_eq!(read("a\n{}\n", false), Ok(vec![text("a"), text("{}")]));
        let chat = r#"{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}"#;
        let lines = format!("{{\"prompt\": \"a\"}}\n{chat}\n");
        let found = read(&lines, true).expect("two prompts");
        assert_eq!(found[0], text("a"));
        assert_eq!(
            found[1],
            Prompt::Chat(
                [Message::system("s"), Message::user("u")]
                    .into_iter()
                    .collect()
            )
        );
        assert_eq!(found[1].text(), "u");
    }

    #[test]
    fn a_chat_may_end_with_what_a_function_answered() {
        let line = r#"{"tools": [{"type": "function", "function": {"name": "add"}}], "messages": [
            {"role": "user", "content": "1 + 1?"},
            {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "add"}}]},
            {"role": "tool", "content": "2", "tool_call_id": "x"}]}"#;
        let found = read(&line.replace('\n', ""), true).expect("a chat");
        let Prompt::Chat(chat) = &found[0] else {
            panic!("messages are a chat");
        };
        let tools = r#"[{"type":"function","function":{"name":"add"}}]"#;
        assert_eq!(chat.tools.as_deref(), Some(tools));
        let calls = r#"[{"function":{"name":"add"}}]"#;
        assert_eq!(chat.messages[1].tool_calls.as_deref(), Some(calls));
        assert_eq!(chat.messages[2].more["tool_call_id"], "x");
        assert_eq!(found[0].text(), "1 + 1?");
        let error = read(
            r#"{"messages": [{"role": "user", "content": "a"}], "tools": "add"}"#,
            true,
        );
        assert!(
            error
                .expect_err("no list")
                .starts_with("p:1: key \"tools\" holds the string")
        );
    }

    #[test]
    fn what_is_no_prompt_is_named_with_its_line() {
        for (text, is_json, expected) in [
            ("", false, "p: holds no records"),
            ("a\n\nb", false, "p:2: blank line"),
            (
                "{\"text\": \"a\"}",
                true,
                "p:1: there is no column \"prompt\", found text, expected prompt or messages",
            ),
            ("{\"messages\": []}", true, "p:1: "),
            (
                r#"{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}"#,
                true,
                "p:1: key \"prompt\" holds the string",
            ),
            (
                r#"{"messages": [{"role": "assistant", "content": "a"}]}"#,
                true,
                "p:1: ",
            ),
        ] {
            let error = read(text, is_json).expect_err("no prompt");
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
