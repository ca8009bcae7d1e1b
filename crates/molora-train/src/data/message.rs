//! Messages of chats, and the functions that are called in them.

use std::collections::BTreeMap;

use minijinja::value::Value as TemplateValue;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

/// A message of a chat.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// What is said.
    pub content: String,
    /// Whether nothing is, and the content is null to chat templates: an assistant may only call functions.
    pub is_silent: bool,
    /// Whether an assistant's words are given, and not to be learned.
    pub is_given: bool,
    /// The functions that an assistant calls: a JSON list of objects, whose keys keep their order.
    pub tool_calls: Option<String>,
    /// What else the message says to a chat template, by their keys: `tool_call_id`, `name`, `reasoning_content`.
    pub more: BTreeMap<String, String>,
}

/// Keys of messages that chat templates read as texts: which call a tool answers, and how, and what an
/// assistant thinks before it speaks.
pub(crate) const MORE: [&str; 3] = ["tool_call_id", "name", "reasoning_content"];

impl Message {
    fn new(role: &str, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
            ..Self::default()
        }
    }

    /// A message of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// A message of the assistant.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }

    /// A message that says how a model is to behave.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// What a function has answered.
    pub fn tool(content: impl Into<String>) -> Self {
        Self::new("tool", content)
    }

    /// The message with one more text for a chat template.
    pub(super) fn with(mut self, key: &str, text: &str) -> Self {
        self.more.insert(key.into(), text.into());
        self
    }

    fn has(&self, key: &str) -> bool {
        self.more
            .get(key)
            .is_some_and(|text| !text.trim().is_empty())
    }

    /// Its bytes, about.
    pub(super) fn size(&self) -> usize {
        let calls = self.tool_calls.as_ref().map_or(0, String::len);
        self.content.len() + calls + self.more.values().map(String::len).sum::<usize>()
    }
}

/// As chat templates, and files with messages, have it.
impl Serialize for Message {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("role", &self.role)?;
        let content = (!self.is_silent).then_some(&self.content);
        map.serialize_entry("content", &content)?;
        if let Some(calls) = &self.tool_calls {
            let calls: TemplateValue =
                serde_json::from_str(calls).map_err(serde::ser::Error::custom)?;
            map.serialize_entry("tool_calls", &calls)?;
        }
        for (key, text) in &self.more {
            map.serialize_entry(key, text)?;
        }
        map.end()
    }
}

/// Messages, and the functions that an assistant may call in them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chat {
    /// The messages.
    pub messages: Vec<Message>,
    /// The functions: a JSON list of their schemas, whose keys keep their order.
    pub tools: Option<String>,
}

/// A chat without functions.
impl FromIterator<Message> for Chat {
    fn from_iter<I: IntoIterator<Item = Message>>(messages: I) -> Self {
        Self {
            messages: messages.into_iter().collect(),
            tools: None,
        }
    }
}

/// What a chat template may show beside the contents of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The functions that there are.
    Tools,
    /// The assistant's calls of functions.
    Calls,
    /// Messages of the role `tool`.
    Results,
    /// What the assistant thinks before it speaks.
    Reasoning,
    /// The names of those who speak.
    Names,
}

impl Part {
    /// As files have it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tools => "\"tools\"",
            Self::Calls => "\"tool_calls\" of messages",
            Self::Results => "messages of the role \"tool\"",
            Self::Reasoning => "\"reasoning_content\" of messages",
            Self::Names => "\"name\" of messages",
        }
    }
}

impl Chat {
    /// What the chat has beside contents.
    pub(crate) fn parts(messages: &[Message], tools: Option<&str>) -> Vec<Part> {
        let any = |has: fn(&Message) -> bool| messages.iter().any(has);
        let found = [
            (Part::Tools, tools.is_some()),
            (Part::Calls, any(|message| message.tool_calls.is_some())),
            (Part::Results, any(|message| message.role == "tool")),
            (
                Part::Reasoning,
                any(|message| message.has("reasoning_content")),
            ),
            (
                Part::Names,
                any(|message| message.role != "tool" && message.has("name")),
            ),
        ];
        let found = found.into_iter().filter(|(_, is_there)| *is_there);
        found.map(|(part, _)| part).collect()
    }
}
