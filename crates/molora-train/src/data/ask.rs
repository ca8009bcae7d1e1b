//! What a language model is asked to go on with.

use std::path::Path;

use serde_json::Value;

use super::Message;
use super::error::{At, DataError, Place};
use super::fields::Fields;
use super::format::{FormatError, parse_lines};
use super::schema::messages;

/// What a model is asked to go on with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// A text.
    Text(String),
    /// The messages of a chat, which the model's chat template frames; the assistant has the next one.
    Chat(Vec<Message>),
}

impl Prompt {
    /// What routers read that go by the whole text: the text, or what the user has said last.
    pub fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Chat(messages) => {
                let last = messages.iter().rfind(|message| message.role == "user");
                last.map_or("", |message| &message.content)
            }
        }
    }
}

/// Reads prompts from the lines of a text, which are texts as they stand or, if `is_json`, objects with a
/// `prompt` (a text) or `messages` (a list of messages with role and content); `path` is named in
/// errors.
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
    if has_prompt == has_messages {
        return Err(FormatError::MissingColumn {
            place: fields.place.clone(),
            column: "prompt".into(),
            found: fields.map.keys().cloned().collect(),
            reason: match has_prompt {
                true => ", expected one of prompt and messages",
                false => ", expected prompt or messages",
            },
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
        _ => Ok(Prompt::Chat(found)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            Prompt::Chat(vec![Message::system("s"), Message::user("u")])
        );
        assert_eq!(found[1].text(), "u");
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
